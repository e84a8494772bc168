//! The immutable answers of the metadata service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything the metadata service of one instance may say, swapped whole so that a listing and its
/// leaves never disagree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataSnapshot {
    /// Grows with each snapshot of an instance.
    pub generation: u64,
    /// When these data were published, Unix seconds (`Last-Modified`).
    pub published: u64,
    /// Values by path below the version, without leading slash, such as `meta-data/instance-id`.
    pub leaves: BTreeMap<String, Vec<u8>>,
}
