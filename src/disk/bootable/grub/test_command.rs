//! `test` and `[` (GRUB manual §16.3.81).
//!
//! ```text
//! or      := and (-o and)*
//! and     := primary (-a primary)*
//! primary := ! primary | ( or ) | -n s | -z s | -e f | -f f | -d f | -s f | s OP s | s
//! ```

use super::super::filesystem::NodeKind;

/// What the tests on files ask.
pub(super) trait Files {
    /// Kind and size (of files) of what a GRUB path names.
    fn look_up(&self, path: &str) -> Option<(NodeKind, u64)>;
}

/// Evaluates the words between `[` and `]`. Nonsense is false.
pub(super) fn evaluate(words: &[String], files: &dyn Files) -> bool {
    let mut parser = Parser { words, files, depth: 0 };
    let value = parser.or();
    value.unwrap_or(false) && parser.words.is_empty()
}

const MAX_DEPTH: u32 = 32;

struct Parser<'a> {
    words: &'a [String],
    files: &'a dyn Files,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first().is_some_and(|first| first == word);
        if found {
            self.next();
        }
        found
    }

    fn or(&mut self) -> Option<bool> {
        let mut value = self.and()?;
        while self.take("-o") {
            // Both sides are always read: the words must be used up.
            value |= self.and()?;
        }
        Some(value)
    }

    fn and(&mut self) -> Option<bool> {
        let mut value = self.primary()?;
        while self.take("-a") {
            value &= self.primary()?;
        }
        Some(value)
    }

    fn primary(&mut self) -> Option<bool> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let value = self.unbounded_primary();
        self.depth -= 1;
        value
    }

    fn unbounded_primary(&mut self) -> Option<bool> {
        // A comparison first: `[ ! = x ]` and `[ -n = x ]` compare.
        if let [left, operator, right, rest @ ..] = self.words
            && let Some(value) = compare(left, operator, right)
        {
            self.words = rest;
            return Some(value);
        }
        match self.next()? {
            "!" => self.primary().map(|value| !value),
            "(" => {
                let value = self.or()?;
                self.take(")").then_some(value)
            }
            "-n" if !self.words.is_empty() => self.next().map(|word| !word.is_empty()),
            "-z" if !self.words.is_empty() => self.next().map(str::is_empty),
            "-e" if !self.words.is_empty() => self.file(|_, _| true),
            "-f" if !self.words.is_empty() => self.file(|kind, _| kind == NodeKind::File),
            "-d" if !self.words.is_empty() => self.file(|kind, _| kind == NodeKind::Directory),
            "-s" if !self.words.is_empty() => self.file(|_, size| size > 0),
            word => Some(!word.is_empty()),
        }
    }

    fn file(&mut self, holds: impl FnOnce(NodeKind, u64) -> bool) -> Option<bool> {
        let path = self.next()?;
        let found = self.files.look_up(path);
        Some(found.is_some_and(|(kind, size)| holds(kind, size)))
    }
}

/// `None` if `operator` is none.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    // As strtol: leading digits, 0 if there are none.
    let number = |text: &str| {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let digits = digits.get(..end).unwrap_or_default();
        sign * digits.parse::<i64>().unwrap_or(0)
    };
    let ordering = || number(left).cmp(&number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => ordering().is_eq(),
        "-ne" => ordering().is_ne(),
        "-lt" => ordering().is_lt(),
        "-le" => ordering().is_le(),
        "-gt" => ordering().is_gt(),
        "-ge" => ordering().is_ge(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OneFile;

    impl Files for OneFile {
        fn look_up(&self, path: &str) -> Option<(NodeKind, u64)> {
            match path {
                "/file" => Some((NodeKind::File, 3)),
                "/empty" => Some((NodeKind::File, 0)),
                "/dir" => Some((NodeKind::Directory, 0)),
                _ => None,
            }
        }
    }

    fn holds(text: &str) -> bool {
        let words: Vec<_> = text.split(' ').map(|w| w.replace('\'', "")).collect();
        evaluate(&words, &OneFile)
    }

    #[test]
    fn expressions_have_their_values() {
        for text in [
            "a = a",
            "a == a",
            "a != b",
            "a < b",
            "3 -eq 03",
            "-2 -lt 1",
            "10 -gt 9",
            "x",
            "-n x",
            "-z ''",
            "! -z x",
            "-e /dir",
            "-f /file",
            "-d /dir",
            "-s /file",
            "! -s /empty",
            "-f /no -o -f /file",
            "x -a ( '' -o y )",
            "! = !",
            "-n = -n",
            "-n",
            "! '' = a",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "a = b",
            "a != a",
            "''",
            "-n ''",
            "-z x",
            "-e /no",
            "-f /dir",
            "-d /file",
            "x -a ''",
            "( x",
            "x y",
            "-f /file -a -f /no",
            "9 -gt 10",
            "!",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_false() {
        assert!(!holds(&format!("{}x", "! ".repeat(50_000))));
        assert!(!holds(&format!("{}x", "( ".repeat(50_000))));
    }
}
