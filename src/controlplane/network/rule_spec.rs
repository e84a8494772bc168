//! Rules as a person writes them: `PROTOCOL:PORTS:PEER`.
//!
//! ```text
//!  tcp:22:10.50.2.133/32   udp:5000-5010:0.0.0.0/0   icmp:8/0:web   icmp:web   47:10.0.0.0/8   all:web
//! ```
//! The peer is a range, a group by name or id, a prefix list by id, or `host`.

use std::net::IpAddr;
use std::str::FromStr;

use kiln_model::security::{Peer, Traffic};
use kiln_model::{Ipv4Cidr, PrefixListId};

use super::NetworkError;

/// A rule whose peer is still to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// What.
    pub traffic: Traffic,
    /// With whom.
    pub peer: PeerSpec,
    /// What for.
    pub description: Option<String>,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSpec {
    /// A range or prefix list.
    Known(Peer),
    /// A group by name or id.
    Group(String),
    /// The host's own address in the VPC.
    Host,
}

impl FromStr for RuleSpec {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = |why: String| NetworkError::BadRule { text: text.to_owned(), why };
        let (protocol, rest) =
            text.split_once(':').ok_or_else(|| bad("it has no peer after a colon".to_owned()))?;
        let protocol = protocol.to_ascii_lowercase();
        // IPv6 ranges have colons themselves, so fields are taken from the front.
        let (from, to, peer) = match protocol.as_str() {
            "tcp" | "udp" | "6" | "17" => {
                let (ports, peer) = rest.split_once(':').ok_or_else(|| bad("it has no ports".to_owned()))?;
                let (from, to) = ports_of(ports).ok_or_else(|| bad(format!("{ports:?} are no ports")))?;
                (Some(from), Some(to), peer)
            }
            "icmp" | "icmpv6" => match rest.split_once(':').map(|(kind, peer)| (icmp_of(kind), peer)) {
                Some((Some((kind, code)), peer)) => (Some(kind), Some(code), peer),
                _ => (None, None, rest),
            },
            _ => (None, None, rest),
        };
        let traffic = Traffic::from_fields(&protocol, from, to).map_err(|e| bad(e.to_string()))?;
        Ok(RuleSpec { traffic, peer: peer.parse().map_err(bad)?, description: None })
    }
}

/// `80`, `8000-8100`, or `all`.
fn ports_of(text: &str) -> Option<(i64, i64)> {
    if text == "all" {
        return Some((0, 65535));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some((decimal(from)?, decimal(to)?))
}

/// `8`, `8/0`, `all` or `-1`.
fn icmp_of(text: &str) -> Option<(i64, i64)> {
    let part = |text: &str| if matches!(text, "all" | "-1") { Some(-1) } else { decimal(text) };
    let (kind, code) = text.split_once('/').unwrap_or((text, "-1"));
    // Longer ones are the beginning of an IPv6 range.
    if kind.len() > 3 || code.len() > 3 {
        return None;
    }
    Some((part(kind)?, part(code)?))
}

fn decimal(text: &str) -> Option<i64> {
    (!text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

impl FromStr for PeerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            return Err(format!("{text} is one address; write {text}/{bits}"));
        }
        if text.contains('/') {
            return if text.contains(':') {
                text.parse().map(|range| PeerSpec::Known(Peer::Ipv6(range))).map_err(|e| e.to_string())
            } else {
                text.parse::<Ipv4Cidr>()
                    .map(|range| PeerSpec::Known(Peer::Ipv4(range)))
                    .map_err(|e| e.to_string())
            };
        }
        match text {
            "" => Err("it has no peer".to_owned()),
            "host" => Ok(PeerSpec::Host),
            list if list.starts_with(PrefixListId::PREFIX) => list
                .parse()
                .map(|id| PeerSpec::Known(Peer::PrefixList(id)))
                .map_err(|e: kiln_model::ParseIdError| e.to_string()),
            group => Ok(PeerSpec::Group(group.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> String {
        match text.parse::<RuleSpec>() {
            Ok(RuleSpec { traffic, peer: PeerSpec::Known(peer), .. }) => format!("{traffic}:{peer}"),
            Ok(RuleSpec { traffic, peer: PeerSpec::Group(group), .. }) => format!("{traffic}:<{group}>"),
            Ok(RuleSpec { traffic, peer: PeerSpec::Host, .. }) => format!("{traffic}:<>"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn rules_are_read() {
        for (text, meaning) in [
            ("tcp:22:10.50.2.133/32", "tcp:22:10.50.2.133/32"),
            ("TCP:all:0.0.0.0/0", "tcp:0-65535:0.0.0.0/0"),
            ("udp:5000-5010:2001:db8::/32", "udp:5000-5010:2001:db8::/32"),
            ("icmp:8/0:web", "icmp:8/0:<web>"),
            ("icmp:web", "icmp:<web>"),
            ("icmpv6:2001:db8::/32", "icmpv6:2001:db8::/32"),
            ("icmpv6:128:2001:db8::/32", "icmpv6:128:2001:db8::/32"),
            ("47:10.0.0.0/8", "47:10.0.0.0/8"),
            ("all:host", "all:<>"),
            ("tcp:22:sg-00000000000000001", "tcp:22:<sg-00000000000000001>"),
        ] {
            assert_eq!(read(text), meaning, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("tcp", "no peer"),
            ("tcp:22", "no ports"),
            ("tcp:65536:0.0.0.0/0", "65536 is not a port"),
            ("tcp:2-1:0.0.0.0/0", "wrong way round"),
            ("tcp:x:0.0.0.0/0", "\"x\" are no ports"),
            ("tcp:22:10.0.0.1", "write 10.0.0.1/32"),
            ("tcp:22:10.0.0.1/8", "did you mean 10.0.0.0/8"),
            ("tcp:22:10.0.0.0/33", "not an IPv4 network"),
            ("tcp:22:", "no peer"),
            ("tpc:22:0.0.0.0/0", "\"tpc\" is not a protocol"),
            ("icmp:256:0.0.0.0/0", "256 is not an ICMP type"),
        ] {
            assert!(read(text).contains(word), "{text}: {}", read(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(tcp|udp|icmp|all|[0-9]{1,3})?:?[-0-9a-z:/.]{0,30}|.{0,30}") {
            let _ = text.parse::<RuleSpec>();
        }
    }
}
