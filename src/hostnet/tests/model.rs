//! The packet filter held against the reference: random groups, rules and members, real packets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::security::{
    AclEntry, Direction, IcmpMatch, Message, Packet, Peer, PortRange, Rule, SubnetAcl, Traffic,
};
use kiln_model::{Ipv4Cidr, Ipv6Cidr, PrefixListId, SubnetId};
use support::packets::{SENTINEL, World, all_out, all_out_ipv6, group, rule};
use support::{HOST, HOST_IPV6, ipv6, on_own_host};

const INTERFACES: [u8; 6] = [4, 5, 6, 7, 8, 9];
const GROUPS: u64 = 5;
const POLICIES: usize = 40;
const PROBES: usize = 250;
const PORTS: [u16; 9] = [0, 1, 22, 23, 443, 5000, 5010, 65534, 65535];
/// Conntrack lets an ICMP message begin a conversation only if it asks for something.
const ICMP: [u8; 3] = [8, 13, 17];
const PROTOCOLS: [u8; 3] = [50, 51, 89];
/// As [`ICMP`], over IPv6.
const ICMPV6: [u8; 2] = [128, 139];
/// As [`PROTOCOLS`], over IPv6, where 51 is a header that others follow.
const PROTOCOLS_V6: [u8; 3] = [50, 47, 89];

/// A repeatable source of choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn port(&mut self) -> u16 {
        self.of(&PORTS)
    }

    fn outside(&mut self) -> Ipv4Addr {
        let last = self.of(&[0, 1, 127, 128, 255]);
        let net = self.of(&[[10, 50, 2], [10, 51, 2], [198, 51, 100], [8, 8, 8]]);
        if self.below(6) == 0 { HOST } else { Ipv4Addr::new(net[0], net[1], net[2], last) }
    }

    fn inside(&mut self) -> Ipv4Addr {
        World::address(self.of(&INTERFACES))
    }

    fn range(&mut self) -> Ipv4Cidr {
        let address = if self.below(2) == 0 { self.inside() } else { self.outside() };
        let prefix = self.of(&[0, 1, 8, 15, 16, 24, 25, 30, 31, 32]);
        Ipv4Cidr::containing(address, prefix).unwrap()
    }

    fn outside_v6(&mut self) -> Ipv6Addr {
        let last = self.of(&[0, 1, 127, 128, 255]);
        let net = self.of(&[[0x2001, 0xdb8, 1], [0x2001, 0xdb8, 2], [0xfd00, 0x32, 0]]);
        let [a, b, c] = net;
        if self.below(6) == 0 { HOST_IPV6 } else { Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last) }
    }

    fn inside_v6(&mut self) -> Ipv6Addr {
        ipv6(self.of(&INTERFACES))
    }

    fn range_v6(&mut self) -> Ipv6Cidr {
        let address = if self.below(2) == 0 { self.inside_v6() } else { self.outside_v6() };
        let prefix = self.of(&[0, 1, 16, 31, 32, 47, 48, 64, 121, 126, 127, 128]);
        Ipv6Cidr::containing(address, prefix).unwrap()
    }

    fn traffic(&mut self) -> Traffic {
        let ports = |dice: &mut Self| {
            let (a, b) = (dice.port(), dice.port());
            PortRange::new(a.min(b), a.max(b)).unwrap()
        };
        match self.below(8) {
            0 => Traffic::All,
            1 | 2 => Traffic::Tcp(ports(self)),
            3 | 4 => Traffic::Udp(ports(self)),
            5 => {
                let kind = self.of(&[None, Some(8), Some(13)]);
                let code = kind.and_then(|_| self.of(&[None, Some(0), Some(1)]));
                Traffic::Icmp(IcmpMatch { kind, code })
            }
            6 => {
                let kind = self.of(&[None, Some(128), Some(139)]);
                let code = kind.and_then(|_| self.of(&[None, Some(0), Some(1)]));
                Traffic::Icmpv6(IcmpMatch { kind, code })
            }
            _ => Traffic::Protocol(self.of(&PROTOCOLS)),
        }
    }

    fn rule(&mut self) -> Rule {
        let direction = self.of(&[Direction::Ingress, Direction::Egress]);
        let peer = match self.below(7) {
            0 | 1 => Peer::Ipv4(self.range()),
            5 | 6 => Peer::Ipv6(self.range_v6()),
            // One more than there are: that one is stale.
            2 | 3 => Peer::Group(group(1 + u64::try_from(self.below(6)).unwrap())),
            _ => Peer::PrefixList(PrefixListId::from_bits(1 + u64::try_from(self.below(2)).unwrap())),
        };
        rule(direction, self.traffic(), peer)
    }

    fn rules(&mut self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        if self.below(2) == 0 {
            rules.push(all_out());
        }
        if self.below(2) == 0 {
            rules.push(all_out_ipv6());
        }
        for _ in 0..self.below(14) {
            let rule = self.rule();
            if !rules.iter().any(|other| other.same_meaning(&rule)) {
                rules.push(rule);
            }
        }
        rules
    }

    /// Entries of a network ACL, the first of which lets pass what tests are timed by.
    fn entries(&mut self) -> Vec<AclEntry> {
        let sentinel = Traffic::Protocol(SENTINEL);
        let mut entries: Vec<AclEntry> = AclEntry::all_pass();
        for entry in &mut entries {
            (entry.number, entry.traffic) = (1, sentinel);
        }
        for number in 2..2 + u16::try_from(self.below(10)).unwrap() {
            let direction = self.of(&[Direction::Ingress, Direction::Egress]);
            let (allow, traffic) = (self.below(2) == 0, self.traffic());
            let range = if self.below(3) == 0 { self.range_v6().into() } else { self.range().into() };
            entries.push(AclEntry { number, direction, allow, traffic, range });
        }
        if self.below(4) > 0 {
            entries.extend(AclEntry::all_pass().into_iter().chain(AclEntry::all_pass_ipv6()));
        }
        // The order of the numbers counts, not that of the list.
        entries.reverse();
        entries
    }

    fn packet(&mut self) -> Packet {
        if self.below(2) == 0 { self.packet_v4() } else { self.packet_v6() }
    }

    fn packet_v6(&mut self) -> Packet {
        let (source, destination) = loop {
            let ends = match self.below(4) {
                0 => (self.outside_v6(), self.inside_v6()),
                1 => (self.inside_v6(), self.outside_v6()),
                _ => (self.inside_v6(), self.inside_v6()),
            };
            if ends.0 != ends.1 && ends.1 != HOST_IPV6 {
                break ends;
            }
        };
        let message = match self.below(5) {
            0 | 1 => Message::Tcp { port: self.port() },
            2 => Message::Udp { port: self.port() },
            3 => Message::Icmpv6 { kind: self.of(&ICMPV6), code: self.of(&[0, 1]) },
            _ => Message::Other { protocol: self.of(&PROTOCOLS_V6) },
        };
        in_order(source.into(), destination.into(), message, HOST_IPV6.into())
    }

    fn packet_v4(&mut self) -> Packet {
        let (source, destination) = loop {
            let ends = match self.below(4) {
                0 => (self.outside(), self.inside()),
                1 => (self.inside(), self.outside()),
                _ => (self.inside(), self.inside()),
            };
            // What goes out to the host's address is the gateway's business.
            if ends.0 != ends.1 && ends.1 != HOST {
                break ends;
            }
        };
        let message = match self.below(5) {
            0 | 1 => Message::Tcp { port: self.port() },
            2 => Message::Udp { port: self.port() },
            3 => Message::Icmp { kind: self.of(&ICMP), code: self.of(&[0, 1]) },
            _ => Message::Other { protocol: self.of(&PROTOCOLS) },
        };
        in_order(source.into(), destination.into(), message, HOST.into())
    }
}

/// Without ports the two directions of a pair are one conversation, so only one is probed.
fn in_order(source: IpAddr, destination: IpAddr, message: Message, host: IpAddr) -> Packet {
    let swap = matches!(message, Message::Other { .. }) && source > destination;
    let (source, destination) = if swap && destination != host && source != host {
        (destination, source)
    } else {
        (source, destination)
    };
    Packet { source, destination, message }
}

#[test]
fn kernel_and_reference_agree_on_ten_thousand_packets() {
    on_own_host(|| {
        let mut world = World::new(&INTERFACES);
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (mut passed, mut dropped) = (0, 0);
        for round in 0..POLICIES {
            for n in 1..=GROUPS {
                let rules = dice.rules();
                world.policy.groups.remove(&group(n));
                // Now and then a group is missing altogether.
                if dice.below(12) > 0 {
                    world.set_rules(n, rules);
                }
            }
            for n in 1..=2 {
                let ranges = (0..dice.below(4)).map(|_| dice.range()).collect();
                world.policy.prefix_lists.insert(PrefixListId::from_bits(n), ranges);
            }
            for last in INTERFACES {
                let groups: Vec<_> =
                    (0..1 + dice.below(3)).map(|_| 1 + u64::try_from(dice.below(5)).unwrap()).collect();
                world.join(last, &groups);
                world.member(last).host = (dice.below(3) == 0).then_some(HOST);
                world.member(last).host_ipv6 = (dice.below(3) == 0).then_some(HOST_IPV6);
            }
            world.policy.subnets.clear();
            for (n, range) in (0..).zip(["172.31.0.4/30", "172.31.0.8/29"]) {
                if dice.below(4) == 0 {
                    // The IPv6 addresses end as those of the range do.
                    let last = 4 * (1 + u8::try_from(n).unwrap());
                    let ipv6 = Ipv6Cidr::containing(ipv6(last), if n == 0 { 126 } else { 125 });
                    let acl = SubnetAcl { cidr: range.parse().unwrap(), ipv6, entries: dice.entries() };
                    world.policy.subnets.insert(SubnetId::from_bits(n), acl);
                }
            }
            world.apply();
            let probes: Vec<_> = (0..PROBES).map(|_| dice.packet()).collect();
            let arrived = world.deliver(&probes);
            for (packet, arrived) in probes.iter().zip(arrived) {
                let verdict = world.policy.verdict(*packet);
                assert_eq!(
                    arrived,
                    verdict.passes(),
                    "policy {round}: {packet:?} should be {verdict:?} under {:#?}",
                    world.policy
                );
                *(if arrived { &mut passed } else { &mut dropped }) += 1;
            }
        }
        println!("{passed} packets passed, {dropped} were dropped, all as the reference says");
        // Neither is the exception.
        assert!(passed > POLICIES * PROBES / 10 && dropped > POLICIES * PROBES / 10);
        world.end();
    });
}
