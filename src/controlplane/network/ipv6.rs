//! IPv6 ranges of VPCs and subnets, and addresses of interfaces in them.
//!
//! ```text
//!  VPC     fd12:3456:789a:bc00::/56        chosen at random (RFC 4193), or by the user
//!  subnet  fd12:3456:789a:bc07::/64        the next free one, or by the user
//!  address …::c for the interface at the subnet's IPv4 base + 12, or by the user
//! ```

use std::net::{IpAddr, Ipv6Addr};

use kiln_model::security::{Direction, Rule};
use kiln_model::{InterfaceId, Ipv6Cidr, SubnetId, VpcId};

use super::addresses::{Address, address_key};
use super::groups::{SecurityGroup, rule_id, touch};
use super::{NetworkError, Networks, Subnet, Vpc};
use crate::state::{Transaction, transact};

/// Size of a VPC, where Kiln chooses.
const VPC_PREFIX: u8 = 56;
/// Sizes of VPCs.
const VPC_PREFIXES: std::ops::RangeInclusive<u8> = 48..=60;
/// Size of subnets.
const SUBNET_PREFIX: u8 = 64;
/// Addresses at the beginning of a subnet that nobody gets: router, resolver, host.
const RESERVED: u128 = 4;
/// Addresses tried at random before a subnet of 2^64 is taken for full.
const TRIES: u32 = 64;

/// Whether a new interface gets an IPv6 address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ipv6Wish {
    /// No.
    #[default]
    None,
    /// Any of its subnet.
    Any,
    /// This one.
    Address(Ipv6Addr),
}

/// A range that no other network routes, of 40 random bits.
fn random_range() -> Option<Ipv6Cidr> {
    let bits: u128 = rand::random();
    let network = (0xfd << 120) | ((bits >> 8) & (u128::MAX >> 8));
    Ipv6Cidr::containing(Ipv6Addr::from_bits(network), VPC_PREFIX)
}

/// The services on the link have these.
fn of_services() -> Option<Ipv6Cidr> {
    Ipv6Cidr::containing(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32)
}

fn check_vpc_range(range: Ipv6Cidr) -> Result<Ipv6Cidr, NetworkError> {
    let [first, ..] = range.network().octets();
    // Global unicast, and unique local.
    let usable = first & 0xe0 == 0x20 || first == 0xfd;
    let free = of_services().is_none_or(|services| !services.overlaps(range));
    if usable && free && VPC_PREFIXES.contains(&range.prefix_len()) {
        Ok(range)
    } else {
        Err(NetworkError::VpcIpv6Range(range))
    }
}

/// The range of a VPC: as wished, or a new one.
pub(super) fn vpc_range(wish: Option<Ipv6Cidr>) -> Result<Ipv6Cidr, NetworkError> {
    match wish {
        Some(range) => check_vpc_range(range),
        None => {
            let mut candidates = std::iter::repeat_with(random_range).flatten().map(check_vpc_range);
            // One of 2^24 is of the services.
            candidates.find(Result::is_ok).unwrap_or(Err(NetworkError::NoIpv6Range))
        }
    }
}

/// The range of a subnet of `vpc`: as wished, or the next that is free.
pub(super) fn subnet_range(
    tx: &Transaction<'_>,
    vpc: &Vpc,
    wish: Option<Ipv6Cidr>,
) -> Result<Ipv6Cidr, NetworkError> {
    let whole = vpc.ipv6.ok_or_else(|| NetworkError::NoIpv6 { what: vpc.id.to_string() })?;
    let all = tx.list::<Subnet>()?;
    let others: Vec<_> =
        all.iter().filter(|subnet| subnet.vpc == vpc.id).filter_map(|s| Some((s.id, s.ipv6?))).collect();
    let conflict = |range: Ipv6Cidr| others.iter().find(move |(_, other)| other.overlaps(range));
    match wish {
        Some(range) => {
            if range.prefix_len() != SUBNET_PREFIX || !whole.contains(range.network()) {
                return Err(NetworkError::SubnetIpv6Range { range, vpc: vpc.id, vpc_range: whole });
            }
            match conflict(range) {
                Some((other, _)) => Err(NetworkError::SubnetIpv6Conflict { range, other: *other }),
                None => Ok(range),
            }
        }
        None => {
            // There are no more subnets than conflicts.
            let number = u128::try_from(others.len()).unwrap_or(0);
            let free = (0..=number).filter_map(|n| whole.part(SUBNET_PREFIX, n));
            free.into_iter().find(|range| conflict(*range).is_none()).ok_or(NetworkError::NoIpv6Range)
        }
    }
}

/// Takes an IPv6 address of `subnet` for an interface, as part of `tx`. `number`: the one to begin with.
pub(super) fn take(
    tx: &mut Transaction<'_>,
    subnet: &Subnet,
    interface: InterfaceId,
    wish: Ipv6Wish,
    number: u32,
) -> Result<Option<Ipv6Addr>, NetworkError> {
    if wish == Ipv6Wish::None {
        return Ok(None);
    }
    let range = subnet.ipv6.ok_or_else(|| NetworkError::NoIpv6 { what: subnet.id.to_string() })?;
    let mut insert = |address: Ipv6Addr| {
        let address = IpAddr::V6(address);
        tx.insert(&Address { subnet: subnet.id, address, interface })
    };
    if let Ipv6Wish::Address(address) = wish {
        let offset = address.to_bits().wrapping_sub(range.network().to_bits());
        if !range.contains(address) || offset < RESERVED {
            return Err(NetworkError::Ipv6Outside { address, subnet: subnet.id, range });
        }
        return match insert(address)? {
            true => Ok(Some(address)),
            false => Err(NetworkError::AddressInUse(address.into())),
        };
    }
    let random = std::iter::repeat_with(|| u128::from(rand::random::<u64>()).max(RESERVED));
    for offset in
        std::iter::once(u128::from(number)).chain(random).take(1 + usize::try_from(TRIES).unwrap_or(0))
    {
        if let Some(address) = range.nth(offset)
            && insert(address)?
        {
            return Ok(Some(address));
        }
    }
    Err(NetworkError::NoIpv6Range)
}

/// Gives the address back, as part of `tx`.
pub(super) fn release(tx: &mut Transaction<'_>, subnet: SubnetId, address: Option<Ipv6Addr>) {
    if let Some(address) = address {
        tx.remove::<Address>(&address_key(subnet, address.into()));
    }
}

impl Networks<'_> {
    /// Gives a VPC without IPv6 a range: this one, or one that Kiln chooses. As in EC2, its groups let
    /// everything out over IPv6 if they do over IPv4 and their egress rules are as they were made.
    pub fn add_ipv6_to_vpc(&self, id: VpcId, range: Option<Ipv6Cidr>) -> Result<Vpc, NetworkError> {
        let vpc = transact(self.store, |tx| {
            let mut vpc = tx.get::<Vpc>(&id)?.ok_or_else(|| NetworkError::NoVpc(id.to_string()))?;
            if vpc.ipv6.is_some() {
                return Err(NetworkError::HasIpv6 { what: id.to_string() });
            }
            touch(tx, &id)?;
            vpc.ipv6 = Some(vpc_range(range)?);
            tx.put(&vpc)?;
            super::acls::vpc_gets_ipv6(tx, id)?;
            for mut group in tx.list::<SecurityGroup>()?.into_iter().filter(|group| group.vpc == id) {
                let mut egress = group.rules.iter().filter(|rule| rule.direction == Direction::Egress);
                if let (Some(rule), None) = (egress.next(), egress.next())
                    && rule.same_meaning(&Rule::all_egress(rule.id))
                {
                    group.rules.push(Rule::all_egress_ipv6(rule_id()));
                    tx.put(&group)?;
                }
            }
            Ok::<_, NetworkError>(vpc)
        })?;
        self.apply(id)?;
        Ok(vpc)
    }

    /// Gives a subnet without IPv6 a range of its VPC's: this one, or the next that is free. Interfaces that
    /// it has stay as they are.
    pub fn add_ipv6_to_subnet(&self, wanted: &str, range: Option<Ipv6Cidr>) -> Result<Subnet, NetworkError> {
        transact(self.store, |tx| {
            let mut subnet = super::service::find_subnet(tx, wanted)?;
            if subnet.ipv6.is_some() {
                return Err(NetworkError::HasIpv6 { what: subnet.id.to_string() });
            }
            let vpc = tx.get::<Vpc>(&subnet.vpc)?;
            let vpc = vpc.ok_or_else(|| NetworkError::NoVpc(subnet.vpc.to_string()))?;
            touch(tx, &subnet.vpc)?;
            subnet.ipv6 = Some(subnet_range(tx, &vpc, range)?);
            subnet.vpc_ipv6 = vpc.ipv6;
            tx.put(&subnet)?;
            Ok(subnet)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_ranges_are_unique_local_and_differ() {
        let [a, b] = [(); 2].map(|()| vpc_range(None).unwrap());
        assert_ne!(a, b);
        for range in [a, b] {
            assert!(range.is_unique_local() && range.prefix_len() == 56, "{range}");
        }
    }

    #[test]
    fn ranges_of_others_are_refused() {
        for range in ["2001:db8:31::/48", "fd00:1:2:3300::/56", "2600::/60"] {
            assert!(vpc_range(Some(range.parse().unwrap())).is_ok(), "{range}");
        }
        for range in [
            "2001:db8::/32",
            "2001:db8::/61",
            "fd00:ec2::/48",
            "fd00:ec2:1::/56",
            "fe80::/56",
            "ff00::/56",
            "fc00::/56",
            "::/56",
        ] {
            assert!(vpc_range(Some(range.parse().unwrap())).is_err(), "{range}");
        }
    }
}
