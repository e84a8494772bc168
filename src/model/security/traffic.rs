//! What a rule is about: protocol, destination ports, ICMP types.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::policy::Message;

/// IP protocol numbers that have more than a number.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Destination ports, both ends included, the first not above the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    from: u16,
    to: u16,
}

/// ICMP messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IcmpMatch {
    /// Type; `None` is all of them.
    pub kind: Option<u8>,
    /// Code of that type; `None` is all of them, and the only choice where `kind` is `None`.
    pub code: Option<u8>,
}

/// Kinds of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// All protocols and ports (EC2: `-1`).
    All,
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
    /// ICMP, which is IPv4's.
    Icmp(IcmpMatch),
    /// ICMPv6, which is IPv6's.
    Icmpv6(IcmpMatch),
    /// Any other IP protocol, by number, whole.
    Protocol(u8),
}

/// The description makes no sense. EC2 calls all of these `InvalidParameterValue`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTraffic {
    /// Neither a name nor a number.
    #[error("{0:?} is not a protocol (expected tcp, udp, icmp, icmpv6, all, or a number from 0 to 255)")]
    Protocol(String),
    /// Not 0 to 65535.
    #[error("{0} is not a port (expected 0 to 65535)")]
    Port(i64),
    /// The wrong way round.
    #[error("ports {from}-{to} are the wrong way round")]
    Reversed {
        /// First.
        from: u16,
        /// Last.
        to: u16,
    },
    /// TCP and UDP rules say which ports.
    #[error("a {0} rule needs ports, such as 80, 8000-8100 or 0-65535")]
    NoPorts(&'static str),
    /// Not -1 to 255.
    #[error("{0} is not an ICMP type or code (expected 0 to 255, or -1 for all)")]
    Icmp(i64),
    /// A code without its type means nothing.
    #[error("ICMP code {0} needs a type")]
    CodeWithoutType(u8),
}

impl PortRange {
    /// All ports.
    pub const ALL: PortRange = PortRange { from: 0, to: u16::MAX };

    /// Ports `from` to `to`, both included.
    pub fn new(from: u16, to: u16) -> Result<Self, InvalidTraffic> {
        if from <= to { Ok(PortRange { from, to }) } else { Err(InvalidTraffic::Reversed { from, to }) }
    }

    /// The first port.
    pub fn from(self) -> u16 {
        self.from
    }

    /// The last port.
    pub fn to(self) -> u16 {
        self.to
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.from..=self.to).contains(&port)
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = InvalidTraffic;

    fn try_from((from, to): (u16, u16)) -> Result<Self, Self::Error> {
        PortRange::new(from, to)
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.from, range.to)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}

impl IcmpMatch {
    /// All messages.
    pub const ALL: IcmpMatch = IcmpMatch { kind: None, code: None };

    /// Whether a message of this type and code is meant.
    pub fn contains(self, kind: u8, code: u8) -> bool {
        self.kind.is_none_or(|k| k == kind) && self.code.is_none_or(|c| c == code)
    }
}

impl Traffic {
    /// From the fields of an EC2 rule (`IpProtocol`, `FromPort`, `ToPort`). For ICMP the "ports" are
    /// type and code, -1 meaning all; for protocols without ports they are ignored.
    pub fn from_fields(protocol: &str, from: Option<i64>, to: Option<i64>) -> Result<Self, InvalidTraffic> {
        let bad = || InvalidTraffic::Protocol(protocol.to_owned());
        let number = match protocol.to_ascii_lowercase().as_str() {
            "all" | "-1" => return Ok(Traffic::All),
            "icmp" => ICMP,
            "tcp" => TCP,
            "udp" => UDP,
            "icmpv6" => ICMPV6,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| bad())?,
            _ => return Err(bad()),
        };
        match number {
            TCP => ports("tcp", from, to).map(Traffic::Tcp),
            UDP => ports("udp", from, to).map(Traffic::Udp),
            ICMP => icmp(from, to).map(Traffic::Icmp),
            ICMPV6 => icmp(from, to).map(Traffic::Icmpv6),
            other => Ok(Traffic::Protocol(other)),
        }
    }

    /// The fields of an EC2 rule: protocol, and what EC2 shows as `FromPort` and `ToPort`.
    pub fn to_fields(self) -> (String, Option<i32>, Option<i32>) {
        let part = |part: Option<u8>| Some(part.map_or(-1, i32::from));
        match self {
            Traffic::All => ("-1".to_owned(), None, None),
            Traffic::Tcp(p) => ("tcp".to_owned(), Some(p.from.into()), Some(p.to.into())),
            Traffic::Udp(p) => ("udp".to_owned(), Some(p.from.into()), Some(p.to.into())),
            Traffic::Icmp(m) => ("icmp".to_owned(), part(m.kind), part(m.code)),
            Traffic::Icmpv6(m) => ("icmpv6".to_owned(), part(m.kind), part(m.code)),
            Traffic::Protocol(number) => (number.to_string(), None, None),
        }
    }

    /// Whether this rule's traffic covers the message. ICMP is IPv4's and ICMPv6 is IPv6's, which
    /// [`Message`] keeps apart.
    pub fn contains(self, message: Message) -> bool {
        match (self, message) {
            (Traffic::All, _) => true,
            (Traffic::Tcp(ports), Message::Tcp { port }) | (Traffic::Udp(ports), Message::Udp { port }) => {
                ports.contains(port)
            }
            (Traffic::Icmp(wanted), Message::Icmp { kind, code })
            | (Traffic::Icmpv6(wanted), Message::Icmpv6 { kind, code }) => wanted.contains(kind, code),
            (Traffic::Protocol(wanted), Message::Other { protocol }) => wanted == protocol,
            _ => false,
        }
    }
}

fn ports(name: &'static str, from: Option<i64>, to: Option<i64>) -> Result<PortRange, InvalidTraffic> {
    let (Some(from), Some(to)) = (from, to) else { return Err(InvalidTraffic::NoPorts(name)) };
    let port = |port: i64| u16::try_from(port).map_err(|_| InvalidTraffic::Port(port));
    PortRange::new(port(from)?, port(to)?)
}

fn icmp(kind: Option<i64>, code: Option<i64>) -> Result<IcmpMatch, InvalidTraffic> {
    let part = |part: Option<i64>| match part {
        None | Some(-1) => Ok(None),
        Some(value) => u8::try_from(value).map(Some).map_err(|_| InvalidTraffic::Icmp(value)),
    };
    match (part(kind)?, part(code)?) {
        (None, Some(code)) => Err(InvalidTraffic::CodeWithoutType(code)),
        (kind, code) => Ok(IcmpMatch { kind, code }),
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let icmp = |f: &mut fmt::Formatter<'_>, name: &str, wanted: &IcmpMatch| match wanted {
            IcmpMatch { kind: None, .. } => f.write_str(name),
            IcmpMatch { kind: Some(kind), code: None } => write!(f, "{name}:{kind}"),
            IcmpMatch { kind: Some(kind), code: Some(code) } => write!(f, "{name}:{kind}/{code}"),
        };
        match self {
            Traffic::All => f.write_str("all"),
            Traffic::Tcp(ports) => write!(f, "tcp:{ports}"),
            Traffic::Udp(ports) => write!(f, "udp:{ports}"),
            Traffic::Icmp(wanted) => icmp(f, "icmp", wanted),
            Traffic::Icmpv6(wanted) => icmp(f, "icmpv6", wanted),
            Traffic::Protocol(number) => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(protocol: &str, from: i64, to: i64) -> Result<Traffic, InvalidTraffic> {
        Traffic::from_fields(protocol, Some(from), Some(to))
    }

    #[test]
    fn fields_round_trip() {
        for (protocol, from, to) in
            [("tcp", 0, 65535), ("udp", 53, 53), ("icmp", -1, -1), ("icmp", 8, 0), ("icmpv6", 128, -1)]
        {
            let fields = traffic(protocol, from, to).unwrap().to_fields();
            let port = |port: i64| i32::try_from(port).ok();
            assert_eq!(fields, (protocol.to_owned(), port(from), port(to)));
        }
        for protocol in ["-1", "47", "0", "255"] {
            // Ports of a protocol without ports are ignored.
            assert_eq!(traffic(protocol, 7, 3).unwrap().to_fields(), (protocol.to_owned(), None, None));
        }
        assert_eq!(traffic("6", 22, 22), traffic("TCP", 22, 22));
    }

    #[test]
    fn nonsense_is_refused() {
        use InvalidTraffic as E;
        assert_eq!(traffic("tcp", 0, 65536), Err(E::Port(65536)));
        assert_eq!(traffic("tcp", -1, -1), Err(E::Port(-1)));
        assert_eq!(traffic("udp", 2, 1), Err(E::Reversed { from: 2, to: 1 }));
        assert_eq!(Traffic::from_fields("udp", Some(1), None), Err(E::NoPorts("udp")));
        assert_eq!(traffic("icmp", 256, 0), Err(E::Icmp(256)));
        assert_eq!(traffic("icmp", -1, 3), Err(E::CodeWithoutType(3)));
        for protocol in ["", "256", "tpc", "+6", "-2"] {
            assert_eq!(traffic(protocol, 1, 1), Err(E::Protocol(protocol.into())));
        }
    }

    #[test]
    fn edges_of_port_ranges_are_inside() {
        let range = PortRange::new(5000, 5010).unwrap();
        assert_eq!([4999, 5000, 5010, 5011].map(|p| range.contains(p)), [false, true, true, false]);
        assert!(PortRange::ALL.contains(0) && PortRange::ALL.contains(65535));
    }
}
