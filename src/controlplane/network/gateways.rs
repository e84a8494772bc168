//! Internet and NAT gateways, as rows and as a service.
//!
//! A VPC made with `kiln vpc create`, and the default one, has a gateway of its own from the start, which
//! gives those without a public address the host's. Others are as in EC2: who has no public address does not
//! come out by them, but by a NAT gateway.

use std::net::Ipv4Addr;

use kiln_model::{
    AllocationId, AssociationId, InterfaceId, InternetGatewayId, MacAddr, NatGatewayId, SubnetId, VpcId,
};
use serde::{Deserialize, Serialize};

use super::addresses::{release, reserve};
use super::elastic::{self, Association};
use super::groups::{Membership, touch};
use super::service::find_subnet;
use super::{Also, ElasticAddress, Ipv6Wish, NetworkError, Networks, RoutingError, Vpc};
use crate::state::{Row, Transaction, transact};

/// Internet gateways in one state directory: as many as VPCs, and as many again.
pub const MAX_GATEWAYS: usize = 200;
/// NAT gateways in one state directory.
pub const MAX_NAT_GATEWAYS: usize = 20;

/// An internet gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternetGateway {
    /// Its id.
    pub id: InternetGatewayId,
    /// The VPC that it is attached to.
    pub vpc: Option<VpcId>,
    /// Whether it is for everybody: it came with its VPC, and goes with it.
    pub open: bool,
}

impl Row for InternetGateway {
    const KIND: &'static str = "internet-gateway";
    type Key = InternetGatewayId;

    fn key(&self) -> InternetGatewayId {
        self.id
    }
}

/// A NAT gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatGateway {
    /// Its id.
    pub id: NatGatewayId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The subnet that it is in, by whose table it reaches the world.
    pub subnet: SubnetId,
    /// Id of its interface, which exists by name alone.
    pub interface: InterfaceId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its private address.
    pub address: Ipv4Addr,
    /// Its Elastic address.
    pub allocation: AllocationId,
    /// Where what it sends comes from.
    pub public: Ipv4Addr,
    /// When it was made, Unix seconds.
    pub created: u64,
}

impl Row for NatGateway {
    const KIND: &'static str = "nat-gateway";
    type Key = NatGatewayId;

    fn key(&self) -> NatGatewayId {
        self.id
    }
}

impl Networks<'_> {
    /// All internet gateways.
    pub fn internet_gateways(&self) -> Result<Vec<InternetGateway>, NetworkError> {
        self.ensure_routing()?;
        Ok(transact(self.store, |tx| tx.list::<InternetGateway>())?)
    }

    /// Makes an internet gateway that is attached to nothing.
    pub fn create_internet_gateway(&self, also: &mut Also<'_>) -> Result<InternetGateway, NetworkError> {
        let id = InternetGatewayId::from_bits(rand::random());
        transact(self.store, |tx| {
            if tx.list::<InternetGateway>()?.len() >= MAX_GATEWAYS {
                return Err(NetworkError::Limit { what: "internet gateways", limit: MAX_GATEWAYS });
            }
            let gateway = InternetGateway { id, vpc: None, open: false };
            tx.put(&gateway)?;
            also(tx, &id.to_string())?;
            Ok(gateway)
        })
    }

    /// Attaches a gateway to a VPC that has none.
    pub fn attach_internet_gateway(&self, id: InternetGatewayId, vpc: VpcId) -> Result<(), NetworkError> {
        self.ensure_routing()?;
        transact(self.store, |tx| {
            tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            touch(tx, &vpc)?;
            let mut gateway = get(tx, id)?;
            if let Some(to) = gateway.vpc {
                let (what, to) = (id.to_string(), to.to_string());
                return Err(RoutingError::GatewayAttached { what, to }.into());
            }
            if let Some(other) = gateway_of(tx, vpc)? {
                let (what, to) = (other.id.to_string(), vpc.to_string());
                return Err(RoutingError::GatewayAttached { what, to }.into());
            }
            gateway.vpc = Some(vpc);
            Ok::<_, NetworkError>(tx.put(&gateway)?)
        })?;
        self.apply(vpc)
    }

    /// Detaches a gateway by which no Elastic address is reached. Routes to it lead nowhere then.
    pub fn detach_internet_gateway(&self, id: InternetGatewayId, vpc: VpcId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            touch(tx, &vpc)?;
            let mut gateway = get(tx, id)?;
            if gateway.vpc != Some(vpc) {
                let gateway = id.to_string();
                return Err(RoutingError::GatewayNotAttached { gateway, vpc }.into());
            }
            let in_use = |by: String| RoutingError::GatewayInUse { what: id.to_string(), by };
            if let Some(nat) = tx.list::<NatGateway>()?.iter().find(|nat| nat.vpc == vpc) {
                return Err(in_use(format!("{} is in {vpc}", nat.id)).into());
            }
            let members = tx.list::<Membership>()?;
            let here = |interface| {
                members.iter().any(|m| m.interface.id == interface && m.interface.subnet.vpc == vpc)
            };
            let leads_here = |row: &ElasticAddress| row.association.is_some_and(|a| here(a.interface));
            if let Some(row) = tx.list::<ElasticAddress>()?.into_iter().find(leads_here) {
                return Err(in_use(format!("the Elastic address {} leads into {vpc}", row.address)).into());
            }
            gateway.vpc = None;
            Ok::<_, NetworkError>(tx.put(&gateway)?)
        })?;
        self.apply(vpc)
    }

    /// Deletes a gateway that is attached to nothing.
    pub fn delete_internet_gateway(&self, id: InternetGatewayId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            if let Some(vpc) = get(tx, id)?.vpc {
                let (what, by) = (id.to_string(), format!("it is attached to {vpc}"));
                return Err(RoutingError::GatewayInUse { what, by }.into());
            }
            tx.remove::<InternetGateway>(&id);
            Ok(())
        })
    }

    /// Whether public addresses reach a VPC: there is a gateway.
    pub fn has_gateway(&self, vpc: VpcId) -> Result<bool, NetworkError> {
        self.ensure_routing()?;
        Ok(transact(self.store, |tx| gateway_of(tx, vpc))?.is_some())
    }

    /// All NAT gateways.
    pub fn nat_gateways(&self) -> Result<Vec<NatGateway>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<NatGateway>())?)
    }

    /// Makes a NAT gateway in a subnet of a VPC with an internet gateway, with an Elastic address that leads
    /// to nobody.
    pub fn create_nat_gateway(
        &self,
        subnet: SubnetId,
        allocation: AllocationId,
        address: Option<Ipv4Addr>,
        now: u64,
        also: &mut Also<'_>,
    ) -> Result<NatGateway, NetworkError> {
        self.ensure_routing()?;
        let elastic = self.find_elastic(&allocation.to_string())?.address;
        let id = NatGatewayId::from_bits(rand::random());
        let nat = transact(self.store, |tx| {
            let subnet = find_subnet(tx, &subnet.to_string())?;
            touch(tx, &subnet.id)?;
            touch(tx, &subnet.vpc)?;
            if gateway_of(tx, subnet.vpc)?.is_none() {
                let (gateway, vpc) = ("an internet gateway".to_owned(), subnet.vpc);
                return Err(RoutingError::GatewayNotAttached { gateway, vpc }.into());
            }
            if tx.list::<NatGateway>()?.len() >= MAX_NAT_GATEWAYS {
                return Err(NetworkError::Limit { what: "NAT gateways", limit: MAX_NAT_GATEWAYS });
            }
            let mut row = elastic::get(tx, elastic)?;
            if row.association.is_some() {
                let (what, by) = (format!("Elastic address {elastic}"), "another".to_owned());
                return Err(NetworkError::AddressAssociated { what, by });
            }
            let own = reserve(tx, &subnet, address, Ipv6Wish::None)?;
            let association = AssociationId::from_bits(rand::random());
            row.association =
                Some(Association { id: association, interface: own.id, instance: None, secondary: None });
            tx.put(&row)?;
            let nat = NatGateway {
                id,
                vpc: subnet.vpc,
                subnet: subnet.id,
                interface: own.id,
                mac: own.mac,
                address: own.address,
                allocation,
                public: elastic,
                created: now,
            };
            tx.put(&nat)?;
            also(tx, &id.to_string())?;
            Ok(nat)
        })?;
        self.apply(nat.vpc)?;
        Ok(nat)
    }

    /// Deletes a NAT gateway; routes to it lead nowhere then, and its Elastic address is free.
    pub fn delete_nat_gateway(&self, id: NatGatewayId) -> Result<NatGateway, NetworkError> {
        let nat = transact(self.store, |tx| {
            let nat = tx.get::<NatGateway>(&id)?.ok_or(RoutingError::NoNat(id))?;
            touch(tx, &nat.vpc)?;
            elastic::forget(tx, nat.interface)?;
            release(tx, nat.subnet, nat.address);
            tx.remove::<NatGateway>(&id);
            Ok::<_, NetworkError>(nat)
        })?;
        self.apply(nat.vpc)?;
        Ok(nat)
    }
}

fn get(tx: &mut Transaction<'_>, id: InternetGatewayId) -> Result<InternetGateway, NetworkError> {
    Ok(tx.get::<InternetGateway>(&id)?.ok_or_else(|| RoutingError::NoGateway(id.to_string()))?)
}

/// The gateway that is attached to a VPC.
pub(super) fn gateway_of(
    tx: &Transaction<'_>,
    vpc: VpcId,
) -> Result<Option<InternetGateway>, crate::state::StoreError> {
    Ok(tx.list::<InternetGateway>()?.into_iter().find(|gateway| gateway.vpc == Some(vpc)))
}

/// The NAT gateway of a subnet that shall go, which is in its way.
pub(super) fn nat_in(
    tx: &Transaction<'_>,
    subnet: SubnetId,
) -> Result<Option<NatGateway>, crate::state::StoreError> {
    Ok(tx.list::<NatGateway>()?.into_iter().find(|nat| nat.subnet == subnet))
}
