//! OpenSSH public keys, one line each (`sshd(8)`, AUTHORIZED_KEYS FILE FORMAT).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Longest accepted line. An RSA key of 16384 bits needs under 3 KiB.
const MAX_LINE: usize = 8192;

/// Key types that current OpenSSH accepts. DSA is gone since 9.8.
const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A public key line without options: type, base64 blob, optional comment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshPublicKey {
    algorithm: String,
    blob: String,
    comment: String,
}

/// Why a line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSshKeyError {
    /// A private key, of all things.
    #[error("this is a private key; give the public one (the file that ends in .pub)")]
    Private,
    /// Empty input.
    #[error("there is no key in it")]
    Empty,
    /// More than one key.
    #[error("it holds more than one line; give one key")]
    SeveralLines,
    /// Longer than any key.
    #[error("a line of {0} bytes is too long for a public key")]
    TooLong(usize),
    /// Not a known key type.
    #[error("it does not start with an OpenSSH key type such as ssh-ed25519 or ssh-rsa")]
    Algorithm,
    /// The second field is not base64, or says another type than the first.
    #[error("its key data are damaged")]
    Damaged,
    /// Control characters.
    #[error("it holds control characters")]
    ControlCharacter,
}

impl SshPublicKey {
    /// Such as `ssh-ed25519`.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// Whether it is the same key, whatever the comments say.
    pub fn is_same_key(&self, other: &SshPublicKey) -> bool {
        (&self.algorithm, &self.blob) == (&other.algorithm, &other.blob)
    }

    /// What follows the key on its line; may be empty.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

/// A key is more than its type: one further field at least must follow.
fn inner_algorithm(blob: &[u8]) -> Option<&[u8]> {
    let (len, rest) = blob.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    (rest.len() > 4).then_some(name)
}

impl FromStr for SshPublicKey {
    type Err = ParseSshKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("PRIVATE KEY-----") {
            return Err(ParseSshKeyError::Private);
        }
        let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let line = lines.next().ok_or(ParseSshKeyError::Empty)?;
        if lines.next().is_some() {
            return Err(ParseSshKeyError::SeveralLines);
        }
        if line.len() > MAX_LINE {
            return Err(ParseSshKeyError::TooLong(line.len()));
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(ParseSshKeyError::ControlCharacter);
        }
        let mut fields = line.splitn(3, [' ', '\t']);
        let first = fields.next().unwrap_or_default();
        let algorithm =
            ALGORITHMS.contains(&first).then(|| first.to_owned()).ok_or(ParseSshKeyError::Algorithm)?;
        let blob = fields.next().unwrap_or_default();
        let bytes = STANDARD.decode(blob).map_err(|_| ParseSshKeyError::Damaged)?;
        if inner_algorithm(&bytes) != Some(algorithm.as_bytes()) {
            return Err(ParseSshKeyError::Damaged);
        }
        let comment = fields.next().unwrap_or_default().trim().replace('\t', " ");
        Ok(SshPublicKey { algorithm, blob: blob.to_owned(), comment })
    }
}

impl fmt::Display for SshPublicKey {
    /// The line as `authorized_keys` wants it, without line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, self.blob)?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " {}", self.comment) }
    }
}

impl TryFrom<String> for SshPublicKey {
    type Error = ParseSshKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SshPublicKey> for String {
    fn from(key: SshPublicKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@host";

    #[test]
    fn good_line_round_trips_with_and_without_comment() {
        let key: SshPublicKey = format!("# mine\n{KEY}\n\n").parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        assert_eq!((key.algorithm(), key.comment()), ("ssh-ed25519", "me@host"));
        let bare = KEY.trim_end_matches(" me@host");
        assert_eq!(bare.parse::<SshPublicKey>().unwrap().to_string(), bare);
    }

    #[test]
    fn bad_lines_name_their_fault() {
        use ParseSshKeyError as E;
        let blob = KEY.split(' ').nth(1).unwrap();
        for (text, error) in [
            (String::new(), E::Empty),
            ("\n# only a comment\n".to_owned(), E::Empty),
            (format!("{KEY}\n{KEY}"), E::SeveralLines),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb\n".to_owned(), E::Private),
            (format!("no-pty {KEY}"), E::Algorithm),
            ("hello".to_owned(), E::Algorithm),
            ("ssh-ed25519".to_owned(), E::Damaged),
            ("ssh-ed25519 !!!!".to_owned(), E::Damaged),
            ("ssh-ed25519 AAAA".to_owned(), E::Damaged),
            (format!("ssh-rsa {blob}"), E::Damaged),
            (format!("ssh-ed25519 {}", blob.get(..24).unwrap()), E::Damaged),
            (format!("{KEY} \x1b]0;"), E::ControlCharacter),
            (format!("{KEY}{}", "x".repeat(9000)), E::TooLong(KEY.len() + 9000)),
        ] {
            assert_eq!(text.parse::<SshPublicKey>(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_is_refused_or_canonical(text in "(ssh-rsa|ssh-ed25519) [A-Za-z0-9+/=]{0,80}( .{0,10})?|.{0,60}") {
            if let Ok(key) = text.parse::<SshPublicKey>() {
                prop_assert_eq!(key.to_string().parse::<SshPublicKey>(), Ok(key));
            }
        }
    }
}
