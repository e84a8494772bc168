//! What is known of an instance's credentials without being one: for people and metrics.

use std::fmt;

use kiln_model::InstanceId;
use serde::{Deserialize, Serialize};

use crate::state::Row;

/// Whose credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// Those of the role in its instance profile.
    Role,
    /// The instance's own (`identity-credentials`).
    Instance,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Slot::Role => "role",
            Slot::Instance => "instance",
        })
    }
}

/// State of the role's credentials of one running instance, kept beside its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialStatus {
    /// Which instance.
    pub instance: InstanceId,
    /// Name of the role.
    pub role: String,
    /// `Code` of the document that is served.
    pub code: String,
    /// Why the last fetch failed, if it did.
    pub error: Option<String>,
    /// Access key id of the served set.
    pub access_key_id: Option<String>,
    /// When the served set ends, Unix seconds.
    pub expiration: Option<u64>,
    /// When the next set is fetched, Unix seconds.
    pub next_fetch: u64,
    /// Sets published since the role was attached or the instance started.
    pub rotations: u64,
    /// Fetches that failed since then.
    pub failures: u64,
}

impl Row for CredentialStatus {
    const KIND: &'static str = "credential-status";
    type Key = InstanceId;

    fn key(&self) -> InstanceId {
        self.instance
    }
}
