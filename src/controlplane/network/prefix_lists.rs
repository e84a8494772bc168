//! Prefix lists: ranges that rules refer to by one name.

use std::collections::BTreeMap;

use kiln_model::security::Peer;
use kiln_model::{Ipv4Cidr, PrefixListId};
use serde::{Deserialize, Serialize};

use super::groups::{SecurityGroup, touch, touch_last};
use super::{Also, NetworkError, Networks};
use crate::state::{Row, transact};

/// Lists in one state directory, as EC2's default quota.
pub const MAX_LISTS: usize = 100;
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
    /// What ranges are for, where somebody said it.
    #[serde(default)]
    pub descriptions: BTreeMap<Ipv4Cidr, String>,
    /// Counts its changes.
    #[serde(default = "first_version")]
    pub version: i64,
    /// Whether anything of it was changed after it was made.
    #[serde(default)]
    pub modified: bool,
}

fn first_version() -> i64 {
    1
}

/// A range of a list, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixListEntry {
    /// The range.
    pub range: Ipv4Cidr,
    /// Its description.
    pub description: Option<String>,
}

/// What to do to a list.
#[derive(Debug, Clone, Default)]
pub struct PrefixListChange {
    /// The version that it has; whichever if not said.
    pub version: Option<i64>,
    /// Another name.
    pub name: Option<String>,
    /// Another number of ranges that it may have.
    pub max_entries: Option<usize>,
    /// Ranges that are new, or get another description.
    pub add: Vec<PrefixListEntry>,
    /// Ranges that go.
    pub remove: Vec<Ipv4Cidr>,
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
        let entry = |range: &Ipv4Cidr| PrefixListEntry { range: *range, description: None };
        let entries: Vec<_> = ranges.iter().map(entry).collect();
        self.create_described_prefix_list(name, max_entries, &entries, &mut |_, _| Ok(()))
    }

    /// As [`Networks::create_prefix_list`], with descriptions.
    pub fn create_described_prefix_list(
        &self,
        name: &str,
        max_entries: usize,
        entries: &[PrefixListEntry],
        also: &mut Also<'_>,
    ) -> Result<PrefixList, NetworkError> {
        let ranges: Vec<_> = entries.iter().map(|entry| entry.range).collect();
        if max_entries > MAX_ENTRIES || ranges.len() > max_entries {
            return Err(NetworkError::Limit {
                what: "prefix list entries",
                limit: max_entries.min(MAX_ENTRIES),
            });
        }
        let id = PrefixListId::from_bits(rand::random());
        let described = |entry: &PrefixListEntry| Some((entry.range, entry.description.clone()?));
        let descriptions = entries.iter().filter_map(described).collect();
        let (name, version) = (name.to_owned(), first_version());
        let list = PrefixList { id, name, max_entries, ranges, descriptions, version, modified: false };
        transact(self.store, |tx| {
            if tx.list::<PrefixList>()?.len() >= MAX_LISTS {
                return Err(NetworkError::Limit { what: "prefix lists", limit: MAX_LISTS });
            }
            tx.put(&list)?;
            also(tx, &id.to_string())?;
            Ok(list.clone())
        })
    }

    /// Replaces the ranges of a prefix list, in force at once.
    pub fn set_prefix_list(&self, id: PrefixListId, ranges: &[Ipv4Cidr]) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let mut list = tx.get::<PrefixList>(&id)?.ok_or(NetworkError::NoPrefixList(id))?;
            if ranges.len() > list.max_entries {
                return Err(NetworkError::Limit { what: "prefix list entries", limit: list.max_entries });
            }
            list.ranges = ranges.to_vec();
            list.descriptions.retain(|range, _| ranges.contains(range));
            list.version += 1;
            list.modified = true;
            touch(tx, &id)?;
            Ok(tx.put(&list)?)
        })?;
        for vpc in self.vpcs()? {
            self.apply(vpc.id)?;
        }
        Ok(())
    }

    /// Changes a prefix list, all of it or nothing, in force at once. Answers it as it is then.
    pub fn change_prefix_list(
        &self,
        id: PrefixListId,
        change: &PrefixListChange,
    ) -> Result<PrefixList, NetworkError> {
        let list = transact(self.store, |tx| {
            let mut list = tx.get::<PrefixList>(&id)?.ok_or(NetworkError::NoPrefixList(id))?;
            if change.version.is_some_and(|version| version != list.version) {
                return Err(NetworkError::PrefixListVersion { list: id, version: list.version });
            }
            for range in &change.remove {
                let at = list.ranges.iter().position(|own| own == range);
                list.ranges.remove(at.ok_or(NetworkError::NoPrefixListEntry { list: id, range: *range })?);
                list.descriptions.remove(range);
            }
            for PrefixListEntry { range, description } in &change.add {
                if !list.ranges.contains(range) {
                    list.ranges.push(*range);
                }
                list.descriptions.remove(range);
                list.descriptions.extend(description.clone().map(|text| (*range, text)));
            }
            list.max_entries = change.max_entries.unwrap_or(list.max_entries);
            if list.ranges.len() > list.max_entries || list.max_entries > MAX_ENTRIES {
                let limit = list.max_entries.min(MAX_ENTRIES);
                return Err(NetworkError::Limit { what: "prefix list entries", limit });
            }
            list.name = change.name.clone().unwrap_or(list.name);
            if !change.add.is_empty() || !change.remove.is_empty() {
                list.version += 1;
            }
            list.modified = true;
            touch(tx, &id)?;
            tx.put(&list)?;
            Ok(list)
        })?;
        for vpc in self.vpcs()? {
            self.apply(vpc.id)?;
        }
        Ok(list)
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
