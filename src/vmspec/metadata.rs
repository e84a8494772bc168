//! The immutable answers of the metadata service, as the control plane hands them to a VMM.
//!
//! A snapshot is swapped whole, so that a listing and its leaves never disagree: one listed name
//! that answers 404 makes cloud-init throw all metadata away. Only leaves are stored; listings are
//! derived from them, with the exceptions in [`MetadataSnapshot::listings`].
//!
//! Values hold credentials and user data, so `Debug` shows their lengths and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_model::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most leaves in one snapshot; a tree with 15 interfaces and 50 tags has under 500.
pub const MAX_LEAVES: usize = 8192;

/// Largest value in bytes. User data, the largest that EC2 knows, ends at 16 384.
pub const MAX_LEAF_BYTES: usize = 64 * 1024;

/// Range of [`MetadataOptions::hop_limit`].
pub const HOP_LIMIT_RANGE: std::ops::RangeInclusive<u8> = 1..=64;

/// Everything the link-local services of one instance may say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataSnapshot {
    /// Grows with each snapshot of an instance.
    pub generation: u64,
    /// When these data were published, Unix seconds (`Last-Modified`).
    pub published: u64,
    /// Instance id (`i-…`): session tokens are bound to it.
    pub instance_id: String,
    /// How the service may be used.
    pub options: MetadataOptions,
    /// What the services must know of each interface, by its hardware address.
    pub interfaces: BTreeMap<MacAddr, InterfaceFacts>,
    /// Host names of the VPC that the resolver answers by itself, lower case, without final dot,
    /// such as `ip-10-0-1-10.ec2.internal`. Reverse names follow from them.
    pub host_names: BTreeMap<String, Vec<IpAddr>>,
    /// Values by path below the version, without leading slash, such as `meta-data/instance-id`.
    pub leaves: BTreeMap<String, LeafValue>,
    /// Listings that do not follow from the leaves, by path of the directory without slashes at the
    /// ends. EC2 has one: `meta-data/public-keys` says `0=name`.
    pub listings: BTreeMap<String, String>,
}

/// Instance metadata options, with the meaning and the defaults of the EC2 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataOptions {
    /// `HttpEndpoint`: whether the service answers; otherwise every request gets 403.
    pub endpoint_enabled: bool,
    /// `HttpTokens`: whether a request needs a session token.
    pub tokens: HttpTokens,
    /// `HttpPutResponseHopLimit`: IP hop limit of segments that carry a token, 1 to 64.
    pub hop_limit: u8,
    /// `HttpProtocolIpv6`: whether the service also answers at `fd00:ec2::254`.
    pub ipv6_enabled: bool,
    /// `InstanceMetadataTags`: whether tags are served. The tree is built accordingly; the service
    /// itself does not look at this.
    pub tags_enabled: bool,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        MetadataOptions {
            endpoint_enabled: true,
            tokens: HttpTokens::Optional,
            hop_limit: 1,
            ipv6_enabled: false,
            tags_enabled: false,
        }
    }
}

/// `HttpTokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpTokens {
    /// Requests without a token are answered (version 1 of the service).
    #[default]
    Optional,
    /// Requests without a token get 401.
    Required,
}

/// What the link-local services must know of one interface and what may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceFacts {
    /// All private addresses, primary first.
    pub addresses: Vec<IpAddr>,
    /// Whether packets from other source addresses are dropped.
    pub source_dest_check: bool,
}

impl Default for InterfaceFacts {
    fn default() -> Self {
        InterfaceFacts { addresses: Vec::new(), source_dest_check: true }
    }
}

/// One value of the tree: any bytes. In JSON a string where the bytes are UTF-8, otherwise
/// `{"base64": "…"}`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct LeafValue(Vec<u8>);

impl LeafValue {
    /// The bytes as they are served.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for LeafValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl From<Vec<u8>> for LeafValue {
    fn from(bytes: Vec<u8>) -> Self {
        LeafValue(bytes)
    }
}

impl From<String> for LeafValue {
    fn from(text: String) -> Self {
        LeafValue(text.into_bytes())
    }
}

impl From<&str> for LeafValue {
    fn from(text: &str) -> Self {
        LeafValue(text.as_bytes().to_vec())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LeafForm<'a> {
    Text(std::borrow::Cow<'a, str>),
    Binary { base64: String },
}

impl Serialize for LeafValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => LeafForm::Text(text.into()),
            Err(_) => LeafForm::Binary { base64: BASE64.encode(&self.0) },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LeafValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match LeafForm::deserialize(deserializer)? {
            LeafForm::Text(text) => Ok(LeafValue(text.into_owned().into_bytes())),
            LeafForm::Binary { base64 } => {
                BASE64.decode(base64).map(LeafValue).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// A snapshot that the service must not be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Over [`MAX_LEAVES`].
    #[error("metadata has {0} leaves, more than {MAX_LEAVES}")]
    TooManyLeaves(usize),
    /// Over [`MAX_LEAF_BYTES`].
    #[error("metadata leaf {path} has {bytes} bytes, more than {MAX_LEAF_BYTES}")]
    LeafTooLarge {
        /// Path of the leaf.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// An empty, `.` or `..` segment: such a leaf would be listed and could never be read.
    #[error("metadata path {0:?} cannot be asked for")]
    UnreachablePath(String),
    /// A name is both a value and a directory.
    #[error("metadata path {0:?} is both a leaf and a directory")]
    LeafIsDirectory(String),
    /// A listing of something that is no directory.
    #[error("metadata listing {0:?} is of no directory")]
    ListingWithoutDirectory(String),
    /// Outside [`HOP_LIMIT_RANGE`].
    #[error("hop limit {0} is not between 1 and 64")]
    HopLimit(u8),
}

impl MetadataSnapshot {
    /// Checks that every leaf can be read and every listing leads to leaves.
    pub fn check(&self) -> Result<(), SnapshotError> {
        if self.leaves.len() > MAX_LEAVES {
            return Err(SnapshotError::TooManyLeaves(self.leaves.len()));
        }
        if !HOP_LIMIT_RANGE.contains(&self.options.hop_limit) {
            return Err(SnapshotError::HopLimit(self.options.hop_limit));
        }
        for (path, value) in &self.leaves {
            let bytes = value.as_bytes().len();
            if bytes > MAX_LEAF_BYTES {
                return Err(SnapshotError::LeafTooLarge { path: path.clone(), bytes });
            }
            if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
                return Err(SnapshotError::UnreachablePath(path.clone()));
            }
            for (at, _) in path.match_indices('/') {
                let parent = path.get(..at).unwrap_or_default();
                if self.leaves.contains_key(parent) {
                    return Err(SnapshotError::LeafIsDirectory(parent.to_owned()));
                }
            }
        }
        for path in self.listings.keys() {
            let below = format!("{path}/");
            let first = self.leaves.range(below.clone()..).next();
            if !first.is_some_and(|(leaf, _)| leaf.starts_with(&below)) {
                return Err(SnapshotError::ListingWithoutDirectory(path.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_leaves(paths: &[&str]) -> MetadataSnapshot {
        MetadataSnapshot {
            leaves: paths.iter().map(|p| ((*p).to_owned(), LeafValue::from("v"))).collect(),
            ..MetadataSnapshot::default()
        }
    }

    #[test]
    fn binary_and_text_values_survive_json() {
        let mut snapshot = with_leaves(&["meta-data/a"]);
        snapshot.leaves.insert("user-data".into(), LeafValue::from(vec![0x1f, 0x8b, 0, 0xff]));
        snapshot.interfaces.insert(MacAddr::new([2, 0, 0, 0, 0, 1]), InterfaceFacts::default());
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.contains(r#""meta-data/a":"v""#), "{json}");
        assert_eq!(serde_json::from_str::<MetadataSnapshot>(&json).unwrap(), snapshot);
    }

    #[test]
    fn debug_shows_no_value() {
        let mut snapshot = with_leaves(&[]);
        snapshot.leaves.insert("user-data".into(), LeafValue::from("hunter2"));
        let text = format!("{snapshot:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("<7 bytes>"), "{text}");
    }

    #[test]
    fn unreadable_trees_are_refused() {
        assert_eq!(with_leaves(&["meta-data/a", "meta-data/b/c", "user-data"]).check(), Ok(()));
        for path in ["", "/a", "a/", "a//b", "a/./b", "a/.."] {
            assert_eq!(with_leaves(&[path]).check(), Err(SnapshotError::UnreachablePath(path.into())));
        }
        assert_eq!(
            with_leaves(&["a", "a-b", "a/b/c"]).check(),
            Err(SnapshotError::LeafIsDirectory("a".into()))
        );
        let mut snapshot = with_leaves(&["meta-data/public-keys/0/openssh-key"]);
        snapshot.listings.insert("meta-data/public-keys".into(), "0=k".into());
        assert_eq!(snapshot.check(), Ok(()));
        snapshot.listings.insert("meta-data/other".into(), "x".into());
        assert!(matches!(snapshot.check(), Err(SnapshotError::ListingWithoutDirectory(_))));
    }

    #[test]
    fn limits_are_enforced() {
        let mut snapshot = with_leaves(&[]);
        snapshot.leaves.insert("user-data".into(), LeafValue::from(vec![0; MAX_LEAF_BYTES + 1]));
        assert!(matches!(snapshot.check(), Err(SnapshotError::LeafTooLarge { .. })));
        for (hop_limit, ok) in [(0, false), (1, true), (64, true), (65, false)] {
            let mut snapshot = with_leaves(&[]);
            snapshot.options.hop_limit = hop_limit;
            assert_eq!(snapshot.check().is_ok(), ok, "{hop_limit}");
        }
    }
}
