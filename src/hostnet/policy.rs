//! Who may talk to an interface, as rules that the packet filter is compiled from.
//!
//! The rules only allow; what none of them allows is dropped, and replies to what was allowed pass
//! (the filter is stateful). This is the form security groups are compiled to.

use std::fmt;

use kiln_model::Ipv4Cidr;

/// The rules of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// What may start a connection to the interface.
    pub ingress: Vec<Allow>,
    /// To what the interface may start a connection.
    pub egress: Vec<Allow>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The other end.
    pub peer: Peer,
    /// What is said.
    pub traffic: Traffic,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Any IPv4 address.
    Any,
    /// The host itself. What the host forwards for others is not the host.
    Host,
    /// A range of addresses.
    Range(Ipv4Cidr),
}

/// Kinds of packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// All of them.
    All,
    /// TCP to these ports.
    Tcp(Ports),
    /// UDP to these ports.
    Udp(Ports),
    /// ICMP messages of a type, or all of them.
    Icmp(Option<u8>),
}

/// Destination ports `from` to `to`, both included. The reverse allows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First.
    pub from: u16,
    /// Last.
    pub to: u16,
}

impl Policy {
    /// The host may connect, nobody else; the interface may connect anywhere.
    pub fn from_host_only() -> Self {
        Policy {
            ingress: vec![Allow { peer: Peer::Host, traffic: Traffic::All }],
            egress: vec![Allow { peer: Peer::Any, traffic: Traffic::All }],
        }
    }
}

/// The match of a rule in the language of nft, as seen from the side `peer_field` (`ip saddr` for
/// ingress, `ip daddr` for egress). The host's address is `host`.
pub(crate) struct Match<'a> {
    /// The rule.
    pub allow: &'a Allow,
    /// Where the peer's address stands in the packet.
    pub peer_field: &'static str,
    /// The host's address in this VPC.
    pub host: std::net::Ipv4Addr,
}

impl fmt::Display for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.allow.peer {
            Peer::Any => f.write_str("meta nfproto ipv4")?,
            Peer::Host => write!(f, "{} {}", self.peer_field, self.host)?,
            Peer::Range(range) => write!(f, "{} {range}", self.peer_field)?,
        }
        match &self.allow.traffic {
            Traffic::All => Ok(()),
            Traffic::Tcp(ports) => write!(f, " tcp dport {}-{}", ports.from, ports.to),
            Traffic::Udp(ports) => write!(f, " udp dport {}-{}", ports.from, ports.to),
            Traffic::Icmp(None) => f.write_str(" meta l4proto icmp"),
            Traffic::Icmp(Some(kind)) => write!(f, " icmp type {kind}"),
        }
    }
}

impl Allow {
    /// Whether the rule can match at all. nft refuses reversed ranges.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.traffic, Traffic::Tcp(ports) | Traffic::Udp(ports) if ports.from > ports.to)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn rules_read_as_nft() {
        let text = |peer, traffic| {
            let allow = Allow { peer, traffic };
            Match { allow: &allow, peer_field: "ip saddr", host: Ipv4Addr::new(10, 0, 0, 3) }.to_string()
        };
        let range = || Peer::Range("10.50.2.133/32".parse().unwrap());
        assert_eq!(text(Peer::Any, Traffic::All), "meta nfproto ipv4");
        assert_eq!(text(Peer::Host, Traffic::Icmp(Some(8))), "ip saddr 10.0.0.3 icmp type 8");
        assert_eq!(
            text(range(), Traffic::Tcp(Ports { from: 22, to: 22 })),
            "ip saddr 10.50.2.133/32 tcp dport 22-22"
        );
        assert_eq!(
            text(Peer::Any, Traffic::Udp(Ports { from: 0, to: 65535 })),
            "meta nfproto ipv4 udp dport 0-65535"
        );
    }

    #[test]
    fn reversed_ports_allow_nothing() {
        let rule = Allow { peer: Peer::Any, traffic: Traffic::Tcp(Ports { from: 2, to: 1 }) };
        assert!(rule.is_empty());
    }
}
