//! How an instance may reach its metadata service (`ModifyInstanceMetadataOptions`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Switches of the metadata service of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// Whether the service answers at all.
    pub endpoint_enabled: bool,
    /// Whether a session token is required (IMDSv2 only).
    pub tokens_required: bool,
    /// IP time to live of the packets that carry a token, 1 to 64.
    pub hop_limit: u8,
    /// Whether tags can be read.
    pub tags_enabled: bool,
}

/// Why an option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseMetadataOptionsError {
    /// Not `name=value`.
    #[error(
        "{0:?} is not a metadata option (known: http-tokens=required|optional, http-endpoint=enabled|disabled, \
         hop-limit=1..64, instance-metadata-tags=enabled|disabled)"
    )]
    Unknown(String),
    /// A known name with a value it does not take.
    #[error("metadata option {name} takes {expected}, not {value:?}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// As given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

impl Default for MetadataOptions {
    /// What EC2 gives a new instance of a current image: tokens required, two hops so that a
    /// container reaches the service, tags hidden.
    fn default() -> Self {
        MetadataOptions { endpoint_enabled: true, tokens_required: true, hop_limit: 2, tags_enabled: false }
    }
}

fn switch(
    name: &'static str,
    value: &str,
    on: &str,
    off: &str,
    expected: &'static str,
) -> Result<bool, ParseMetadataOptionsError> {
    match value {
        v if v == on => Ok(true),
        v if v == off => Ok(false),
        _ => Err(ParseMetadataOptionsError::Value { name, value: value.to_owned(), expected }),
    }
}

impl FromStr for MetadataOptions {
    type Err = ParseMetadataOptionsError;

    /// Comma-separated `name=value`; what is not named keeps its default. Names are those of EC2's
    /// API in the spelling of its command line, with or without the `http-put-response-` prefix.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = MetadataOptions::default();
        for option in text.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            let unknown = || ParseMetadataOptionsError::Unknown(option.to_owned());
            let (name, value) = option.split_once('=').ok_or_else(unknown)?;
            match name {
                "http-tokens" => {
                    options.tokens_required =
                        switch("http-tokens", value, "required", "optional", "required or optional")?;
                }
                "http-endpoint" => {
                    options.endpoint_enabled =
                        switch("http-endpoint", value, "enabled", "disabled", "enabled or disabled")?;
                }
                "instance-metadata-tags" => {
                    options.tags_enabled = switch(
                        "instance-metadata-tags",
                        value,
                        "enabled",
                        "disabled",
                        "enabled or disabled",
                    )?;
                }
                "hop-limit" | "http-put-response-hop-limit" => {
                    options.hop_limit =
                        value.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(|| {
                            ParseMetadataOptionsError::Value {
                                name: "hop-limit",
                                value: value.to_owned(),
                                expected: "1 to 64",
                            }
                        })?;
                }
                _ => return Err(unknown()),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_options_replace_defaults() {
        assert_eq!("".parse(), Ok(MetadataOptions::default()));
        let parsed: MetadataOptions =
            "http-tokens=optional,hop-limit=1, instance-metadata-tags=enabled".parse().unwrap();
        assert_eq!(
            parsed,
            MetadataOptions {
                endpoint_enabled: true,
                tokens_required: false,
                hop_limit: 1,
                tags_enabled: true
            }
        );
    }

    #[test]
    fn unknown_names_and_values_are_refused() {
        for text in
            ["http-token=required", "http-tokens", "x", "=", "hop-limit=0", "hop-limit=65", "hop-limit=-1"]
        {
            assert!(text.parse::<MetadataOptions>().is_err(), "{text:?} was accepted");
        }
        assert_eq!(
            "http-tokens=maybe".parse::<MetadataOptions>().unwrap_err().to_string(),
            "metadata option http-tokens takes required or optional, not \"maybe\""
        );
    }
}
