//! NAT gateways.

use kiln_controlplane::network::NatGateway;
use kiln_controlplane::tags;
use kiln_model::{AllocationId, NatGatewayId, SubnetId};
use serde_json::{Value, json};

use super::ids::{ALLOCATION, NAT_GATEWAY, SUBNET};
use super::listing::{self, Filter, Filters, Wish};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, input, parse, tokens};
use crate::error::ApiError;

input!(CreateNatGateway { allocation_id: Option<String>, subnet_id: Option<String>, connectivity_type: Option<String>,
    availability_mode: Option<String>, private_ip_address: Option<String>, tag_specifications: Vec<TagSpecification> });
input!(DeleteNatGateway { nat_gateway_id: String });
input!(DescribeNatGateways { nat_gateway_ids: Vec<String>, filter: Vec<Filter>, max_results: Option<i64>,
    next_token: Option<String> });

const FILTERS: &Filters =
    &[("nat-gateway-id", "NatGatewayId"), ("state", "State"), ("subnet-id", "SubnetId"), ("vpc-id", "VpcId")];

fn shown(nat: &NatGateway, tags: &TagMap) -> Value {
    let id = nat.id.to_string();
    json!({
        "NatGatewayId": id, "State": "available", "ConnectivityType": "public", "CreateTime": nat.created,
        "SubnetId": nat.subnet.to_string(), "VpcId": nat.vpc.to_string(), "AvailabilityMode": "zonal",
        "NatGatewayAddresses": [{
            "AllocationId": nat.allocation.to_string(), "NetworkInterfaceId": nat.interface.to_string(),
            "PrivateIp": nat.address.to_string(), "PublicIp": nat.public.to_string(), "IsPrimary": true,
            "Status": "succeeded",
        }],
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// `CreateNatGateway`: it is there at once.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateNatGateway", &mut input)?;
    let request: CreateNatGateway = parse(input)?;
    if request.connectivity_type.is_some_and(|kind| kind != "public")
        || request.availability_mode.is_some_and(|mode| mode != "zonal")
    {
        return Err(ApiError::unsupported("A NAT gateway is a public one in one subnet"));
    }
    let tags = tagging::specified(request.tag_specifications, "natgateway")?;
    let subnet: SubnetId = SUBNET.parse(&request.subnet_id.ok_or_else(|| ApiError::missing("SubnetId"))?)?;
    let allocation: AllocationId =
        ALLOCATION.parse(&request.allocation_id.ok_or_else(|| ApiError::missing("AllocationId"))?)?;
    let address = super::launch::address(request.private_ip_address.as_deref())?;
    let networks = context.plane.networks();
    let id = tokens::once(context, &token, |token| {
        let mut also = token.making(&tags);
        let nat = networks.create_nat_gateway(subnet, allocation, address, context.now, &mut also)?;
        Ok(nat.id.to_string())
    })?;
    let nat = networks.nat_gateways()?.into_iter().find(|nat| nat.id.to_string() == id);
    let nat = nat.ok_or_else(|| NAT_GATEWAY.missing(&id))?;
    Ok(json!({"NatGateway": shown(&nat, &tagging::read(context)?)}))
}

/// `DeleteNatGateway`: it is gone at once.
pub(super) fn delete(context: &Context<'_>, request: DeleteNatGateway) -> Answer {
    let id: NatGatewayId = NAT_GATEWAY.parse(&request.nat_gateway_id)?;
    context.plane.networks().delete_nat_gateway(id)?;
    tags::forget(context.plane.store(), &request.nat_gateway_id)?;
    Ok(json!({"NatGatewayId": request.nat_gateway_id}))
}

/// `DescribeNatGateways`.
pub(super) fn describe(context: &Context<'_>, request: DescribeNatGateways) -> Answer {
    let tags = tagging::read(context)?;
    let mut items: Vec<_> =
        context.plane.networks().nat_gateways()?.iter().map(|nat| shown(nat, &tags)).collect();
    listing::select(&mut items, &request.nat_gateway_ids, "NatGatewayId", NAT_GATEWAY)?;
    let DescribeNatGateways { filter, max_results, next_token, .. } = request;
    let wish = Wish { filters: filter, max_results, next_token };
    listing::answer(items, wish, FILTERS, "NatGateways", "NatGatewayId")
}
