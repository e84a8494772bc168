//! Ids of EC2 resources: a prefix and seventeen hexadecimal digits, such as `i-0123456789abcdef0`.
//!
//! Each kind is its own type, so that an image id cannot be passed where an instance id belongs.
//! An id is a number; the text form is canonical (lower case), which makes every name derived from
//! it (tap, cgroup, directory) canonical too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of hexadecimal digits after the prefix.
const DIGITS: usize = 17;

/// The text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {article} {kind} id (expected {prefix} and 17 hexadecimal digits)")]
pub struct ParseIdError {
    text: String,
    article: &'static str,
    kind: &'static str,
    prefix: &'static str,
}

/// Parses `prefix` and exactly [`DIGITS`] lower-case hexadecimal digits.
fn parse_digits(text: &str, prefix: &str) -> Option<u128> {
    let digits = text.strip_prefix(prefix)?;
    let canonical = digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u128::from_str_radix(digits, 16).ok() } else { None }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $article:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// An id of the form EC2 gives today: a zero digit and 64 bits, which the caller draws
            /// from a random source.
            pub const fn from_bits(bits: u64) -> Self {
                // A widening cast: `From` is not usable in a const fn.
                $name(bits as u128)
            }

            /// The 64 random bits of an id of today's form.
            pub const fn low_bits(self) -> u64 {
                // The cast keeps the low half, which is what is asked for.
                self.0 as u64
            }

            /// The low 48 bits as twelve hexadecimal digits, for names that must be short, such as
            /// those of network interfaces (15 characters).
            pub fn short(self) -> String {
                format!("{:012x}", self.0 & 0xffff_ffff_ffff)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{:017x}"), self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_digits(text, $prefix).map($name).ok_or_else(|| ParseIdError {
                    text: text.to_owned(),
                    article: $article,
                    kind: $kind,
                    prefix: $prefix,
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(
    /// A virtual machine with its identity over stop and start.
    InstanceId, "i-", "an", "instance"
);
id!(
    /// An image that instances start from.
    ImageId, "ami-", "an", "image"
);
id!(
    /// An elastic network interface.
    InterfaceId, "eni-", "a", "network interface"
);
id!(
    /// A virtual private cloud: one address space.
    VpcId, "vpc-", "a", "VPC"
);
id!(
    /// A part of a VPC's address space.
    SubnetId, "subnet-", "a", "subnet"
);
id!(
    /// A block volume.
    VolumeId, "vol-", "a", "volume"
);
id!(
    /// What a volume held at one moment.
    SnapshotId, "snap-", "a", "snapshot"
);
id!(
    /// A named list of rules that interfaces are under.
    SecurityGroupId, "sg-", "a", "security group"
);
id!(
    /// One rule of a security group.
    SecurityGroupRuleId, "sgr-", "a", "security group rule"
);
id!(
    /// A named list of address ranges.
    PrefixListId, "pl-", "a", "prefix list"
);
id!(
    /// Numbered entries at the edge of a subnet.
    NetworkAclId, "acl-", "a", "network ACL"
);
id!(
    /// A list of routes that subnets go by.
    RouteTableId, "rtb-", "a", "route table"
);
id!(
    /// A subnet, or a VPC's rest, going by a route table.
    RouteTableAssociationId, "rtbassoc-", "a", "route table association"
);
id!(
    /// The way between a VPC and the world, by public addresses.
    InternetGatewayId, "igw-", "an", "internet gateway"
);
id!(
    /// The way out of a VPC for those without a public address.
    NatGatewayId, "nat-", "a", "NAT gateway"
);
id!(
    /// An allocated Elastic address.
    AllocationId, "eipalloc-", "an", "address allocation"
);
id!(
    /// An Elastic address leading to an interface.
    AssociationId, "eipassoc-", "an", "address association"
);
id!(
    /// A public key by name, for those who log in.
    KeyPairId, "key-", "a", "key pair"
);
id!(
    /// What instances are launched with, under a name.
    LaunchTemplateId, "lt-", "a", "launch template"
);
id!(
    /// One launch request, which may make several instances.
    ReservationId, "r-", "a", "reservation"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_round_trips_and_starts_with_a_zero_digit() {
        let id = InstanceId::from_bits(0x1234_5678_9abc_def0);
        assert_eq!(id.to_string(), "i-01234567".to_owned() + "89abcdef0");
        assert_eq!("i-0123456789abcdef0".parse::<InstanceId>(), Ok(id));
        assert_eq!(id.short(), "56789abcdef0");
    }

    #[test]
    fn other_kinds_and_malformed_text_are_refused() {
        for text in [
            "",
            "i-",
            "ami-0123456789abcdef0",
            "i-0123456789abcdef",
            "i-0123456789abcdef01",
            "i-0123456789ABCDEF0",
            "i-+123456789abcdef0",
            "i-0123456789abcdeg0",
            "I-0123456789abcdef0",
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?} was accepted");
        }
        let error = "foo".parse::<ImageId>().unwrap_err().to_string();
        assert_eq!(error, "\"foo\" is not an image id (expected ami- and 17 hexadecimal digits)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_is_refused_or_canonical(text in "(i-|eni-)?[0-9a-gA-F]{15,18}|.{0,24}") {
            if let Ok(id) = text.parse::<InstanceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn any_bits_round_trip(bits: u64) {
            let id = InterfaceId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse::<InterfaceId>(), Ok(id));
        }
    }
}
