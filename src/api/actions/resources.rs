//! What a request means without saying ids: policies know resources by their ARNs. And what their conditions may
//! know of them.
//!
//! A group or a key has a name too, a launch without a subnet is one in the default subnet, and what is made
//! has no id yet. Whoever may do something to some resources only must not get at others in such a way.

use std::sync::Arc;

use kiln_controlplane::credentials::RequestContext;
use kiln_controlplane::instances::Instance;
use kiln_controlplane::key_pairs::KeyPair;
use kiln_controlplane::launch_templates::LaunchTemplateError;
use kiln_controlplane::network::DEFAULT_GROUP;
use kiln_controlplane::state::rows;
use kiln_controlplane::tags::ResourceTags;
use kiln_model::{InterfaceId, SubnetId, Tag, VpcId};
use serde_json::Value;

use super::{Context, acls, interfaces, launch_templates, vpcs};
use crate::auth::resource_arn;
use crate::error::ApiError;

/// What actions make, by the names of the kinds. A launch makes more than one.
const MADE: [(&str, &[&str]); 18] = [
    ("AllocateAddress", &["elastic-ip"]),
    ("CopyImage", &["image"]),
    ("CopySnapshot", &["snapshot"]),
    ("CreateImage", &["image"]),
    ("CreateInternetGateway", &["internet-gateway"]),
    ("CreateLaunchTemplate", &["launch-template"]),
    ("CreateManagedPrefixList", &["prefix-list"]),
    ("CreateNatGateway", &["natgateway"]),
    ("CreateNetworkAcl", &["network-acl"]),
    ("CreateNetworkInterface", &["network-interface"]),
    ("CreateRouteTable", &["route-table"]),
    ("CreateSecurityGroup", &["security-group"]),
    ("CreateSnapshot", &["snapshot"]),
    ("CreateSubnet", &["subnet"]),
    ("CreateVolume", &["volume"]),
    ("CreateVpc", &["vpc"]),
    ("RegisterImage", &["image"]),
    ("RunInstances", &["instance", "network-interface", "volume"]),
];

fn text<'a>(input: &'a Value, name: &str) -> Option<&'a str> {
    input.get(name).and_then(Value::as_str)
}

fn list<'a>(input: &'a Value, name: &str) -> &'a [Value] {
    input.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// ARNs of what a request to EC2 means, besides the ids in it.
pub(crate) fn meant(context: &Context<'_>, action: &str, input: &Value) -> Result<Vec<String>, ApiError> {
    let mut found = Vec::new();
    let made = MADE.iter().find(|(name, _)| *name == action).map(|(_, kinds)| *kinds);
    found.extend(made.unwrap_or_default().iter().map(|kind| resource_arn(kind, "*")));
    found.extend(text(input, "KeyName").map(|name| resource_arn("key-pair", name)));
    if action == "RunInstances" {
        launched(context, input, &mut found)?;
    } else if let Some(name) = text(input, "GroupName").filter(|_| action != "CreateSecurityGroup") {
        group(context, vpcs::default_id(context)?, name, &mut found)?;
    }
    if let Some(name) = text(input, "LaunchTemplateName").filter(|_| action != "CreateLaunchTemplate") {
        match launch_templates::service(context).named(name) {
            Ok(template) => found.push(resource_arn("launch-template", &template.id.to_string())),
            // What is not there, the action will say.
            Err(LaunchTemplateError::NoSuchName(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(address) = text(input, "PublicIp") {
        let all = context.plane.networks().elastic_addresses()?;
        let named = all.iter().filter(|row| row.address.to_string() == address);
        found.extend(named.map(|row| resource_arn("elastic-ip", &row.id.to_string())));
    }
    for name in ["AttachmentId", "AssociationId"] {
        if let Some(id) = text(input, name) {
            found.extend(tied(context, id)?.iter().map(|(kind, id)| resource_arn(kind, id)));
        }
    }
    Ok(found)
}

/// What an attachment or an association ties together: kinds and ids.
fn tied(context: &Context<'_>, id: &str) -> Result<Vec<(&'static str, String)>, ApiError> {
    let networks = context.plane.networks();
    let mut found = Vec::new();
    for member in networks.memberships()?.iter().filter(|m| interfaces::attachment_id(m.interface.id) == id) {
        found.push(("network-interface", member.interface.id.to_string()));
        found.extend(member.instance.map(|instance| ("instance", instance.to_string())));
    }
    for row in networks.elastic_addresses()? {
        if let Some(association) = row.association.filter(|there| there.id.to_string() == id) {
            found.push(("elastic-ip", row.id.to_string()));
            found.push(("network-interface", association.interface.to_string()));
        }
    }
    let tables = networks.route_tables()?;
    for association in tables.associations.iter().filter(|there| there.id.to_string() == id) {
        found.push(("route-table", association.table.to_string()));
        found.push(("subnet", association.subnet.to_string()));
    }
    for subnet in networks.subnets()?.iter().filter(|subnet| acls::association_id(subnet.id) == id) {
        found.push(("subnet", subnet.id.to_string()));
    }
    let holds = |row: &&Arc<Instance>| row.profile.as_ref().is_some_and(|own| own.id == id);
    found.extend(
        context.plane.instance_rows()?.iter().filter(holds).map(|row| ("instance", row.id.to_string())),
    );
    Ok(found)
}

/// The subnet and the groups of a launch that says nothing of them, or says names of groups.
fn launched(context: &Context<'_>, input: &Value, found: &mut Vec<String>) -> Result<(), ApiError> {
    let networks = context.plane.networks();
    let interfaces = list(input, "NetworkInterfaces");
    let first = interfaces.iter().find(|own| own["DeviceIndex"] == 0);
    let there = first.and_then(|own| text(own, "NetworkInterfaceId"));
    let named = text(input, "SubnetId").or_else(|| first.and_then(|own| text(own, "SubnetId")));
    let vpc = match (there, named) {
        (Some(id), _) => {
            let id = id.parse::<InterfaceId>().ok();
            let members = networks.memberships()?;
            members.iter().find(|member| Some(member.interface.id) == id).map(|m| m.interface.subnet.vpc)
        }
        (None, Some(id)) => {
            let id = id.parse::<SubnetId>().ok();
            networks.subnets()?.iter().find(|subnet| Some(subnet.id) == id).map(|subnet| subnet.vpc)
        }
        (None, None) => {
            let default = networks.default_subnet()?;
            found.push(resource_arn("subnet", &default.id.to_string()));
            Some(default.vpc)
        }
    };
    // What is not there, the launch will say.
    let Some(vpc) = vpc else { return Ok(()) };
    let names = list(input, "SecurityGroups");
    for name in names.iter().filter_map(Value::as_str) {
        group(context, vpc, name, found)?;
    }
    let silent = match interfaces {
        [] => names.is_empty() && list(input, "SecurityGroupIds").is_empty(),
        all => {
            all.iter().any(|own| list(own, "Groups").is_empty() && text(own, "NetworkInterfaceId").is_none())
        }
    };
    if silent {
        group(context, vpc, DEFAULT_GROUP, found)?;
    }
    Ok(())
}

fn group(context: &Context<'_>, vpc: VpcId, name: &str, found: &mut Vec<String>) -> Result<(), ApiError> {
    let all = context.plane.networks().groups()?;
    let named = all.iter().filter(|group| group.vpc == vpc && group.name == name);
    found.extend(named.map(|group| resource_arn("security-group", &group.id.to_string())));
    Ok(())
}

/// Adds to what conditions know of a request the tags of one of its resources, and those that the request gives
/// it. `resource`: its ARN.
pub(crate) fn about(
    context: &Context<'_>,
    action: &str,
    input: &Value,
    resource: &str,
    mut known: RequestContext,
) -> Result<RequestContext, ApiError> {
    // Names may have colons and slashes.
    let Some((kind, id)) = resource.splitn(6, ':').last().and_then(|last| last.split_once('/')) else {
        return Ok(known);
    };
    let given = match action {
        "CreateTags" => list(input, "Tags"),
        // What is made has no id yet; keys have the names that they are given.
        _ if id == "*" || kind == "key-pair" => {
            let mut own = list(input, "TagSpecifications").iter();
            let own = own.find(|one| text(one, "ResourceType") == Some(kind));
            own.map_or(&[][..], |one| list(one, "Tags"))
        }
        _ => &[],
    };
    for tag in given {
        if let (Some(key), Some(value)) = (text(tag, "Key"), text(tag, "Value")) {
            known = known.with(&format!("aws:RequestTag/{key}"), value);
        }
    }
    for tag in tags_of(context, kind, id)? {
        for service in ["aws", "ec2"] {
            known = known.with(&format!("{service}:ResourceTag/{}", tag.key()), tag.value());
        }
    }
    Ok(known)
}

fn tags_of(context: &Context<'_>, kind: &str, id: &str) -> Result<Vec<Tag>, ApiError> {
    let store = context.plane.store();
    if kind == "instance" {
        let Ok(id) = id.parse() else { return Ok(Vec::new()) };
        return Ok(context.plane.instance_rows()?.get(&id).map(|row| row.tags.clone()).unwrap_or_default());
    }
    let id = match kind {
        // Policies know keys by their names.
        "key-pair" => match rows::<KeyPair>(store)?.get(&id.to_owned()) {
            Some(pair) => pair.id.to_string(),
            None => id.to_owned(),
        },
        _ => id.to_owned(),
    };
    Ok(rows::<ResourceTags>(store)?.get(&id).map(|row| row.tags.clone()).unwrap_or_default())
}

/// Kinds of resources that a request gives tags as it makes them, which takes leave to tag.
pub(crate) fn tagged(input: &Value) -> impl Iterator<Item = &str> {
    let tags = list(input, "TagSpecifications").iter().filter(|one| !list(one, "Tags").is_empty());
    tags.filter_map(|one| text(one, "ResourceType"))
}
