//! Metadata options as people write them: `http-tokens=required,hop-limit=2`.

use kiln_vmspec::metadata::HOP_LIMIT_RANGE;
use kiln_vmspec::{HttpTokens, MetadataOptions};

/// Names that are known, for messages.
const KNOWN: &str = "http-endpoint, http-tokens, hop-limit, http-protocol-ipv6, instance-metadata-tags";

/// Why options are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseOptionsError {
    /// Not `name=value`.
    #[error("metadata option {0:?} has no value (write name=value, such as http-tokens=required)")]
    NoValue(String),
    /// No such option.
    #[error("there is no metadata option {0:?} (known: {KNOWN})")]
    Unknown(String),
    /// Named twice.
    #[error("metadata option {0} is given twice")]
    Repeated(&'static str),
    /// A value that the option does not take.
    #[error("metadata option {name} is {expected}, not {value:?}")]
    Value {
        /// The option.
        name: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What was given.
        value: String,
    },
}

/// Options that `text` names, on top of `base`. Names are those of the EC2 API in the spelling of its
/// command line; `hop-limit` is short for `http-put-response-hop-limit`.
pub fn parse_options(base: MetadataOptions, text: &str) -> Result<MetadataOptions, ParseOptionsError> {
    let mut options = base;
    let mut seen: Vec<&'static str> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) =
            part.split_once('=').ok_or_else(|| ParseOptionsError::NoValue(part.to_owned()))?;
        let name = match name.trim().to_ascii_lowercase().as_str() {
            "http-endpoint" => "http-endpoint",
            "http-tokens" => "http-tokens",
            "hop-limit" | "http-put-response-hop-limit" => "hop-limit",
            "http-protocol-ipv6" => "http-protocol-ipv6",
            "instance-metadata-tags" => "instance-metadata-tags",
            other => return Err(ParseOptionsError::Unknown(other.to_owned())),
        };
        if seen.contains(&name) {
            return Err(ParseOptionsError::Repeated(name));
        }
        seen.push(name);
        let value = value.trim();
        match name {
            "http-endpoint" => options.endpoint_enabled = switch(name, value)?,
            "http-protocol-ipv6" => options.ipv6_enabled = switch(name, value)?,
            "instance-metadata-tags" => options.tags_enabled = switch(name, value)?,
            "http-tokens" => {
                options.tokens = match value {
                    "optional" => HttpTokens::Optional,
                    "required" => HttpTokens::Required,
                    _ => return Err(refuse(name, "optional or required", value)),
                }
            }
            _ => {
                options.hop_limit = value
                    .parse()
                    .ok()
                    .filter(|limit| HOP_LIMIT_RANGE.contains(limit))
                    .ok_or_else(|| refuse(name, "a number from 1 to 64", value))?;
            }
        }
    }
    Ok(options)
}

fn switch(name: &'static str, value: &str) -> Result<bool, ParseOptionsError> {
    match value {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err(refuse(name, "enabled or disabled", value)),
    }
}

fn refuse(name: &'static str, expected: &'static str, value: &str) -> ParseOptionsError {
    ParseOptionsError::Value { name, expected, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MetadataOptions, ParseOptionsError> {
        parse_options(MetadataOptions::default(), text)
    }

    #[test]
    fn named_options_change_and_others_stay() {
        assert_eq!(parse(""), Ok(MetadataOptions::default()));
        assert_eq!(
            parse("http-tokens=required, hop-limit=2,instance-metadata-tags=enabled,"),
            Ok(MetadataOptions {
                tokens: HttpTokens::Required,
                hop_limit: 2,
                tags_enabled: true,
                ..MetadataOptions::default()
            })
        );
        let base = parse("http-endpoint=disabled,http-protocol-ipv6=enabled").unwrap();
        let both = parse_options(base, "http-put-response-hop-limit=64").unwrap();
        assert_eq!(both, MetadataOptions { hop_limit: 64, ..base });
        assert!(!both.endpoint_enabled && both.ipv6_enabled);
    }

    #[test]
    fn mistakes_say_what_is_right() {
        for (text, message) in [
            (
                "http-tokens",
                "metadata option \"http-tokens\" has no value (write name=value, such as http-tokens=required)",
            ),
            ("http-tokens=yes", "metadata option http-tokens is optional or required, not \"yes\""),
            ("hop-limit=0", "metadata option hop-limit is a number from 1 to 64, not \"0\""),
            ("hop-limit=65", "metadata option hop-limit is a number from 1 to 64, not \"65\""),
            ("hop-limit=256", "metadata option hop-limit is a number from 1 to 64, not \"256\""),
            ("http-endpoint=true", "metadata option http-endpoint is enabled or disabled, not \"true\""),
            ("hop-limit=1,http-put-response-hop-limit=2", "metadata option hop-limit is given twice"),
            (
                "tokens=required",
                "there is no metadata option \"tokens\" (known: http-endpoint, http-tokens, hop-limit, http-protocol-ipv6, instance-metadata-tags)",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }
}
