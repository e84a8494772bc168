//! Which tag keys the metadata service can show.

use kiln_model::Tag;

/// A key that cannot be a path segment of the metadata service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMetadataTag {
    /// Outside the alphabet.
    #[error(
        "tag key {0:?} cannot be shown in instance metadata (only letters, digits and + - = . , _ : @; \
         rename the tag or disable instance-metadata-tags)"
    )]
    Alphabet(String),
    /// A name with a meaning of its own in paths.
    #[error(
        "tag key {0:?} is reserved in instance metadata (rename the tag or disable instance-metadata-tags)"
    )]
    Reserved(String),
    /// `5=foo`: cloud-init would take it for an SSH key and drop all metadata when it finds none.
    #[error(
        "tag key {0:?} reads like an SSH key entry of instance metadata (rename the tag or disable \
         instance-metadata-tags)"
    )]
    LooksLikeKey(String),
}

/// Checks the keys of an instance whose tags are, or are to be, shown in its metadata.
pub fn check_tag_keys<'a>(tags: impl IntoIterator<Item = &'a Tag>) -> Result<(), InvalidMetadataTag> {
    tags.into_iter().try_for_each(|tag| check_tag_key(tag.key()))
}

fn check_tag_key(key: &str) -> Result<(), InvalidMetadataTag> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
    if matches!(key, "." | ".." | "_index") {
        return Err(InvalidMetadataTag::Reserved(key.to_owned()));
    }
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(InvalidMetadataTag::Alphabet(key.to_owned()));
    }
    let after_digits = key.trim_start_matches(|c: char| c.is_ascii_digit());
    if after_digits.len() < key.len() && after_digits.starts_with('=') {
        return Err(InvalidMetadataTag::LooksLikeKey(key.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_path_can_hold() {
        for key in ["Name", "a=b", "a-b.c,d_e:f@g+h", "=5", "5", "x5=y", "..."] {
            assert_eq!(check_tag_key(key), Ok(()), "{key}");
        }
        for key in ["a b", "a/b", "ä", "a%b", "a?b", ""] {
            assert_eq!(check_tag_key(key), Err(InvalidMetadataTag::Alphabet(key.to_owned())), "{key}");
        }
        for key in [".", "..", "_index"] {
            assert_eq!(check_tag_key(key), Err(InvalidMetadataTag::Reserved(key.to_owned())), "{key}");
        }
        for key in ["5=foo", "0=", "12=34=56"] {
            assert_eq!(check_tag_key(key), Err(InvalidMetadataTag::LooksLikeKey(key.to_owned())), "{key}");
        }
    }
}
