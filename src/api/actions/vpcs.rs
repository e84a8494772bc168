//! VPCs.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::Vpc;
use kiln_controlplane::tags;
use kiln_model::{Ipv6Cidr, Tag, VpcId};
use serde_json::{Value, json};

use super::ids::{self, VPC};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, done, input};
use crate::error::ApiError;

input!(CreateVpc { cidr_block: String, instance_tenancy: Option<String>, tag_specifications: Vec<TagSpecification>,
    amazon_provided_ipv6_cidr_block: bool, ipv6_cidr_block: Option<String> });
input!(DeleteVpc { vpc_id: String });
input!(DescribeVpcAttribute { vpc_id: String, attribute: String });
input!(Switch { value: Option<bool> });
input!(ModifyVpcAttribute { vpc_id: String, enable_dns_support: Option<Switch>, enable_dns_hostnames: Option<Switch>,
    enable_network_address_usage_metrics: Option<Switch> });
listing!(DescribeVpcs { vpc_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("vpc-id", "VpcId"),
    ("cidr", "CidrBlock"),
    ("cidr-block-association.cidr-block", "CidrBlockAssociationSet.CidrBlock"),
    ("cidr-block-association.association-id", "CidrBlockAssociationSet.AssociationId"),
    ("cidr-block-association.state", "CidrBlockAssociationSet.CidrBlockState.State"),
    ("dhcp-options-id", "DhcpOptionsId"),
    ("is-default", "IsDefault"),
    ("isDefault", "IsDefault"),
    ("owner-id", "OwnerId"),
    ("state", "State"),
];

/// The options that all VPCs share.
pub(super) const DHCP_OPTIONS: &str = "dopt-00000000000000001";

/// Id of the default VPC, which is made if need be.
pub(super) fn default_id(context: &Context<'_>) -> Result<VpcId, ApiError> {
    Ok(context.plane.networks().default_subnet()?.vpc)
}

pub(super) fn find(context: &Context<'_>, id: &str) -> Result<Vpc, ApiError> {
    let id: VpcId = VPC.parse(id)?;
    Ok(context.plane.networks().find_vpc(Some(&id.to_string()))?)
}

/// An id of something that every VPC has one of, made from the VPC's own.
pub(super) fn derived(prefix: &str, vpc: VpcId) -> String {
    vpc.to_string().replacen(VpcId::PREFIX, prefix, 1)
}

fn shown(vpc: &Vpc, default: VpcId, tags: &TagMap) -> Value {
    let id = vpc.id.to_string();
    let mut shown = json!({
        "VpcId": id, "CidrBlock": vpc.cidr.to_string(), "State": "available", "OwnerId": ACCOUNT,
        "InstanceTenancy": "default", "IsDefault": vpc.id == default, "DhcpOptionsId": DHCP_OPTIONS,
        "CidrBlockAssociationSet": [{
            "AssociationId": derived("vpc-cidr-assoc-", vpc.id), "CidrBlock": vpc.cidr.to_string(),
            "CidrBlockState": {"State": "associated"},
        }],
        "Tags": tagging::shown_with_name(tags, &id, vpc.name.as_deref()),
    });
    if let Some(range) = vpc.ipv6 {
        shown["Ipv6CidrBlockAssociationSet"] = json!([{
            "AssociationId": derived("vpc-cidr-assoc-", vpc.id), "Ipv6CidrBlock": range.to_string(),
            "Ipv6CidrBlockState": {"State": "associated"},
        }]);
    }
    shown
}

/// The range that a request names.
pub(super) fn ipv6_range(text: &str) -> Result<Ipv6Cidr, ApiError> {
    text.parse()
        .map_err(|e| ApiError::value(format!("Value ({text}) for parameter ipv6CidrBlock is invalid: {e}")))
}

/// `CreateVpc`.
pub(super) fn create(context: &Context<'_>, request: CreateVpc) -> Answer {
    if request.cidr_block.is_empty() {
        return Err(ApiError::missing("CidrBlock"));
    }
    if request.instance_tenancy.is_some_and(|t| t != "default") {
        return Err(ApiError::unsupported("A VPC has default tenancy"));
    }
    let ipv6 = request.ipv6_cidr_block.as_deref().map(ipv6_range).transpose()?.map(Some);
    let ipv6 = ipv6.or(request.amazon_provided_ipv6_cidr_block.then_some(None));
    let tags = tagging::specified(request.tag_specifications, "vpc")?;
    let cidr = request.cidr_block.parse().map_err(|e| {
        ApiError::value(format!("Value ({}) for parameter cidrBlock is invalid: {e}", request.cidr_block))
    })?;
    let default = default_id(context)?;
    let name = tags.iter().find(|tag| tag.key() == Tag::NAME).map(Tag::value);
    let vpc = context.plane.networks().create_closed_vpc(cidr, ipv6, name)?;
    tags::set(context.plane.store(), &[vpc.id.to_string()], &tags)?;
    Ok(json!({"Vpc": shown(&vpc, default, &tagging::read(context)?)}))
}

/// `DeleteVpc`.
pub(super) fn delete(context: &Context<'_>, request: DeleteVpc) -> Answer {
    let id: VpcId = VPC.parse(&request.vpc_id)?;
    context.plane.networks().delete_vpc(id)?;
    done()
}

/// `DescribeVpcs`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeVpcs) -> Answer {
    let default = default_id(context)?;
    let tags = tagging::read(context)?;
    let vpcs = context.plane.networks().vpcs()?;
    let mut items: Vec<_> = vpcs.iter().map(|vpc| shown(vpc, default, &tags)).collect();
    listing::select(&mut items, &request.vpc_ids, "VpcId", ids::VPC)?;
    listing::answer(items, request.wish(), FILTERS, "Vpcs", "VpcId")
}

/// `DescribeVpcAttribute`: every instance has a name of its own in DNS, always.
pub(super) fn describe_attribute(context: &Context<'_>, request: DescribeVpcAttribute) -> Answer {
    let vpc = find(context, &request.vpc_id)?;
    let mut answer = json!({"VpcId": vpc.id.to_string()});
    let (name, value) = match request.attribute.as_str() {
        "enableDnsSupport" => ("EnableDnsSupport", true),
        "enableDnsHostnames" => ("EnableDnsHostnames", true),
        _ => ("EnableNetworkAddressUsageMetrics", false),
    };
    answer[name] = json!({ "Value": value });
    Ok(answer)
}

/// `ModifyVpcAttribute`: to what it is.
pub(super) fn modify_attribute(context: &Context<'_>, request: ModifyVpcAttribute) -> Answer {
    find(context, &request.vpc_id)?;
    let other =
        |switch: Option<Switch>, fixed: bool| switch.and_then(|s| s.value).is_some_and(|v| v != fixed);
    if other(request.enable_dns_support, true)
        || other(request.enable_dns_hostnames, true)
        || other(request.enable_network_address_usage_metrics, false)
    {
        return Err(ApiError::unsupported("DNS is on in every VPC and address metrics are off"));
    }
    Ok(json!({}))
}
