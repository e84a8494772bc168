//! IPv4 address ranges of VPCs and subnets.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network such as `172.31.0.0/20`. The host part is always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    network: u32,
    prefix_len: u8,
}

/// The text is not an address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCidrError {
    /// Not `a.b.c.d/n`.
    #[error("{0:?} is not an IPv4 network (expected a.b.c.d/n such as 172.31.0.0/16)")]
    Malformed(String),
    /// Not an IPv6 address and a prefix length.
    #[error("{0:?} is not an IPv6 network (expected address/n such as 2001:db8::/32)")]
    MalformedIpv6(String),
    /// Bits below the prefix are set.
    #[error("{text:?} has host bits set (did you mean {network}?)")]
    HostBits {
        /// As given.
        text: String,
        /// With the host bits cleared.
        network: String,
    },
}

impl Ipv4Cidr {
    /// All addresses: `0.0.0.0/0`.
    pub const ANYWHERE: Ipv4Cidr = Ipv4Cidr { network: 0, prefix_len: 0 };

    /// The network of `prefix_len` bits (0 to 32) that contains `address`; `None` above 32.
    pub fn containing(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        (prefix_len <= 32)
            .then(|| Ipv4Cidr { network: address.to_bits() & netmask_bits(prefix_len), prefix_len })
    }

    /// First address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// Length of the network part in bits, 0 to 32.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// Number of addresses.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix_len.min(32)))
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & netmask_bits(self.prefix_len) == self.network
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Ipv4Cidr) -> bool {
        let shorter = netmask_bits(self.prefix_len.min(other.prefix_len));
        self.network & shorter == other.network & shorter
    }

    /// The address at `offset` from the first, if it lies inside.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        (u64::from(offset) < self.size()).then(|| Ipv4Addr::from_bits(self.network.wrapping_add(offset)))
    }

    /// The subnet's router: base + 1.
    pub fn router(self) -> Option<Ipv4Addr> {
        self.nth(1)
    }

    /// The resolver of a VPC with this range: base + 2.
    pub fn resolver(self) -> Option<Ipv4Addr> {
        self.nth(2)
    }

    /// Addresses that instances may have: EC2 keeps the first four and the last of each subnet.
    pub fn assignable(self) -> impl Iterator<Item = Ipv4Addr> {
        let end = u32::try_from(self.size().saturating_sub(1)).unwrap_or(u32::MAX);
        let network = self.network;
        (4..end).map(move |offset| Ipv4Addr::from_bits(network.wrapping_add(offset)))
    }
}

/// The netmask as a number.
fn netmask_bits(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0)
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix_len)
    }
}

impl fmt::Debug for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseCidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let decimal = (1..=2).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix_len =
            if decimal { prefix.parse().map_err(|_| malformed())? } else { return Err(malformed()) };
        let network = Ipv4Cidr::containing(address, prefix_len).ok_or_else(malformed)?;
        if network.network() == address {
            Ok(network)
        } else {
            Err(ParseCidrError::HostBits { text: text.to_owned(), network: network.to_string() })
        }
    }
}

impl TryFrom<String> for Ipv4Cidr {
    type Error = ParseCidrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv4Cidr> for String {
    fn from(cidr: Ipv4Cidr) -> String {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn subnet_reserves_first_four_and_last() {
        let subnet = cidr("172.31.0.0/28");
        let all: Vec<_> = subnet.assignable().collect();
        assert_eq!(all.len(), 16 - 5);
        assert_eq!(all.first(), Some(&Ipv4Addr::new(172, 31, 0, 4)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(172, 31, 0, 14)));
        assert_eq!(subnet.router(), Some(Ipv4Addr::new(172, 31, 0, 1)));
        assert_eq!(subnet.resolver(), Some(Ipv4Addr::new(172, 31, 0, 2)));
        assert_eq!(cidr("10.0.0.0/30").assignable().count(), 0);
        assert_eq!(cidr("10.0.0.0/32").assignable().count(), 0);
        assert_eq!(cidr("10.0.0.0/32").router(), None);
    }

    #[test]
    fn overlap_is_seen_both_ways() {
        assert!(cidr("172.31.0.0/16").overlaps(cidr("172.31.240.0/20")));
        assert!(cidr("172.31.240.0/20").overlaps(cidr("172.31.0.0/16")));
        assert!(!cidr("172.30.0.0/16").overlaps(cidr("172.31.0.0/16")));
        assert!(cidr("0.0.0.0/0").overlaps(cidr("10.0.0.0/8")));
    }

    #[test]
    fn malformed_text_and_host_bits_are_refused() {
        for text in
            ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/008", "x/8"]
        {
            assert!(matches!(text.parse::<Ipv4Cidr>(), Err(ParseCidrError::Malformed(_))), "{text:?}");
        }
        let error = "10.0.0.5/24".parse::<Ipv4Cidr>().unwrap_err().to_string();
        assert_eq!(error, "\"10.0.0.5/24\" has host bits set (did you mean 10.0.0.0/24?)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn text_round_trips_and_edges_lie_inside(bits: u32, prefix in 0u8..=32) {
            let cidr = Ipv4Cidr::containing(Ipv4Addr::from_bits(bits), prefix).unwrap();
            prop_assert_eq!(cidr.to_string().parse::<Ipv4Cidr>(), Ok(cidr));
            prop_assert!(cidr.contains(Ipv4Addr::from_bits(bits)));
            prop_assert!(cidr.contains(cidr.network()));
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text in "[0-9./]{0,20}|.{0,20}") {
            let _ = text.parse::<Ipv4Cidr>();
        }
    }
}
