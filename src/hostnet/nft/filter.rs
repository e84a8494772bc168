//! What varies in the tables of a VPC, compiled from its policy: all of it, or the part that a change
//! is about.
//!
//! ```text
//!  eni_in[tap] ─▶ eni_…_in: allowance ─▶ grp_…_in ─▶ sg_…_in: one rule per rule of the group
//!                 (never rewritten)      (its groups)    ip saddr @m_…, ip6 saddr @m6_…: members of another group
//! ```
//! A rule of a group is one rule here, or one per address family, with a named counter, so that counts
//! survive when its chain is written anew. Names derive from ids. Groups without interfaces here are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use kiln_model::security::{Direction, Member, NetworkPolicy, Peer, Rule};
use kiln_model::{InterfaceId, Ipv4Cidr, MacAddr, PrefixListId, SecurityGroupId, SubnetId};

use super::line::{Line, matches_anything};
use crate::change::Change;
use crate::{names, routing};

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// The one with the rules.
    Inet,
    /// The one that looks at ARP.
    Arp,
}

/// An entry of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// A tap.
    Tap(String),
    /// A tap and its hardware address.
    TapMac(String, MacAddr),
    /// A tap, its hardware address and one of its addresses.
    Source(String, MacAddr, IpAddr),
    /// Tap to the name of a counter.
    Counter(String, String),
    /// Tap to the name of a chain.
    Chain(String, String),
    /// A member of a group.
    Address(IpAddr),
    /// A range of a prefix list.
    Range(Ipv4Cidr),
}

/// Where an element is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Table.
    pub family: Family,
    /// Set or map.
    pub set: String,
}

/// Kind of a set that comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetKind {
    Addresses,
    Addresses6,
    Ranges,
}

/// All that varies, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    pub(super) counters: BTreeSet<(Family, String)>,
    pub(super) sets: BTreeMap<String, SetKind>,
    pub(super) chains: BTreeMap<String, Vec<Line>>,
    pub(super) elements: BTreeSet<(Place, Element)>,
}

/// What a policy has of its groups and lists in the filter.
#[derive(Debug, Default)]
struct Uses {
    /// Groups with interfaces.
    groups: BTreeSet<SecurityGroupId>,
    /// Groups whose members rules of those refer to.
    members: BTreeSet<SecurityGroupId>,
    /// Prefix lists that they refer to.
    lists: BTreeSet<PrefixListId>,
}

/// Which part of a filter is meant.
#[derive(Debug)]
struct Scope {
    interfaces: BTreeSet<InterfaceId>,
    /// Chains of these.
    groups: BTreeSet<SecurityGroupId>,
    /// Sets of members, whole. Of others there are the addresses of `interfaces`.
    members: BTreeSet<SecurityGroupId>,
    /// Prefix lists, whole.
    lists: BTreeSet<PrefixListId>,
    /// Network ACLs of these.
    subnets: BTreeSet<SubnetId>,
    /// Route tables of these.
    routing: BTreeSet<SubnetId>,
}

/// Counter of a rule.
pub(crate) fn rule_counter(rule: &Rule) -> String {
    format!("r_{}", rule.id.short())
}

/// Counter of frames with a source that is not the interface's.
pub(crate) fn spoof_counter(interface: InterfaceId) -> String {
    format!("spoof_{}", interface.short())
}

/// Counter of connections beyond the allowance.
pub(crate) fn allowance_counter(interface: InterfaceId) -> String {
    format!("conns_{}", interface.short())
}

/// Counter of what the host may start.
pub(crate) fn host_counter(interface: InterfaceId) -> String {
    format!("host_{}", interface.short())
}

fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

fn interface_chain(interface: InterfaceId, direction: Direction) -> String {
    format!("eni_{}_{}", interface.short(), side(direction))
}

fn membership_chain(interface: InterfaceId, direction: Direction) -> String {
    format!("grp_{}_{}", interface.short(), side(direction))
}

fn group_chain(group: SecurityGroupId, direction: Direction) -> String {
    format!("sg_{}_{}", group.short(), side(direction))
}

fn subnet_chain(subnet: SubnetId, direction: Direction) -> String {
    format!("acl_{}_{}", subnet.short(), side(direction))
}

fn routing_chain(subnet: SubnetId) -> String {
    format!("rt_{}", subnet.short())
}

/// Interfaces whose primary address is in a range.
fn members_in(policy: &NetworkPolicy, range: Ipv4Cidr) -> impl Iterator<Item = InterfaceId> {
    let primary_in = move |member: &Member| member.addresses.first().is_some_and(|a| range.contains(*a));
    policy.interfaces.iter().filter(move |(_, member)| primary_in(member)).map(|(id, _)| *id)
}

pub(super) fn member_set(group: SecurityGroupId) -> String {
    format!("m_{}", group.short())
}

pub(super) fn member_set6(group: SecurityGroupId) -> String {
    format!("m6_{}", group.short())
}

pub(super) fn prefix_set(list: PrefixListId) -> String {
    format!("pl_{}", list.short())
}

impl Uses {
    fn of(policy: &NetworkPolicy) -> Self {
        let mut uses = Uses::default();
        for member in policy.interfaces.values() {
            uses.groups.extend(member.groups.iter().copied());
        }
        let rules = uses.groups.iter().filter_map(|group| policy.groups.get(group)).flatten();
        for rule in rules.filter(|rule| matches_anything(rule, policy)) {
            match rule.peer {
                Peer::Group(group) => drop(uses.members.insert(group)),
                Peer::PrefixList(list) => drop(uses.lists.insert(list)),
                Peer::Ipv4(_) | Peer::Ipv6(_) => {}
            }
        }
        uses
    }
}

impl Scope {
    /// Everything.
    fn whole(policy: &NetworkPolicy, uses: &Uses) -> Self {
        Scope {
            interfaces: policy.interfaces.keys().copied().collect(),
            groups: uses.groups.clone(),
            members: uses.members.clone(),
            lists: uses.lists.clone(),
            subnets: policy.subnets.keys().copied().collect(),
            routing: policy.routing.keys().copied().collect(),
        }
    }

    /// Everything that differs between two policies, and little besides.
    fn between(old: (&NetworkPolicy, &Uses), new: (&NetworkPolicy, &Uses), change: &Change) -> Self {
        fn differing<'a, T: Ord + Copy>(
            a: &'a BTreeSet<T>,
            b: &'a BTreeSet<T>,
        ) -> impl Iterator<Item = T> + 'a {
            a.symmetric_difference(b).copied()
        }
        let mut groups: BTreeSet<_> = change.groups.keys().copied().collect();
        // Whether a rule that refers to a group can match anything depends on there being that group.
        let came_or_went =
            |id: &SecurityGroupId| old.0.groups.contains_key(id) != new.0.groups.contains_key(id);
        let moved: BTreeSet<_> = groups.iter().copied().filter(came_or_went).collect();
        if !moved.is_empty() {
            let refers = |rule: &Rule| matches!(rule.peer, Peer::Group(group) if moved.contains(&group));
            let referring = new.0.groups.iter().filter(|(_, rules)| rules.iter().any(refers));
            groups.extend(referring.map(|(id, _)| *id));
        }
        groups.extend(differing(&old.1.groups, &new.1.groups));
        let lists = change.prefix_lists.keys().copied();
        let mut interfaces: BTreeSet<_> = change.interfaces.keys().copied().collect();
        // A subnet that gets its first entries, or loses its last, gets its interfaces as well.
        for id in change.subnets.keys() {
            for (policy, other) in [(old.0, new.0), (new.0, old.0)] {
                if let Some(subnet) = policy.subnets.get(id)
                    && other.subnets.get(id).map(|other| other.cidr) != Some(subnet.cidr)
                {
                    interfaces.extend(members_in(policy, subnet.cidr));
                }
            }
        }
        // The same for one that gets its first table.
        for id in change.routing.keys() {
            for (policy, other) in [(old.0, new.0), (new.0, old.0)] {
                if let Some(subnet) = policy.routing.get(id)
                    && other.routing.get(id).map(|other| other.cidr) != Some(subnet.cidr)
                {
                    interfaces.extend(members_in(policy, subnet.cidr));
                }
            }
        }
        Scope {
            interfaces,
            groups,
            members: differing(&old.1.members, &new.1.members).collect(),
            lists: lists.chain(differing(&old.1.lists, &new.1.lists)).collect(),
            subnets: change.subnets.keys().copied().collect(),
            routing: change.routing.keys().copied().collect(),
        }
    }
}

impl Filter {
    /// Compiles a policy.
    pub fn of(policy: &NetworkPolicy) -> Self {
        let uses = Uses::of(policy);
        Filter::part(policy, &uses, &Scope::whole(policy, &uses))
    }

    /// Compiles the parts of two policies that differ by `change`. Their differences are those of the
    /// wholes; the cost is that of what changes, and a look at everything.
    pub fn around(old: &NetworkPolicy, new: &NetworkPolicy, change: &Change) -> (Self, Self) {
        let uses = (Uses::of(old), Uses::of(new));
        let scope = Scope::between((old, &uses.0), (new, &uses.1), change);
        (Filter::part(old, &uses.0, &scope), Filter::part(new, &uses.1, &scope))
    }

    fn part(policy: &NetworkPolicy, uses: &Uses, scope: &Scope) -> Self {
        let mut filter = Filter::default();
        for id in &scope.interfaces {
            let Some(member) = policy.interfaces.get(id) else { continue };
            filter.add_interface(*id, member);
            filter.add_to_subnet(policy, *id, member);
            let elsewhere =
                |group: &&SecurityGroupId| uses.members.contains(*group) && !scope.members.contains(*group);
            for group in member.groups.iter().filter(elsewhere) {
                filter.add_members(*group, member);
            }
        }
        for group in scope.groups.intersection(&uses.groups) {
            filter.add_group(policy, *group);
        }
        for id in &scope.subnets {
            let Some(subnet) = policy.subnets.get(id) else { continue };
            for direction in [Direction::Ingress, Direction::Egress] {
                filter.chains.insert(subnet_chain(*id, direction), Line::acl(subnet, direction));
            }
        }
        for id in &scope.routing {
            let Some(subnet) = policy.routing.get(id) else { continue };
            let mark = routing::table_id(subnet.table);
            filter.chains.insert(routing_chain(*id), vec![Line::Table(mark)]);
        }
        for group in scope.members.intersection(&uses.members) {
            filter.sets.insert(member_set(*group), SetKind::Addresses);
            filter.sets.insert(member_set6(*group), SetKind::Addresses6);
            let members = policy.interfaces.values().filter(|member| member.groups.contains(group));
            members.for_each(|member| filter.add_members(*group, member));
        }
        for list in scope.lists.intersection(&uses.lists) {
            let set = prefix_set(*list);
            let ranges = policy.prefix_lists.get(list).map(Vec::as_slice).unwrap_or_default();
            for range in disjoint(ranges) {
                filter.element(Family::Inet, &set, Element::Range(range));
            }
            filter.sets.insert(set, SetKind::Ranges);
        }
        filter
    }

    fn element(&mut self, family: Family, set: &str, element: Element) {
        self.elements.insert((Place { family, set: set.to_owned() }, element));
    }

    fn add_interface(&mut self, id: InterfaceId, member: &Member) {
        let tap = || names::tap(id);
        for counter in [spoof_counter(id), allowance_counter(id), host_counter(id)] {
            self.counters.insert((Family::Inet, counter));
        }
        self.counters.insert((Family::Arp, spoof_counter(id)));
        for family in [Family::Inet, Family::Arp] {
            self.element(family, "enis", Element::Tap(tap()));
            self.element(family, "spoof_by", Element::Counter(tap(), spoof_counter(id)));
        }
        for address in member.all_addresses() {
            let source = Element::Source(tap(), member.mac, address);
            if address.is_ipv4() {
                self.element(Family::Inet, "src4", source.clone());
                self.element(Family::Arp, "arp4", source);
            } else {
                self.element(Family::Inet, "src6", source);
            }
        }
        if !member.source_dest_check {
            self.element(Family::Inet, "nochk", Element::TapMac(tap(), member.mac));
        }
        self.element(Family::Arp, "probe", Element::TapMac(tap(), member.mac));
        for (map, direction) in [("eni_out", Direction::Egress), ("eni_in", Direction::Ingress)] {
            let chain = interface_chain(id, direction);
            self.element(Family::Inet, map, Element::Chain(tap(), chain.clone()));
            let groups = membership_chain(id, direction);
            let counter = allowance_counter(id);
            let allowance = Line::Allowance { direction, connections: member.connections, counter };
            self.chains.insert(chain, vec![allowance, Line::Jump(groups.clone())]);
            let ingress = direction == Direction::Ingress;
            let host = member.host.filter(|_| ingress);
            let host = host.and_then(|host| Line::from_host(host, host_counter(id)));
            let host6 = member.host_ipv6.filter(|_| ingress);
            let host6 = host6.and_then(|host| Line::from_host_ipv6(host, host_counter(id)));
            let jumps = member.groups.iter().map(|group| Line::Jump(group_chain(*group, direction)));
            self.chains.insert(groups, host.into_iter().chain(host6).chain(jumps).collect());
        }
    }

    fn add_to_subnet(&mut self, policy: &NetworkPolicy, id: InterfaceId, member: &Member) {
        if let Some((subnet, _)) = member.addresses.first().and_then(|a| policy.routing_of(*a)) {
            let element = Element::Chain(names::tap(id), routing_chain(subnet));
            self.element(Family::Inet, "routing", element);
        }
        let Some((subnet, _)) = member.addresses.first().and_then(|a| policy.subnet_of(*a)) else {
            return;
        };
        for (map, direction) in [("acl_out", Direction::Egress), ("acl_in", Direction::Ingress)] {
            let chain = subnet_chain(subnet, direction);
            self.element(Family::Inet, map, Element::Chain(names::tap(id), chain));
        }
    }

    fn add_members(&mut self, group: SecurityGroupId, member: &Member) {
        for address in member.all_addresses() {
            let set = if address.is_ipv4() { member_set(group) } else { member_set6(group) };
            self.element(Family::Inet, &set, Element::Address(address));
        }
    }

    fn add_group(&mut self, policy: &NetworkPolicy, group: SecurityGroupId) {
        let rules = policy.groups.get(&group).map(Vec::as_slice).unwrap_or_default();
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut lines = Vec::new();
            for rule in rules.iter().filter(|rule| rule.direction == direction) {
                let counter = rule_counter(rule);
                let of_rule = Line::of_rule(rule, policy, &counter);
                if !of_rule.is_empty() {
                    lines.extend(of_rule);
                    self.counters.insert((Family::Inet, counter));
                }
            }
            self.chains.insert(group_chain(group, direction), lines);
        }
    }
}

/// The ranges without those inside of others, which the kernel's sets refuse.
fn disjoint(ranges: &[Ipv4Cidr]) -> Vec<Ipv4Cidr> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| (range.prefix_len(), range.network()));
    let mut kept: Vec<Ipv4Cidr> = Vec::new();
    for range in sorted {
        if !kept.iter().any(|wider| wider.overlaps(range)) {
            kept.push(range);
        }
    }
    kept
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Arp => "arp",
        })
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Tap(tap) => write!(f, "\"{tap}\""),
            Element::TapMac(tap, mac) => write!(f, "\"{tap}\" . {mac}"),
            Element::Source(tap, mac, address) => write!(f, "\"{tap}\" . {mac} . {address}"),
            Element::Counter(tap, counter) => write!(f, "\"{tap}\" : \"{counter}\""),
            Element::Chain(tap, chain) => write!(f, "\"{tap}\" : jump {chain}"),
            Element::Address(address) => write!(f, "{address}"),
            Element::Range(range) => write!(f, "{range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_inside_of_others_are_left_out() {
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8", "11.0.0.0/8"].map(|r| r.parse().unwrap());
        let kept: Vec<_> = disjoint(&ranges).iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "11.0.0.0/8"]);
    }
}
