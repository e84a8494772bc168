//! How to get from one state of a VPC's filter to another.
//!
//! ```text
//!  Filter, Filter ─┬─ edits ──▶ netlink: elements, counters, contents of chains that stay
//!                  └─ script ─▶ nft: all else
//! ```

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::filter::{Element, Family, Filter, Place, SetKind};
use super::line::Line;
use crate::names::TABLE;

/// What comes and goes between two states with the same sets and chains.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits<'a> {
    /// Elements to be added.
    pub add: Vec<&'a (Place, Element)>,
    /// Elements to be removed.
    pub remove: Vec<&'a (Place, Element)>,
    /// Counters to be made.
    pub new_counters: Vec<&'a str>,
    /// Counters to be removed.
    pub old_counters: Vec<&'a str>,
    /// Chains that get more rules, behind those that they have. Their order means nothing: all of them
    /// allow. The kernel takes time to free what goes; where nothing goes there is none.
    pub append: Vec<(&'a str, Vec<&'a Line>)>,
    /// Chains whose contents are replaced.
    pub rewrite: Vec<(&'a str, &'a [Line])>,
}

impl Filter {
    /// The difference, if it is of a kind that [`Edits`] can say.
    pub fn edits<'a>(&'a self, to: &'a Filter) -> Option<Edits<'a>> {
        if self.sets != to.sets || !self.chains.keys().eq(to.chains.keys()) {
            return None;
        }
        fn inet((family, counter): &(Family, String)) -> Option<&str> {
            (*family == Family::Inet).then_some(counter.as_str())
        }
        let (mut append, mut rewrite) = (Vec::new(), Vec::new());
        for (chain, lines) in &to.chains {
            let before = self.chains.get(chain).map(Vec::as_slice).unwrap_or_default();
            if before.iter().any(|line| !lines.contains(line)) {
                rewrite.push((chain.as_str(), lines.as_slice()));
            } else if before.len() < lines.len() {
                append.push((chain.as_str(), lines.iter().filter(|line| !before.contains(line)).collect()));
            } else if before != lines {
                rewrite.push((chain.as_str(), lines.as_slice()));
            }
        }
        let edits = Edits {
            add: to.elements.difference(&self.elements).collect(),
            remove: self.elements.difference(&to.elements).collect(),
            new_counters: to.counters.difference(&self.counters).map(inet).collect::<Option<_>>()?,
            old_counters: self.counters.difference(&to.counters).map(inet).collect::<Option<_>>()?,
            append,
            rewrite,
        };
        let plain = |(_, element): &&(Place, Element)| {
            !matches!(element, Element::Counter(..) | Element::Chain(..) | Element::Range(_))
        };
        edits.add.iter().chain(&edits.remove).all(plain).then_some(edits)
    }

    /// One transaction from `self` to `to`. It has the same result where `to` is there already: each
    /// thing that goes is added before it is deleted, because deleting what is not there would fail
    /// the whole. So whoever finds a change that was perhaps interrupted carries it out again. What is
    /// in both is not mentioned.
    pub fn script(&self, to: &Filter) -> String {
        let mut text = Script(String::new());
        for (family, counter) in self.counters.symmetric_difference(&to.counters) {
            text.line(format_args!("add counter {family} {TABLE} {counter}"));
        }
        for (set, kind) in only_in(&self.sets, &to.sets).chain(only_in(&to.sets, &self.sets)) {
            let kind = match kind {
                SetKind::Addresses => "type ipv4_addr;",
                SetKind::Addresses6 => "type ipv6_addr;",
                SetKind::Ranges => "type ipv4_addr; flags interval;",
            };
            text.line(format_args!("add set inet {TABLE} {set} {{ {kind} }}"));
        }
        let chains = only_in(&self.chains, &to.chains).chain(only_in(&to.chains, &self.chains));
        for (chain, _) in chains {
            text.line(format_args!("add chain inet {TABLE} {chain}"));
        }
        // The chains before what lets packets reach them.
        for (chain, lines) in &to.chains {
            if self.chains.get(chain) == Some(lines) {
                continue;
            }
            text.line(format_args!("flush chain inet {TABLE} {chain}"));
            for line in lines {
                text.line(format_args!("add rule inet {TABLE} {chain} {line}"));
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
            text.element("add", place, element);
        }
        let plain = |(place, _): &&(Place, Element)| !rewritten.contains(place);
        for (place, element) in self.elements.difference(&to.elements).filter(plain) {
            text.element("add", place, element);
            text.element("delete", place, element);
        }
        for (place, element) in to.elements.difference(&self.elements).filter(plain) {
            text.element("add", place, element);
        }
        // All are emptied before any goes: they refer to each other.
        for (chain, _) in only_in(&self.chains, &to.chains) {
            text.line(format_args!("flush chain inet {TABLE} {chain}"));
        }
        for (chain, _) in only_in(&self.chains, &to.chains) {
            text.line(format_args!("delete chain inet {TABLE} {chain}"));
        }
        for (set, _) in only_in(&self.sets, &to.sets) {
            text.line(format_args!("delete set inet {TABLE} {set}"));
        }
        for (family, counter) in self.counters.difference(&to.counters) {
            text.line(format_args!("delete counter {family} {TABLE} {counter}"));
        }
        text.0
    }
}

/// Entries whose key only `this` has.
fn only_in<'a, T>(
    this: &'a std::collections::BTreeMap<String, T>,
    other: &'a std::collections::BTreeMap<String, T>,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    this.iter().filter(|(key, _)| !other.contains_key(*key))
}

struct Script(String);

impl Script {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{text}");
    }

    fn element(&mut self, verb: &str, place: &Place, element: &Element) {
        let Place { family, set } = place;
        self.line(format_args!("{verb} element {family} {TABLE} {set} {{ {element} }}"));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use kiln_model::security::{
        AclEntry, Direction, Member, NetworkPolicy, Peer, Rule, SubnetAcl, SubnetRouting, TableNumber,
        Traffic,
    };
    use kiln_model::{InterfaceId, MacAddr, PrefixListId, SecurityGroupId, SecurityGroupRuleId, SubnetId};
    use proptest::prelude::*;

    use super::*;
    use crate::change::Change;

    fn group(n: u64) -> SecurityGroupId {
        SecurityGroupId::from_bits(n)
    }

    fn rule(n: u64, direction: Direction, traffic: Traffic, peer: Peer) -> Rule {
        Rule { id: SecurityGroupRuleId::from_bits(n), direction, traffic, peer, description: None }
    }

    fn member(last: u8, groups: &[u64]) -> (InterfaceId, Member) {
        let member = Member {
            mac: MacAddr::new([2, 0, 0, 0, 0, last]),
            addresses: vec![Ipv4Addr::new(10, 0, 0, last)],
            ipv6: vec![],
            groups: groups.iter().map(|n| group(*n)).collect(),
            host: None,
            host_ipv6: None,
            source_dest_check: true,
            connections: 100,
        };
        (InterfaceId::from_bits(last.into()), member)
    }

    fn policy() -> NetworkPolicy {
        let ssh = Traffic::from_fields("tcp", Some(22), Some(22)).unwrap();
        let reference = rule(7, Direction::Ingress, ssh, Peer::Group(group(2)));
        NetworkPolicy {
            interfaces: [member(4, &[1]), member(5, &[2])].into(),
            groups: [(group(1), vec![reference]), (group(2), vec![])].into(),
            ..NetworkPolicy::default()
        }
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
        let edits = from.edits(&to).unwrap();
        let sets: Vec<_> = edits.add.iter().map(|(place, _)| place.set.as_str()).collect();
        assert_eq!((sets, edits.remove.len()), (vec!["m_000000000002", "src4", "arp4"], 0));
        assert_eq!(edits.rewrite, []);
        let mut dual = one.clone();
        dual.interfaces.get_mut(&InterfaceId::from_bits(5)).unwrap().ipv6 = vec!["fd00::5".parse().unwrap()];
        let to = Filter::of(&dual);
        let edits = from.edits(&to).unwrap();
        let sets: Vec<_> = edits.add.iter().map(|(place, _)| place.set.as_str()).collect();
        assert_eq!((sets, edits.remove.len()), (vec!["m6_000000000002", "src6"], 0));
        other.groups.insert(group(1), vec![]);
        assert_eq!(from.edits(&Filter::of(&other)), None, "a set goes");
    }

    #[test]
    fn rules_and_memberships_that_come_are_appended_and_others_written_anew() {
        let one = policy();
        let mut other = one.clone();
        let added = rule(8, Direction::Ingress, Traffic::All, Peer::Group(group(2)));
        other.groups.get_mut(&group(1)).unwrap().push(added);
        other.interfaces.get_mut(&InterfaceId::from_bits(5)).unwrap().groups.insert(group(1));
        let (from, to) = (Filter::of(&one), Filter::of(&other));
        let edits = from.edits(&to).unwrap();
        let chains: Vec<_> = edits.append.iter().map(|(chain, lines)| (*chain, lines.len())).collect();
        assert_eq!(
            chains,
            [("grp_000000000005_in", 1), ("grp_000000000005_out", 1), ("sg_000000000001_in", 2)]
        );
        assert_eq!((edits.new_counters, edits.rewrite), (vec!["r_000000000008"], vec![]));
        let back = to.edits(&from).unwrap();
        let chains: Vec<_> = back.rewrite.iter().map(|(chain, lines)| (*chain, lines.len())).collect();
        assert_eq!(
            chains,
            [("grp_000000000005_in", 1), ("grp_000000000005_out", 1), ("sg_000000000001_in", 2)]
        );
    }

    #[test]
    fn unchanged_chains_are_left_alone() {
        let one = policy();
        let mut other = one.clone();
        let rules = vec![rule(9, Direction::Egress, Traffic::All, Peer::Group(group(2)))];
        other.groups.insert(group(2), rules);
        let script = Filter::of(&one).script(&Filter::of(&other));
        let lines: Vec<_> = script.lines().collect();
        assert_eq!(
            lines,
            [
                "add counter inet kiln r_000000000009",
                "flush chain inet kiln sg_000000000002_out",
                "add rule inet kiln sg_000000000002_out ip daddr @m_000000000002 counter name \"r_000000000009\" accept",
                "add rule inet kiln sg_000000000002_out ip6 daddr @m6_000000000002 counter name \"r_000000000009\" accept",
            ]
        );
    }

    fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
        let peer = prop_oneof![
            (1..6u64).prop_map(|n| Peer::Group(group(n))),
            (1..4u64).prop_map(|n| Peer::PrefixList(PrefixListId::from_bits(n))),
            Just(Peer::Ipv4("10.0.0.0/8".parse().unwrap())),
            Just(Peer::Ipv6("::/0".parse().unwrap())),
        ];
        let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
        let traffic = prop_oneof![
            Just(Traffic::All),
            Just(Traffic::from_fields("icmp", Some(8), Some(0)).unwrap()),
            Just(Traffic::from_fields("tcp", Some(1), Some(9)).unwrap()),
        ];
        let rules = proptest::collection::vec((direction, traffic, peer), 0..4);
        let groups = proptest::collection::btree_map(1..6u64, rules, 0..5);
        let member = (
            proptest::collection::btree_set(1..7u64, 1..3),
            (proptest::collection::vec(0..3u8, 1..3), 0..3u16),
            any::<bool>(),
            any::<bool>(),
        );
        let interfaces = proptest::collection::btree_map(1..5u8, member, 0..4);
        let lists = proptest::collection::btree_map(1..4u64, 0..3u8, 0..3);
        let subnets = proptest::collection::btree_map(0..3u8, (any::<bool>(), 0..3u16), 0..3);
        let routing = proptest::collection::btree_map(0..3u8, (any::<bool>(), 0..3u16), 0..3);
        (groups, interfaces, lists, (subnets, routing)).prop_map(
            |(groups, interfaces, lists, (subnets, routing))| {
                let range = |n: u8, wide: bool| {
                    format!("10.0.0.{}/{}", 2 * n, if wide { 31 } else { 32 }).parse().unwrap()
                };
                let routing = routing.into_iter().map(|(n, (wide, table))| {
                    let routing = SubnetRouting { cidr: range(n, wide), table: TableNumber(table) };
                    (SubnetId::from_bits(n.into()), routing)
                });
                let subnets = subnets.into_iter().map(|(n, (wide, entries))| {
                    let all = AclEntry::all_pass().remove(0);
                    let entries = (1..=entries).map(|number| AclEntry { number, ..all.clone() }).collect();
                    // Of the interfaces' primary addresses, 10.0.0.1 to 10.0.0.4, some are in the one, some
                    // in the other, and some in none.
                    let cidr = range(n, wide);
                    let ipv6 = wide.then(|| "fd00::/64".parse().unwrap());
                    (SubnetId::from_bits(n.into()), SubnetAcl { cidr, ipv6, entries })
                });
                let groups = groups.into_iter().map(|(n, rules)| {
                    let numbered = rules.into_iter().enumerate().map(|(k, (direction, traffic, peer))| {
                        rule(n * 10 + u64::try_from(k).unwrap(), direction, traffic, peer)
                    });
                    (group(n), numbered.collect())
                });
                let interfaces = interfaces.into_iter().map(|(last, (groups, (more, ipv6), host, check))| {
                    let groups: Vec<_> = groups.into_iter().collect();
                    let (id, mut member) = member_with(last, &groups, host, check);
                    let last6 = u16::from(last);
                    member.ipv6.extend((0..ipv6).map(|k| Ipv6Addr::new(0xfd00, 0, 0, k, 0, 0, 0, last6)));
                    member.addresses.extend(more.into_iter().map(|k| Ipv4Addr::new(10, 0, 1 + k, last)));
                    (id, member)
                });
                let lists = lists.into_iter().map(|(n, k)| {
                    let ranges = (0..k).map(|k| format!("10.{k}.0.0/16").parse().unwrap()).collect();
                    (PrefixListId::from_bits(n), ranges)
                });
                NetworkPolicy {
                    interfaces: interfaces.collect(),
                    groups: groups.collect(),
                    prefix_lists: lists.collect(),
                    subnets: subnets.collect(),
                    routing: routing.collect(),
                    tables: [].into(),
                }
            },
        )
    }

    fn member_with(last: u8, groups: &[u64], host: bool, check: bool) -> (InterfaceId, Member) {
        let (id, member) = member(last, groups);
        let host_ipv6 = host.then_some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));
        let host = host.then_some(Ipv4Addr::new(10, 0, 0, 3));
        (id, Member { host, host_ipv6, source_dest_check: check, ..member })
    }

    proptest! {
        /// What is compiled of a change alone differs as the wholes do.
        #[test]
        fn parts_differ_as_the_wholes_do(old in any_policy(), new in any_policy()) {
            let change = Change::between(&old, &new);
            let mut changed = old.clone();
            change.apply(&mut changed);
            prop_assert_eq!(&changed, &new);
            let (from, to) = Filter::around(&old, &new, &change);
            let (old, new) = (Filter::of(&old), Filter::of(&new));
            prop_assert_eq!(from.script(&to), old.script(&new));
            prop_assert_eq!(from.edits(&to), old.edits(&new));
        }
    }
}
