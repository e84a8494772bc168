//! What all rules of a VPC together mean for a packet: the reference.
//!
//! It is written to be read, not to be fast: loops over everything. The packet filter is compiled
//! from the same [`NetworkPolicy`] by other code, and tests hold the two against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{
    AclDecision, Direction, IcmpMatch, Peer, PortRange, Route, Rule, SubnetAcl, SubnetRouting, TableNumber,
    Traffic,
};
use crate::{
    InterfaceId, Ipv4Cidr, Ipv6Cidr, MacAddr, PrefixListId, SecurityGroupId, SecurityGroupRuleId, SubnetId,
};

/// Everything that decides who may talk to whom in one VPC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// The interfaces.
    pub interfaces: BTreeMap<InterfaceId, Member>,
    /// Rules of each group. A group that is not here has none, and no rule that names it matches.
    pub groups: BTreeMap<SecurityGroupId, Vec<Rule>>,
    /// Ranges of each prefix list.
    pub prefix_lists: BTreeMap<PrefixListId, Vec<Ipv4Cidr>>,
    /// Subnets whose network ACL does not let everything pass. An interface is in the one that its
    /// primary address is in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subnets: BTreeMap<SubnetId, SubnetAcl>,
    /// Subnets that have their ways out of the VPC from a table. All others have the gateway's open way.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routing: BTreeMap<SubnetId, SubnetRouting>,
    /// Those tables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<TableNumber, Vec<Route>>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its private addresses, the primary first.
    pub addresses: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<Ipv6Addr>,
    /// The groups it is in.
    pub groups: BTreeSet<SecurityGroupId>,
    /// An address that may start any conversation with it besides what the groups say: that of the
    /// host, where a person runs instances for himself.
    pub host: Option<Ipv4Addr>,
    /// As `host`, over IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ipv6: Option<Ipv6Addr>,
    /// Whether it may send only from its own addresses.
    pub source_dest_check: bool,
    /// Most conversations that it may have begun, and as many that others may have begun with it, at
    /// one time. The host's memory for them is shared by all.
    pub connections: u32,
}

/// A packet that would start a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: IpAddr,
    /// Who shall get it.
    pub destination: IpAddr,
    /// What it carries.
    pub message: Message,
}

/// What a packet carries, as far as rules care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// TCP to a port.
    Tcp {
        /// Destination port.
        port: u16,
    },
    /// UDP to a port.
    Udp {
        /// Destination port.
        port: u16,
    },
    /// ICMP over IPv4.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ICMPv6 over IPv6.
    Icmpv6 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Anything else.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

/// What one end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A rule of a group allows it; the first by ids where several do.
    Rule(SecurityGroupId, SecurityGroupRuleId),
    /// It comes from the host, which may.
    Host,
    /// No rule allows it.
    Denied,
    /// This end is no interface of the VPC: nobody is asked.
    Elsewhere,
}

impl Decision {
    /// Whether the packet may go on.
    pub fn passes(self) -> bool {
        self != Decision::Denied
    }
}

/// What both ends say. A packet between two interfaces needs both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The sender's end.
    pub egress: Decision,
    /// The receiver's end.
    pub ingress: Decision,
    /// The network ACLs of the sender's and the receiver's subnet.
    pub acls: [AclDecision; 2],
}

impl Verdict {
    /// Whether the packet arrives.
    pub fn passes(self) -> bool {
        self.egress.passes() && self.ingress.passes() && self.acls.iter().all(|acl| acl.passes())
    }
}

impl NetworkPolicy {
    /// What happens to a packet that belongs to no conversation yet.
    pub fn verdict(&self, packet: Packet) -> Verdict {
        Verdict {
            egress: self.decide(packet.source, Direction::Egress, packet.destination, packet.message),
            ingress: self.decide(packet.destination, Direction::Ingress, packet.source, packet.message),
            acls: self.acl_decisions(packet),
        }
    }

    /// What the end with the address `own` says.
    fn decide(&self, own: IpAddr, direction: Direction, peer: IpAddr, message: Message) -> Decision {
        let Some(member) = self.member_at(own) else { return Decision::Elsewhere };
        let hosts = [member.host.map(IpAddr::V4), member.host_ipv6.map(IpAddr::V6)];
        if direction == Direction::Ingress && hosts.contains(&Some(peer)) {
            return Decision::Host;
        }
        let matching = self
            .rules(member, direction)
            .find(|(_, rule)| rule.traffic.contains(message) && self.peer_contains(&rule.peer, peer));
        match matching {
            Some((group, rule)) => Decision::Rule(group, rule.id),
            None => Decision::Denied,
        }
    }

    /// Whether the end with the address `own` lets the packet pass without keeping track: then it is
    /// judged anew all the time, and ends at once when the rule goes. So EC2 treats TCP and UDP that
    /// a rule allows with everybody, where the other direction is open to everybody too.
    pub fn untracked(&self, own: IpAddr, direction: Direction, message: Message) -> bool {
        let (all_ports, back) = match message {
            Message::Tcp { .. } => (Traffic::Tcp(PortRange::ALL), direction.reverse()),
            Message::Udp { .. } => (Traffic::Udp(PortRange::ALL), direction.reverse()),
            _ => return false,
        };
        let Some(member) = self.member_at(own) else { return false };
        let anywhere =
            |rule: &Rule| rule.peer.is_anywhere() && matches!(rule.peer, Peer::Ipv4(_)) == own.is_ipv4();
        self.rules(member, direction).any(|(_, rule)| anywhere(rule) && rule.traffic.contains(message))
            && self.rules(member, back).any(|(_, rule)| {
                anywhere(rule) && (rule.traffic == Traffic::All || rule.traffic == all_ports)
            })
    }

    /// Whether a conversation that began with `packet` under this policy ends now that `new` holds:
    /// one end did not keep track of it and would not allow it any more.
    pub fn cut_by(&self, new: &NetworkPolicy, packet: Packet) -> bool {
        let Packet { source, destination, message } = packet;
        [(source, Direction::Egress, destination), (destination, Direction::Ingress, source)].into_iter().any(
            |(own, direction, peer)| {
                self.untracked(own, direction, message)
                    && self.decide(own, direction, peer, message).passes()
                    && new.decide(own, direction, peer, message) == Decision::Denied
            },
        )
    }

    /// The interface that has an address.
    pub fn member_at(&self, address: IpAddr) -> Option<&Member> {
        self.interfaces.values().find(|member| member.has(address))
    }

    /// All rules of an interface in one direction.
    fn rules(&self, member: &Member, direction: Direction) -> impl Iterator<Item = (SecurityGroupId, &Rule)> {
        let groups = member.groups.iter().filter_map(|id| Some((*id, self.groups.get(id)?)));
        groups
            .flat_map(|(id, rules)| rules.iter().map(move |rule| (id, rule)))
            .filter(move |(_, rule)| rule.direction == direction)
    }

    fn peer_contains(&self, peer: &Peer, address: IpAddr) -> bool {
        match (peer, address) {
            (Peer::Group(group), _) => {
                self.groups.contains_key(group)
                    && self.member_at(address).is_some_and(|member| member.groups.contains(group))
            }
            (Peer::PrefixList(list), IpAddr::V4(address)) => {
                self.prefix_lists.get(list).is_some_and(|ranges| ranges.iter().any(|r| r.contains(address)))
            }
            _ => peer.range_contains(address).unwrap_or(false),
        }
    }
}

impl Member {
    /// All its addresses.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.addresses.iter().copied().map(IpAddr::V4);
        ipv4.chain(self.ipv6.iter().copied().map(IpAddr::V6))
    }

    /// Whether an address is its own.
    pub fn has(&self, address: IpAddr) -> bool {
        self.all_addresses().any(|own| own == address)
    }
}

impl Direction {
    /// The other one.
    pub fn reverse(self) -> Self {
        match self {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        }
    }
}

impl Rule {
    /// Everything to anywhere over IPv4: what a new group allows its interfaces to send.
    pub fn all_egress(id: SecurityGroupRuleId) -> Self {
        let anywhere = Ipv4Cidr::containing(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        Rule {
            id,
            direction: Direction::Egress,
            traffic: Traffic::All,
            peer: Peer::Ipv4(anywhere),
            description: None,
        }
    }

    /// As [`Rule::all_egress`] over IPv6, in a VPC that has it.
    pub fn all_egress_ipv6(id: SecurityGroupRuleId) -> Self {
        let anywhere = Ipv6Cidr::containing(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        Rule { peer: Peer::Ipv6(anywhere), ..Rule::all_egress(id) }
    }

    /// Everything from the group's own members: what a default group allows.
    pub fn from_itself(id: SecurityGroupRuleId, group: SecurityGroupId) -> Self {
        Rule {
            id,
            direction: Direction::Ingress,
            traffic: Traffic::All,
            peer: Peer::Group(group),
            description: None,
        }
    }
}

impl Message {
    /// Ping.
    pub const ECHO_REQUEST: Message = Message::Icmp { kind: 8, code: 0 };
    /// Ping over IPv6.
    pub const ECHO_REQUEST_V6: Message = Message::Icmpv6 { kind: 128, code: 0 };

    /// The narrowest traffic that contains it.
    pub fn traffic(self) -> Traffic {
        let one = |port| PortRange::new(port, port).unwrap_or(PortRange::ALL);
        let icmp = |kind, code| IcmpMatch { kind: Some(kind), code: Some(code) };
        match self {
            Message::Tcp { port } => Traffic::Tcp(one(port)),
            Message::Udp { port } => Traffic::Udp(one(port)),
            Message::Icmp { kind, code } => Traffic::Icmp(icmp(kind, code)),
            Message::Icmpv6 { kind, code } => Traffic::Icmpv6(icmp(kind, code)),
            Message::Other { protocol } => Traffic::Protocol(protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u64) -> SecurityGroupId {
        SecurityGroupId::from_bits(n)
    }

    fn rule(n: u64, direction: Direction, protocol: &str, port: i64, peer: Peer) -> Rule {
        let traffic = Traffic::from_fields(protocol, Some(port), Some(port)).unwrap();
        Rule { id: SecurityGroupRuleId::from_bits(n), direction, traffic, peer, description: None }
    }

    fn range(text: &str) -> Peer {
        Peer::Ipv4(text.parse().unwrap())
    }

    fn member(last: u8, groups: &[u64]) -> (InterfaceId, Member) {
        let member = Member {
            mac: MacAddr::new([2, 0, 0, 0, 0, last]),
            addresses: vec![Ipv4Addr::new(10, 50, 2, last)],
            ipv6: vec![Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, last.into())],
            groups: groups.iter().map(|n| group(*n)).collect(),
            host: None,
            host_ipv6: None,
            source_dest_check: true,
            connections: 100,
        };
        (InterfaceId::from_bits(last.into()), member)
    }

    fn tcp(source: [u8; 4], destination: [u8; 4], port: u16) -> Packet {
        Packet { source: source.into(), destination: destination.into(), message: Message::Tcp { port } }
    }

    /// 10.50.2.10 in "web", .11 in "ssh", .12 in "by group" which admits members of "ssh", .133 in
    /// none of them.
    fn examples() -> NetworkPolicy {
        let out = |n| Rule::all_egress(SecurityGroupRuleId::from_bits(n));
        NetworkPolicy {
            interfaces: [member(10, &[1]), member(11, &[2]), member(12, &[3]), member(133, &[4])].into(),
            groups: [
                (group(1), vec![rule(1, Direction::Ingress, "tcp", 80, range("0.0.0.0/0")), out(11)]),
                (group(2), vec![rule(2, Direction::Ingress, "tcp", 22, range("10.50.2.133/32")), out(12)]),
                (group(3), vec![rule(3, Direction::Ingress, "tcp", 22, Peer::Group(group(2))), out(13)]),
                (group(4), vec![out(14)]),
            ]
            .into(),
            ..NetworkPolicy::default()
        }
    }

    #[test]
    fn three_examples_mean_what_they_say() {
        let policy = examples();
        let passes = |from, to, port| policy.verdict(tcp(from, to, port)).passes();
        assert!(passes([198, 51, 100, 7], [10, 50, 2, 10], 80));
        assert!(!passes([198, 51, 100, 7], [10, 50, 2, 10], 8080));
        assert!(passes([10, 50, 2, 133], [10, 50, 2, 11], 22));
        assert!(!passes([10, 50, 2, 12], [10, 50, 2, 11], 22));
        assert!(passes([10, 50, 2, 11], [10, 50, 2, 12], 22));
        assert!(!passes([10, 50, 2, 133], [10, 50, 2, 12], 22));
        let verdict = policy.verdict(tcp([10, 50, 2, 11], [10, 50, 2, 12], 22));
        assert_eq!(verdict.ingress, Decision::Rule(group(3), SecurityGroupRuleId::from_bits(3)));
    }

    #[test]
    fn both_ends_must_agree() {
        let mut policy = examples();
        policy.groups.insert(group(2), vec![]);
        let verdict = policy.verdict(tcp([10, 50, 2, 11], [10, 50, 2, 12], 22));
        assert_eq!((verdict.egress, verdict.ingress.passes()), (Decision::Denied, true));
        assert!(!verdict.passes());
    }

    #[test]
    fn group_that_is_gone_matches_nobody() {
        let mut policy = examples();
        policy.groups.remove(&group(2));
        assert_eq!(policy.verdict(tcp([10, 50, 2, 11], [10, 50, 2, 12], 22)).ingress, Decision::Denied);
    }

    #[test]
    fn host_may_start_conversations_but_is_not_reached_without_rules() {
        let mut policy = examples();
        let host = Ipv4Addr::new(10, 50, 0, 3);
        let member = policy.interfaces.get_mut(&InterfaceId::from_bits(133)).unwrap();
        (member.host, member.groups) = (Some(host), BTreeSet::new());
        assert_eq!(policy.verdict(tcp([10, 50, 0, 3], [10, 50, 2, 133], 22)).ingress, Decision::Host);
        assert_eq!(policy.verdict(tcp([10, 50, 2, 133], [10, 50, 0, 3], 22)).egress, Decision::Denied);
    }

    #[test]
    fn flows_open_to_all_both_ways_end_with_their_rule_and_others_do_not() {
        let old = examples();
        let mut new = old.clone();
        for id in [1, 2, 3] {
            new.groups.get_mut(&group(id)).unwrap().remove(0);
        }
        assert!(old.cut_by(&new, tcp([198, 51, 100, 7], [10, 50, 2, 10], 80)));
        assert!(!old.cut_by(&new, tcp([10, 50, 2, 133], [10, 50, 2, 11], 22)), "tracked");
        // What another rule still allows goes on.
        new.groups.get_mut(&group(1)).unwrap().push(rule(
            9,
            Direction::Ingress,
            "tcp",
            80,
            range("198.51.100.0/24"),
        ));
        assert!(!old.cut_by(&new, tcp([198, 51, 100, 7], [10, 50, 2, 10], 80)));
        assert!(old.cut_by(&new, tcp([203, 0, 113, 7], [10, 50, 2, 10], 80)));
        // Without a way back that is open to all, everything is tracked.
        let mut narrow = old.clone();
        narrow.groups.get_mut(&group(1)).unwrap().truncate(1);
        assert!(!narrow.cut_by(&NetworkPolicy::default(), tcp([198, 51, 100, 7], [10, 50, 2, 10], 80)));
    }

    #[test]
    fn groups_and_ranges_hold_for_ipv6_as_well_and_for_their_own_family_alone() {
        let mut policy = examples();
        let anywhere = Peer::Ipv6("::/0".parse().unwrap());
        policy.groups.get_mut(&group(1)).unwrap().extend([
            rule(20, Direction::Ingress, "tcp", 443, anywhere),
            rule(21, Direction::Ingress, "icmpv6", -1, anywhere),
        ]);
        policy
            .groups
            .get_mut(&group(2))
            .unwrap()
            .push(Rule::all_egress_ipv6(SecurityGroupRuleId::from_bits(22)));
        let at = |last: u16| IpAddr::from([0xfd00, 0x50, 0, 0, 0, 0, 0, last]);
        let outside = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        let passes = |policy: &NetworkPolicy, source, destination, message| {
            policy.verdict(Packet { source, destination, message }).passes()
        };
        let tcp = |port| Message::Tcp { port };
        assert!(passes(&policy, outside, at(10), tcp(443)));
        assert!(!passes(&policy, outside, at(10), tcp(80)), "0.0.0.0/0 is IPv4");
        assert!(passes(&policy, outside, at(10), Message::ECHO_REQUEST_V6));
        assert!(!passes(&policy, outside, at(12), Message::ECHO_REQUEST_V6));
        assert!(passes(&policy, at(11), at(12), tcp(22)), "a member by its IPv6 address");
        assert!(!passes(&policy, at(10), at(12), tcp(22)), "no member, and nothing to anywhere");
        let member = policy.interfaces.get_mut(&InterfaceId::from_bits(12)).unwrap();
        member.host_ipv6 = Some(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 3));
        assert_eq!(
            policy.verdict(Packet { source: at(3), destination: at(12), message: tcp(1) }).ingress,
            Decision::Host
        );
    }

    #[test]
    fn ping_is_always_tracked() {
        let mut old = examples();
        old.groups.get_mut(&group(1)).unwrap().push(rule(
            9,
            Direction::Ingress,
            "icmp",
            -1,
            range("0.0.0.0/0"),
        ));
        let packet = Packet { message: Message::ECHO_REQUEST, ..tcp([8, 8, 8, 8], [10, 50, 2, 10], 0) };
        assert!(old.verdict(packet).passes());
        assert!(!old.cut_by(&examples(), packet));
    }
}
