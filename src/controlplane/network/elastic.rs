//! Elastic addresses: public addresses that belong to whoever allocated them, over stop and start,
//! and move between instances with their traffic.

use std::net::Ipv4Addr;

use kiln_model::{AllocationId, AssociationId, InstanceId, InterfaceId};
use serde::{Deserialize, Serialize};

use super::gateways::gateway_of;
use super::groups::{Membership, touch};
use super::{Interface, NatGateway, NetworkError, Networks, RoutingError};
use crate::state::{Row, Store, StoreError, Transaction, transact};

/// Elastic addresses in one state directory, as EC2's default quota.
pub const MAX_ADDRESSES: usize = 5;
/// Where they come from: the half of the range for tests of networks (RFC 2544) from which none is
/// given to instances by itself.
const POOL: [u8; 2] = [198, 19];
/// Addresses tried before the pool is taken for full.
const TRIES: usize = 64;

/// An Elastic address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticAddress {
    /// The address, which no other row has.
    pub address: Ipv4Addr,
    /// Its id.
    pub id: AllocationId,
    /// Whom it leads to.
    pub association: Option<Association>,
}

/// Whom an Elastic address leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// Its id, a new one each time.
    pub id: AssociationId,
    /// The interface.
    pub interface: InterfaceId,
    /// Its instance, if it has one.
    #[serde(default)]
    pub instance: Option<InstanceId>,
}

impl Association {
    /// What it leads to, for people.
    pub fn target(&self) -> String {
        self.instance.map_or_else(|| self.interface.to_string(), |instance| instance.to_string())
    }
}

impl Row for ElasticAddress {
    const KIND: &'static str = "elastic";
    type Key = Ipv4Addr;

    fn key(&self) -> Ipv4Addr {
        self.address
    }
}

/// What an association or its end changed: the public addresses that instances have now.
pub type Moved = Vec<(InstanceId, Option<Ipv4Addr>)>;

impl Networks<'_> {
    /// All Elastic addresses.
    pub fn elastic_addresses(&self) -> Result<Vec<ElasticAddress>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<ElasticAddress>())?)
    }

    /// The Elastic address that an id or the address itself stands for.
    pub fn find_elastic(&self, wanted: &str) -> Result<ElasticAddress, NetworkError> {
        let all = self.elastic_addresses()?;
        let mut found =
            all.into_iter().filter(|row| row.id.to_string() == wanted || row.address.to_string() == wanted);
        found.next().ok_or_else(|| NetworkError::NoElastic(wanted.to_owned()))
    }

    /// Allocates an Elastic address.
    pub fn allocate_address(&self) -> Result<ElasticAddress, NetworkError> {
        transact(self.store, |tx| {
            if tx.list::<ElasticAddress>()?.len() >= MAX_ADDRESSES {
                return Err(NetworkError::Limit { what: "Elastic addresses", limit: MAX_ADDRESSES });
            }
            for _ in 0..TRIES {
                let ([a, b], [c, d]) = (POOL, rand::random::<[u8; 2]>());
                let id = AllocationId::from_bits(rand::random());
                let row = ElasticAddress { address: Ipv4Addr::new(a, b, c, d), id, association: None };
                if !matches!(d, 0 | 255) && tx.insert(&row)? {
                    return Ok(row);
                }
            }
            Err(NetworkError::Limit { what: "Elastic addresses", limit: TRIES })
        })
    }

    /// Gives an Elastic address back that leads to nobody.
    pub fn release_address(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let row = get(tx, address)?;
            if let Some(association) = row.association {
                let (what, by) = (format!("Elastic address {address}"), association.target());
                return Err(NetworkError::AddressAssociated { what, by });
            }
            tx.remove::<ElasticAddress>(&address);
            Ok(())
        })
    }

    /// Lets an Elastic address lead to an interface, in place of its other public address. One that
    /// leads elsewhere is only moved with `reassociate`. What went by way of it ends.
    pub fn associate_address(
        &self,
        address: Ipv4Addr,
        interface: InterfaceId,
        reassociate: bool,
    ) -> Result<(Association, Moved), NetworkError> {
        self.ensure_routing()?;
        let (association, before) = transact(self.store, |tx| {
            let mut row = get(tx, address)?;
            let member = tx.get::<Membership>(&interface)?.ok_or(NetworkError::NoInterface(interface))?;
            let vpc = member.interface.subnet.vpc;
            touch(tx, &vpc)?;
            if gateway_of(tx, vpc)?.is_none() {
                let gateway = "an internet gateway".to_owned();
                return Err(RoutingError::GatewayNotAttached { gateway, vpc }.into());
            }
            let before = row.association.filter(|other| other.interface != interface);
            if let Some(other) = before
                && (!reassociate || is_nat(tx, other.interface)?)
            {
                let (what, by) = (format!("Elastic address {address}"), other.target());
                return Err(NetworkError::AddressAssociated { what, by });
            }
            forget(tx, interface)?;
            let id = AssociationId::from_bits(rand::random());
            let association = Association { id, interface, instance: member.instance };
            row.association = Some(association);
            tx.put(&row)?;
            // The interface cannot go without noticing.
            tx.put(&member)?;
            Ok::<_, NetworkError>((association, before))
        })?;
        let mut moved = Vec::new();
        if let Some(before) = before {
            moved.extend(self.lead(before, None)?);
        }
        moved.extend(self.lead(association, Some(address))?);
        Ok((association, moved))
    }

    /// Gives the interface of an association this public address, or its own again.
    fn lead(
        &self,
        association: Association,
        address: Option<Ipv4Addr>,
    ) -> Result<Option<(InstanceId, Option<Ipv4Addr>)>, NetworkError> {
        let Association { interface, instance, .. } = association;
        let public = self.fabric.set_public(interface, address)?;
        let member = transact(self.store, |tx| tx.get::<Membership>(&interface))?;
        // The row of an instance has the public address of its primary interface.
        let primary = member.is_none_or(|member| member.device == 0);
        Ok(instance.filter(|_| primary).map(|instance| (instance, public)))
    }

    /// Lets an Elastic address lead to nobody.
    pub fn disassociate_address(&self, address: Ipv4Addr) -> Result<Moved, NetworkError> {
        let before = transact(self.store, |tx| {
            let mut row = get(tx, address)?;
            let before = row.association.take();
            if let Some(other) = before
                && is_nat(tx, other.interface)?
            {
                let (what, by) = (format!("Elastic address {address}"), other.target());
                return Err(NetworkError::AddressAssociated { what, by });
            }
            tx.put(&row)?;
            Ok::<_, NetworkError>(before)
        })?;
        match before {
            Some(before) => Ok(self.lead(before, None)?.into_iter().collect()),
            None => Ok(Vec::new()),
        }
    }
}

/// Whether an interface is that of a NAT gateway, which keeps its address as long as it lives.
fn is_nat(tx: &Transaction<'_>, interface: InterfaceId) -> Result<bool, StoreError> {
    Ok(tx.list::<NatGateway>()?.iter().any(|nat| nat.interface == interface))
}

pub(super) fn get(tx: &mut Transaction<'_>, address: Ipv4Addr) -> Result<ElasticAddress, NetworkError> {
    tx.get::<ElasticAddress>(&address)?.ok_or_else(|| NetworkError::NoElastic(address.to_string()))
}

/// The Elastic address that leads to an interface.
pub(crate) fn elastic_of(store: &dyn Store, interface: &Interface) -> Result<Option<Ipv4Addr>, StoreError> {
    let all = transact(store, |tx| tx.list::<ElasticAddress>())?;
    let mut own = all.into_iter().filter(|row| row.association.is_some_and(|a| a.interface == interface.id));
    Ok(own.next().map(|row| row.address))
}

/// Notes whose interface it is now, as part of `tx`.
pub(super) fn follow(
    tx: &mut Transaction<'_>,
    interface: InterfaceId,
    instance: Option<InstanceId>,
) -> Result<(), StoreError> {
    for mut row in tx.list::<ElasticAddress>()? {
        if let Some(association) = row.association.as_mut().filter(|a| a.interface == interface) {
            association.instance = instance;
            tx.put(&row)?;
        }
    }
    Ok(())
}

/// Ends the associations of an interface, as part of `tx`.
pub(super) fn forget(tx: &mut Transaction<'_>, interface: InterfaceId) -> Result<(), StoreError> {
    for mut row in tx.list::<ElasticAddress>()? {
        if row.association.is_some_and(|association| association.interface == interface) {
            row.association = None;
            tx.put(&row)?;
        }
    }
    Ok(())
}
