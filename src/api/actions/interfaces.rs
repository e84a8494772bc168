//! Network interfaces: each instance has its own, from its launch to its end.

use std::net::Ipv4Addr;

use kiln_controlplane::instances::Instance;
use kiln_controlplane::metadata::{ACCOUNT, REGION, ZONE, ZONE_ID, private_host_name, public_host_name};
use kiln_controlplane::network::{ElasticAddress, Interface, Membership, SecurityGroup};
use kiln_controlplane::state::{Rows, rows};
use kiln_model::InterfaceId;
use serde_json::{Value, json};

use super::ids::INTERFACE;
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap};
use super::vpcs::Switch;
use super::{Answer, Context, groups, input};
use crate::error::ApiError;

input!(ModifyNetworkInterfaceAttribute { network_interface_id: String, groups: Vec<String>,
    source_dest_check: Option<Switch> });
listing!(DescribeNetworkInterfaces { network_interface_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("network-interface-id", "NetworkInterfaceId"),
    ("subnet-id", "SubnetId"),
    ("vpc-id", "VpcId"),
    ("availability-zone", "AvailabilityZone"),
    ("description", "Description"),
    ("group-id", "Groups.GroupId"),
    ("group-name", "Groups.GroupName"),
    ("mac-address", "MacAddress"),
    ("owner-id", "OwnerId"),
    ("private-dns-name", "PrivateDnsName"),
    ("private-ip-address", "PrivateIpAddress"),
    ("addresses.private-ip-address", "PrivateIpAddresses.PrivateIpAddress"),
    ("addresses.primary", "PrivateIpAddresses.Primary"),
    ("addresses.association.public-ip", "PrivateIpAddresses.Association.PublicIp"),
    ("association.public-ip", "Association.PublicIp"),
    ("association.allocation-id", "Association.AllocationId"),
    ("association.association-id", "Association.AssociationId"),
    ("attachment.instance-id", "Attachment.InstanceId"),
    ("attachment.attachment-id", "Attachment.AttachmentId"),
    ("attachment.device-index", "Attachment.DeviceIndex"),
    ("attachment.status", "Attachment.Status"),
    ("attachment.delete-on-termination", "Attachment.DeleteOnTermination"),
    ("requester-managed", "RequesterManaged"),
    ("interface-type", "InterfaceType"),
    ("source-dest-check", "SourceDestCheck"),
    ("status", "Status"),
];

/// The public address of an interface, as both the interface and its instance show it.
pub(super) fn association(
    interface: InterfaceId,
    public: Option<Ipv4Addr>,
    elastic: &[ElasticAddress],
) -> Option<Value> {
    let own = elastic.iter().find(|row| row.association.is_some_and(|a| a.interface == interface));
    let address = own.map(|row| row.address).or(public)?;
    let mut shown = json!({
        "PublicIp": address.to_string(), "PublicDnsName": public_host_name(address, REGION),
        "IpOwnerId": if own.is_some() { ACCOUNT } else { "amazon" },
    });
    if let Some((row, there)) = own.and_then(|row| Some((row, row.association?))) {
        shown["AllocationId"] = row.id.to_string().into();
        shown["AssociationId"] = there.id.to_string().into();
    }
    Some(shown)
}

/// Id of the attachment of an interface: it has one all its life.
pub(super) fn attachment_id(interface: InterfaceId) -> String {
    interface.to_string().replacen(InterfaceId::PREFIX, "eni-attach-", 1)
}

/// The IPv6 address of an interface, if it has one.
pub(super) fn ipv6_addresses(interface: &Interface) -> Vec<Value> {
    interface.ipv6.iter().map(|address| json!({"Ipv6Address": address.to_string()})).collect()
}

fn shown(
    member: &Membership,
    instance: Option<&Instance>,
    all: &Rows<SecurityGroup>,
    elastic: &[ElasticAddress],
    tags: &TagMap,
) -> Value {
    let interface = &member.interface;
    let id = interface.id.to_string();
    let name = private_host_name(interface.address, Some(REGION));
    let public = instance.filter(|_| member.device == 0).and_then(|i| i.public_address);
    let public = association(interface.id, public, elastic);
    json!({
        "NetworkInterfaceId": id, "SubnetId": interface.subnet.id.to_string(),
        "VpcId": interface.subnet.vpc.to_string(), "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID,
        "Description": "", "OwnerId": ACCOUNT, "InterfaceType": "interface", "MacAddress": interface.mac.to_string(),
        "PrivateIpAddress": interface.address.to_string(), "PrivateDnsName": name, "Status": "in-use",
        "SourceDestCheck": true, "RequesterManaged": false, "Association": public,
        "Groups": groups::identifiers(member.groups.iter(), all), "Ipv6Addresses": ipv6_addresses(interface),
        "PrivateIpAddresses": [{
            "PrivateIpAddress": interface.address.to_string(), "Primary": true, "PrivateDnsName": name,
            "Association": public,
        }],
        "Attachment": {
            "AttachmentId": attachment_id(interface.id), "InstanceId": member.instance.to_string(),
            "InstanceOwnerId": ACCOUNT, "DeviceIndex": member.device, "NetworkCardIndex": 0, "Status": "attached",
            "DeleteOnTermination": true, "AttachTime": instance.map(|i| i.created),
        },
        "TagSet": tagging::shown_with_name(tags, &id, None),
    })
}

/// `DescribeNetworkInterfaces`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeNetworkInterfaces) -> Answer {
    let networks = context.plane.networks();
    let (instances, all) = (context.plane.instance_rows()?, rows(context.plane.store())?);
    let (elastic, tags) = (networks.elastic_addresses()?, tagging::read(context)?);
    let one = |member: &Membership| {
        let instance = instances.get(&member.instance).map(AsRef::as_ref);
        shown(member, instance, &all, &elastic, &tags)
    };
    let mut items: Vec<_> = networks.memberships()?.iter().map(one).collect();
    listing::select(&mut items, &request.network_interface_ids, "NetworkInterfaceId", INTERFACE)?;
    listing::answer(items, request.wish(), FILTERS, "NetworkInterfaces", "NetworkInterfaceId")
}

/// `ModifyNetworkInterfaceAttribute`: its groups.
pub(super) fn modify(context: &Context<'_>, request: ModifyNetworkInterfaceAttribute) -> Answer {
    let id: InterfaceId = INTERFACE.parse(&request.network_interface_id)?;
    if request.source_dest_check.and_then(|check| check.value) == Some(false) {
        return Err(ApiError::unsupported("The source/destination check cannot be turned off"));
    }
    if !request.groups.is_empty() {
        context.plane.networks().set_groups(id, &request.groups)?;
    } else if !context.plane.networks().memberships()?.iter().any(|m| m.interface.id == id) {
        return Err(INTERFACE.missing(&request.network_interface_id));
    }
    Ok(json!({}))
}
