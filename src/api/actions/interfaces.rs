//! Network interfaces: those that instances are launched with, and those that are made by themselves and
//! given to instances that run or are stopped.

use std::net::Ipv4Addr;

use kiln_controlplane::instances::Instance;
use kiln_controlplane::metadata::{ACCOUNT, REGION, ZONE, ZONE_ID, private_host_name, public_host_name};
use kiln_controlplane::network::{
    ElasticAddress, Interface, MAX_ADDRESSES, Membership, Placement, Secondary, SecurityGroup,
};
use kiln_controlplane::state::{Rows, rows};
use kiln_model::{InstanceId, InterfaceId, SubnetId};
use serde_json::{Value, json};

use super::ids::{ATTACHMENT, GROUP, INSTANCE, INTERFACE, SUBNET};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::vpcs::Switch;
use super::{Answer, Context, done, groups, input, launch, parse, tokens};
use crate::error::ApiError;

input!(Address { primary: bool, private_ip_address: Option<String> });
input!(Ipv6Address { ipv6_address: String });
input!(CreateNetworkInterface { subnet_id: String, description: Option<String>, private_ip_address: Option<String>,
    groups: Vec<String>, private_ip_addresses: Vec<Address>, secondary_private_ip_address_count: Option<i64>,
    ipv6_address_count: Option<i64>, ipv6_addresses: Vec<Ipv6Address>, tag_specifications: Vec<TagSpecification> });
input!(DeleteNetworkInterface { network_interface_id: String });
input!(AttachNetworkInterface { network_interface_id: String, instance_id: String, device_index: i64,
    network_card_index: Option<i64> });
input!(DetachNetworkInterface { attachment_id: String, force: bool });
input!(AssignPrivateIpAddresses { network_interface_id: String, private_ip_addresses: Vec<String>,
    secondary_private_ip_address_count: Option<i64>, allow_reassignment: bool });
input!(UnassignPrivateIpAddresses { network_interface_id: String, private_ip_addresses: Vec<String> });
input!(AttachmentChange { attachment_id: Option<String>, delete_on_termination: Option<bool> });
input!(Text { value: Option<String> });
input!(ModifyNetworkInterfaceAttribute { network_interface_id: String, groups: Vec<String>,
    source_dest_check: Option<Switch>, description: Option<Text>, attachment: Option<AttachmentChange> });
input!(DescribeNetworkInterfaceAttribute { network_interface_id: String, attribute: Option<String> });
listing!(DescribeNetworkInterfaces { network_interface_ids: Vec<String> });

/// Longest description.
const MAX_DESCRIPTION: usize = 255;

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

/// The public address of a private one of an interface, the primary if no secondary is said, as both the
/// interface and its instance show it.
pub(super) fn association(
    interface: InterfaceId,
    secondary: Option<Ipv4Addr>,
    public: Option<Ipv4Addr>,
    elastic: &[ElasticAddress],
) -> Option<Value> {
    let own = elastic.iter().find(|row| row.association.is_some_and(|a| a.leads_to(interface, secondary)));
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

/// Id of the attachment of an interface, which has one at most.
pub(super) fn attachment_id(interface: InterfaceId) -> String {
    interface.to_string().replacen(InterfaceId::PREFIX, "eni-attach-", 1)
}

/// The IPv6 address of an interface, if it has one.
pub(super) fn ipv6_addresses(interface: &Interface) -> Vec<Value> {
    interface.ipv6.iter().map(|address| json!({"Ipv6Address": address.to_string()})).collect()
}

/// All private addresses of an interface, the primary first, with the association of each: that of the primary,
/// and what `of_secondary` tells of the others.
pub(super) fn private_addresses(
    member: &Membership,
    of_primary: Option<&Value>,
    of_secondary: impl Fn(Ipv4Addr) -> Option<Value>,
) -> Vec<Value> {
    let one = |(address, primary): (Ipv4Addr, bool)| {
        let name = private_host_name(address, Some(REGION));
        let mut shown =
            json!({"PrivateIpAddress": address.to_string(), "Primary": primary, "PrivateDnsName": name});
        let public = if primary { of_primary.cloned() } else { of_secondary(address) };
        if let Some(public) = public {
            shown["Association"] = public;
        }
        shown
    };
    let addresses = member.addresses();
    (0..).zip(addresses).map(|(n, address)| one((address, n == 0))).collect()
}

/// Whether an interface goes with its instance, and since when it has it.
pub(super) fn attachment(member: &Membership, instance: &Instance) -> Value {
    json!({
        "AttachmentId": attachment_id(member.interface.id), "DeviceIndex": member.device,
        "NetworkCardIndex": 0, "Status": member.state.name(), "DeleteOnTermination": !member.stays,
        "AttachTime": member.attached.unwrap_or(instance.created),
    })
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
    let public = instance.filter(|_| member.device == 0).and_then(|i| i.public_address);
    let public = association(interface.id, None, public, elastic);
    let of_secondary = |address| association(interface.id, Some(address), None, elastic);
    let mut shown = json!({
        "NetworkInterfaceId": id, "SubnetId": interface.subnet.id.to_string(),
        "VpcId": interface.subnet.vpc.to_string(), "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID,
        "Description": member.description, "OwnerId": ACCOUNT, "InterfaceType": "interface",
        "MacAddress": interface.mac.to_string(), "PrivateIpAddress": interface.address.to_string(),
        "PrivateDnsName": private_host_name(interface.address, Some(REGION)),
        "Status": if instance.is_some() { "in-use" } else { "available" },
        "SourceDestCheck": !member.forwards, "RequesterManaged": false, "Association": public,
        "Groups": groups::identifiers(member.groups.iter(), all), "Ipv6Addresses": ipv6_addresses(interface),
        "PrivateIpAddresses": private_addresses(member, public.as_ref(), of_secondary),
        "TagSet": tagging::shown_with_name(tags, &id, None),
    });
    if let Some(instance) = instance {
        let mut attachment = attachment(member, instance);
        attachment["InstanceId"] = instance.id.to_string().into();
        attachment["InstanceOwnerId"] = ACCOUNT.into();
        shown["Attachment"] = attachment;
    }
    shown
}

/// All interfaces, as they are shown.
fn all(context: &Context<'_>) -> Result<Vec<Value>, ApiError> {
    let networks = context.plane.networks();
    let (instances, groups) = (context.plane.instance_rows()?, rows(context.plane.store())?);
    let (elastic, tags) = (networks.elastic_addresses()?, tagging::read(context)?);
    let one = |member: &Membership| {
        let instance = member.instance.and_then(|id| instances.get(&id)).map(AsRef::as_ref);
        shown(member, instance, &groups, &elastic, &tags)
    };
    Ok(networks.memberships()?.iter().map(one).collect())
}

fn find(context: &Context<'_>, id: &str) -> Result<Membership, ApiError> {
    let wanted: InterfaceId = INTERFACE.parse(id)?;
    let all = context.plane.networks().memberships()?;
    all.into_iter().find(|member| member.interface.id == wanted).ok_or_else(|| INTERFACE.missing(id))
}

/// How many addresses a request wants, at most so many as could ever be.
fn count(count: Option<i64>) -> Result<usize, ApiError> {
    usize::try_from(count.unwrap_or(0)).ok().filter(|count| *count <= MAX_ADDRESSES).ok_or_else(|| {
        ApiError::new(
            "PrivateIpAddressLimitExceeded",
            format!("An interface has at most {MAX_ADDRESSES} private addresses"),
        )
    })
}

/// Addresses that are given, each once.
fn addresses(texts: &[String]) -> Result<Vec<Ipv4Addr>, ApiError> {
    let mut all = Vec::new();
    for text in texts {
        let one = launch::address(Some(text))?;
        if one.is_some_and(|one| all.contains(&one)) {
            return Err(ApiError::value(format!("The address {text} is given twice")));
        }
        all.extend(one);
    }
    Ok(all)
}

/// The primary address of a new interface, if it is said, and the secondary ones: in a list, or by their number.
pub(super) fn private(
    primary: Option<String>,
    listed: &[Address],
    more: Option<i64>,
) -> Result<(Option<Ipv4Addr>, Secondary), ApiError> {
    let marked: Vec<_> = listed.iter().filter(|one| one.primary).collect();
    let primary = match (primary, marked.as_slice()) {
        (address, []) => address,
        (None, [one]) => one.private_ip_address.clone(),
        _ => return Err(ApiError::combination("An interface has one primary private address")),
    };
    let others = listed.iter().filter(|one| !one.primary);
    let others: Vec<_> = others.filter_map(|one| one.private_ip_address.clone()).collect();
    Ok((launch::address(primary.as_deref())?, secondary(&others, more)?))
}

/// Secondary addresses in the words of EC2.
fn secondary(these: &[String], more: Option<i64>) -> Result<Secondary, ApiError> {
    match (addresses(these)?, count(more)?) {
        (these, 0) if !these.is_empty() => Ok(Secondary::These(these)),
        (these, more) if these.is_empty() => Ok(Secondary::Any(more)),
        _ => Err(ApiError::combination("Name secondary addresses or a number of them, not both")),
    }
}

/// `CreateNetworkInterface`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateNetworkInterface", &mut input)?;
    let mut request: CreateNetworkInterface = parse(input)?;
    let subnet: SubnetId = SUBNET.parse(&request.subnet_id)?;
    request.groups.iter().try_for_each(|id| GROUP.check(id))?;
    let tags = tagging::specified(std::mem::take(&mut request.tag_specifications), "network-interface")?;
    let (address, secondary) = private(
        request.private_ip_address.take(),
        &request.private_ip_addresses,
        request.secondary_private_ip_address_count,
    )?;
    let ipv6: Vec<_> = request.ipv6_addresses.into_iter().map(|one| one.ipv6_address).collect();
    let placement = Placement {
        subnet: Some(subnet.to_string()),
        address,
        secondary,
        ipv6: launch::ipv6(request.ipv6_address_count, &ipv6)?,
        groups: request.groups,
        description: request.description.unwrap_or_default(),
        ..Placement::default()
    };
    check_text(&placement.description)?;
    let id = tokens::once(context, &token, |token| {
        let networks = context.plane.networks();
        let made = networks.create_interface(&placement, &mut token.making(&tags))?;
        Ok(made.interface.id.to_string())
    })?;
    let made = all(context)?.into_iter().find(|own| own["NetworkInterfaceId"] == id.as_str());
    Ok(json!({"NetworkInterface": made.ok_or_else(|| INTERFACE.missing(&id))?}))
}

fn check_text(text: &str) -> Result<(), ApiError> {
    if text.chars().count() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        return Err(ApiError::value(
            "A description has at most 255 characters, none of them control characters",
        ));
    }
    Ok(())
}

/// `DeleteNetworkInterface`.
pub(super) fn delete(context: &Context<'_>, request: DeleteNetworkInterface) -> Answer {
    context.plane.networks().delete_interface(INTERFACE.parse(&request.network_interface_id)?)?;
    done()
}

/// `AttachNetworkInterface`: to an instance that runs or is stopped.
pub(super) fn attach(context: &Context<'_>, request: AttachNetworkInterface) -> Answer {
    let interface: InterfaceId = INTERFACE.parse(&request.network_interface_id)?;
    let instance: InstanceId = INSTANCE.parse(&request.instance_id)?;
    if request.network_card_index.is_some_and(|card| card != 0) {
        return Err(ApiError::unsupported("An instance has one network card"));
    }
    let device = u32::try_from(request.device_index)
        .map_err(|_| ApiError::value(format!("{} is not a device index", request.device_index)))?;
    context.plane.attach_interface(instance, interface, device)?;
    Ok(json!({"AttachmentId": attachment_id(interface), "NetworkCardIndex": 0}))
}

/// `DetachNetworkInterface`: a running guest is asked to let go of it, or not, by force.
pub(super) fn detach(context: &Context<'_>, request: DetachNetworkInterface) -> Answer {
    ATTACHMENT.check(&request.attachment_id)?;
    let all = context.plane.networks().memberships()?;
    let own =
        all.iter().find(|m| m.instance.is_some() && attachment_id(m.interface.id) == request.attachment_id);
    let own = own.ok_or_else(|| ATTACHMENT.missing(&request.attachment_id))?;
    context.plane.detach_interface(own.interface.id, request.force)?;
    done()
}

/// `AssignPrivateIpAddresses`.
pub(super) fn assign(context: &Context<'_>, request: AssignPrivateIpAddresses) -> Answer {
    let interface = find(context, &request.network_interface_id)?.interface.id;
    let wanted = secondary(&request.private_ip_addresses, request.secondary_private_ip_address_count)?;
    if wanted == Secondary::default() {
        return Err(ApiError::combination("Name secondary addresses or a number of them"));
    }
    let networks = context.plane.networks();
    let new = networks.assign_addresses(interface, &wanted, request.allow_reassignment)?;
    let new: Vec<_> = new.iter().map(|address| json!({"PrivateIpAddress": address.to_string()})).collect();
    Ok(json!({"NetworkInterfaceId": interface.to_string(), "AssignedPrivateIpAddresses": new}))
}

/// `UnassignPrivateIpAddresses`.
pub(super) fn unassign(context: &Context<'_>, request: UnassignPrivateIpAddresses) -> Answer {
    let interface = find(context, &request.network_interface_id)?.interface.id;
    let gone = addresses(&request.private_ip_addresses)?;
    if gone.is_empty() {
        return Err(ApiError::missing("PrivateIpAddresses"));
    }
    context.plane.networks().unassign_addresses(interface, &gone)?;
    done()
}

/// `DescribeNetworkInterfaces`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeNetworkInterfaces) -> Answer {
    let mut items = all(context)?;
    listing::select(&mut items, &request.network_interface_ids, "NetworkInterfaceId", INTERFACE)?;
    listing::answer(items, request.wish(), FILTERS, "NetworkInterfaces", "NetworkInterfaceId")
}

/// `DescribeNetworkInterfaceAttribute`.
pub(super) fn describe_attribute(
    context: &Context<'_>,
    request: DescribeNetworkInterfaceAttribute,
) -> Answer {
    let id = find(context, &request.network_interface_id)?.interface.id.to_string();
    let shown = all(context)?.into_iter().find(|own| own["NetworkInterfaceId"] == id.as_str());
    let shown = shown.ok_or_else(|| INTERFACE.missing(&id))?;
    let mut answer = json!({ "NetworkInterfaceId": id });
    match request.attribute.as_deref() {
        Some("description") => answer["Description"] = json!({"Value": shown["Description"]}),
        Some("groupSet") => answer["Groups"] = shown["Groups"].clone(),
        Some("sourceDestCheck") => answer["SourceDestCheck"] = json!({"Value": shown["SourceDestCheck"]}),
        Some("attachment") if shown.get("Attachment").is_none() => {}
        Some("attachment") => answer["Attachment"] = shown["Attachment"].clone(),
        Some(other) => {
            return Err(ApiError::unsupported(format!("The attribute {other} is not described")));
        }
        None => return Err(ApiError::missing("Attribute")),
    }
    Ok(answer)
}

/// `ModifyNetworkInterfaceAttribute`: one attribute of a request.
pub(super) fn modify(context: &Context<'_>, request: ModifyNetworkInterfaceAttribute) -> Answer {
    let member = find(context, &request.network_interface_id)?;
    let id = member.interface.id;
    let networks = context.plane.networks();
    let check = request.source_dest_check.as_ref().and_then(|check| check.value);
    let text = request.description.map(|text| text.value.unwrap_or_default());
    let wishes = [!request.groups.is_empty(), check.is_some(), text.is_some(), request.attachment.is_some()];
    if wishes.into_iter().filter(|wish| *wish).count() > 1 {
        return Err(ApiError::combination("A request modifies one attribute"));
    }
    if !request.groups.is_empty() {
        request.groups.iter().try_for_each(|id| GROUP.check(id))?;
        networks.set_groups(id, &request.groups)?;
    }
    if let Some(check) = check {
        networks.set_source_dest_check(id, check)?;
    }
    if let Some(text) = text {
        check_text(&text)?;
        networks.describe_interface(id, &text)?;
    }
    if let Some(AttachmentChange { attachment_id: attachment, delete_on_termination }) = request.attachment {
        let attachment = attachment.ok_or_else(|| ApiError::missing("Attachment.AttachmentId"))?;
        ATTACHMENT.check(&attachment)?;
        if member.instance.is_none() || attachment != attachment_id(id) {
            return Err(ATTACHMENT.missing(&attachment));
        }
        if let Some(goes) = delete_on_termination {
            networks.set_stays(id, !goes)?;
        }
    }
    Ok(json!({}))
}
