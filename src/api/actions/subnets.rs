//! Subnets.

use std::collections::BTreeMap;

use kiln_controlplane::metadata::{ACCOUNT, ZONE, ZONE_ID};
use kiln_controlplane::network::Subnet;
use kiln_controlplane::tags;
use kiln_model::{SubnetId, Tag};
use serde_json::{Value, json};

use super::ids::{self, SUBNET};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::vpcs::Switch;
use super::{Answer, Context, arn, done, input, vpcs};
use crate::error::ApiError;

input!(CreateSubnet { vpc_id: String, cidr_block: String, ipv6_cidr_block: Option<String>, availability_zone: Option<String>,
    availability_zone_id: Option<String>, tag_specifications: Vec<TagSpecification> });
input!(ModifySubnetAttribute { subnet_id: String, map_public_ip_on_launch: Option<Switch>,
    assign_ipv6_address_on_creation: Option<Switch>,
    #[serde(rename = "EnableDns64")] enable_dns64: Option<Switch>,
    private_dns_hostname_type_on_launch: Option<String>,
    #[serde(rename = "EnableResourceNameDnsARecordOnLaunch")] enable_resource_name_dns_a_record_on_launch: Option<Switch>,
    #[serde(rename = "EnableResourceNameDnsAAAARecordOnLaunch")] enable_resource_name_dns_aaaa_record_on_launch: Option<Switch> });
input!(DeleteSubnet { subnet_id: String });
listing!(DescribeSubnets { subnet_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("subnet-id", "SubnetId"),
    ("vpc-id", "VpcId"),
    ("cidr", "CidrBlock"),
    ("cidr-block", "CidrBlock"),
    ("cidrBlock", "CidrBlock"),
    ("availability-zone", "AvailabilityZone"),
    ("availabilityZone", "AvailabilityZone"),
    ("availability-zone-id", "AvailabilityZoneId"),
    ("available-ip-address-count", "AvailableIpAddressCount"),
    ("default-for-az", "DefaultForAz"),
    ("defaultForAz", "DefaultForAz"),
    ("map-public-ip-on-launch", "MapPublicIpOnLaunch"),
    ("owner-id", "OwnerId"),
    ("state", "State"),
    ("subnet-arn", "SubnetArn"),
];

/// Whether instances of a subnet get a public address when nothing is said: in the default one, as in EC2, and
/// where somebody said so.
pub(super) fn maps_public(subnet: &Subnet, default: SubnetId) -> bool {
    subnet.map_public.unwrap_or(subnet.id == default)
}

fn shown(subnet: &Subnet, default: SubnetId, taken: usize, tags: &TagMap) -> Value {
    let id = subnet.id.to_string();
    // The first four addresses and the last are nobody's.
    let free = subnet.cidr.size().saturating_sub(5).saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
    json!({
        "SubnetId": id, "SubnetArn": arn("subnet", &subnet.id), "VpcId": subnet.vpc.to_string(),
        "CidrBlock": subnet.cidr.to_string(), "State": "available", "OwnerId": ACCOUNT,
        "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID, "AvailableIpAddressCount": free,
        "DefaultForAz": subnet.id == default,
        "MapPublicIpOnLaunch": maps_public(subnet, default),
        "AssignIpv6AddressOnCreation": false, "MapCustomerOwnedIpOnLaunch": false, "EnableDns64": false,
        "Ipv6Native": false,
        "Ipv6CidrBlockAssociationSet": subnet.ipv6.iter().map(|range| json!({
            "AssociationId": id.replacen(SubnetId::PREFIX, "subnet-cidr-assoc-", 1),
            "Ipv6CidrBlock": range.to_string(), "Ipv6CidrBlockState": {"State": "associated"},
        })).collect::<Vec<_>>(),
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name", "EnableResourceNameDnsARecord": false,
            "EnableResourceNameDnsAAAARecord": false,
        },
        "Tags": tagging::shown_with_name(tags, &id, subnet.name.as_deref()),
    })
}

/// Refuses every zone but the one there is.
pub(super) fn check_zone(name: Option<&str>, id: Option<&str>) -> Result<(), ApiError> {
    let wrong = name.filter(|name| *name != ZONE).or(id.filter(|id| *id != ZONE_ID));
    match wrong {
        None => Ok(()),
        Some(zone) => Err(ApiError::value(format!(
            "Value ({zone}) for parameter availabilityZone is invalid. Subnets can currently only be created \
             in the following availability zones: {ZONE}."
        ))),
    }
}

/// `CreateSubnet`.
pub(super) fn create(context: &Context<'_>, request: CreateSubnet) -> Answer {
    check_zone(request.availability_zone.as_deref(), request.availability_zone_id.as_deref())?;
    if request.cidr_block.is_empty() {
        return Err(ApiError::missing("CidrBlock"));
    }
    let tags = tagging::specified(request.tag_specifications, "subnet")?;
    let vpc = vpcs::find(context, &request.vpc_id)?;
    let cidr = request.cidr_block.parse().map_err(|e| {
        ApiError::value(format!("Value ({}) for parameter cidrBlock is invalid: {e}", request.cidr_block))
    })?;
    let name = tags.iter().find(|tag| tag.key() == Tag::NAME).map(Tag::value);
    let ipv6 = request.ipv6_cidr_block.as_deref().map(vpcs::ipv6_range).transpose()?.map(Some);
    let default = context.plane.networks().default_subnet()?.id;
    let subnet = context.plane.networks().create_subnet(vpc.id, cidr, ipv6, name)?;
    tags::set(context.plane.store(), &[subnet.id.to_string()], &tags)?;
    Ok(json!({"Subnet": shown(&subnet, default, 0, &tagging::read(context)?)}))
}

/// `ModifySubnetAttribute`: whether instances get a public address; everything else to what it is.
pub(super) fn modify(context: &Context<'_>, request: ModifySubnetAttribute) -> Answer {
    let id: SubnetId = SUBNET.parse(&request.subnet_id)?;
    let on = |switch: &Option<Switch>| switch.as_ref().and_then(|s| s.value) == Some(true);
    let others = [
        &request.assign_ipv6_address_on_creation,
        &request.enable_dns64,
        &request.enable_resource_name_dns_a_record_on_launch,
        &request.enable_resource_name_dns_aaaa_record_on_launch,
    ];
    if others.into_iter().any(on)
        || request.private_dns_hostname_type_on_launch.is_some_and(|t| t != "ip-name")
    {
        return Err(ApiError::unsupported("MapPublicIpOnLaunch is what can be changed of a subnet"));
    }
    let networks = context.plane.networks();
    match request.map_public_ip_on_launch.and_then(|switch| switch.value) {
        Some(maps) => networks.set_map_public(id, maps)?,
        None if !networks.subnets()?.iter().any(|row| row.id == id) => {
            return Err(SUBNET.missing(&request.subnet_id));
        }
        None => {}
    }
    done()
}

/// `DeleteSubnet`.
pub(super) fn delete(context: &Context<'_>, request: DeleteSubnet) -> Answer {
    let id: SubnetId = SUBNET.parse(&request.subnet_id)?;
    context.plane.networks().delete_subnet(&id.to_string())?;
    tags::forget(context.plane.store(), &request.subnet_id)?;
    done()
}

/// `DescribeSubnets`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeSubnets) -> Answer {
    let networks = context.plane.networks();
    let default = networks.default_subnet()?.id;
    let mut taken: BTreeMap<SubnetId, usize> = BTreeMap::new();
    for member in networks.memberships()? {
        *taken.entry(member.interface.subnet.id).or_default() += 1;
    }
    let tags = tagging::read(context)?;
    let count = |subnet: &Subnet| taken.get(&subnet.id).copied().unwrap_or_default();
    let subnets = networks.subnets()?;
    let mut items: Vec<_> = subnets.iter().map(|s| shown(s, default, count(s), &tags)).collect();
    listing::select(&mut items, &request.subnet_ids, "SubnetId", ids::SUBNET)?;
    listing::answer(items, request.wish(), FILTERS, "Subnets", "SubnetId")
}
