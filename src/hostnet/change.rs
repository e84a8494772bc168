//! What differs between two policies of a VPC.

use std::collections::BTreeMap;

use kiln_model::security::{Member, NetworkPolicy, Route, Rule, SubnetAcl, SubnetRouting, TableNumber};
use kiln_model::{InterfaceId, Ipv4Cidr, PrefixListId, SecurityGroupId, SubnetId};
use serde::{Deserialize, Serialize};

/// Entries that are new or other than before, and those that are gone (`None`).
type Entries<K, V> = BTreeMap<K, Option<V>>;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Interfaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: Entries<InterfaceId, Member>,
    /// Groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: Entries<SecurityGroupId, Vec<Rule>>,
    /// Prefix lists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefix_lists: Entries<PrefixListId, Vec<Ipv4Cidr>>,
    /// Network ACLs of subnets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subnets: Entries<SubnetId, SubnetAcl>,
    /// Which subnets go by which table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routing: Entries<SubnetId, SubnetRouting>,
    /// Route tables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: Entries<TableNumber, Vec<Route>>,
}

impl Change {
    /// What leads from `old` to `new`.
    pub fn between(old: &NetworkPolicy, new: &NetworkPolicy) -> Self {
        Change {
            interfaces: between(&old.interfaces, &new.interfaces),
            groups: between(&old.groups, &new.groups),
            prefix_lists: between(&old.prefix_lists, &new.prefix_lists),
            subnets: between(&old.subnets, &new.subnets),
            routing: between(&old.routing, &new.routing),
            tables: between(&old.tables, &new.tables),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Change::default()
    }

    /// Carries the change out; answers the one that leads back.
    pub fn apply(&self, policy: &mut NetworkPolicy) -> Self {
        Change {
            interfaces: apply(&self.interfaces, &mut policy.interfaces),
            groups: apply(&self.groups, &mut policy.groups),
            prefix_lists: apply(&self.prefix_lists, &mut policy.prefix_lists),
            subnets: apply(&self.subnets, &mut policy.subnets),
            routing: apply(&self.routing, &mut policy.routing),
            tables: apply(&self.tables, &mut policy.tables),
        }
    }
}

fn between<K: Ord + Copy, V: Clone + PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Entries<K, V> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (*key, None));
    let changed = new.iter().filter(|(key, value)| old.get(key) != Some(*value));
    gone.chain(changed.map(|(key, value)| (*key, Some(value.clone())))).collect()
}

fn apply<K: Ord + Copy, V: Clone>(entries: &Entries<K, V>, to: &mut BTreeMap<K, V>) -> Entries<K, V> {
    let mut back = Entries::new();
    for (key, value) in entries {
        let before = match value {
            Some(value) => to.insert(*key, value.clone()),
            None => to.remove(key),
        };
        back.insert(*key, before);
    }
    back
}
