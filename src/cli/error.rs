//! Errors as a person sees them: one line, `kiln: what is wrong: why (what to do)`.

use std::error::Error;
use std::process::ExitCode;

use kiln_controlplane::printable;

/// An error on its way to standard error.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

/// Wrong usage, as most programs have it.
const USAGE: u8 = 2;

impl Failure {
    /// A message of our own.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 1 }
    }

    /// What clap has to say, in one line.
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        // The first paragraph says what is wrong, tips say what was meant; the rest is usage.
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
        let joined = lines.collect::<Vec<_>>().join(" ");
        let message = joined.strip_prefix("error: ").unwrap_or(&joined).to_owned();
        Failure { message: format!("{message} (see kiln --help)"), code: USAGE }
    }

    /// Prints the line; answers the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("kiln: {}", one_line(&self.message));
        ExitCode::from(self.code)
    }
}

/// Messages carry names from images, guests and arguments.
fn one_line(message: &str) -> String {
    message.lines().map(|line| printable_long(line.trim())).collect::<Vec<_>>().join(" ")
}

/// Like [`printable`], for text that we composed and that may be longer than a name.
fn printable_long(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(100).map(|piece| printable(&piece.iter().collect::<String>())).collect()
}

impl<E: Error + 'static> From<E> for Failure {
    /// The error with its causes.
    fn from(error: E) -> Self {
        let mut parts: Vec<String> = Vec::new();
        let mut next: Option<&dyn Error> = Some(&error);
        while let Some(cause) = next {
            next = cause.source();
            let text = cause.to_string();
            // Wrappers that repeat their cause add nothing.
            if parts.last().is_none_or(|last| !last.ends_with(&text)) {
                parts.push(text);
            }
        }
        Failure::new(parts.join(": "))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow_in_one_line() {
        let failure = Failure::from(Outer(io::Error::other("disk\nis\x1b[31m full")));
        assert_eq!(failure.message, "cannot do it: disk\nis\x1b[31m full");
        assert_eq!(one_line(&failure.message), "cannot do it: disk is?[31m full");
        let long = "x".repeat(1000);
        assert_eq!(one_line(&long), long);
    }

    #[test]
    fn usage_errors_become_one_line() {
        use clap::Parser;
        let error = crate::args::Cli::try_parse_from(["kiln", "run", "x", "--memory", "lots"]).unwrap_err();
        let failure = Failure::usage(&error);
        assert!(
            failure.message.contains("invalid value 'lots' for '--memory <SIZE>'"),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains('\n') && !failure.message.contains("Usage"), "{}", failure.message);
        let error = crate::args::Cli::try_parse_from(["kiln", "run", "x", "--memry", "1"]).unwrap_err();
        assert!(Failure::usage(&error).message.contains("--memory"), "{}", Failure::usage(&error).message);
    }
}
