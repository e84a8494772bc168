//! From words to commands.
//!
//! ```text
//! block   := command*
//! command := if block; then block; (elif block; then block;)* (else block;)? fi
//!          | for name in word*; do block; done
//!          | (while|until) block; do block; done
//!          | function name { block }
//!          | word+ ({ block })?            menuentry and submenu take a block
//! ```

use std::rc::Rc;

use super::ScriptError;
use super::lexer::{Located, Part, Token, Word, tokens};

/// Commands in order.
pub(super) type Block = Rc<[Command]>;

#[derive(Debug)]
pub(super) enum Command {
    Simple {
        words: Vec<Word>,
        block: Option<Block>,
    },
    If {
        /// Condition and what to do when its last command succeeds.
        branches: Vec<(Block, Block)>,
        otherwise: Block,
    },
    For {
        variable: String,
        words: Vec<Word>,
        body: Block,
    },
    While {
        condition: Block,
        /// `until`: goes on as long as the condition fails.
        until: bool,
        body: Block,
    },
    Function {
        name: String,
        body: Block,
    },
}

/// Blocks within blocks. Generated files have four.
const MAX_DEPTH: u32 = 32;

/// Parses a whole file.
pub(super) fn parse(text: &str) -> Result<Block, ScriptError> {
    let mut parser = Parser { tokens: tokens(text), at: 0, depth: 0 };
    let block = parser.block(&[])?;
    match parser.tokens.get(parser.at) {
        None => Ok(block),
        Some((_, line)) => Err(ScriptError::Syntax { line: *line }),
    }
}

struct Parser {
    tokens: Vec<Located>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn line(&self) -> u32 {
        let last = self.tokens.last();
        let here = self.tokens.get(self.at).or(last);
        here.map_or(1, |(_, line)| *line)
    }

    fn syntax<T>(&self) -> Result<T, ScriptError> {
        Err(ScriptError::Syntax { line: self.line() })
    }

    fn peek_bare(&self) -> Option<&str> {
        match self.tokens.get(self.at)? {
            (Token::Word(word), _) => word.bare(),
            (Token::End, _) => None,
        }
    }

    fn skip_ends(&mut self) {
        while matches!(self.tokens.get(self.at), Some((Token::End, _))) {
            self.at += 1;
        }
    }

    fn expect(&mut self, keyword: &str) -> Result<(), ScriptError> {
        self.skip_ends();
        if self.peek_bare() != Some(keyword) {
            return self.syntax();
        }
        self.at += 1;
        Ok(())
    }

    /// Commands up to one of the keywords in `ends`, which is left in place.
    fn block(&mut self, ends: &[&str]) -> Result<Block, ScriptError> {
        if self.depth >= MAX_DEPTH {
            return Err(ScriptError::TooDeep);
        }
        self.depth += 1;
        let mut commands = Vec::new();
        loop {
            self.skip_ends();
            if self.at >= self.tokens.len() {
                break;
            }
            if self.peek_bare().is_some_and(|word| ends.contains(&word)) {
                break;
            }
            commands.push(self.command()?);
        }
        self.depth -= 1;
        Ok(commands.into())
    }

    fn command(&mut self) -> Result<Command, ScriptError> {
        match self.peek_bare() {
            Some("if") => self.conditional(),
            Some("for") => self.for_loop(),
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                self.at += 1;
                let condition = self.block(&["do"])?;
                self.expect("do")?;
                let body = self.block(&["done"])?;
                self.expect("done")?;
                Ok(Command::While { condition, until, body })
            }
            Some("function") => {
                self.at += 1;
                let Some(name) = self.peek_bare().map(str::to_owned) else {
                    return self.syntax();
                };
                self.at += 1;
                self.expect("{")?;
                let body = self.block(&["}"])?;
                self.expect("}")?;
                Ok(Command::Function { name, body })
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done" | "}" | "{") => self.syntax(),
            _ => self.simple(),
        }
    }

    fn conditional(&mut self) -> Result<Command, ScriptError> {
        let mut branches = Vec::new();
        let mut otherwise = Block::from([]);
        // Stands on `if` or `elif`.
        loop {
            self.at += 1;
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            let body = self.block(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            match self.peek_bare() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    otherwise = self.block(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi")?;
        Ok(Command::If { branches, otherwise })
    }

    fn for_loop(&mut self) -> Result<Command, ScriptError> {
        self.at += 1;
        let Some(variable) = self.peek_bare().map(str::to_owned) else {
            return self.syntax();
        };
        self.at += 1;
        self.expect("in")?;
        let words = self.words();
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(Command::For { variable, words, body })
    }

    /// Words up to the end of the line.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some((Token::Word(word), _)) = self.tokens.get(self.at) {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn simple(&mut self) -> Result<Command, ScriptError> {
        let mut words = Vec::new();
        while let Some((Token::Word(word), _)) = self.tokens.get(self.at) {
            if word.bare() == Some("{") {
                self.at += 1;
                let block = self.block(&["}"])?;
                self.expect("}")?;
                let block = Some(block);
                return Ok(Command::Simple { words, block });
            }
            words.push(word.clone());
            self.at += 1;
        }
        if words.iter().all(|word| word.0.is_empty()) {
            words.push(Word(vec![Part::Literal { text: "true".to_owned(), quoted: true }]));
        }
        let block = None;
        Ok(Command::Simple { words, block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_nest() {
        let block = parse(
            "if [ a = b ] ; then\n x\nelif y; then z; else\nfunction f {\n g\n}\nfi\n\
             menuentry 'A' --class b { linux /k\n}\nfor i in 1 2; do echo $i; done",
        )
        .unwrap();
        assert!(matches!(
            &block[..],
            [
                Command::If { branches, otherwise },
                Command::Simple { words, block: Some(body) },
                Command::For { words: list, .. },
            ] if branches.len() == 2 && otherwise.len() == 1 && words.len() == 4
                && body.len() == 1 && list.len() == 2
        ));
    }

    #[test]
    fn unbalanced_text_names_its_line() {
        for (text, line) in [("a\nfi\n", 2), ("if a; then\nb\n", 2), ("menuentry x {\n\n", 2)] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, ScriptError::Syntax { line: found } if found == line), "{text}: {error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = "if a; then\n".repeat(100_000);
        assert!(matches!(parse(&text), Err(ScriptError::TooDeep)));
        let text = "a { ".repeat(100_000);
        assert!(matches!(parse(&text), Err(ScriptError::TooDeep)));
    }
}
