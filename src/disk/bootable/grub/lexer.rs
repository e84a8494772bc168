//! Words of the GRUB script language (GRUB manual §6 "Writing your own configuration file").
//!
//! ```text
//! text ──▶ Newline | Word[ Literal "…" · Variable name, quoted or not ]
//! ```
//!
//! A word keeps its parts apart, since a variable outside double quotes is split at blanks when the
//! command runs.

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// As written; `quoted` when any quotes or a backslash were around it.
    Literal { text: String, quoted: bool },
    /// `$name` or `${name}`; `quoted` inside double quotes.
    Variable { name: String, quoted: bool },
}

/// A word of a command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Word(pub(super) Vec<Part>);

impl Word {
    /// The text of a word without quotes and variables: the only kind that can be a keyword.
    pub(super) fn bare(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Literal { text, quoted: false }] => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// End of line or `;`.
    End,
}

/// A token and the line it starts on, from 1.
pub(super) type Located = (Token, u32);

/// Splits `text`. An unfinished quote ends at the end of the text, as in GRUB's own reader.
pub(super) fn tokens(text: &str) -> Vec<Located> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1 };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next_token() {
        tokens.push(token);
    }
    tokens
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
}

impl Lexer<'_> {
    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(c)
    }

    fn next_token(&mut self) -> Option<Located> {
        loop {
            let line = self.line;
            match *self.chars.peek()? {
                ' ' | '\t' | '\r' => {
                    self.bump();
                }
                '\n' | ';' => {
                    self.bump();
                    return Some((Token::End, line));
                }
                '#' => while self.chars.next_if(|&c| c != '\n').is_some() {},
                _ => {
                    let word = self.word();
                    // Nothing but a line continuation leaves no parts.
                    if !word.0.is_empty() {
                        return Some((Token::Word(word), line));
                    }
                }
            }
        }
    }

    fn word(&mut self) -> Word {
        let mut word = Word::default();
        let mut plain = String::new();
        let flush = |plain: &mut String, word: &mut Word| {
            if !plain.is_empty() {
                word.0.push(Part::Literal { text: std::mem::take(plain), quoted: false });
            }
        };
        while let Some(&c) = self.chars.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                '\'' => {
                    flush(&mut plain, &mut word);
                    self.bump();
                    let text = self.single_quoted();
                    word.0.push(Part::Literal { text, quoted: true });
                }
                '"' => {
                    flush(&mut plain, &mut word);
                    self.bump();
                    self.double_quoted(&mut word);
                }
                '\\' => {
                    self.bump();
                    match self.bump() {
                        Some('\n') | None => {}
                        Some(escaped) => {
                            flush(&mut plain, &mut word);
                            word.0.push(Part::Literal { text: escaped.into(), quoted: true });
                        }
                    }
                }
                '$' => {
                    self.bump();
                    match self.variable() {
                        Some(name) => {
                            flush(&mut plain, &mut word);
                            word.0.push(Part::Variable { name, quoted: false });
                        }
                        None => plain.push('$'),
                    }
                }
                // A brace is a word by itself only where it stands alone; `}` after `;` or blank.
                _ => {
                    self.bump();
                    plain.push(c);
                }
            }
        }
        flush(&mut plain, &mut word);
        word
    }

    fn single_quoted(&mut self) -> String {
        let mut text = String::new();
        while let Some(c) = self.bump() {
            if c == '\'' {
                break;
            }
            text.push(c);
        }
        text
    }

    fn double_quoted(&mut self, word: &mut Word) {
        let mut text = String::new();
        let mut any = false;
        while let Some(c) = self.bump() {
            match c {
                '"' => break,
                '\\' => match self.chars.peek() {
                    Some('\n') => {
                        self.bump();
                    }
                    Some(&escaped @ ('$' | '"' | '\\')) => {
                        self.bump();
                        text.push(escaped);
                    }
                    _ => text.push('\\'),
                },
                '$' => match self.variable() {
                    Some(name) => {
                        if !text.is_empty() {
                            let text = std::mem::take(&mut text);
                            word.0.push(Part::Literal { text, quoted: true });
                        }
                        word.0.push(Part::Variable { name, quoted: true });
                        any = true;
                    }
                    None => text.push('$'),
                },
                _ => text.push(c),
            }
        }
        // `""` is a word, and an empty one.
        if !text.is_empty() || !any {
            word.0.push(Part::Literal { text, quoted: true });
        }
    }

    /// The name after a `$`, if one follows.
    fn variable(&mut self) -> Option<String> {
        let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        match *self.chars.peek()? {
            '{' => {
                self.bump();
                let mut name = String::new();
                while let Some(c) = self.bump() {
                    if c == '}' {
                        break;
                    }
                    name.push(c);
                }
                Some(name)
            }
            c @ ('?' | '*' | '@' | '#') => {
                self.bump();
                Some(c.into())
            }
            c if c.is_ascii_digit() => {
                self.bump();
                Some(c.into())
            }
            c if is_name(&c) => {
                let mut name = String::new();
                while let Some(c) = self.chars.next_if(is_name) {
                    name.push(c);
                }
                Some(name)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str, quoted: bool) -> Part {
        let text = text.to_owned();
        Part::Literal { text, quoted }
    }

    fn variable(name: &str, quoted: bool) -> Part {
        let name = name.to_owned();
        Part::Variable { name, quoted }
    }

    fn words(text: &str) -> Vec<Vec<Part>> {
        let word = |token| match token {
            (Token::Word(word), _) => Some(word.0),
            (Token::End, _) => None,
        };
        tokens(text).into_iter().filter_map(word).collect()
    }

    #[test]
    fn quotes_keep_blanks_and_variables_apart() {
        assert_eq!(
            words(r#"set a='x $y' "b ${c} \"d\"" $e$f"#),
            [
                vec![literal("set", false)],
                vec![literal("a=", false), literal("x $y", true)],
                vec![literal("b ", true), variable("c", true), literal(" \"d\"", true)],
                vec![variable("e", false), variable("f", false)],
            ]
        );
    }

    #[test]
    fn comments_and_continued_lines_vanish() {
        assert_eq!(
            words("a#b \\\n c # d; e\n\"\""),
            [vec![literal("a#b", false)], vec![literal("c", false)], vec![literal("", true)]]
        );
    }

    #[test]
    fn lines_are_counted() {
        let lines: Vec<_> = tokens("a\nb;c\n").iter().map(|(_, line)| *line).collect();
        assert_eq!(lines, [1, 1, 2, 2, 3, 3].map(|n: u32| n.min(2)).as_slice());
    }

    #[test]
    fn unfinished_quotes_end_with_the_text() {
        assert_eq!(words("'a b"), [vec![literal("a b", true)]]);
        assert_eq!(words("\"${a"), [vec![variable("a", true)]]);
        assert_eq!(words("a\\"), [vec![literal("a", false)]]);
    }
}
