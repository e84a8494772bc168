//! Patterns with `*` (any characters) and `?` (any one), as filters and policies have them.

/// A pattern, ready to be matched in time linear in pattern times text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Literal(char),
    One,
    Any,
}

impl Wildcard {
    /// A pattern of a policy: every `*` and `?` is one.
    pub fn new(pattern: &str) -> Self {
        Wildcard(pattern.chars().map(Part::of).collect())
    }

    /// A pattern of a filter: a backslash takes the next character as it is.
    pub fn with_escapes(pattern: &str) -> Self {
        let mut parts = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '\\' => Part::Literal(chars.next().unwrap_or('\\')),
                other => Part::of(other),
            });
        }
        Wildcard(parts)
    }

    /// Whether the whole of `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut from) = (0, 0);
        // Where to go on when a literal fails: behind the last `*`, with one more character in it.
        let mut retry: Option<(usize, usize)> = None;
        while from < text.len() {
            let fits = match (self.0.get(at), text.get(from)) {
                (Some(Part::Any), _) => {
                    retry = Some((at + 1, from));
                    at += 1;
                    continue;
                }
                (Some(Part::One), _) => true,
                (Some(Part::Literal(a)), Some(b)) => a == b,
                _ => false,
            };
            match (fits, retry) {
                (true, _) => (at, from) = (at + 1, from + 1),
                (false, Some((again, taken))) => {
                    (at, from) = (again, taken + 1);
                    retry = Some((again, taken + 1));
                }
                (false, None) => return false,
            }
        }
        self.0.iter().skip(at).all(|part| *part == Part::Any)
    }
}

impl Part {
    fn of(c: char) -> Self {
        match c {
            '*' => Part::Any,
            '?' => Part::One,
            other => Part::Literal(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_stand_for_characters() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*b*b", "abcb", true),
            ("a?c", "abc", true),
            ("web-??-*", "web-01-", true),
            ("**a**", "bab", true),
            ("ä*", "äb", true),
        ] {
            assert_eq!(Wildcard::new(pattern).matches(text), fits, "{pattern} {text}");
        }
        assert!(Wildcard::with_escapes(r"a\*\\").matches(r"a*\"));
        assert!(!Wildcard::with_escapes(r"a\*").matches("ab"));
        assert!(Wildcard::new(r"a\*").matches(r"a\b"));
    }

    #[test]
    fn hostile_pattern_takes_no_exponential_time() {
        let pattern = "*a".repeat(200) + "b";
        assert!(!Wildcard::new(&pattern).matches(&"a".repeat(2000)));
    }
}
