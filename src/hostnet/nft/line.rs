//! Rules of chains that change while the VPC lives: what they say, once, for both ways into the kernel.
//!
//! ```text
//!                ┌─ Display ──▶ text for the program nft      (first interface of a VPC, new chains and sets)
//!  Line (typed) ─┤
//!                └─ crate::expressions ──▶ netlink            (everything that happens often)
//! ```

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use kiln_model::security::{
    AclEntry, AclRange, Direction, IcmpMatch, NetworkPolicy, Peer, PortRange, Rule, SubnetAcl, Traffic,
};
use kiln_model::{Ipv4Cidr, Ipv6Cidr};

use super::filter::{member_set, member_set6, prefix_set};
use crate::names::UPLINK;

/// Parts that the conversations of an interface are counted in, each up to its share of the allowance
/// and a quarter more, as they are not spread evenly. The kernel walks the list that it counts by for
/// nearly each new conversation: with one list of tens of thousands that takes it a millisecond.
pub(super) const CONVERSATION_BUCKETS: u32 = 256;
/// With smaller shares it is one list.
const MIN_SHARE: u32 = 64;

/// One rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Accepts what a rule of a group allows.
    Allow(Allow),
    /// Drops and counts what begins more conversations than these with the interface (ingress), or more
    /// than these of its own.
    Allowance { direction: Direction, connections: u32, counter: String },
    /// Leaves the list: the other end is in the same subnet, and not the host, whose address may be of
    /// the same range.
    SameSubnet { direction: Direction, subnet: Ipv4Cidr },
    /// As above, over IPv6.
    SameSubnet6 { direction: Direction, subnet: Ipv6Cidr },
    /// What an entry of a network ACL says.
    AclEntry { matching: Match, allow: bool },
    /// Drops and counts the rest.
    AclEnd,
    /// Names the route table, as the mark that the router looks at.
    Table(u32),
}

/// What is accepted, and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allow {
    /// Which packets.
    pub matching: Match,
    /// Name of the counter.
    pub counter: String,
}

/// Which packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    /// Decides which end of the packet the peer is.
    pub direction: Direction,
    /// Which addresses the peer has.
    pub peer: PeerMatch,
    /// What it carries.
    pub traffic: Traffic,
}

/// Addresses, as the kernel compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerMatch {
    /// A range.
    Ipv4(Ipv4Cidr),
    /// A range.
    Ipv6(Ipv6Cidr),
    /// IPv4 addresses in a set.
    Set(String),
    /// IPv6 addresses in a set.
    Set6(String),
}

impl Line {
    /// Accepts whatever `host` begins.
    pub fn from_host(host: Ipv4Addr, counter: String) -> Option<Self> {
        let peer = PeerMatch::Ipv4(Ipv4Cidr::containing(host, 32)?);
        let matching = Match { direction: Direction::Ingress, peer, traffic: Traffic::All };
        Some(Line::Allow(Allow { matching, counter }))
    }

    /// As [`Line::from_host`], over IPv6.
    pub fn from_host_ipv6(host: Ipv6Addr, counter: String) -> Option<Self> {
        let peer = PeerMatch::Ipv6(Ipv6Cidr::containing(host, 128)?);
        let matching = Match { direction: Direction::Ingress, peer, traffic: Traffic::All };
        Some(Line::Allow(Allow { matching, counter }))
    }

    /// What a rule of a group says: a line for each family, and none for what can match nothing, such as
    /// ICMPv6 from an IPv4 address.
    pub fn of_rule(rule: &Rule, policy: &NetworkPolicy, counter: &str) -> Vec<Self> {
        if !matches_anything(rule, policy) {
            return Vec::new();
        }
        let peers = match rule.peer {
            Peer::Ipv4(range) => vec![PeerMatch::Ipv4(range)],
            Peer::Ipv6(range) => vec![PeerMatch::Ipv6(range)],
            Peer::Group(group) => {
                vec![PeerMatch::Set(member_set(group)), PeerMatch::Set6(member_set6(group))]
            }
            Peer::PrefixList(list) => vec![PeerMatch::Set(prefix_set(list))],
        };
        let possible = |peer: &PeerMatch| match rule.traffic {
            Traffic::Icmp(_) => matches!(peer, PeerMatch::Ipv4(_) | PeerMatch::Set(_)),
            Traffic::Icmpv6(_) => matches!(peer, PeerMatch::Ipv6(_) | PeerMatch::Set6(_)),
            _ => true,
        };
        let line = |peer| {
            let matching = Match { direction: rule.direction, peer, traffic: rule.traffic };
            Line::Allow(Allow { matching, counter: counter.to_owned() })
        };
        peers.into_iter().filter(possible).map(line).collect()
    }

    /// The list of a subnet in one direction.
    pub fn acl(subnet: &SubnetAcl, direction: Direction) -> Vec<Self> {
        let mut entries: Vec<_> = subnet.entries.iter().filter(|e| e.direction == direction).collect();
        entries.sort_by_key(|entry| entry.number);
        let line = |entry: &AclEntry| {
            // There is no ICMPv6 over IPv4, and no ICMP over IPv6.
            let (peer, possible) = match entry.range {
                AclRange::Ipv4(range) => {
                    (PeerMatch::Ipv4(range), !matches!(entry.traffic, Traffic::Icmpv6(_)))
                }
                AclRange::Ipv6(range) => (PeerMatch::Ipv6(range), !matches!(entry.traffic, Traffic::Icmp(_))),
            };
            let matching = Match { direction, peer, traffic: entry.traffic };
            possible.then_some(Line::AclEntry { matching, allow: entry.allow })
        };
        let first = Line::SameSubnet { direction, subnet: subnet.cidr };
        let second = subnet.ipv6.map(|subnet| Line::SameSubnet6 { direction, subnet });
        std::iter::once(first)
            .chain(second)
            .chain(entries.into_iter().filter_map(line))
            .chain([Line::AclEnd])
            .collect()
    }
}

/// Whether there can be packets that the rule is about.
pub(crate) fn matches_anything(rule: &Rule, policy: &NetworkPolicy) -> bool {
    match (rule.peer, rule.traffic) {
        (Peer::Ipv6(_), Traffic::Icmp(_)) => false,
        (Peer::Ipv6(_), _) => true,
        (Peer::Group(group), _) => policy.groups.contains_key(&group),
        (_, Traffic::Icmpv6(_)) => false,
        (Peer::Ipv4(_) | Peer::PrefixList(_), _) => true,
    }
}

impl fmt::Display for Line {
    /// In the language of nft.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Jump(chain) => write!(f, "jump {chain}"),
            Line::Allow(Allow { matching, counter }) => {
                write!(f, "{matching} counter name \"{counter}\" accept")
            }
            Line::AclEntry { matching, allow: true } => write!(f, "{matching} accept"),
            Line::AclEntry { matching, allow: false } => {
                write!(f, "{matching} counter name \"deny_acl\" drop")
            }
            Line::Table(mark) => write!(f, "meta mark set {mark}"),
            Line::AclEnd => f.write_str("counter name \"deny_acl\" drop"),
            Line::SameSubnet { direction: Direction::Egress, subnet } => {
                write!(f, "oifname != \"{UPLINK}\" ip daddr {subnet} accept")
            }
            Line::SameSubnet { direction: Direction::Ingress, subnet } => {
                write!(f, "iifname != \"{UPLINK}\" ip saddr {subnet} accept")
            }
            Line::SameSubnet6 { direction: Direction::Egress, subnet } => {
                write!(f, "oifname != \"{UPLINK}\" ip6 daddr {subnet} accept")
            }
            Line::SameSubnet6 { direction: Direction::Ingress, subnet } => {
                write!(f, "iifname != \"{UPLINK}\" ip6 saddr {subnet} accept")
            }
            Line::Allowance { direction, connections, counter } => {
                let share = connections / CONVERSATION_BUCKETS;
                let count = share.saturating_add(share / 4);
                let counted = match direction {
                    _ if share < MIN_SHARE => format!("ct count over {connections}"),
                    Direction::Egress => {
                        format!("add @conns_out {{ iifname . meta mark ct count over {count} }}")
                    }
                    Direction::Ingress => {
                        format!("add @conns_in {{ oifname . meta mark ct count over {count} }}")
                    }
                };
                write!(f, "{counted} counter name \"{counter}\" drop")
            }
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.direction {
            Direction::Ingress => "saddr",
            Direction::Egress => "daddr",
        };
        match &self.peer {
            PeerMatch::Ipv4(range) if range.prefix_len() == 0 => f.write_str("meta nfproto ipv4")?,
            PeerMatch::Ipv6(range) if range.prefix_len() == 0 => f.write_str("meta nfproto ipv6")?,
            PeerMatch::Ipv4(range) => write!(f, "ip {end} {range}")?,
            PeerMatch::Ipv6(range) => write!(f, "ip6 {end} {range}")?,
            PeerMatch::Set(set) => write!(f, "ip {end} @{set}")?,
            PeerMatch::Set6(set) => write!(f, "ip6 {end} @{set}")?,
        }
        match self.traffic {
            Traffic::All => {}
            Traffic::Tcp(PortRange::ALL) => f.write_str(" meta l4proto tcp")?,
            Traffic::Udp(PortRange::ALL) => f.write_str(" meta l4proto udp")?,
            Traffic::Tcp(ports) => write!(f, " tcp dport {ports}")?,
            Traffic::Udp(ports) => write!(f, " udp dport {ports}")?,
            Traffic::Icmp(wanted) => icmp(f, "icmp", "icmp", wanted)?,
            Traffic::Icmpv6(wanted) => icmp(f, "icmpv6", "ipv6-icmp", wanted)?,
            Traffic::Protocol(number) => write!(f, " meta l4proto {number}")?,
        }
        Ok(())
    }
}

fn icmp(f: &mut fmt::Formatter<'_>, field: &str, protocol: &str, wanted: IcmpMatch) -> fmt::Result {
    match wanted {
        IcmpMatch { kind: None, .. } => write!(f, " meta l4proto {protocol}"),
        IcmpMatch { kind: Some(kind), code: None } => write!(f, " {field} type {kind}"),
        IcmpMatch { kind: Some(kind), code: Some(code) } => {
            write!(f, " {field} type {kind} {field} code {code}")
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_model::{SecurityGroupId, SecurityGroupRuleId};

    use super::*;

    fn traffic(protocol: &str, from: i64, to: i64) -> Traffic {
        Traffic::from_fields(protocol, Some(from), Some(to)).unwrap()
    }

    fn rule(direction: Direction, traffic: Traffic, peer: Peer) -> Rule {
        Rule { id: SecurityGroupRuleId::from_bits(7), direction, traffic, peer, description: None }
    }

    #[test]
    fn rules_read_as_nft() {
        let policy = NetworkPolicy::default();
        let text = |direction, traffic, peer: &str| {
            let peer = peer.parse().map_or_else(|_| Peer::Ipv6(peer.parse().unwrap()), Peer::Ipv4);
            let line = Line::of_rule(&rule(direction, traffic, peer), &policy, "r").pop()?;
            Some(line.to_string().strip_suffix(" counter name \"r\" accept").unwrap().to_owned())
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
        let stale = rule(Ingress, Traffic::All, Peer::Group(SecurityGroupId::from_bits(9)));
        assert_eq!(Line::of_rule(&stale, &policy, ""), []);
    }

    #[test]
    fn members_of_a_group_are_looked_up_by_family() {
        let group = SecurityGroupId::from_bits(9);
        let policy = NetworkPolicy { groups: [(group, vec![])].into(), ..NetworkPolicy::default() };
        let text = |traffic| {
            let lines = Line::of_rule(&rule(Direction::Ingress, traffic, Peer::Group(group)), &policy, "r");
            lines.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let end = "counter name \"r\" accept";
        assert_eq!(
            text(traffic("tcp", 22, 22)),
            [
                format!("ip saddr @m_000000000009 tcp dport 22 {end}"),
                format!("ip6 saddr @m6_000000000009 tcp dport 22 {end}")
            ]
        );
        assert_eq!(text(traffic("icmp", 8, 0)).len(), 1);
        assert_eq!(
            text(traffic("icmpv6", 128, 0)),
            [format!("ip6 saddr @m6_000000000009 icmpv6 type 128 icmpv6 code 0 {end}")]
        );
    }
}
