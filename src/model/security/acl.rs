//! Network ACLs: numbered lists of entries at the edge of a subnet, without memory.
//!
//! ```text
//!  interface ─▶ outbound list of its subnet ─▶ … ─▶ inbound list of the other's subnet ─▶ interface
//!               (not between interfaces of one subnet)
//! ```
//! Each packet is looked at, also of conversations that go on, and answers as well. The entry with
//! the lowest number that matches decides; what none matches is denied.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Direction, Message, NetworkPolicy, Packet, Traffic};
use crate::{Ipv4Cidr, Ipv6Cidr, SubnetId};

/// Addresses that an entry is about, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AclRange {
    /// IPv4.
    Ipv4(Ipv4Cidr),
    /// IPv6.
    Ipv6(Ipv6Cidr),
}

impl AclRange {
    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (AclRange::Ipv4(range), IpAddr::V4(address)) => range.contains(address),
            (AclRange::Ipv6(range), IpAddr::V6(address)) => range.contains(address),
            _ => false,
        }
    }
}

impl From<Ipv4Cidr> for AclRange {
    fn from(range: Ipv4Cidr) -> Self {
        AclRange::Ipv4(range)
    }
}

impl From<Ipv6Cidr> for AclRange {
    fn from(range: Ipv6Cidr) -> Self {
        AclRange::Ipv6(range)
    }
}

impl fmt::Display for AclRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AclRange::Ipv4(range) => range.fmt(f),
            AclRange::Ipv6(range) => range.fmt(f),
        }
    }
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclEntry {
    /// Its place: 1 to 32766, each once per direction.
    pub number: u16,
    /// Into the subnet or out of it.
    pub direction: Direction,
    /// Whether what matches may pass.
    pub allow: bool,
    /// What; ports are those of the destination.
    pub traffic: Traffic,
    /// The address at the other end.
    pub range: AclRange,
}

/// A subnet and the lists at its edge, both directions in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetAcl {
    /// Addresses of the subnet.
    pub cidr: Ipv4Cidr,
    /// Its IPv6 addresses, if it has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Cidr>,
    /// Entries, in no particular order.
    pub entries: Vec<AclEntry>,
}

/// What the lists at one subnet's edge say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclDecision {
    /// Nobody is asked: no subnet with lists is entered or left.
    NotAsked,
    /// This entry decides.
    Entry {
        /// Its number.
        number: u16,
        /// Whether the packet may go on.
        allow: bool,
    },
    /// No entry matches.
    Denied,
}

impl AclDecision {
    /// Whether the packet may go on.
    pub fn passes(self) -> bool {
        matches!(self, AclDecision::NotAsked | AclDecision::Entry { allow: true, .. })
    }
}

impl AclEntry {
    /// Numbers of entries.
    pub const NUMBERS: std::ops::RangeInclusive<u16> = 1..=32766;

    /// Everything passes, both ways: what a default list says.
    pub fn all_pass() -> Vec<Self> {
        Self::both_ways(100, Ipv4Cidr::ANYWHERE.into())
    }

    /// The same over IPv6: what it says besides in a VPC that has it.
    pub fn all_pass_ipv6() -> Vec<Self> {
        let range = Ipv6Cidr::containing(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        Self::both_ways(101, range.into())
    }

    fn both_ways(number: u16, range: AclRange) -> Vec<Self> {
        let entry = |direction| AclEntry { number, direction, allow: true, traffic: Traffic::All, range };
        [Direction::Ingress, Direction::Egress].map(entry).to_vec()
    }

    fn matches(&self, direction: Direction, peer: IpAddr, message: Message) -> bool {
        self.direction == direction && self.range.contains(peer) && self.traffic.contains(message)
    }
}

impl SubnetAcl {
    /// What the list of one direction says.
    fn decide(&self, direction: Direction, peer: IpAddr, message: Message) -> AclDecision {
        let matching = self.entries.iter().filter(|entry| entry.matches(direction, peer, message));
        match matching.min_by_key(|entry| entry.number) {
            Some(entry) => AclDecision::Entry { number: entry.number, allow: entry.allow },
            None => AclDecision::Denied,
        }
    }
}

impl NetworkPolicy {
    /// The subnet with lists that an interface with this primary address is in.
    pub fn subnet_of(&self, primary: Ipv4Addr) -> Option<(SubnetId, &SubnetAcl)> {
        self.subnets
            .iter()
            .find(|(_, subnet)| subnet.cidr.contains(primary))
            .map(|(id, subnet)| (*id, subnet))
    }

    /// The subnet with lists that the interface with this address is in.
    fn subnet_at(&self, address: IpAddr) -> Option<(SubnetId, &SubnetAcl)> {
        self.subnet_of(*self.member_at(address)?.addresses.first()?)
    }

    /// What the lists of the sender's subnet and of the receiver's say of one packet.
    pub fn acl_decisions(&self, packet: Packet) -> [AclDecision; 2] {
        let Packet { source, destination, message } = packet;
        let (from, to) = (self.subnet_at(source), self.subnet_at(destination));
        if from.map(|(id, _)| id) == to.map(|(id, _)| id) {
            return [AclDecision::NotAsked; 2];
        }
        let ask = |subnet: Option<(SubnetId, &SubnetAcl)>, direction, peer| {
            subnet.map_or(AclDecision::NotAsked, |(_, subnet)| subnet.decide(direction, peer, message))
        };
        [ask(from, Direction::Egress, destination), ask(to, Direction::Ingress, source)]
    }
}

impl fmt::Display for AclEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.allow { "allow" } else { "deny" };
        write!(f, "{} {} {verb} {}:{}", self.direction, self.number, self.traffic, self.range)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::security::Member;
    use crate::{InterfaceId, MacAddr};

    fn policy() -> NetworkPolicy {
        let member = |third: u8| Member {
            mac: MacAddr::new([2, 0, 0, 0, 0, third]),
            addresses: vec![Ipv4Addr::new(10, 0, third, 4)],
            ipv6: vec![[0xfd00, third.into(), 0, 0, 0, 0, 0, 4].into()],
            groups: BTreeSet::new(),
            host: None,
            host_ipv6: None,
            source_dest_check: true,
            connections: 1,
        };
        let mut policy = NetworkPolicy::default();
        for third in [1, 2] {
            policy.interfaces.insert(InterfaceId::from_bits(third.into()), member(third));
            let cidr = Ipv4Cidr::containing(Ipv4Addr::new(10, 0, third, 0), 24).unwrap();
            let acl = SubnetAcl { cidr, ipv6: None, entries: AclEntry::all_pass() };
            policy.subnets.insert(SubnetId::from_bits(third.into()), acl);
        }
        policy
    }

    fn tcp(source: [u8; 4], destination: [u8; 4], port: u16) -> Packet {
        Packet { source: source.into(), destination: destination.into(), message: Message::Tcp { port } }
    }

    fn deny(number: u16, direction: Direction, port: i64, range: &str) -> AclEntry {
        let traffic = Traffic::from_fields("tcp", Some(port), Some(port)).unwrap();
        AclEntry {
            number,
            direction,
            allow: false,
            traffic,
            range: range.parse::<Ipv4Cidr>().unwrap().into(),
        }
    }

    #[test]
    fn lowest_number_decides_and_nothing_is_denied() {
        let mut policy = policy();
        let packet = tcp([10, 0, 1, 4], [10, 0, 2, 4], 22);
        let pass = AclDecision::Entry { number: 100, allow: true };
        assert_eq!(policy.acl_decisions(packet), [pass; 2]);
        let subnet = policy.subnets.get_mut(&SubnetId::from_bits(2)).unwrap();
        subnet.entries.push(deny(200, Direction::Ingress, 22, "0.0.0.0/0"));
        assert_eq!(policy.acl_decisions(packet), [pass; 2], "100 comes first");
        let subnet = policy.subnets.get_mut(&SubnetId::from_bits(2)).unwrap();
        subnet.entries.push(deny(99, Direction::Ingress, 22, "10.0.1.0/24"));
        assert_eq!(policy.acl_decisions(packet)[1], AclDecision::Entry { number: 99, allow: false });
        assert!(policy.acl_decisions(tcp([10, 0, 1, 4], [10, 0, 2, 4], 23))[1].passes());
        // Answers are packets like others: to a port that only the sender knows.
        assert!(policy.acl_decisions(tcp([10, 0, 2, 4], [10, 0, 1, 4], 40_000))[0].passes());
        policy.subnets.get_mut(&SubnetId::from_bits(1)).unwrap().entries.clear();
        assert_eq!(policy.acl_decisions(packet)[0], AclDecision::Denied);
    }

    #[test]
    fn inside_of_a_subnet_nobody_is_asked() {
        let mut policy = policy();
        let mut other = policy.interfaces[&InterfaceId::from_bits(1)].clone();
        other.addresses = vec![Ipv4Addr::new(10, 0, 1, 5)];
        policy.interfaces.insert(InterfaceId::from_bits(9), other);
        policy.subnets.get_mut(&SubnetId::from_bits(1)).unwrap().entries.clear();
        let inside = policy.acl_decisions(tcp([10, 0, 1, 4], [10, 0, 1, 5], 22));
        assert_eq!(inside, [AclDecision::NotAsked; 2]);
        // The host has an address of the range and is no interface of it.
        let host = policy.acl_decisions(tcp([10, 0, 1, 3], [10, 0, 1, 5], 22));
        assert_eq!(host, [AclDecision::NotAsked, AclDecision::Denied]);
        assert_eq!(policy.acl_decisions(tcp([8, 8, 8, 8], [9, 9, 9, 9], 1)), [AclDecision::NotAsked; 2]);
    }

    #[test]
    fn ipv6_passes_the_edge_by_entries_of_its_own() {
        let mut policy = policy();
        let at = |third: u16| std::net::IpAddr::from([0xfd00, third, 0, 0, 0, 0, 0, 4]);
        let packet = |source, destination| Packet { source, destination, message: Message::Tcp { port: 1 } };
        assert_eq!(policy.acl_decisions(packet(at(1), at(2))), [AclDecision::Denied; 2]);
        assert_eq!(policy.acl_decisions(packet(at(1), at(1))), [AclDecision::NotAsked; 2]);
        for subnet in policy.subnets.values_mut() {
            subnet.entries = AclEntry::all_pass_ipv6();
        }
        let pass = AclDecision::Entry { number: 101, allow: true };
        assert_eq!(policy.acl_decisions(packet(at(1), at(2))), [pass; 2]);
        let ipv4 = policy.acl_decisions(tcp([10, 0, 1, 4], [10, 0, 2, 4], 22));
        assert_eq!(ipv4, [AclDecision::Denied; 2], "::/0 is IPv6");
    }
}
