//! Prefix lists: ranges that rules refer to by one name.

use kiln_model::security::Peer;
use kiln_model::{Ipv4Cidr, PrefixListId};
use serde::{Deserialize, Serialize};

use super::groups::{SecurityGroup, touch, touch_last};
use super::{NetworkError, Networks};
use crate::state::{Row, transact};

/// Most ranges of one list.
pub const MAX_ENTRIES: usize = 1000;

/// A prefix list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixList {
    /// Its id.
    pub id: PrefixListId,
    /// What people call it.
    pub name: String,
    /// How many ranges it may have; rules that refer to it count as many.
    pub max_entries: usize,
    /// Its ranges.
    pub ranges: Vec<Ipv4Cidr>,
}

impl Row for PrefixList {
    const KIND: &'static str = "prefix-list";
    type Key = PrefixListId;

    fn key(&self) -> PrefixListId {
        self.id
    }
}

impl Networks<'_> {
    /// All prefix lists.
    pub fn prefix_lists(&self) -> Result<Vec<PrefixList>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<PrefixList>())?)
    }

    /// Makes a prefix list.
    pub fn create_prefix_list(
        &self,
        name: &str,
        max_entries: usize,
        ranges: &[Ipv4Cidr],
    ) -> Result<PrefixList, NetworkError> {
        if max_entries > MAX_ENTRIES || ranges.len() > max_entries {
            return Err(NetworkError::Limit {
                what: "prefix list entries",
                limit: max_entries.min(MAX_ENTRIES),
            });
        }
        let id = PrefixListId::from_bits(rand::random());
        let list = PrefixList { id, name: name.to_owned(), max_entries, ranges: ranges.to_vec() };
        transact(self.store, |tx| tx.put(&list))?;
        Ok(list)
    }

    /// Replaces the ranges of a prefix list, in force at once.
    pub fn set_prefix_list(&self, id: PrefixListId, ranges: &[Ipv4Cidr]) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let mut list = tx.get::<PrefixList>(&id)?.ok_or(NetworkError::NoPrefixList(id))?;
            if ranges.len() > list.max_entries {
                return Err(NetworkError::Limit { what: "prefix list entries", limit: list.max_entries });
            }
            list.ranges = ranges.to_vec();
            touch(tx, &id)?;
            Ok(tx.put(&list)?)
        })?;
        for vpc in self.vpcs()? {
            self.apply(vpc.id)?;
        }
        Ok(())
    }

    /// Deletes a prefix list that no rule refers to.
    pub fn delete_prefix_list(&self, id: PrefixListId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            tx.get::<PrefixList>(&id)?.ok_or(NetworkError::NoPrefixList(id))?;
            touch_last(tx, &id)?;
            let refers = |group: &SecurityGroup| group.rules.iter().any(|r| r.peer == Peer::PrefixList(id));
            if let Some(group) = tx.list::<SecurityGroup>()?.into_iter().find(refers) {
                return Err(NetworkError::InUse { what: id.to_string(), by: format!("a rule of {group}") });
            }
            tx.remove::<PrefixList>(&id);
            Ok(())
        })
    }
}
