//! What varies in the tables of a VPC, and how to get from one state of it to another.
//!
//! ```text
//!  eni_in[tap] ─▶ eni_…_in: allowance ─▶ grp_…_in ─▶ sg_…_in: one rule per rule of the group
//!                 (never rewritten)      (its groups)    ip saddr @m_…   members of another group
//! ```
//! A rule of a group is one rule here, with a named counter, so that counts survive when its chain
//! is written anew. Names derive from ids. Groups without interfaces here are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::Ipv4Addr;

use kiln_model::security::{Direction, IcmpMatch, Member, NetworkPolicy, Peer, PortRange, Rule, Traffic};
use kiln_model::{InterfaceId, Ipv4Cidr, MacAddr, PrefixListId, SecurityGroupId};

use crate::names::{self, TABLE};

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
    Source(String, MacAddr, Ipv4Addr),
    /// Tap to the name of a counter.
    Counter(String, String),
    /// Tap to the name of a chain.
    Chain(String, String),
    /// A member of a group.
    Address(Ipv4Addr),
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
enum SetKind {
    Addresses,
    Ranges,
}

/// All that varies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    counters: BTreeSet<(Family, String)>,
    sets: BTreeMap<String, SetKind>,
    chains: BTreeMap<String, Vec<String>>,
    elements: BTreeSet<(Place, Element)>,
}

/// Elements that come and go between two states whose sets, chains and counters are the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves<'a> {
    /// To be added.
    pub add: Vec<&'a (Place, Element)>,
    /// To be removed.
    pub remove: Vec<&'a (Place, Element)>,
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

fn member_set(group: SecurityGroupId) -> String {
    format!("m_{}", group.short())
}

fn prefix_set(list: PrefixListId) -> String {
    format!("pl_{}", list.short())
}

impl Filter {
    /// Compiles a policy.
    pub fn of(policy: &NetworkPolicy) -> Self {
        let mut filter = Filter::default();
        let mut groups = BTreeSet::new();
        for (id, member) in &policy.interfaces {
            filter.add_interface(*id, member);
            groups.extend(member.groups.iter().copied());
        }
        for group in groups {
            filter.add_group(policy, group);
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
        for address in &member.addresses {
            self.element(Family::Inet, "src4", Element::Source(tap(), member.mac, *address));
            self.element(Family::Arp, "arp4", Element::Source(tap(), member.mac, *address));
        }
        if !member.source_dest_check {
            self.element(Family::Inet, "nochk", Element::TapMac(tap(), member.mac));
        }
        self.element(Family::Arp, "probe", Element::TapMac(tap(), member.mac));
        for (map, direction) in [("eni_out", Direction::Egress), ("eni_in", Direction::Ingress)] {
            let chain = interface_chain(id, direction);
            self.element(Family::Inet, map, Element::Chain(tap(), chain.clone()));
            let groups = membership_chain(id, direction);
            let limit = member.connections;
            let allowance = format!("ct count over {limit} counter name \"{}\" drop", allowance_counter(id));
            self.chains.insert(chain, vec![allowance, format!("jump {groups}")]);
            let mut rules = Vec::new();
            if let Some(host) = member.host.filter(|_| direction == Direction::Ingress) {
                rules.push(format!("ip saddr {host} counter name \"{}\" accept", host_counter(id)));
            }
            rules
                .extend(member.groups.iter().map(|group| format!("jump {}", group_chain(*group, direction))));
            self.chains.insert(groups, rules);
        }
    }

    fn add_group(&mut self, policy: &NetworkPolicy, group: SecurityGroupId) {
        let rules = policy.groups.get(&group).map(Vec::as_slice).unwrap_or_default();
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut lines = Vec::new();
            for rule in rules.iter().filter(|rule| rule.direction == direction) {
                let Some(matching) = matching(rule, policy) else { continue };
                let counter = rule_counter(rule);
                lines.push(format!("{matching} counter name \"{counter}\" accept"));
                self.counters.insert((Family::Inet, counter));
                self.add_peer(policy, rule.peer);
            }
            self.chains.insert(group_chain(group, direction), lines);
        }
    }

    fn add_peer(&mut self, policy: &NetworkPolicy, peer: Peer) {
        match peer {
            Peer::Group(group) => {
                let set = member_set(group);
                for address in policy.members_of(group) {
                    self.element(Family::Inet, &set, Element::Address(address));
                }
                self.sets.insert(set, SetKind::Addresses);
            }
            Peer::PrefixList(list) => {
                let set = prefix_set(list);
                let ranges = policy.prefix_lists.get(&list).map(Vec::as_slice).unwrap_or_default();
                for range in disjoint(ranges) {
                    self.element(Family::Inet, &set, Element::Range(range));
                }
                self.sets.insert(set, SetKind::Ranges);
            }
            Peer::Ipv4(_) | Peer::Ipv6(_) => {}
        }
    }

    /// The elements that differ, if nothing but plain elements does.
    pub fn moves<'a>(&'a self, to: &'a Filter) -> Option<Moves<'a>> {
        let same = self.counters == to.counters && self.sets == to.sets && self.chains == to.chains;
        let moves = Moves {
            add: to.elements.difference(&self.elements).collect(),
            remove: self.elements.difference(&to.elements).collect(),
        };
        let plain = |(_, element): &&(Place, Element)| {
            !matches!(element, Element::Counter(..) | Element::Chain(..) | Element::Range(_))
        };
        (same && moves.add.iter().chain(&moves.remove).all(plain)).then_some(moves)
    }

    /// One transaction from `self` to `to`. It has the same result where `to` is there already: each
    /// thing that goes is added before it is deleted, because deleting what is not there would fail
    /// the whole. So whoever finds a change that was perhaps interrupted carries it out again.
    pub fn script(&self, to: &Filter) -> String {
        let mut text = Script(String::new());
        for (family, counter) in self.counters.union(&to.counters) {
            text.line(format_args!("add counter {family} {TABLE} {counter}"));
        }
        for (set, kind) in self.sets.iter().chain(&to.sets) {
            let kind = match kind {
                SetKind::Addresses => "type ipv4_addr;",
                SetKind::Ranges => "type ipv4_addr; flags interval;",
            };
            text.line(format_args!("add set inet {TABLE} {set} {{ {kind} }}"));
        }
        for chain in self.chains.keys().chain(to.chains.keys()) {
            text.line(format_args!("add chain inet {TABLE} {chain}"));
        }
        // The chains before what lets packets reach them.
        for (chain, rules) in &to.chains {
            if self.chains.get(chain) == Some(rules) {
                continue;
            }
            text.line(format_args!("flush chain inet {TABLE} {chain}"));
            for rule in rules {
                text.line(format_args!("add rule inet {TABLE} {chain} {rule}"));
            }
        }
        // Ranges refuse neighbours that overlap them, even those that go in the same transaction.
        let range = |(_, element): &&(Place, Element)| matches!(element, Element::Range(_));
        let rewritten: BTreeSet<_> =
            self.elements.symmetric_difference(&to.elements).filter(range).map(|(place, _)| place).collect();
        for place in &rewritten {
            text.line(format_args!("flush set {} {TABLE} {}", place.family, place.set));
        }
        for (place, element) in to.elements.iter().filter(|(place, _)| rewritten.contains(place)) {
            let Place { family, set } = place;
            text.line(format_args!("add element {family} {TABLE} {set} {{ {element} }}"));
        }
        let plain = |(place, _): &&(Place, Element)| !rewritten.contains(place);
        for (place, element) in self.elements.difference(&to.elements).filter(plain) {
            let Place { family, set } = place;
            text.line(format_args!("add element {family} {TABLE} {set} {{ {element} }}"));
            text.line(format_args!("delete element {family} {TABLE} {set} {{ {element} }}"));
        }
        for (place, element) in to.elements.difference(&self.elements).filter(plain) {
            let Place { family, set } = place;
            text.line(format_args!("add element {family} {TABLE} {set} {{ {element} }}"));
        }
        let gone = || self.chains.keys().filter(|chain| !to.chains.contains_key(*chain));
        // All are emptied before any goes: they refer to each other.
        for chain in gone() {
            text.line(format_args!("flush chain inet {TABLE} {chain}"));
        }
        for chain in gone() {
            text.line(format_args!("delete chain inet {TABLE} {chain}"));
        }
        for set in self.sets.keys().filter(|set| !to.sets.contains_key(*set)) {
            text.line(format_args!("delete set inet {TABLE} {set}"));
        }
        for (family, counter) in self.counters.difference(&to.counters) {
            text.line(format_args!("delete counter {family} {TABLE} {counter}"));
        }
        text.0
    }
}

/// The match of a rule in the language of nft; `None` for what can match nothing, such as ICMPv6
/// from an IPv4 address.
fn matching(rule: &Rule, policy: &NetworkPolicy) -> Option<String> {
    let end = match rule.direction {
        Direction::Ingress => "saddr",
        Direction::Egress => "daddr",
    };
    let ipv4 = !matches!(rule.peer, Peer::Ipv6(_));
    let peer = match rule.peer {
        Peer::Ipv4(_) if rule.peer.is_anywhere() => "meta nfproto ipv4".to_owned(),
        Peer::Ipv6(_) if rule.peer.is_anywhere() => "meta nfproto ipv6".to_owned(),
        Peer::Ipv4(range) => format!("ip {end} {range}"),
        Peer::Ipv6(range) => format!("ip6 {end} {range}"),
        Peer::Group(group) if !policy.groups.contains_key(&group) => return None,
        Peer::Group(group) => format!("ip {end} @{}", member_set(group)),
        Peer::PrefixList(list) => format!("ip {end} @{}", prefix_set(list)),
    };
    let traffic = match rule.traffic {
        Traffic::All => return Some(peer),
        Traffic::Tcp(PortRange::ALL) => "meta l4proto tcp".to_owned(),
        Traffic::Udp(PortRange::ALL) => "meta l4proto udp".to_owned(),
        Traffic::Tcp(ports) => format!("tcp dport {ports}"),
        Traffic::Udp(ports) => format!("udp dport {ports}"),
        Traffic::Icmp(wanted) if ipv4 => icmp("icmp", "icmp", wanted),
        Traffic::Icmpv6(wanted) if !ipv4 => icmp("icmpv6", "ipv6-icmp", wanted),
        Traffic::Icmp(_) | Traffic::Icmpv6(_) => return None,
        Traffic::Protocol(number) => format!("meta l4proto {number}"),
    };
    Some(format!("{peer} {traffic}"))
}

fn icmp(field: &str, protocol: &str, wanted: IcmpMatch) -> String {
    match wanted {
        IcmpMatch { kind: None, .. } => format!("meta l4proto {protocol}"),
        IcmpMatch { kind: Some(kind), code: None } => format!("{field} type {kind}"),
        IcmpMatch { kind: Some(kind), code: Some(code) } => {
            format!("{field} type {kind} {field} code {code}")
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

struct Script(String);

impl Script {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{text}");
    }
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
    use kiln_model::SecurityGroupRuleId;

    use super::*;

    fn group(n: u64) -> SecurityGroupId {
        SecurityGroupId::from_bits(n)
    }

    fn rule(direction: Direction, traffic: Traffic, peer: Peer) -> Rule {
        Rule { id: SecurityGroupRuleId::from_bits(7), direction, traffic, peer, description: None }
    }

    fn traffic(protocol: &str, from: i64, to: i64) -> Traffic {
        Traffic::from_fields(protocol, Some(from), Some(to)).unwrap()
    }

    fn policy() -> NetworkPolicy {
        let member = |last: u8, group: SecurityGroupId| {
            let member = Member {
                mac: MacAddr::new([2, 0, 0, 0, 0, last]),
                addresses: vec![Ipv4Addr::new(10, 0, 0, last)],
                groups: [group].into(),
                host: None,
                source_dest_check: true,
                connections: 100,
            };
            (InterfaceId::from_bits(last.into()), member)
        };
        let reference = rule(Direction::Ingress, traffic("tcp", 22, 22), Peer::Group(group(2)));
        NetworkPolicy {
            interfaces: [member(4, group(1)), member(5, group(2))].into(),
            groups: [(group(1), vec![reference]), (group(2), vec![])].into(),
            prefix_lists: BTreeMap::new(),
        }
    }

    #[test]
    fn rules_read_as_nft() {
        let policy = policy();
        let text = |direction, traffic, peer: &str| {
            let peer = peer.parse().map_or_else(|_| Peer::Ipv6(peer.parse().unwrap()), Peer::Ipv4);
            matching(&rule(direction, traffic, peer), &policy)
        };
        use Direction::{Egress, Ingress};
        assert_eq!(text(Ingress, Traffic::All, "0.0.0.0/0").unwrap(), "meta nfproto ipv4");
        assert_eq!(
            text(Ingress, traffic("tcp", 22, 22), "10.50.2.133/32").unwrap(),
            "ip saddr 10.50.2.133/32 tcp dport 22"
        );
        assert_eq!(
            text(Egress, traffic("udp", 1, 9), "10.0.0.0/8").unwrap(),
            "ip daddr 10.0.0.0/8 udp dport 1-9"
        );
        assert_eq!(text(Egress, traffic("47", 0, 0), "::/0").unwrap(), "meta nfproto ipv6 meta l4proto 47");
        let ping = traffic("icmp", 8, 0);
        assert_eq!(text(Ingress, ping, "0.0.0.0/0").unwrap(), "meta nfproto ipv4 icmp type 8 icmp code 0");
        assert_eq!(text(Ingress, ping, "::/0"), None, "no such packets");
        let stale = rule(Ingress, Traffic::All, Peer::Group(group(9)));
        assert_eq!(matching(&stale, &policy), None);
    }

    #[test]
    fn member_that_comes_moves_elements_alone() {
        let one = policy();
        let mut other = one.clone();
        other
            .interfaces
            .get_mut(&InterfaceId::from_bits(5))
            .unwrap()
            .addresses
            .push(Ipv4Addr::new(10, 0, 0, 9));
        let (from, to) = (Filter::of(&one), Filter::of(&other));
        let moves = from.moves(&to).unwrap();
        let sets: Vec<_> = moves.add.iter().map(|(place, _)| place.set.as_str()).collect();
        assert_eq!((sets, moves.remove.len()), (vec!["m_000000000002", "src4", "arp4"], 0));
        other.groups.insert(group(1), vec![]);
        assert_eq!(from.moves(&Filter::of(&other)), None, "rules change");
    }

    #[test]
    fn unchanged_chains_are_left_alone() {
        let one = policy();
        let mut other = one.clone();
        other.groups.insert(group(2), vec![rule(Direction::Egress, Traffic::All, Peer::Group(group(2)))]);
        let script = Filter::of(&one).script(&Filter::of(&other));
        let flushed: Vec<_> = script.lines().filter(|line| line.starts_with("flush")).collect();
        assert_eq!(flushed, ["flush chain inet kiln sg_000000000002_out"]);
    }

    #[test]
    fn ranges_inside_of_others_are_left_out() {
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8", "11.0.0.0/8"].map(|r| r.parse().unwrap());
        let kept: Vec<_> = disjoint(&ranges).iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "11.0.0.0/8"]);
    }
}
