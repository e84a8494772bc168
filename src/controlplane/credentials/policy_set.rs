//! The policies that a role or a user has: documents of its own and the ARNs of managed ones.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::managed;
use super::role::RoleName;
use super::service::RoleError;
use super::{ManagedPolicy, Policy};
use crate::state::Transaction;

/// Managed policies of one role or user, as IAM's default quota.
const MAX_ATTACHED: usize = 10;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySet {
    /// Documents by name; JSON.
    pub inline: BTreeMap<String, String>,
    /// ARNs.
    #[serde(default)]
    pub attached: BTreeSet<String>,
}

impl PolicySet {
    /// Sets a document of its own. `most`: bytes of all of them together.
    pub(super) fn put(&mut self, policy: &RoleName, document: &str, most: usize) -> Result<(), RoleError> {
        Policy::parse(document)?;
        self.inline.insert(policy.to_string(), document.to_owned());
        match self.inline.values().map(String::len).sum::<usize>() > most {
            true => Err(RoleError::PoliciesTooLong(most)),
            false => Ok(()),
        }
    }

    /// Takes a document of its own away.
    pub(super) fn delete(&mut self, holder: &RoleName, policy: &str) -> Result<(), RoleError> {
        let missing = || RoleError::NoSuchPolicy { holder: holder.clone(), policy: policy.to_owned() };
        self.inline.remove(policy).map(|_| ()).ok_or_else(missing)
    }

    /// Attaches a managed policy, as part of `tx`. One that is attached already stays so.
    pub(super) fn attach(&mut self, tx: &mut Transaction<'_>, arn: &str) -> Result<(), RoleError> {
        let policy = managed::get(tx, arn)?;
        managed::keep(tx, &policy)?;
        self.attached.insert(policy.arn);
        match self.attached.len() > MAX_ATTACHED {
            true => Err(RoleError::TooManyAttached(MAX_ATTACHED)),
            false => Ok(()),
        }
    }

    /// Takes a managed policy away.
    pub(super) fn detach(&mut self, holder: &RoleName, arn: &str) -> Result<(), RoleError> {
        let missing = || RoleError::NoSuchPolicy { holder: holder.clone(), policy: arn.to_owned() };
        self.attached.remove(arn).then_some(()).ok_or_else(missing)
    }

    /// The managed ones.
    pub(super) fn managed(&self, tx: &mut Transaction<'_>) -> Result<Vec<ManagedPolicy>, RoleError> {
        self.attached.iter().map(|arn| managed::get(tx, arn)).collect()
    }

    /// All documents that count.
    pub(super) fn documents(&self, tx: &mut Transaction<'_>) -> Result<Vec<String>, RoleError> {
        let managed = self.managed(tx)?.into_iter().map(|policy| policy.document);
        Ok(self.inline.values().cloned().chain(managed).collect())
    }

    /// One that is there, by its name or ARN.
    pub(super) fn first(&self) -> Option<String> {
        self.inline.keys().chain(&self.attached).next().cloned()
    }
}
