//! Tags: a person's own names on resources.

use serde::{Deserialize, Serialize};

/// Key and value. The key is 1 to 128 characters and does not start with `aws:`; the value has at
/// most 256 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Tag {
    key: String,
    value: String,
}

/// Why a tag is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTag {
    /// Length of the key.
    #[error("a tag key has 1 to 128 characters; this one has {0}")]
    KeyLength(usize),
    /// Length of the value.
    #[error("a tag value has at most 256 characters; this one has {0}")]
    ValueLength(usize),
    /// A key of the provider's own.
    #[error("tag keys that start with aws: are reserved")]
    Reserved,
    /// Control characters would end up in terminals and logs.
    #[error("tags hold no control characters")]
    ControlCharacter,
}

#[derive(Deserialize)]
struct Unchecked {
    key: String,
    value: String,
}

impl Tag {
    /// The tag that consoles show as the name of a resource.
    pub const NAME: &'static str = "Name";

    /// Checks and wraps.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Result<Self, InvalidTag> {
        let (key, value) = (key.into(), value.into());
        match (key.chars().count(), value.chars().count()) {
            (n @ (0 | 129..), _) => return Err(InvalidTag::KeyLength(n)),
            (_, n @ 257..) => return Err(InvalidTag::ValueLength(n)),
            _ => {}
        }
        if key.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:")) {
            return Err(InvalidTag::Reserved);
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(InvalidTag::ControlCharacter);
        }
        Ok(Tag { key, value })
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl TryFrom<Unchecked> for Tag {
    type Error = InvalidTag;

    fn try_from(tag: Unchecked) -> Result<Self, Self::Error> {
        Tag::new(tag.key, tag.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_api() {
        assert!(Tag::new("k".repeat(128), "v".repeat(256)).is_ok());
        assert_eq!(Tag::new("", "v"), Err(InvalidTag::KeyLength(0)));
        assert_eq!(Tag::new("k".repeat(129), "v"), Err(InvalidTag::KeyLength(129)));
        assert_eq!(Tag::new("k", "v".repeat(257)), Err(InvalidTag::ValueLength(257)));
        assert_eq!(Tag::new("AWS:x", "v"), Err(InvalidTag::Reserved));
        assert_eq!(Tag::new("k", "a\x1b[2J"), Err(InvalidTag::ControlCharacter));
        assert!(Tag::new("Näme", "Wört").is_ok());
    }
}
