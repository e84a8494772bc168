//! Route tables, and the options of DHCP, which all VPCs share.

use kiln_controlplane::instances::Instance;
use kiln_controlplane::metadata::{ACCOUNT, REGION, private_domain};
use kiln_controlplane::network::{
    InternetGateway, Membership, NatGateway, RouteTable, RouteTables, RouteTarget, TableRoute, Vpc,
};
use kiln_controlplane::tags;
use kiln_model::{
    InstanceId, InstanceState, InterfaceId, Ipv4Cidr, RouteTableAssociationId, RouteTableId, SubnetId,
};
use serde_json::{Value, json};

use super::ids::{self, GATEWAY, INSTANCE, INTERFACE, NAT_GATEWAY, ROUTE_TABLE, SUBNET, TABLE_ASSOCIATION};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::vpcs::{self, DHCP_OPTIONS};
use super::{Answer, Context, done, input, parse, tokens};
use crate::error::ApiError;

input!(CreateRouteTable { vpc_id: String, tag_specifications: Vec<TagSpecification> });
input!(DeleteRouteTable { route_table_id: String });
input!(RouteRequest { route_table_id: String, destination_cidr_block: Option<String>, gateway_id: Option<String>,
    nat_gateway_id: Option<String>, network_interface_id: Option<String>, instance_id: Option<String> });
input!(DeleteRoute { route_table_id: String, destination_cidr_block: Option<String> });
input!(AssociateRouteTable { route_table_id: String, subnet_id: Option<String> });
input!(DisassociateRouteTable { association_id: String });
input!(ReplaceRouteTableAssociation { association_id: String, route_table_id: String });
listing!(DescribeRouteTables { route_table_ids: Vec<String> });
listing!(DescribeDhcpOptions { dhcp_options_ids: Vec<String> });

/// The target that every table has for the VPC's own range.
const LOCAL: &str = "local";

const TABLE_FILTERS: &Filters = &[
    ("route-table-id", "RouteTableId"),
    ("vpc-id", "VpcId"),
    ("owner-id", "OwnerId"),
    ("association.main", "Associations.Main"),
    ("association.route-table-association-id", "Associations.RouteTableAssociationId"),
    ("association.route-table-id", "Associations.RouteTableId"),
    ("association.subnet-id", "Associations.SubnetId"),
    ("association.gateway-id", "Associations.GatewayId"),
    ("route.destination-cidr-block", "Routes.DestinationCidrBlock"),
    ("route.gateway-id", "Routes.GatewayId"),
    ("route.instance-id", "Routes.InstanceId"),
    ("route.nat-gateway-id", "Routes.NatGatewayId"),
    ("route.origin", "Routes.Origin"),
    ("route.state", "Routes.State"),
];
const OPTIONS_FILTERS: &Filters = &[
    ("dhcp-options-id", "DhcpOptionsId"),
    ("owner-id", "OwnerId"),
    ("key", "DhcpConfigurations.Key"),
    ("value", "DhcpConfigurations.Values.Value"),
];

/// What route tables show besides their rows.
struct World {
    vpcs: Vec<Vpc>,
    tables: RouteTables,
    gateways: Vec<InternetGateway>,
    nats: Vec<NatGateway>,
    members: Vec<Membership>,
    instances: Vec<Instance>,
    tags: TagMap,
}

impl World {
    fn read(context: &Context<'_>) -> Result<Self, ApiError> {
        // The default VPC is always there.
        vpcs::default_id(context)?;
        let networks = context.plane.networks();
        Ok(World {
            tables: networks.route_tables()?,
            vpcs: networks.vpcs()?,
            gateways: networks.internet_gateways()?,
            nats: networks.nat_gateways()?,
            members: networks.memberships()?,
            instances: context.plane.instances()?,
            tags: tagging::read(context)?,
        })
    }

    /// The instance that has an interface, and whether it runs.
    fn instance_of(&self, interface: InterfaceId) -> Option<(InstanceId, bool)> {
        let member = self.members.iter().find(|member| member.interface.id == interface)?;
        let instance = self.instances.iter().find(|row| Some(row.id) == member.instance)?;
        Some((instance.id, instance.state == InstanceState::Running))
    }

    fn route(&self, table: &RouteTable, route: &TableRoute) -> Value {
        let mut shown =
            json!({"DestinationCidrBlock": route.destination.to_string(), "Origin": "CreateRoute"});
        let active = match route.target {
            RouteTarget::Gateway(id) => {
                shown["GatewayId"] = id.to_string().into();
                self.gateways.iter().any(|own| own.id == id && own.vpc == Some(table.vpc))
            }
            RouteTarget::Nat(id) => {
                shown["NatGatewayId"] = id.to_string().into();
                self.nats.iter().any(|own| own.id == id)
            }
            RouteTarget::Interface(id) => {
                shown["NetworkInterfaceId"] = id.to_string().into();
                let holder = self.instance_of(id);
                if let Some((instance, _)) = holder {
                    shown["InstanceId"] = instance.to_string().into();
                    shown["InstanceOwnerId"] = ACCOUNT.into();
                }
                holder.is_some_and(|(_, running)| running)
            }
        };
        shown["State"] = if active { "active" } else { "blackhole" }.into();
        shown
    }

    fn shown(&self, table: &RouteTable) -> Value {
        let id = table.id.to_string();
        let range = self.vpcs.iter().find(|vpc| vpc.id == table.vpc).map(|vpc| vpc.cidr.to_string());
        let mut routes = vec![json!({
            "DestinationCidrBlock": range, "GatewayId": LOCAL, "Origin": "CreateRouteTable", "State": "active",
        })];
        routes.extend(table.routes.iter().map(|route| self.route(table, route)));
        let association = |own: RouteTableAssociationId| {
            json!({
                "RouteTableId": id, "RouteTableAssociationId": own.to_string(),
                "AssociationState": {"State": "associated"},
            })
        };
        let main = self.tables.main.iter().filter(|main| main.table == table.id).map(|main| {
            let mut shown = association(main.id);
            shown["Main"] = true.into();
            shown
        });
        let others = self.tables.associations.iter().filter(|own| own.table == table.id).map(|own| {
            let mut shown = association(own.id);
            (shown["Main"], shown["SubnetId"]) = (false.into(), own.subnet.to_string().into());
            shown
        });
        let associations: Vec<_> = main.chain(others).collect();
        json!({
            "RouteTableId": id, "VpcId": table.vpc.to_string(), "OwnerId": ACCOUNT, "PropagatingVgws": [],
            "Routes": routes, "Associations": associations,
            "Tags": tagging::shown_with_name(&self.tags, &id, None),
        })
    }
}

fn destination(text: Option<String>) -> Result<Ipv4Cidr, ApiError> {
    let text = text.ok_or_else(|| ApiError::missing("DestinationCidrBlock"))?;
    text.parse().map_err(|e| {
        ApiError::value(format!("Value ({text}) for parameter destinationCidrBlock is invalid. {e}"))
    })
}

impl RouteRequest {
    /// The only target that is named.
    fn target(&self, context: &Context<'_>) -> Result<RouteTarget, ApiError> {
        let targets = [&self.gateway_id, &self.nat_gateway_id, &self.network_interface_id, &self.instance_id];
        if targets.into_iter().flatten().count() > 1 {
            return Err(ApiError::combination("A route has one target"));
        }
        if let Some(id) = &self.gateway_id {
            if id == LOCAL {
                return Err(ApiError::unsupported("The local route is in every table and stays as it is"));
            }
            return Ok(RouteTarget::Gateway(GATEWAY.parse(id)?));
        }
        if let Some(id) = &self.nat_gateway_id {
            return Ok(RouteTarget::Nat(NAT_GATEWAY.parse(id)?));
        }
        if let Some(id) = &self.network_interface_id {
            return Ok(RouteTarget::Interface(INTERFACE.parse(id)?));
        }
        let Some(id) = &self.instance_id else {
            return Err(ApiError::missing("GatewayId"));
        };
        let wanted: InstanceId = INSTANCE.parse(id)?;
        let members = context.plane.networks().memberships()?;
        let mut own = members.iter().filter(|member| member.instance == Some(wanted));
        match (own.next(), own.next()) {
            (Some(member), None) => Ok(RouteTarget::Interface(member.interface.id)),
            (None, _) => Err(INSTANCE.missing(id)),
            (Some(_), Some(_)) => Err(ApiError::new(
                "InvalidInstanceID",
                format!(
                    "There are multiple interfaces attached to instance '{id}'. Please specify an interface ID"
                ),
            )),
        }
    }

    fn set(self, context: &Context<'_>, replace: bool) -> Result<(), ApiError> {
        let table: RouteTableId = ROUTE_TABLE.parse(&self.route_table_id)?;
        let target = self.target(context)?;
        let route = TableRoute { destination: destination(self.destination_cidr_block)?, target };
        Ok(context.plane.networks().set_route(table, route, replace)?)
    }
}

/// `CreateRouteTable`.
pub(super) fn create_table(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateRouteTable", &mut input)?;
    let request: CreateRouteTable = parse(input)?;
    let tags = tagging::specified(request.tag_specifications, "route-table")?;
    let vpc = vpcs::find(context, &request.vpc_id)?.id;
    let id = tokens::once(context, &token, |token| {
        let table = context.plane.networks().create_route_table(vpc, &mut token.making(&tags))?;
        Ok(table.id.to_string())
    })?;
    let world = World::read(context)?;
    let table = world.tables.tables.iter().find(|table| table.id.to_string() == id);
    Ok(json!({"RouteTable": world.shown(table.ok_or_else(|| ROUTE_TABLE.missing(&id))?)}))
}

/// `DeleteRouteTable`.
pub(super) fn delete_table(context: &Context<'_>, request: DeleteRouteTable) -> Answer {
    context.plane.networks().delete_route_table(ROUTE_TABLE.parse(&request.route_table_id)?)?;
    tags::forget(context.plane.store(), &request.route_table_id)?;
    done()
}

/// `CreateRoute`.
pub(super) fn create_route(context: &Context<'_>, request: RouteRequest) -> Answer {
    request.set(context, false)?;
    Ok(json!({"Return": true}))
}

/// `ReplaceRoute`.
pub(super) fn replace_route(context: &Context<'_>, request: RouteRequest) -> Answer {
    request.set(context, true)?;
    done()
}

/// `DeleteRoute`.
pub(super) fn delete_route(context: &Context<'_>, request: DeleteRoute) -> Answer {
    let table: RouteTableId = ROUTE_TABLE.parse(&request.route_table_id)?;
    context.plane.networks().remove_route(table, destination(request.destination_cidr_block)?)?;
    done()
}

/// `AssociateRouteTable`.
pub(super) fn associate(context: &Context<'_>, request: AssociateRouteTable) -> Answer {
    let table: RouteTableId = ROUTE_TABLE.parse(&request.route_table_id)?;
    let subnet: SubnetId = SUBNET.parse(&request.subnet_id.ok_or_else(|| ApiError::missing("SubnetId"))?)?;
    let id = context.plane.networks().associate_route_table(table, subnet)?;
    Ok(json!({"AssociationId": id.to_string(), "AssociationState": {"State": "associated"}}))
}

/// `DisassociateRouteTable`.
pub(super) fn disassociate(context: &Context<'_>, request: DisassociateRouteTable) -> Answer {
    context.plane.networks().disassociate_route_table(TABLE_ASSOCIATION.parse(&request.association_id)?)?;
    done()
}

/// `ReplaceRouteTableAssociation`.
pub(super) fn replace_association(context: &Context<'_>, request: ReplaceRouteTableAssociation) -> Answer {
    let association = TABLE_ASSOCIATION.parse(&request.association_id)?;
    let table: RouteTableId = ROUTE_TABLE.parse(&request.route_table_id)?;
    let id = context.plane.networks().replace_table_association(association, table)?;
    Ok(json!({"NewAssociationId": id.to_string(), "AssociationState": {"State": "associated"}}))
}

/// `DescribeRouteTables`.
pub(super) fn route_tables(context: &Context<'_>, mut request: DescribeRouteTables) -> Answer {
    let world = World::read(context)?;
    let mut items: Vec<_> = world.tables.tables.iter().map(|table| world.shown(table)).collect();
    listing::select(&mut items, &request.route_table_ids, "RouteTableId", ROUTE_TABLE)?;
    listing::answer(items, request.wish(), TABLE_FILTERS, "RouteTables", "RouteTableId")
}

/// `DescribeDhcpOptions`.
pub(super) fn dhcp_options(_: &Context<'_>, mut request: DescribeDhcpOptions) -> Answer {
    let option = |key: &str, value: &str| json!({"Key": key, "Values": [{"Value": value}]});
    let mut items = vec![json!({
        "DhcpOptionsId": DHCP_OPTIONS, "OwnerId": ACCOUNT, "Tags": [],
        "DhcpConfigurations": [
            option("domain-name", &private_domain(REGION)),
            option("domain-name-servers", "AmazonProvidedDNS"),
        ],
    })];
    listing::select(&mut items, &request.dhcp_options_ids, "DhcpOptionsId", ids::DHCP_OPTIONS)?;
    listing::answer(items, request.wish(), OPTIONS_FILTERS, "DhcpOptions", "DhcpOptionsId")
}
