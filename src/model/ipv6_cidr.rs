//! IPv6 address ranges.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ParseCidrError;

/// An IPv6 network such as `2001:db8::/32`. The host part is always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Cidr {
    network: Ipv6Addr,
    prefix_len: u8,
}

impl Ipv6Cidr {
    /// The network of `prefix_len` bits (0 to 128) that contains `address`; `None` above 128.
    pub fn containing(address: Ipv6Addr, prefix_len: u8) -> Option<Self> {
        let network = Ipv6Addr::from_bits(address.to_bits() & netmask_bits(prefix_len));
        (prefix_len <= 128).then_some(Ipv6Cidr { network, prefix_len })
    }

    /// First address.
    pub fn network(self) -> Ipv6Addr {
        self.network
    }

    /// Length of the network part in bits, 0 to 128.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Ipv6Cidr) -> bool {
        let shorter = netmask_bits(self.prefix_len.min(other.prefix_len));
        (self.network.to_bits() ^ other.network.to_bits()) & shorter == 0
    }

    /// The address at `offset` from the first, if it lies inside.
    pub fn nth(self, offset: u128) -> Option<Ipv6Addr> {
        let inside = offset & netmask_bits(self.prefix_len) == 0;
        inside.then(|| Ipv6Addr::from_bits(self.network.to_bits() | offset))
    }

    /// The `n`th part of the range that is `prefix_len` bits long, if there are as many.
    pub fn part(self, prefix_len: u8, n: u128) -> Option<Self> {
        let bits = 128u32.checked_sub(u32::from(prefix_len))?;
        let offset = n.checked_mul(1u128.checked_shl(bits)?)?;
        let network = self.nth(offset).filter(|_| prefix_len >= self.prefix_len)?;
        Ipv6Cidr::containing(network, prefix_len)
    }

    /// The subnet's router: base + 1.
    pub fn router(self) -> Option<Ipv6Addr> {
        self.nth(1)
    }

    /// Whether the range is of addresses that no other network routes (RFC 4193, `fc00::/7`).
    pub fn is_unique_local(self) -> bool {
        self.prefix_len >= 7 && self.network().is_unique_local()
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & netmask_bits(self.prefix_len) == self.network.to_bits()
    }
}

/// The netmask as a number.
fn netmask_bits(prefix_len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_len.min(128))).unwrap_or(0)
}

impl fmt::Display for Ipv6Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix_len)
    }
}

impl fmt::Debug for Ipv6Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv6Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseCidrError::MalformedIpv6(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv6Addr = address.parse().map_err(|_| malformed())?;
        let decimal = (1..=3).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix_len =
            if decimal { prefix.parse().map_err(|_| malformed())? } else { return Err(malformed()) };
        let network = Ipv6Cidr::containing(address, prefix_len).ok_or_else(malformed)?;
        if network.network() == address {
            Ok(network)
        } else {
            Err(ParseCidrError::HostBits { text: text.to_owned(), network: network.to_string() })
        }
    }
}

impl TryFrom<String> for Ipv6Cidr {
    type Error = ParseCidrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv6Cidr> for String {
    fn from(cidr: Ipv6Cidr) -> String {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges_of_a_range_are_inside_and_beyond_is_not() {
        let range: Ipv6Cidr = "2001:db8::/32".parse().unwrap();
        assert!(range.contains("2001:db8:ffff::1".parse().unwrap()));
        assert!(!range.contains("2001:db9::".parse().unwrap()));
        assert!("::/0".parse::<Ipv6Cidr>().unwrap().contains("ff02::1".parse().unwrap()));
    }

    #[test]
    fn parts_of_a_range_lie_inside_and_end() {
        let range: Ipv6Cidr = "fd00:0:0:ff00::/56".parse().unwrap();
        assert_eq!(range.part(64, 0).unwrap().to_string(), "fd00:0:0:ff00::/64");
        assert_eq!(range.part(64, 255).unwrap().to_string(), "fd00:0:0:ffff::/64");
        for (prefix, n) in [(64, 256), (48, 0), (129, 0), (0, 1), (64, u128::MAX)] {
            assert_eq!(range.part(prefix, n), None, "{prefix} {n}");
        }
        assert_eq!(range.router().unwrap().to_string(), "fd00:0:0:ff00::1");
        let other = range.part(64, 7).unwrap();
        assert!(
            range.overlaps(other) && other.overlaps(range) && !other.overlaps(range.part(64, 8).unwrap())
        );
        assert!(range.is_unique_local() && !"2001:db8::/32".parse::<Ipv6Cidr>().unwrap().is_unique_local());
        assert!(!"::/0".parse::<Ipv6Cidr>().unwrap().is_unique_local());
    }

    #[test]
    fn malformed_text_and_host_bits_are_refused() {
        for text in ["", "::", "::/", "::/129", "::/0008", "10.0.0.0/8", "::/+1", "fe80::%eth0/64"] {
            assert!(matches!(text.parse::<Ipv6Cidr>(), Err(ParseCidrError::MalformedIpv6(_))), "{text:?}");
        }
        let error = "2001:db8::1/32".parse::<Ipv6Cidr>().unwrap_err().to_string();
        assert_eq!(error, "\"2001:db8::1/32\" has host bits set (did you mean 2001:db8::/32?)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn text_round_trips(bits: u128, prefix in 0u8..=128) {
            let cidr = Ipv6Cidr::containing(Ipv6Addr::from_bits(bits), prefix).unwrap();
            prop_assert_eq!(cidr.to_string().parse::<Ipv6Cidr>(), Ok(cidr));
            prop_assert!(cidr.contains(Ipv6Addr::from_bits(bits)));
        }
    }
}
