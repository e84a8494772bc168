//! Security groups.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::SecurityGroup;
use kiln_controlplane::state::Rows;
use kiln_controlplane::tags;
use kiln_model::SecurityGroupId;
use kiln_model::security::{Direction, Peer, Rule};
use serde_json::{Map, Value, json};

use super::ids::GROUP;
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, arn, input, vpcs};
use crate::error::ApiError;

input!(CreateSecurityGroup { group_name: String, description: String, vpc_id: Option<String>,
    tag_specifications: Vec<TagSpecification> });
input!(GroupReference { group_id: Option<String>, group_name: Option<String> });
listing!(DescribeSecurityGroups { group_ids: Vec<String>, group_names: Vec<String> });

const FILTERS: &Filters = &[
    ("group-id", "GroupId"),
    ("group-name", "GroupName"),
    ("description", "Description"),
    ("vpc-id", "VpcId"),
    ("owner-id", "OwnerId"),
    ("ip-permission.cidr", "IpPermissions.IpRanges.CidrIp"),
    ("ip-permission.ipv6-cidr", "IpPermissions.Ipv6Ranges.CidrIpv6"),
    ("ip-permission.from-port", "IpPermissions.FromPort"),
    ("ip-permission.to-port", "IpPermissions.ToPort"),
    ("ip-permission.protocol", "IpPermissions.IpProtocol"),
    ("ip-permission.group-id", "IpPermissions.UserIdGroupPairs.GroupId"),
    ("ip-permission.prefix-list-id", "IpPermissions.PrefixListIds.PrefixListId"),
    ("egress.ip-permission.cidr", "IpPermissionsEgress.IpRanges.CidrIp"),
    ("egress.ip-permission.ipv6-cidr", "IpPermissionsEgress.Ipv6Ranges.CidrIpv6"),
    ("egress.ip-permission.from-port", "IpPermissionsEgress.FromPort"),
    ("egress.ip-permission.to-port", "IpPermissionsEgress.ToPort"),
    ("egress.ip-permission.protocol", "IpPermissionsEgress.IpProtocol"),
    ("egress.ip-permission.group-id", "IpPermissionsEgress.UserIdGroupPairs.GroupId"),
];

/// Rules of one direction, those with the same traffic together.
pub(super) fn permissions(rules: &[Rule], direction: Direction) -> Value {
    let mut grouped: Vec<(_, [Vec<Value>; 4])> = Vec::new();
    for rule in rules.iter().filter(|rule| rule.direction == direction) {
        let at = grouped.iter().position(|(traffic, _)| *traffic == rule.traffic).unwrap_or_else(|| {
            grouped.push((rule.traffic, Default::default()));
            grouped.len().saturating_sub(1)
        });
        let Some((_, [ipv4, ipv6, groups, lists])) = grouped.get_mut(at) else { continue };
        let (list, mut peer) = match rule.peer {
            Peer::Ipv4(range) => (ipv4, json!({"CidrIp": range.to_string()})),
            Peer::Ipv6(range) => (ipv6, json!({"CidrIpv6": range.to_string()})),
            Peer::Group(id) => (groups, json!({"GroupId": id.to_string(), "UserId": ACCOUNT})),
            Peer::PrefixList(id) => (lists, json!({"PrefixListId": id.to_string()})),
        };
        if let Some(description) = &rule.description {
            peer["Description"] = description.as_str().into();
        }
        list.push(peer);
    }
    let permission =
        |(traffic, [ipv4, ipv6, groups, lists]): (kiln_model::security::Traffic, [Vec<Value>; 4])| {
            let (protocol, from, to) = traffic.to_fields();
            json!({
                "IpProtocol": protocol, "FromPort": from, "ToPort": to, "IpRanges": ipv4, "Ipv6Ranges": ipv6,
                "UserIdGroupPairs": groups, "PrefixListIds": lists,
            })
        };
    grouped.into_iter().map(permission).collect()
}

fn shown(group: &SecurityGroup, tags: &TagMap) -> Value {
    let id = group.id.to_string();
    json!({
        "GroupId": id, "GroupName": group.name, "Description": group.description,
        "VpcId": group.vpc.to_string(), "OwnerId": ACCOUNT,
        "SecurityGroupArn": arn("security-group", &group.id),
        "IpPermissions": permissions(&group.rules, Direction::Ingress),
        "IpPermissionsEgress": permissions(&group.rules, Direction::Egress),
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// The group that a request means; a name is looked for in the default VPC.
pub(super) fn find(
    context: &Context<'_>,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<SecurityGroup, ApiError> {
    let networks = context.plane.networks();
    let vpc = vpcs::default_id(context)?;
    match (id, name) {
        (Some(id), _) => {
            let id: SecurityGroupId = GROUP.parse(id)?;
            Ok(networks.find_group(vpc, &id.to_string())?)
        }
        (None, Some(name)) => {
            let all = networks.groups()?;
            let found = all.into_iter().find(|group| group.vpc == vpc && group.name == name);
            found.ok_or_else(|| no_name(name))
        }
        (None, None) => Err(ApiError::missing("GroupId")),
    }
}

fn no_name(name: &str) -> ApiError {
    ApiError::new(
        "InvalidGroup.NotFound",
        format!("The security group '{name}' does not exist in default VPC"),
    )
}

/// `CreateSecurityGroup`.
pub(super) fn create(context: &Context<'_>, request: CreateSecurityGroup) -> Answer {
    let tags = tagging::specified(request.tag_specifications, "security-group")?;
    let vpc = match &request.vpc_id {
        Some(id) => vpcs::find(context, id)?.id,
        None => vpcs::default_id(context)?,
    };
    let group = context.plane.networks().create_group(vpc, &request.group_name, &request.description)?;
    let id = group.id.to_string();
    tags::set(context.plane.store(), std::slice::from_ref(&id), &tags)?;
    Ok(json!({"SecurityGroupArn": arn("security-group", &id), "GroupId": id, "Tags": tagging::shown(&tags)}))
}

/// `DeleteSecurityGroup`.
pub(super) fn delete(context: &Context<'_>, request: GroupReference) -> Answer {
    let group = find(context, request.group_id.as_deref(), request.group_name.as_deref())?;
    context.plane.networks().delete_group(group.id)?;
    Ok(json!({"Return": true, "GroupId": group.id.to_string()}))
}

/// `DescribeSecurityGroups`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeSecurityGroups) -> Answer {
    let default = vpcs::default_id(context)?;
    let tags = tagging::read(context)?;
    let groups = context.plane.networks().groups()?;
    // A name alone means the default VPC.
    let named = !request.group_names.is_empty();
    let meant = groups.iter().filter(|group| !named || group.vpc == default);
    let mut items: Vec<_> = meant.map(|group| shown(group, &tags)).collect();
    listing::select(&mut items, &request.group_ids, "GroupId", GROUP)?;
    listing::select_names(&mut items, &request.group_names, "GroupName", no_name)?;
    listing::answer(items, request.wish(), FILTERS, "SecurityGroups", "GroupId")
}

/// Groups as `GroupIdentifier`s, in the order of their names.
pub(super) fn identifiers<'a>(
    ids: impl Iterator<Item = &'a SecurityGroupId>,
    groups: &Rows<SecurityGroup>,
) -> Vec<Value> {
    let name = |id| groups.get(id).map(|group| group.name.as_str());
    let mut all: Vec<_> = ids
        .map(|id| {
            let mut one = Map::new();
            one.insert("GroupId".to_owned(), id.to_string().into());
            one.insert("GroupName".to_owned(), name(id).unwrap_or_default().into());
            Value::Object(one)
        })
        .collect();
    all.sort_by(|a, b| a["GroupName"].as_str().cmp(&b["GroupName"].as_str()));
    all
}
