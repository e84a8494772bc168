//! Which addresses exist and who has them.
//!
//! Each taken address is a row of its own (`address/<subnet>.<ip>`) that must not exist before:
//! two processes that pick the same one conflict in the store, and the later picks again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::{InterfaceId, Ipv4Cidr, Ipv6Cidr, MacAddr, SubnetId, VpcId};
use serde::{Deserialize, Serialize};

use super::groups::ensure_default_group;
use super::route_tables::make_main;
use super::{Ipv6Wish, NetworkError, ipv6};
use crate::state::{Row, Store, StoreError, Transaction, transact};

/// Ranges tried for the default VPC, EC2's own first. Others for hosts that are themselves in it.
const DEFAULT_RANGES: [(u8, u8); 5] = [(172, 31), (172, 30), (172, 29), (10, 131), (192, 168)];
/// Ranges below 10.0.0.0/8 to scatter over.
const SCATTERED: u16 = 256;
/// Size of a VPC.
const VPC_PREFIX: u8 = 16;
/// Size of EC2's default subnets.
const SUBNET_PREFIX: u8 = 20;
/// Name under which the default subnet is found.
pub(super) const DEFAULT_NAME: &str = "subnet";

/// A network of its own address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// Its range.
    pub cidr: Ipv4Cidr,
    /// Its IPv6 range, if it has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Cidr>,
    /// What people call it.
    #[serde(default)]
    pub name: Option<String>,
}

impl Vpc {
    /// The host's own address in it.
    pub fn host_address(&self) -> Option<Ipv4Addr> {
        kiln_hostnet::host_address(self.cidr)
    }
}

impl Row for Vpc {
    const KIND: &'static str = "vpc";
    type Key = VpcId;

    fn key(&self) -> VpcId {
        self.id
    }
}

/// A part of a VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// The VPC it belongs to.
    pub vpc: VpcId,
    /// Range of that VPC.
    pub vpc_cidr: Ipv4Cidr,
    /// Its own range.
    pub cidr: Ipv4Cidr,
    /// IPv6 range of that VPC, where the subnet has one.
    #[serde(default)]
    pub vpc_ipv6: Option<Ipv6Cidr>,
    /// Its own IPv6 range.
    #[serde(default)]
    pub ipv6: Option<Ipv6Cidr>,
    /// What people call it.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether instances in it get a public address when nothing is said; in the default subnet if not said.
    #[serde(default)]
    pub map_public: Option<bool>,
}

impl Subnet {
    /// Its router: base + 1. Ranges too small to have one have no assignable address either.
    pub fn router(&self) -> Ipv4Addr {
        self.cidr.router().unwrap_or(self.cidr.network())
    }
}

impl Row for Subnet {
    const KIND: &'static str = "subnet";
    type Key = SubnetId;

    fn key(&self) -> SubnetId {
        self.id
    }
}

/// Points to the subnet that instances get when none is named.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DefaultSubnet {
    pub subnet: SubnetId,
}

impl Row for DefaultSubnet {
    const KIND: &'static str = "default";
    type Key = String;

    fn key(&self) -> String {
        DEFAULT_NAME.to_owned()
    }
}

/// A taken address.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Address {
    pub subnet: SubnetId,
    pub address: IpAddr,
    pub interface: InterfaceId,
}

pub(super) fn address_key(subnet: SubnetId, address: IpAddr) -> String {
    format!("{subnet}.{address}")
}

impl Row for Address {
    const KIND: &'static str = "address";
    type Key = String;

    fn key(&self) -> String {
        address_key(self.subnet, self.address)
    }
}

/// A network interface of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id.
    pub id: InterfaceId,
    /// The subnet it is in.
    pub subnet: Subnet,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its primary private address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
}

/// The default subnet, made on first use in a VPC of this range.
pub fn ensure_default_subnet(store: &dyn Store, range: Ipv4Cidr) -> Result<Subnet, StoreError> {
    transact(store, |tx| {
        if let Some(default) = tx.get::<DefaultSubnet>(&DEFAULT_NAME.to_owned())?
            && let Some(subnet) = tx.get::<Subnet>(&default.subnet)?
        {
            return Ok(subnet);
        }
        let vpc = Vpc { id: VpcId::from_bits(rand::random()), cidr: range, ipv6: None, name: None };
        let cidr = Ipv4Cidr::containing(vpc.cidr.network(), SUBNET_PREFIX).unwrap_or(vpc.cidr);
        let subnet = Subnet {
            id: SubnetId::from_bits(rand::random()),
            vpc: vpc.id,
            vpc_cidr: vpc.cidr,
            cidr,
            vpc_ipv6: None,
            ipv6: None,
            name: None,
            map_public: None,
        };
        ensure_default_group(tx, vpc.id)?;
        make_main(tx, vpc.id, true)?;
        tx.put(&vpc)?;
        tx.put(&subnet)?;
        tx.put(&DefaultSubnet { subnet: subnet.id })?;
        Ok(subnet)
    })
}

/// The range of a new default VPC: EC2's own, unless the host routes part of it to elsewhere. With
/// `scatter`, any of many, so that state directories that know nothing of each other (as
/// tests make them) hardly ever share one: the host has one routing table for all.
pub fn choose_range(host_routes: &[Ipv4Cidr], scatter: Option<u16>) -> Ipv4Cidr {
    let range = |(a, b)| Ipv4Cidr::containing(Ipv4Addr::new(a, b, 0, 0), VPC_PREFIX);
    let scattered = (0..SCATTERED).filter_map(|n| {
        let [_, second] = (scatter?.wrapping_add(n) % SCATTERED).to_be_bytes();
        Some((10, second))
    });
    let mut candidates = scattered.chain(DEFAULT_RANGES).filter_map(range);
    let free = candidates.find(|range| {
        // The default route overlaps everything and means nothing.
        !host_routes.iter().any(|route| route.prefix_len() > 0 && route.overlaps(*range))
    });
    let [(a, b), ..] = DEFAULT_RANGES;
    free.or_else(|| range((a, b))).expect("16 is a prefix length")
}

/// Takes an address of `subnet` for a new interface, as part of `tx`: the one that is wanted, or the
/// lowest that is free. With an IPv6 address if there shall be one.
pub(super) fn reserve(
    tx: &mut Transaction<'_>,
    subnet: &Subnet,
    wanted: Option<Ipv4Addr>,
    ipv6: Ipv6Wish,
) -> Result<Interface, NetworkError> {
    let id = InterfaceId::from_bits(rand::random());
    let address = take(tx, subnet, id, wanted)?;
    // The same number in both ranges, for people to see what belongs together.
    let number = address.to_bits().saturating_sub(subnet.cidr.network().to_bits());
    let ipv6 = ipv6::take(tx, subnet, id, ipv6, number)?;
    Ok(Interface { id, subnet: subnet.clone(), mac: new_mac(address), address, ipv6 })
}

/// Takes an address of `subnet` for an interface, as part of `tx`: the one that is wanted, or the
/// lowest that is free.
pub(super) fn take(
    tx: &mut Transaction<'_>,
    subnet: &Subnet,
    interface: InterfaceId,
    wanted: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, NetworkError> {
    if let Some(address) = wanted {
        check_assignable(subnet, address)?;
        return match tx.insert(&Address { subnet: subnet.id, address: address.into(), interface })? {
            true => Ok(address),
            false => Err(NetworkError::AddressInUse(address.into())),
        };
    }
    let taken: std::collections::BTreeSet<_> =
        tx.rows::<Address>()?.iter().filter(|a| a.subnet == subnet.id).map(|a| a.address).collect();
    for address in subnet.cidr.assignable().filter(|a| !taken.contains(&IpAddr::V4(*a))) {
        // Usually the first: taken meanwhile is possible, the list was of a moment ago.
        if tx.insert(&Address { subnet: subnet.id, address: address.into(), interface })? {
            return Ok(address);
        }
    }
    Err(NetworkError::SubnetFull { subnet: subnet.id, cidr: subnet.cidr })
}

fn check_assignable(subnet: &Subnet, address: Ipv4Addr) -> Result<(), NetworkError> {
    let cidr = subnet.cidr;
    if !cidr.contains(address) {
        return Err(NetworkError::AddressOutside { address, subnet: subnet.id, cidr });
    }
    let offset = u64::from(address.to_bits().saturating_sub(cidr.network().to_bits()));
    if !(4..cidr.size().saturating_sub(1)).contains(&offset) {
        return Err(NetworkError::AddressReserved { address, cidr });
    }
    Ok(())
}

/// Gives the address back, as part of `tx`.
pub(super) fn release(tx: &mut Transaction<'_>, subnet: SubnetId, address: Ipv4Addr) {
    tx.remove::<Address>(&address_key(subnet, address.into()));
}

/// A locally administered unicast address: unique in the subnet by the address, elsewhere by chance.
fn new_mac(address: Ipv4Addr) -> MacAddr {
    let [_, _, c, d] = address.octets();
    let [x, y, z] = rand::random::<[u8; 3]>();
    MacAddr::new([0x02, x, y, z, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SqliteStore;

    fn store() -> (tempfile::TempDir, SqliteStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        (dir, store)
    }

    fn range() -> Ipv4Cidr {
        choose_range(&[], None)
    }

    fn reserve_one(store: &dyn Store, subnet: &Subnet) -> Result<Interface, NetworkError> {
        transact(store, |tx| reserve(tx, subnet, None, Ipv6Wish::None))
    }

    #[test]
    fn default_subnet_is_made_once() {
        let (_dir, store) = store();
        let first = ensure_default_subnet(&store, range()).unwrap();
        assert_eq!(first.vpc_cidr.to_string(), "172.31.0.0/16");
        assert_eq!(first.cidr.to_string(), "172.31.0.0/20");
        assert_eq!(ensure_default_subnet(&store, "10.1.0.0/16".parse().unwrap()).unwrap(), first);
    }

    #[test]
    fn range_of_the_host_is_avoided() {
        let routes = ["0.0.0.0/0", "172.31.16.0/20", "172.16.0.0/12"].map(|r| r.parse().unwrap());
        assert_eq!(choose_range(&routes, None).to_string(), "10.131.0.0/16");
        assert_eq!(choose_range(&["0.0.0.0/0".parse().unwrap()], None).to_string(), "172.31.0.0/16");
        assert_eq!(choose_range(&[], Some(7)).to_string(), "10.7.0.0/16");
        assert_eq!(choose_range(&["10.7.0.4/32".parse().unwrap()], Some(0x1207)).to_string(), "10.8.0.0/16");
        assert_eq!(choose_range(&["10.0.0.0/8".parse().unwrap()], Some(1)).to_string(), "172.31.0.0/16");
    }

    #[test]
    fn addresses_are_given_in_order_and_reused_after_release() {
        let (_dir, store) = store();
        let subnet = ensure_default_subnet(&store, range()).unwrap();
        let first = reserve_one(&store, &subnet).unwrap();
        let second = reserve_one(&store, &subnet).unwrap();
        assert_eq!(first.address, Ipv4Addr::new(172, 31, 0, 4));
        assert_eq!(second.address, Ipv4Addr::new(172, 31, 0, 5));
        assert_eq!(first.mac.octets().first(), Some(&2));
        transact(&store, |tx| {
            release(tx, subnet.id, first.address);
            Ok::<_, StoreError>(())
        })
        .unwrap();
        assert_eq!(reserve_one(&store, &subnet).unwrap().address, first.address);
    }

    #[test]
    fn wanted_address_is_given_unless_it_cannot_be() {
        let (_dir, store) = store();
        let subnet = ensure_default_subnet(&store, range()).unwrap();
        let reserve_at = |address: [u8; 4]| {
            transact(&store, |tx| reserve(tx, &subnet, Some(address.into()), Ipv6Wish::None))
                .map_err(|e| e.code())
        };
        assert_eq!(reserve_at([172, 31, 0, 9]).unwrap().address, Ipv4Addr::new(172, 31, 0, 9));
        assert_eq!(reserve_at([172, 31, 0, 9]), Err("InvalidIPAddress.InUse"));
        for address in [[172, 31, 16, 4], [172, 31, 0, 3], [172, 31, 0, 0], [172, 31, 15, 255]] {
            assert_eq!(reserve_at(address), Err("InvalidParameterValue"), "{address:?}");
        }
        assert!(reserve_at([172, 31, 15, 254]).is_ok());
    }

    #[test]
    fn full_subnet_is_told() {
        let (_dir, store) = store();
        let mut subnet = ensure_default_subnet(&store, range()).unwrap();
        subnet.cidr = "172.31.0.0/29".parse().unwrap();
        for _ in 0..3 {
            reserve_one(&store, &subnet).unwrap();
        }
        assert!(matches!(reserve_one(&store, &subnet), Err(NetworkError::SubnetFull { .. })));
    }
}
