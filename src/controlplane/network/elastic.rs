//! Elastic addresses: public addresses that belong to whoever allocated them, over stop and start,
//! and move between instances with their traffic.

use std::net::Ipv4Addr;

use kiln_hostnet::OneToOne;
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
    /// Which secondary private address of the interface; the primary one if none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<Ipv4Addr>,
}

impl Association {
    /// Whether it leads to this private address of an interface.
    pub fn leads_to(&self, interface: InterfaceId, secondary: Option<Ipv4Addr>) -> bool {
        (self.interface, self.secondary) == (interface, secondary)
    }

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

    /// Lets an Elastic address lead to a private address of an interface, the primary if none is said, in place
    /// of its other public address. One that leads elsewhere is only moved with `reassociate`. What went by way
    /// of it ends.
    pub fn associate_address(
        &self,
        address: Ipv4Addr,
        interface: InterfaceId,
        private: Option<Ipv4Addr>,
        reassociate: bool,
    ) -> Result<(Association, Moved), NetworkError> {
        self.ensure_routing()?;
        let (association, before) = transact(self.store, |tx| {
            let mut row = get(tx, address)?;
            let member = tx.get::<Membership>(&interface)?.ok_or(NetworkError::NoInterface(interface))?;
            let vpc = member.interface.subnet.vpc;
            touch(tx, &vpc)?;
            let secondary = private.filter(|private| *private != member.interface.address);
            if let Some(address) = secondary.filter(|address| !member.secondary.contains(address)) {
                return Err(NetworkError::NotAssigned { address, interface });
            }
            if gateway_of(tx, vpc)?.is_none() {
                let gateway = "an internet gateway".to_owned();
                return Err(RoutingError::GatewayNotAttached { gateway, vpc }.into());
            }
            let before = row.association.filter(|other| !other.leads_to(interface, secondary));
            if let Some(other) = before
                && (!reassociate || is_nat(tx, other.interface)?)
            {
                let (what, by) = (format!("Elastic address {address}"), other.target());
                return Err(NetworkError::AddressAssociated { what, by });
            }
            end(tx, |there| there.leads_to(interface, secondary))?;
            let id = AssociationId::from_bits(rand::random());
            let association = Association { id, interface, instance: member.instance, secondary };
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

    /// Gives what an association leads to this public address, or its own again.
    pub(super) fn lead(
        &self,
        association: Association,
        address: Option<Ipv4Addr>,
    ) -> Result<Option<(InstanceId, Option<Ipv4Addr>)>, NetworkError> {
        let Association { interface, instance, secondary, .. } = association;
        let Some(member) = transact(self.store, |tx| tx.get::<Membership>(&interface))? else {
            // Gone meanwhile, with what the host had of it.
            return Ok(None);
        };
        let private = secondary.unwrap_or(member.interface.address);
        let public = self.fabric.set_public(interface, private, address)?;
        // The row of an instance has the public address of its primary interface.
        let primary = member.device == 0 && secondary.is_none();
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

/// The Elastic addresses that lead to an interface: that of its primary private address, and those of secondary
/// ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct OwnElastic {
    pub primary: Option<Ipv4Addr>,
    pub secondary: Vec<OneToOne>,
}

impl OwnElastic {
    /// Those of this interface among all.
    pub(crate) fn among(all: &[ElasticAddress], interface: InterfaceId) -> Self {
        let mut own = OwnElastic::default();
        for row in all {
            match row.association.filter(|there| there.interface == interface) {
                Some(Association { secondary: Some(private), .. }) => {
                    own.secondary.push(OneToOne { private, public: row.address });
                }
                Some(_) => own.primary = Some(row.address),
                None => {}
            }
        }
        own
    }
}

/// The Elastic addresses that lead to an interface.
pub(crate) fn elastic_of(store: &dyn Store, interface: &Interface) -> Result<OwnElastic, StoreError> {
    let all = transact(store, |tx| tx.list::<ElasticAddress>())?;
    Ok(OwnElastic::among(&all, interface.id))
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

/// An Elastic address on its way with the private address that it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moving {
    pub address: Ipv4Addr,
    pub from: Association,
    pub to: Association,
}

/// Lets the Elastic address of a secondary private one follow it to another interface, as part of `tx`.
pub(super) fn hand_over(
    tx: &mut Transaction<'_>,
    (interface, private): (InterfaceId, Ipv4Addr),
    heir: &Membership,
) -> Result<Option<Moving>, StoreError> {
    for mut row in tx.list::<ElasticAddress>()? {
        if let Some(from) = row.association.filter(|there| there.leads_to(interface, Some(private))) {
            let to = Association { interface: heir.interface.id, instance: heir.instance, ..from };
            row.association = Some(to);
            tx.put(&row)?;
            return Ok(Some(Moving { address: row.address, from, to }));
        }
    }
    Ok(None)
}

/// Ends the associations of an interface, as part of `tx`.
pub(super) fn forget(tx: &mut Transaction<'_>, interface: InterfaceId) -> Result<(), StoreError> {
    end(tx, |association| association.interface == interface).map(drop)
}

/// Ends the associations with secondary addresses of an interface, as part of `tx`; answers them.
pub(super) fn forget_secondary(
    tx: &mut Transaction<'_>,
    interface: InterfaceId,
    addresses: &[Ipv4Addr],
) -> Result<Vec<Association>, StoreError> {
    end(tx, |there| addresses.iter().any(|address| there.leads_to(interface, Some(*address))))
}

fn end(
    tx: &mut Transaction<'_>,
    which: impl Fn(&Association) -> bool,
) -> Result<Vec<Association>, StoreError> {
    let mut ended = Vec::new();
    for mut row in tx.list::<ElasticAddress>()? {
        if let Some(association) = row.association.take_if(|there| which(there)) {
            ended.push(association);
            tx.put(&row)?;
        }
    }
    Ok(ended)
}
