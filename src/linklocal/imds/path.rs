//! Request targets as names.
//!
//! Clients send `/latest//meta-data/ramdisk-id`, `placement/availability-zone/`, `tags/instance/a%3Db`
//! and ask for directories with and without a slash at the end; all of them mean what they say here:
//! repeated slashes are one, a segment is decoded once, a query is ignored.

/// A request target (RFC 9112 §3.2.1, origin form) taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Decoded names; empty for `/`.
    pub(crate) segments: Vec<String>,
    /// Whether the target ended in a slash.
    pub(crate) trailing_slash: bool,
}

/// What a target may be besides a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadTarget {
    /// Absolute form (what a proxy sends), `*`, or a broken escape: the request is refused.
    Refused,
    /// A name that cannot exist: not text, or with a slash inside.
    Unknown,
}

/// Takes `target` apart.
pub(crate) fn parse(target: &str) -> Result<Path, BadTarget> {
    if !target.starts_with('/') {
        return Err(BadTarget::Refused);
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut segments = Vec::new();
    let mut unknown = false;
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        match String::from_utf8(decode(segment).ok_or(BadTarget::Refused)?) {
            Ok(name) if !name.contains('/') => segments.push(name),
            _ => unknown = true,
        }
    }
    if unknown {
        return Err(BadTarget::Unknown);
    }
    Ok(Path { segments, trailing_slash: path.ends_with('/') })
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decode(segment: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            plain => plain,
        });
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_escapes_and_queries() {
        for (target, segments, trailing_slash) in [
            ("/", &[][..], true),
            ("//", &[], true),
            ("/latest", &["latest"], false),
            ("/latest//meta-data/", &["latest", "meta-data"], true),
            ("//latest///meta-data//mac//", &["latest", "meta-data", "mac"], true),
            ("/a/tags/instance/a%3Db", &["a", "tags", "instance", "a=b"], false),
            ("/a%3db%2525", &["a=b%25"], false),
            ("/a?b=/c/", &["a"], false),
            ("/a/?b", &["a"], true),
            ("/a/../b/.", &["a", "..", "b", "."], false),
            ("/A+B%20c", &["A+B c"], false),
            ("/%C3%A4", &["ä"], false),
        ] {
            let segments = segments.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(parse(target), Ok(Path { segments, trailing_slash }), "{target}");
        }
    }

    #[test]
    fn targets_that_are_no_path() {
        for target in [
            "",
            "*",
            "latest",
            "http://169.254.169.254/latest",
            "169.254.169.254:80",
            "/a%",
            "/a%4",
            "/a%zz",
            "/%+1",
        ] {
            assert_eq!(parse(target), Err(BadTarget::Refused), "{target}");
        }
        for target in ["/latest/meta-data%2Fmac", "/%ff", "/a/%2f/b"] {
            assert_eq!(parse(target), Err(BadTarget::Unknown), "{target}");
        }
    }
}
