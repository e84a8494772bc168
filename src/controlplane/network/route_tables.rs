//! Route tables, as rows and as a service.
//!
//! ```text
//!  subnet ─▶ association ─▶ table ─▶ routes      without association: the VPC's main table
//! ```
//! The route to the VPC's own range is in no row: it is in every table, and cannot be changed.

use std::collections::BTreeMap;

use kiln_model::security::{Route, SubnetRouting, TableNumber, Way};
use kiln_model::{
    InterfaceId, InternetGatewayId, Ipv4Cidr, NatGatewayId, RouteTableAssociationId, RouteTableId, SubnetId,
    VpcId,
};
use serde::{Deserialize, Serialize};

use super::gateways::gateway_of;
use super::groups::{Membership, touch};
use super::service::find_subnet;
use super::{Also, InternetGateway, NatGateway, NetworkError, Networks, RoutingError, Subnet, Vpc};
use crate::state::{Row, StoreError, Transaction, transact};
use crate::tags;

/// Tables of one VPC, as EC2's default quota.
pub const MAX_TABLES: usize = 200;
/// Routes of one table, as EC2's default quota.
pub const MAX_ROUTES: usize = 50;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteTarget {
    /// An internet gateway.
    Gateway(InternetGatewayId),
    /// A NAT gateway.
    Nat(NatGatewayId),
    /// An interface, which forwards when its source/destination check is off.
    Interface(InterfaceId),
}

/// A route of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRoute {
    /// Destinations.
    pub destination: Ipv4Cidr,
    /// Where they are reached.
    pub target: RouteTarget,
}

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Its id.
    pub id: RouteTableId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its number, which no other table of its VPC has.
    pub number: TableNumber,
    /// Its routes, by destination, but for the local one.
    pub routes: Vec<TableRoute>,
}

impl Row for RouteTable {
    const KIND: &'static str = "route-table";
    type Key = RouteTableId;

    fn key(&self) -> RouteTableId {
        self.id
    }
}

/// Which table subnets without an association go by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainTable {
    /// The VPC.
    pub vpc: VpcId,
    /// Its main table.
    pub table: RouteTableId,
    /// Id of this association.
    pub id: RouteTableAssociationId,
}

impl Row for MainTable {
    const KIND: &'static str = "main-table";
    type Key = VpcId;

    fn key(&self) -> VpcId {
        self.vpc
    }
}

/// A subnet with a table of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAssociation {
    /// Its id.
    pub id: RouteTableAssociationId,
    /// The subnet.
    pub subnet: SubnetId,
    /// Its table.
    pub table: RouteTableId,
}

impl Row for TableAssociation {
    const KIND: &'static str = "table-association";
    type Key = SubnetId;

    fn key(&self) -> SubnetId {
        self.subnet
    }
}

/// All tables and who goes by them.
#[derive(Debug, Clone, Default)]
pub struct RouteTables {
    /// Tables.
    pub tables: Vec<RouteTable>,
    /// Main tables.
    pub main: Vec<MainTable>,
    /// Other associations.
    pub associations: Vec<TableAssociation>,
}

/// Gives a new VPC its main table; with a gateway for everybody and the route to it if it is `open`.
pub(super) fn make_main(tx: &mut Transaction<'_>, vpc: VpcId, open: bool) -> Result<(), StoreError> {
    // As it was shown before there were rows of it.
    let bits = vpc.low_bits();
    let (table, gateway) = (RouteTableId::from_bits(bits), InternetGatewayId::from_bits(bits));
    let mut routes = Vec::new();
    if open {
        tx.put(&InternetGateway { id: gateway, vpc: Some(vpc), open })?;
        routes.push(TableRoute { destination: Ipv4Cidr::ANYWHERE, target: RouteTarget::Gateway(gateway) });
    }
    tx.put(&RouteTable { id: table, vpc, number: TableNumber(1), routes })?;
    tx.put(&MainTable { vpc, table, id: RouteTableAssociationId::from_bits(bits) })
}

impl Networks<'_> {
    /// Gives VPCs of older releases their main tables.
    pub(super) fn ensure_routing(&self) -> Result<(), NetworkError> {
        let main = transact(self.store, |tx| tx.list::<MainTable>())?;
        for vpc in self.vpcs()?.iter().filter(|vpc| !main.iter().any(|main| main.vpc == vpc.id)) {
            transact(self.store, |tx| {
                touch(tx, &vpc.id)?;
                if tx.get::<MainTable>(&vpc.id)?.is_none() && tx.get::<Vpc>(&vpc.id)?.is_some() {
                    make_main(tx, vpc.id, true)?;
                }
                Ok::<_, StoreError>(())
            })?;
        }
        Ok(())
    }

    /// All route tables.
    pub fn route_tables(&self) -> Result<RouteTables, NetworkError> {
        self.ensure_routing()?;
        Ok(transact(self.store, |tx| {
            Ok::<_, StoreError>(RouteTables {
                tables: tx.list()?,
                main: tx.list()?,
                associations: tx.list()?,
            })
        })?)
    }

    /// Makes a table that knows the VPC's own range alone.
    pub fn create_route_table(&self, vpc: VpcId, also: &mut Also<'_>) -> Result<RouteTable, NetworkError> {
        self.ensure_routing()?;
        let id = RouteTableId::from_bits(rand::random());
        transact(self.store, |tx| {
            tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            // Of two that choose a number, one chooses again.
            touch(tx, &vpc)?;
            let others: Vec<_> = tx.list::<RouteTable>()?.into_iter().filter(|t| t.vpc == vpc).collect();
            if others.len() >= MAX_TABLES {
                return Err(NetworkError::Limit { what: "route tables", limit: MAX_TABLES });
            }
            let taken = |number: u16| others.iter().any(|other| other.number.0 == number);
            let number = (1..=u16::MAX).find(|number| !taken(*number)).unwrap_or(u16::MAX);
            let table = RouteTable { id, vpc, number: TableNumber(number), routes: Vec::new() };
            tx.put(&table)?;
            also(tx, &id.to_string())?;
            Ok(table)
        })
    }

    /// Deletes a table that nobody goes by.
    pub fn delete_route_table(&self, id: RouteTableId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let table = get(tx, id)?;
            touch(tx, &table.vpc)?;
            let in_use = |by: String| Err(RoutingError::TableInUse { table: id, by }.into());
            if tx.get::<MainTable>(&table.vpc)?.is_some_and(|main| main.table == id) {
                return in_use(format!("it is the main table of {}", table.vpc));
            }
            if let Some(user) = tx.list::<TableAssociation>()?.iter().find(|row| row.table == id) {
                return in_use(format!("{} goes by it", user.subnet));
            }
            tx.remove::<RouteTable>(&id);
            Ok(())
        })
    }

    /// Adds a route; with `replace`, in place of the one to the same range that must be there. In force at
    /// once, for conversations that go on as well.
    pub fn set_route(&self, id: RouteTableId, route: TableRoute, replace: bool) -> Result<(), NetworkError> {
        let destination = route.destination;
        self.change_table(id, |tx, table, vpc| {
            if vpc.cidr.contains(destination.network()) && destination.prefix_len() >= vpc.cidr.prefix_len() {
                let vpc_cidr = vpc.cidr;
                return Err(RoutingError::LocalRoute { destination, vpc_cidr }.into());
            }
            check_target(tx, vpc.id, route.target)?;
            let place = table.routes.iter().position(|other| other.destination == destination);
            match (place.and_then(|at| table.routes.get_mut(at)), replace) {
                (Some(there), true) => *there = route,
                (None, false) => table.routes.push(route),
                (Some(_), false) => return Err(RoutingError::RouteExists { table: id, destination }.into()),
                (None, true) => return Err(RoutingError::NoRoute { table: id, destination }.into()),
            }
            if table.routes.len() > MAX_ROUTES {
                return Err(NetworkError::Limit { what: "routes of a table", limit: MAX_ROUTES });
            }
            table.routes.sort_by_key(|route| route.destination);
            Ok(())
        })
    }

    /// Removes a route.
    pub fn remove_route(&self, id: RouteTableId, destination: Ipv4Cidr) -> Result<(), NetworkError> {
        self.change_table(id, |_, table, vpc| {
            if destination == vpc.cidr {
                return Err(RoutingError::LocalRoute { destination, vpc_cidr: vpc.cidr }.into());
            }
            let at = table.routes.iter().position(|route| route.destination == destination);
            table.routes.remove(at.ok_or(RoutingError::NoRoute { table: id, destination })?);
            Ok(())
        })
    }

    fn change_table(
        &self,
        id: RouteTableId,
        change: impl Fn(&mut Transaction<'_>, &mut RouteTable, &Vpc) -> Result<(), NetworkError>,
    ) -> Result<(), NetworkError> {
        self.ensure_routing()?;
        let vpc = transact(self.store, |tx| {
            let mut table = get(tx, id)?;
            let vpc = tx.get::<Vpc>(&table.vpc)?;
            let vpc = vpc.ok_or_else(|| NetworkError::NoVpc(table.vpc.to_string()))?;
            touch(tx, &vpc.id)?;
            change(tx, &mut table, &vpc)?;
            tx.put(&table)?;
            Ok::<_, NetworkError>(vpc.id)
        })?;
        self.apply(vpc)
    }

    /// Lets a subnet without an association go by a table.
    pub fn associate_route_table(
        &self,
        id: RouteTableId,
        subnet: SubnetId,
    ) -> Result<RouteTableAssociationId, NetworkError> {
        self.ensure_routing()?;
        let (vpc, association) = transact(self.store, |tx| {
            let table = get(tx, id)?;
            let subnet = subnet_of(tx, subnet, &table)?;
            if let Some(there) = tx.get::<TableAssociation>(&subnet)? {
                if there.table == id {
                    return Ok((table.vpc, there.id));
                }
                return Err(RoutingError::AlreadyAssociated { subnet, table: there.table }.into());
            }
            let own = RouteTableAssociationId::from_bits(rand::random());
            tx.put(&TableAssociation { id: own, subnet, table: id })?;
            Ok::<_, NetworkError>((table.vpc, own))
        })?;
        self.apply(vpc)?;
        Ok(association)
    }

    /// Lets whoever an association is of go by another table; the association gets a new id.
    pub fn replace_table_association(
        &self,
        association: RouteTableAssociationId,
        id: RouteTableId,
    ) -> Result<RouteTableAssociationId, NetworkError> {
        self.ensure_routing()?;
        let own = RouteTableAssociationId::from_bits(rand::random());
        let vpc = transact(self.store, |tx| {
            let table = get(tx, id)?;
            touch(tx, &table.vpc)?;
            if let Some(main) = tx.list::<MainTable>()?.into_iter().find(|main| main.id == association) {
                if main.vpc != table.vpc {
                    let (what, vpc) = (id.to_string(), main.vpc);
                    return Err(RoutingError::OtherVpc { what, vpc }.into());
                }
                tx.put(&MainTable { vpc: main.vpc, table: id, id: own })?;
                return Ok(table.vpc);
            }
            let there = find_association(tx, association)?;
            let subnet = subnet_of(tx, there.subnet, &table)?;
            tx.put(&TableAssociation { id: own, subnet, table: id })?;
            Ok::<_, NetworkError>(table.vpc)
        })?;
        self.apply(vpc)?;
        Ok(own)
    }

    /// Lets a subnet go by its VPC's main table again.
    pub fn disassociate_route_table(&self, association: RouteTableAssociationId) -> Result<(), NetworkError> {
        let vpc = transact(self.store, |tx| {
            if tx.list::<MainTable>()?.iter().any(|main| main.id == association) {
                return Err(RoutingError::MainAssociation(association.to_string()).into());
            }
            let there = find_association(tx, association)?;
            let vpc = find_subnet(tx, &there.subnet.to_string())?.vpc;
            touch(tx, &vpc)?;
            tx.get::<TableAssociation>(&there.subnet)?;
            tx.remove::<TableAssociation>(&there.subnet);
            Ok::<_, NetworkError>(vpc)
        })?;
        self.apply(vpc)
    }
}

fn get(tx: &mut Transaction<'_>, id: RouteTableId) -> Result<RouteTable, NetworkError> {
    Ok(tx.get::<RouteTable>(&id)?.ok_or(RoutingError::NoTable(id))?)
}

fn find_association(
    tx: &Transaction<'_>,
    id: RouteTableAssociationId,
) -> Result<TableAssociation, NetworkError> {
    let found = tx.list::<TableAssociation>()?.into_iter().find(|row| row.id == id);
    Ok(found.ok_or_else(|| RoutingError::NoAssociation(id.to_string()))?)
}

/// The subnet, which must be of the table's VPC.
fn subnet_of(
    tx: &mut Transaction<'_>,
    subnet: SubnetId,
    table: &RouteTable,
) -> Result<SubnetId, NetworkError> {
    let subnet = find_subnet(tx, &subnet.to_string())?;
    touch(tx, &subnet.id)?;
    touch(tx, &table.vpc)?;
    if subnet.vpc != table.vpc {
        return Err(RoutingError::OtherVpc { what: subnet.id.to_string(), vpc: table.vpc }.into());
    }
    Ok(subnet.id)
}

/// A target must be there, and of this VPC.
fn check_target(tx: &mut Transaction<'_>, vpc: VpcId, target: RouteTarget) -> Result<(), NetworkError> {
    let other = |what: String| Err(RoutingError::OtherVpc { what, vpc }.into());
    match target {
        RouteTarget::Gateway(id) => {
            let gateway = tx.get::<InternetGateway>(&id)?;
            let gateway = gateway.ok_or_else(|| RoutingError::NoGateway(id.to_string()))?;
            if gateway.vpc != Some(vpc) {
                return other(id.to_string());
            }
        }
        RouteTarget::Nat(id) => {
            if tx.get::<NatGateway>(&id)?.ok_or(RoutingError::NoNat(id))?.vpc != vpc {
                return other(id.to_string());
            }
        }
        RouteTarget::Interface(id) => {
            let row = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
            if row.interface.subnet.vpc != vpc {
                return other(id.to_string());
            }
        }
    }
    Ok(())
}

/// Removes what a VPC has that goes; tells what is in the way.
pub(super) fn remove_of_vpc(tx: &mut Transaction<'_>, vpc: VpcId) -> Result<(), NetworkError> {
    let in_use = |by: String| NetworkError::InUse { what: vpc.to_string(), by };
    let main = tx.get::<MainTable>(&vpc)?.map(|main| main.table);
    for table in tx.list::<RouteTable>()?.into_iter().filter(|table| table.vpc == vpc) {
        if Some(table.id) != main {
            return Err(in_use(table.id.to_string()));
        }
        tags::forget_in(tx, &table.id.to_string());
        tx.remove::<RouteTable>(&table.id);
    }
    if let Some(gateway) = gateway_of(tx, vpc)? {
        if !gateway.open {
            return Err(in_use(gateway.id.to_string()));
        }
        tags::forget_in(tx, &gateway.id.to_string());
        tx.remove::<InternetGateway>(&gateway.id);
    }
    tx.remove::<MainTable>(&vpc);
    Ok(())
}

/// Removes what is known of a subnet that goes.
pub(super) fn remove_of_subnet(tx: &mut Transaction<'_>, subnet: SubnetId) {
    tx.remove::<TableAssociation>(&subnet);
}

/// Ways out of a VPC, for the policy.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub routing: BTreeMap<SubnetId, SubnetRouting>,
    pub tables: BTreeMap<TableNumber, Vec<Route>>,
}

/// The subnets of a VPC whose table says something else than the gateway's open way for everything.
pub(super) fn of_vpc(tx: &Transaction<'_>, vpc: VpcId) -> Result<Ways, StoreError> {
    let mut ways = Ways::default();
    // Of an older release: the open way.
    let Some(main) = tx.list::<MainTable>()?.into_iter().find(|main| main.vpc == vpc) else {
        return Ok(ways);
    };
    let tables: Vec<_> = tx.list::<RouteTable>()?.into_iter().filter(|table| table.vpc == vpc).collect();
    let associations = tx.list::<TableAssociation>()?;
    let table_of = |subnet: SubnetId| {
        let own = associations.iter().find(|row| row.subnet == subnet).map_or(main.table, |row| row.table);
        tables.iter().find(|table| table.id == own)
    };
    let gateway = gateway_of(tx, vpc)?;
    let nats: Vec<_> = tx.list::<NatGateway>()?.into_iter().filter(|nat| nat.vpc == vpc).collect();
    let members = tx.list::<Membership>()?;
    let attached = |id| gateway.as_ref().filter(|gateway| gateway.id == id);
    // A NAT gateway reaches the world as its subnet does.
    let reaches = |nat: &&NatGateway| {
        let routes = table_of(nat.subnet).map(|table| table.routes.as_slice()).unwrap_or_default();
        routes.iter().any(|route| {
            route.destination == Ipv4Cidr::ANYWHERE
                && matches!(route.target, RouteTarget::Gateway(id) if attached(id).is_some())
        })
    };
    let way = |target| match target {
        RouteTarget::Gateway(id) => match attached(id) {
            Some(gateway) if gateway.open => Way::Open,
            Some(_) => Way::Internet,
            None => Way::Nowhere,
        },
        RouteTarget::Nat(id) => {
            let nat = nats.iter().find(|nat| nat.id == id).filter(reaches);
            nat.map_or(Way::Nowhere, |nat| Way::Nat { gateway: id, address: nat.public })
        }
        RouteTarget::Interface(id) => {
            let forwards = members.iter().any(|m| m.interface.id == id && m.forwards);
            if forwards { Way::Interface(id) } else { Way::Nowhere }
        }
    };
    let open = [Route { destination: Ipv4Cidr::ANYWHERE, way: Way::Open }];
    for Subnet { id, cidr, .. } in tx.list::<Subnet>()?.into_iter().filter(|subnet| subnet.vpc == vpc) {
        let Some(table) = table_of(id) else { continue };
        let route = |route: &TableRoute| Route { destination: route.destination, way: way(route.target) };
        let routes: Vec<_> = table.routes.iter().map(route).collect();
        if routes != open {
            ways.routing.insert(id, SubnetRouting { cidr, table: table.number });
            ways.tables.insert(table.number, routes);
        }
    }
    Ok(ways)
}
