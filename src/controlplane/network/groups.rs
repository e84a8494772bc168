//! Security groups and who is in them, as rows. Everything here is part of a transaction.
//!
//! What refers to a row by its id, and whatever removes that row, both write one [`Touch`] row: so
//! a group that is put to use and deleted at the same time is one or the other.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kiln_model::security::{Direction, Peer, Rule, Traffic};
use kiln_model::{
    AttachmentState, InstanceId, Ipv4Cidr, SecurityGroupId, SecurityGroupRuleId, VpcId, nearest,
};
use serde::{Deserialize, Serialize};

use super::{Interface, NetworkError, PeerSpec, PrefixList, RuleSpec, Vpc};
use crate::state::{Row, StoreError, Transaction};
use crate::tags;

/// Name of the group that every VPC has.
pub const DEFAULT_GROUP: &str = "default";
/// Rules of one direction and one address family in one group, as EC2's default quota.
pub const MAX_RULES: usize = 60;
/// Groups of one interface.
pub const MAX_GROUPS_PER_INTERFACE: usize = 5;
/// Groups in one state directory.
pub const MAX_GROUPS: usize = 2500;
/// Longest name and longest description.
const MAX_TEXT: usize = 255;

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// The VPC it belongs to.
    pub vpc: VpcId,
    /// Its name, of its own in the VPC.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it allows.
    pub rules: Vec<Rule>,
    /// The instance that it was made for with `--allow`, and with which it goes.
    #[serde(default)]
    pub owner: Option<InstanceId>,
}

impl Row for SecurityGroup {
    const KIND: &'static str = "group";
    type Key = SecurityGroupId;

    fn key(&self) -> SecurityGroupId {
        self.id
    }
}

/// A name that is taken.
#[derive(Debug, Serialize, Deserialize)]
struct GroupName {
    vpc: VpcId,
    name: String,
    group: SecurityGroupId,
}

impl Row for GroupName {
    const KIND: &'static str = "group-name";
    type Key = String;

    fn key(&self) -> String {
        name_key(self.vpc, &self.name)
    }
}

fn name_key(vpc: VpcId, name: &str) -> String {
    format!("{vpc}.{name}")
}

/// What the groups know of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The interface.
    pub interface: Interface,
    /// Its instance, if it has one.
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// Its place among the instance's interfaces, 0 for the primary one.
    #[serde(default)]
    pub device: u32,
    /// Its groups.
    pub groups: BTreeSet<SecurityGroupId>,
    /// Whether the host may start conversations with it besides what the groups say.
    pub host_access: bool,
    /// Its other private addresses, in the order in which they were assigned.
    #[serde(default)]
    pub secondary: Vec<Ipv4Addr>,
    /// Whether what it forwards for others may pass: the source/destination check is off.
    #[serde(default)]
    pub forwards: bool,
    /// Whether it stays when its instance goes.
    #[serde(default)]
    pub stays: bool,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// When it got its instance, Unix seconds; with the instance if not said.
    #[serde(default)]
    pub attached: Option<u64>,
    /// How far that is. While the instance has no machine it is always attached.
    #[serde(default)]
    pub state: AttachmentState,
}

impl Membership {
    /// What it is of, for people.
    pub fn held_by(&self) -> String {
        self.instance.map_or_else(|| self.interface.id.to_string(), |instance| instance.to_string())
    }

    /// Its private addresses, the primary first.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        [self.interface.address].iter().chain(&self.secondary).copied().collect()
    }
}

impl Row for Membership {
    const KIND: &'static str = "interface";
    type Key = kiln_model::InterfaceId;

    fn key(&self) -> kiln_model::InterfaceId {
        self.interface.id
    }

    fn holder(&self) -> Option<String> {
        self.instance.map(|instance| instance.to_string())
    }
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
struct Touch {
    id: String,
    times: u64,
}

impl Row for Touch {
    const KIND: &'static str = "touch";
    type Key = String;

    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Makes this transaction conflict with every other one that touches `id`.
pub(super) fn touch(tx: &mut Transaction<'_>, id: &impl ToString) -> Result<(), StoreError> {
    let id = id.to_string();
    let times = tx.get::<Touch>(&id)?.map_or(0, |touch| touch.times);
    tx.put(&Touch { id, times: times.wrapping_add(1) })
}

/// As [`touch`], for the last time.
pub(super) fn touch_last(tx: &mut Transaction<'_>, id: &impl ToString) -> Result<(), StoreError> {
    let id = id.to_string();
    tx.get::<Touch>(&id)?;
    tx.remove::<Touch>(&id);
    Ok(())
}

pub(super) fn rule_id() -> SecurityGroupRuleId {
    SecurityGroupRuleId::from_bits(rand::random())
}

/// Letters, digits and what EC2 allows besides.
pub(super) fn check_text(text: &str, what: &'static str) -> Result<(), NetworkError> {
    let bad = |why| Err(NetworkError::BadText { text: text.to_owned(), what, why });
    let allowed = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > MAX_TEXT {
        return bad("it is longer than 255 characters");
    }
    if !text.chars().all(allowed) {
        return bad("only a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$* may be in it");
    }
    Ok(())
}

/// Makes a group that lets everything out and nothing in.
pub(super) fn create(
    tx: &mut Transaction<'_>,
    vpc: VpcId,
    name: &str,
    description: &str,
    owner: Option<InstanceId>,
) -> Result<SecurityGroup, NetworkError> {
    check_text(name, "the name of a security group")?;
    check_text(description, "the description of a security group")?;
    if name.starts_with(SecurityGroupId::PREFIX) {
        let why = "names that begin with sg- would be taken for ids";
        let (text, what) = (name.to_owned(), "the name of a security group");
        return Err(NetworkError::BadText { text, what, why });
    }
    if tx.list::<SecurityGroup>()?.len() >= MAX_GROUPS {
        return Err(NetworkError::Limit { what: "security groups", limit: MAX_GROUPS });
    }
    let id = SecurityGroupId::from_bits(rand::random());
    if !tx.insert(&GroupName { vpc, name: name.to_owned(), group: id })? {
        return Err(NetworkError::GroupExists { name: name.to_owned(), vpc });
    }
    // A VPC that goes at the same time takes no group along.
    touch(tx, &vpc)?;
    let group = SecurityGroup {
        id,
        vpc,
        name: name.to_owned(),
        description: description.to_owned(),
        rules: all_egress(tx, vpc)?,
        owner,
    };
    tx.put(&group)?;
    Ok(group)
}

/// Everything out, by each of the VPC's address families.
fn all_egress(tx: &mut Transaction<'_>, vpc: VpcId) -> Result<Vec<Rule>, StoreError> {
    let ipv6 = tx.get::<Vpc>(&vpc)?.is_some_and(|vpc| vpc.ipv6.is_some());
    let ipv6 = ipv6.then(|| Rule::all_egress_ipv6(rule_id()));
    Ok([Rule::all_egress(rule_id())].into_iter().chain(ipv6).collect())
}

/// The default group of a VPC, made if need be: everything from its own members.
pub(super) fn ensure_default_group(
    tx: &mut Transaction<'_>,
    vpc: VpcId,
) -> Result<SecurityGroupId, StoreError> {
    if let Some(name) = tx.get::<GroupName>(&name_key(vpc, DEFAULT_GROUP))? {
        return Ok(name.group);
    }
    let id = SecurityGroupId::from_bits(rand::random());
    tx.put(&GroupName { vpc, name: DEFAULT_GROUP.to_owned(), group: id })?;
    let rules = [vec![Rule::from_itself(rule_id(), id)], all_egress(tx, vpc)?].concat();
    tx.put(&SecurityGroup {
        id,
        vpc,
        name: DEFAULT_GROUP.to_owned(),
        description: "default VPC security group".to_owned(),
        rules,
        owner: None,
    })?;
    Ok(id)
}

/// The group of a VPC that a name or an id stands for.
pub(super) fn find(
    tx: &mut Transaction<'_>,
    vpc: VpcId,
    wanted: &str,
) -> Result<SecurityGroup, NetworkError> {
    let id = match wanted.parse::<SecurityGroupId>() {
        Ok(id) => Some(id),
        Err(_) => tx.get::<GroupName>(&name_key(vpc, wanted))?.map(|name| name.group),
    };
    let group = match id {
        Some(id) => tx.get::<SecurityGroup>(&id)?.filter(|group| group.vpc == vpc),
        None => None,
    };
    match group {
        Some(group) => Ok(group),
        None => {
            let all = tx.list::<SecurityGroup>()?;
            let names = all.iter().filter(|g| g.vpc == vpc && g.owner.is_none()).map(|g| g.name.as_str());
            let suggestions = nearest(wanted, names, 3).into_iter().map(str::to_owned).collect();
            Err(NetworkError::NoGroup { wanted: wanted.to_owned(), vpc, suggestions })
        }
    }
}

/// Deletes a group that nothing needs.
pub(super) fn delete(tx: &mut Transaction<'_>, group: &SecurityGroup) -> Result<(), NetworkError> {
    if group.name == DEFAULT_GROUP {
        return Err(NetworkError::DefaultGroup(group.id));
    }
    // Before looking who needs it: whoever begins to from here on conflicts.
    touch_last(tx, &group.id)?;
    if let Some(user) = tx.list::<Membership>()?.into_iter().find(|m| m.groups.contains(&group.id)) {
        return Err(NetworkError::InUse { what: group.to_string(), by: user.held_by() });
    }
    let refers = |other: &SecurityGroup| {
        other.id != group.id && other.rules.iter().any(|rule| rule.peer == Peer::Group(group.id))
    };
    if let Some(other) = tx.list::<SecurityGroup>()?.into_iter().find(refers) {
        return Err(NetworkError::InUse { what: group.to_string(), by: format!("a rule of {other}") });
    }
    remove(tx, group)?;
    Ok(())
}

pub(super) fn remove(tx: &mut Transaction<'_>, group: &SecurityGroup) -> Result<(), StoreError> {
    touch_last(tx, &group.id)?;
    tags::forget_in(tx, &group.id.to_string());
    group.rules.iter().for_each(|rule| tags::forget_in(tx, &rule.id.to_string()));
    tx.remove::<GroupName>(&name_key(group.vpc, &group.name));
    tx.remove::<SecurityGroup>(&group.id);
    Ok(())
}

/// Looks the peer of a rule up.
pub(super) fn resolve(
    tx: &mut Transaction<'_>,
    vpc: VpcId,
    direction: Direction,
    spec: &RuleSpec,
) -> Result<Rule, NetworkError> {
    let peer = match &spec.peer {
        PeerSpec::Known(Peer::PrefixList(list)) => {
            tx.get::<PrefixList>(list)?.ok_or(NetworkError::NoPrefixList(*list))?;
            touch(tx, list)?;
            Peer::PrefixList(*list)
        }
        PeerSpec::Known(peer) => *peer,
        PeerSpec::Group(wanted) => {
            let group = find(tx, vpc, wanted)?;
            touch(tx, &group.id)?;
            Peer::Group(group.id)
        }
        PeerSpec::Host => {
            let row = tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            let range = row.host_address().and_then(|address| Ipv4Cidr::containing(address, 32));
            Peer::Ipv4(range.ok_or(NetworkError::VpcRange(row.cidr))?)
        }
    };
    if let Some(description) = &spec.description {
        check_text(description, "the description of a rule")?;
    }
    let description = spec.description.clone();
    Ok(Rule { id: rule_id(), direction, traffic: spec.traffic, peer, description })
}

/// Adds rules to a group; answers them.
pub(super) fn authorize(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    direction: Direction,
    specs: &[RuleSpec],
) -> Result<Vec<Rule>, NetworkError> {
    let mut added = Vec::new();
    for spec in specs {
        let rule = resolve(tx, group.vpc, direction, spec)?;
        if group.rules.iter().any(|other| other.same_meaning(&rule)) {
            return Err(NetworkError::RuleExists { rule: spec_text(spec), group: group.to_string() });
        }
        group.rules.push(rule.clone());
        added.push(rule);
    }
    check_quota(tx, group)?;
    tx.put(group)?;
    Ok(added)
}

/// EC2 counts IPv4 and IPv6 rules apart, group references as one rule of each, and prefix lists by the
/// number of ranges that they may have.
fn check_quota(tx: &mut Transaction<'_>, group: &SecurityGroup) -> Result<(), NetworkError> {
    for (direction, which) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
        let (mut ipv4, mut ipv6) = (0usize, 0usize);
        for rule in group.rules.iter().filter(|rule| rule.direction == direction) {
            match rule.peer {
                Peer::Ipv4(_) => ipv4 += 1,
                Peer::Ipv6(_) => ipv6 += 1,
                Peer::Group(_) => (ipv4, ipv6) = (ipv4 + 1, ipv6 + 1),
                Peer::PrefixList(list) => {
                    ipv4 += tx.get::<PrefixList>(&list)?.map_or(0, |list| list.max_entries);
                }
            }
        }
        if ipv4.max(ipv6) > MAX_RULES {
            return Err(NetworkError::TooManyRules { group: group.id, which, limit: MAX_RULES });
        }
    }
    Ok(())
}

/// Removes rules by what they mean; answers them.
pub(super) fn revoke(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    direction: Direction,
    specs: &[RuleSpec],
) -> Result<Vec<Rule>, NetworkError> {
    let mut removed = Vec::new();
    for spec in specs {
        let wanted = resolve(tx, group.vpc, direction, spec)?;
        let Some(at) = group.rules.iter().position(|rule| rule.same_meaning(&wanted)) else {
            return Err(NetworkError::NoRule { rule: spec_text(spec), group: group.to_string() });
        };
        removed.push(group.rules.remove(at));
    }
    tx.put(group)?;
    Ok(removed)
}

/// Gives rules other descriptions, or none. All of them, or none if one is not there.
pub(super) fn describe(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    descriptions: &[(SecurityGroupRuleId, Option<String>)],
) -> Result<(), NetworkError> {
    for (id, description) in descriptions {
        if let Some(description) = description {
            check_text(description, "the description of a rule")?;
        }
        let rule = group.rules.iter_mut().find(|rule| rule.id == *id).ok_or(NetworkError::NoRuleId(*id))?;
        rule.description.clone_from(description);
    }
    Ok(tx.put(group)?)
}

/// The same for rules that are named by what they mean, with their new descriptions.
pub(super) fn describe_same(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    direction: Direction,
    specs: &[RuleSpec],
) -> Result<(), NetworkError> {
    for spec in specs {
        let wanted = resolve(tx, group.vpc, direction, spec)?;
        let Some(rule) = group.rules.iter_mut().find(|rule| rule.same_meaning(&wanted)) else {
            return Err(NetworkError::NoRule { rule: spec_text(spec), group: group.to_string() });
        };
        rule.description = wanted.description;
    }
    Ok(tx.put(group)?)
}

/// Removes rules by their ids; answers them.
pub(super) fn revoke_ids(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    ids: &[SecurityGroupRuleId],
) -> Result<Vec<Rule>, NetworkError> {
    let mut removed = Vec::new();
    for id in ids {
        let at = group.rules.iter().position(|rule| rule.id == *id).ok_or(NetworkError::NoRuleId(*id))?;
        removed.push(group.rules.remove(at));
    }
    tx.put(group)?;
    Ok(removed)
}

/// Gives rules another meaning.
pub(super) fn modify(
    tx: &mut Transaction<'_>,
    group: &mut SecurityGroup,
    changes: &[(SecurityGroupRuleId, RuleSpec)],
) -> Result<(), NetworkError> {
    for (id, spec) in changes {
        let at = group.rules.iter().position(|rule| rule.id == *id).ok_or(NetworkError::NoRuleId(*id))?;
        let direction = group.rules.remove(at).direction;
        let rule = Rule { id: *id, ..resolve(tx, group.vpc, direction, spec)? };
        if group.rules.iter().any(|other| other.same_meaning(&rule)) {
            return Err(NetworkError::RuleExists { rule: spec_text(spec), group: group.to_string() });
        }
        group.rules.insert(at, rule);
    }
    check_quota(tx, group)?;
    Ok(tx.put(group)?)
}

fn spec_text(spec: &RuleSpec) -> String {
    let traffic: Traffic = spec.traffic;
    match &spec.peer {
        PeerSpec::Known(peer) => format!("{traffic}:{peer}"),
        PeerSpec::Group(group) => format!("{traffic}:{group}"),
        PeerSpec::Host => format!("{traffic}:host"),
    }
}

/// The groups that these names or ids stand for, for an interface.
pub(super) fn find_for_interface(
    tx: &mut Transaction<'_>,
    vpc: VpcId,
    wanted: &[String],
) -> Result<BTreeSet<SecurityGroupId>, NetworkError> {
    let mut ids = BTreeSet::new();
    for wanted in wanted {
        let group = find(tx, vpc, wanted)?;
        if group.owner.is_some() {
            return Err(NetworkError::OwnedGroup(group.id));
        }
        ids.insert(group.id);
    }
    check_count(ids.len())?;
    for id in &ids {
        touch(tx, id)?;
    }
    Ok(ids)
}

/// Refuses more groups than an interface may have.
pub(super) fn check_count(count: usize) -> Result<(), NetworkError> {
    let limit = MAX_GROUPS_PER_INTERFACE;
    if (1..=limit).contains(&count) { Ok(()) } else { Err(NetworkError::TooManyGroups { count, limit }) }
}

/// Removes what the groups know of an interface, and the group that was made for its instance.
pub(super) fn forget_interface(tx: &mut Transaction<'_>, interface: &Interface) -> Result<(), StoreError> {
    let Some(membership) = tx.get::<Membership>(&interface.id)? else { return Ok(()) };
    for id in &membership.groups {
        if let Some(group) = tx.get::<SecurityGroup>(id)?
            && group.owner.is_some()
            && group.owner == membership.instance
        {
            // Rules that refer to it match nobody from now on.
            remove(tx, &group)?;
        }
    }
    tags::forget_in(tx, &interface.id.to_string());
    tx.remove::<Membership>(&interface.id);
    Ok(())
}

impl std::fmt::Display for SecurityGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}
