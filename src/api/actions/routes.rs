//! What the fabric of every VPC has: a router that knows the VPC's own range and the way out, which is
//! its internet gateway, and the options of DHCP. They are shown; they cannot be changed.

use kiln_controlplane::metadata::{ACCOUNT, REGION, private_domain};
use kiln_controlplane::network::Vpc;
use serde_json::{Value, json};

use super::ids;
use super::listing::{self, Filters, listing};
use super::tagging;
use super::vpcs::{DHCP_OPTIONS, derived};
use super::{Answer, Context};

listing!(DescribeRouteTables { route_table_ids: Vec<String> });
listing!(DescribeInternetGateways { internet_gateway_ids: Vec<String> });
listing!(DescribeDhcpOptions { dhcp_options_ids: Vec<String> });

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
    ("route.nat-gateway-id", "Routes.NatGatewayId"),
    ("route.origin", "Routes.Origin"),
    ("route.state", "Routes.State"),
];
const GATEWAY_FILTERS: &Filters = &[
    ("internet-gateway-id", "InternetGatewayId"),
    ("owner-id", "OwnerId"),
    ("attachment.vpc-id", "Attachments.VpcId"),
    ("attachment.state", "Attachments.State"),
];
const OPTIONS_FILTERS: &Filters = &[
    ("dhcp-options-id", "DhcpOptionsId"),
    ("owner-id", "OwnerId"),
    ("key", "DhcpConfigurations.Key"),
    ("value", "DhcpConfigurations.Values.Value"),
];

fn vpcs(context: &Context<'_>) -> Result<Vec<Vpc>, crate::error::ApiError> {
    // The default one is always there.
    super::vpcs::default_id(context)?;
    Ok(context.plane.networks().vpcs()?)
}

/// `DescribeRouteTables`.
pub(super) fn route_tables(context: &Context<'_>, mut request: DescribeRouteTables) -> Answer {
    let tags = tagging::read(context)?;
    let table = |vpc: &Vpc| -> Value {
        let id = derived("rtb-", vpc.id);
        let route = |to: &str, gateway: &str, origin: &str| json!({"DestinationCidrBlock": to, "GatewayId": gateway, "Origin": origin, "State": "active"});
        json!({
            "RouteTableId": id, "VpcId": vpc.id.to_string(), "OwnerId": ACCOUNT, "PropagatingVgws": [],
            "Routes": [
                route(&vpc.cidr.to_string(), "local", "CreateRouteTable"),
                route("0.0.0.0/0", &derived("igw-", vpc.id), "CreateRoute"),
            ],
            "Associations": [{
                "Main": true, "RouteTableId": id, "RouteTableAssociationId": derived("rtbassoc-", vpc.id),
                "AssociationState": {"State": "associated"},
            }],
            "Tags": tagging::shown_with_name(&tags, &id, None),
        })
    };
    let mut items: Vec<_> = vpcs(context)?.iter().map(table).collect();
    listing::select(&mut items, &request.route_table_ids, "RouteTableId", ids::ROUTE_TABLE)?;
    listing::answer(items, request.wish(), TABLE_FILTERS, "RouteTables", "RouteTableId")
}

/// `DescribeInternetGateways`.
pub(super) fn internet_gateways(context: &Context<'_>, mut request: DescribeInternetGateways) -> Answer {
    let gateway = |vpc: &Vpc| {
        json!({
            "InternetGatewayId": derived("igw-", vpc.id), "OwnerId": ACCOUNT, "Tags": [],
            "Attachments": [{"VpcId": vpc.id.to_string(), "State": "available"}],
        })
    };
    let mut items: Vec<_> = vpcs(context)?.iter().map(gateway).collect();
    listing::select(&mut items, &request.internet_gateway_ids, "InternetGatewayId", ids::GATEWAY)?;
    listing::answer(items, request.wish(), GATEWAY_FILTERS, "InternetGateways", "InternetGatewayId")
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
