//! Elastic addresses.

use kiln_controlplane::metadata::{ACCOUNT, REGION};
use kiln_controlplane::network::{ElasticAddress, Membership, Moved, NatGateway};
use kiln_controlplane::tags;
use kiln_model::{AllocationId, InstanceId, InterfaceId};
use serde_json::{Value, json};

use super::ids::{self, ALLOCATION, ASSOCIATION};
use super::listing::{self, Filters, Wish};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, done, input, launch};
use crate::error::ApiError;

input!(AllocateAddress { domain: Option<String>, network_border_group: Option<String>,
    tag_specifications: Vec<TagSpecification> });
input!(AssociateAddress { allocation_id: Option<String>, public_ip: Option<String>, instance_id: Option<String>,
    network_interface_id: Option<String>, allow_reassociation: Option<bool>, private_ip_address: Option<String> });
input!(DisassociateAddress { association_id: Option<String>, public_ip: Option<String> });
input!(ReleaseAddress { allocation_id: Option<String>, public_ip: Option<String>, network_border_group: Option<String> });
input!(DescribeAddresses { allocation_ids: Vec<String>, public_ips: Vec<String>, filters: Vec<listing::Filter> });
input!(DescribeAddressesAttribute { allocation_ids: Vec<String>, attribute: Option<String>,
    max_results: Option<i64>, next_token: Option<String> });

const FILTERS: &Filters = &[
    ("allocation-id", "AllocationId"),
    ("association-id", "AssociationId"),
    ("domain", "Domain"),
    ("instance-id", "InstanceId"),
    ("network-border-group", "NetworkBorderGroup"),
    ("network-interface-id", "NetworkInterfaceId"),
    ("network-interface-owner-id", "NetworkInterfaceOwnerId"),
    ("private-ip-address", "PrivateIpAddress"),
    ("public-ip", "PublicIp"),
];

fn no_address(address: &str) -> ApiError {
    ApiError::new("InvalidAddress.NotFound", format!("Address '{address}' not found."))
}

/// The address that a request means by its allocation or by itself.
fn find(context: &Context<'_>, id: Option<&str>, address: Option<&str>) -> Result<ElasticAddress, ApiError> {
    let all = context.plane.networks().elastic_addresses()?;
    match (id, address) {
        (Some(id), _) => {
            let wanted: AllocationId = ALLOCATION.parse(id)?;
            all.into_iter().find(|row| row.id == wanted).ok_or_else(|| ALLOCATION.missing(id))
        }
        (None, Some(address)) => {
            all.into_iter().find(|row| row.address.to_string() == address).ok_or_else(|| no_address(address))
        }
        (None, None) => Err(ApiError::missing("AllocationId")),
    }
}

/// The instance's row follows what its interface has.
fn note(context: &Context<'_>, moved: &Moved) -> Result<(), ApiError> {
    Ok(context.plane.note_moved(moved)?)
}

fn shown(row: &ElasticAddress, members: &[Membership], nats: &[NatGateway], tags: &TagMap) -> Value {
    let id = row.id.to_string();
    let mut answer = json!({
        "AllocationId": id, "PublicIp": row.address.to_string(), "Domain": "vpc", "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": REGION, "Tags": tagging::shown_with_name(tags, &id, None),
    });
    if let Some(association) = &row.association {
        answer["AssociationId"] = association.id.to_string().into();
        answer["InstanceId"] = association.instance.map(|id| id.to_string()).into();
        answer["NetworkInterfaceId"] = association.interface.to_string().into();
        answer["NetworkInterfaceOwnerId"] = ACCOUNT.into();
        let member = members.iter().find(|member| member.interface.id == association.interface);
        let nat = nats.iter().find(|nat| nat.interface == association.interface).map(|nat| nat.address);
        let address = association.secondary.or_else(|| member.map(|member| member.interface.address)).or(nat);
        answer["PrivateIpAddress"] = address.map(|address| address.to_string()).into();
    }
    answer
}

/// `AllocateAddress`.
pub(super) fn allocate(context: &Context<'_>, request: AllocateAddress) -> Answer {
    if request.network_border_group.is_some_and(|group| group != REGION) {
        return Err(ApiError::value(format!("The network border group is {REGION}")));
    }
    if request.domain.is_some_and(|domain| domain != "vpc") {
        return Err(ApiError::unsupported("There are no addresses but those of the domain vpc"));
    }
    let tags = tagging::specified(request.tag_specifications, "elastic-ip")?;
    let row = context.plane.networks().allocate_address()?;
    let id = row.id.to_string();
    tags::set(context.plane.store(), std::slice::from_ref(&id), &tags)?;
    Ok(json!({
        "AllocationId": id, "PublicIp": row.address.to_string(), "Domain": "vpc", "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": REGION,
    }))
}

/// `ReleaseAddress`.
pub(super) fn release(context: &Context<'_>, request: ReleaseAddress) -> Answer {
    let row = find(context, request.allocation_id.as_deref(), request.public_ip.as_deref())?;
    context.plane.networks().release_address(row.address)?;
    tags::forget(context.plane.store(), &row.id.to_string())?;
    done()
}

/// `AssociateAddress`.
pub(super) fn associate(context: &Context<'_>, request: AssociateAddress) -> Answer {
    let row = find(context, request.allocation_id.as_deref(), request.public_ip.as_deref())?;
    let networks = context.plane.networks();
    let members = networks.memberships()?;
    let member = match (&request.network_interface_id, &request.instance_id) {
        (Some(id), None) => {
            let wanted: InterfaceId = ids::INTERFACE.parse(id)?;
            members.iter().find(|m| m.interface.id == wanted).ok_or_else(|| ids::INTERFACE.missing(id))?
        }
        (None, Some(id)) => {
            let wanted: InstanceId = ids::INSTANCE.parse(id)?;
            members
                .iter()
                .find(|m| m.instance == Some(wanted) && m.device == 0)
                .ok_or_else(|| ids::INSTANCE.missing(id))?
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::combination("Name an instance or an interface, not both"));
        }
        (None, None) => return Err(ApiError::missing("InstanceId")),
    };
    let interface = &member.interface;
    let private =
        launch::address(request.private_ip_address.as_deref())?.filter(|own| *own != interface.address);
    // As for addresses in a VPC, whoever says nothing may move them.
    let reassociate = request.allow_reassociation.unwrap_or(true);
    if !reassociate && row.association.is_some_and(|there| !there.leads_to(interface.id, private)) {
        let message = format!("resource {} is already associated with another", row.id);
        return Err(ApiError::new("Resource.AlreadyAssociated", message));
    }
    let (association, moved) = networks.associate_address(row.address, interface.id, private, reassociate)?;
    note(context, &moved)?;
    Ok(json!({"AssociationId": association.id.to_string()}))
}

/// `DisassociateAddress`.
pub(super) fn disassociate(context: &Context<'_>, request: DisassociateAddress) -> Answer {
    let row = match &request.association_id {
        Some(id) => {
            ASSOCIATION.check(id)?;
            let has = |row: &ElasticAddress| row.association.is_some_and(|there| there.id.to_string() == *id);
            let all = context.plane.networks().elastic_addresses()?;
            all.into_iter().find(has).ok_or_else(|| ASSOCIATION.missing(id))?
        }
        None => find(context, None, request.public_ip.as_deref())?,
    };
    let moved = context.plane.networks().disassociate_address(row.address)?;
    note(context, &moved)?;
    done()
}

/// `DescribeAddresses`.
pub(super) fn describe(context: &Context<'_>, request: DescribeAddresses) -> Answer {
    let (networks, tags) = (context.plane.networks(), tagging::read(context)?);
    let (members, nats) = (networks.memberships()?, networks.nat_gateways()?);
    let rows = networks.elastic_addresses()?;
    let mut items: Vec<_> = rows.iter().map(|row| shown(row, &members, &nats, &tags)).collect();
    listing::select(&mut items, &request.allocation_ids, "AllocationId", ALLOCATION)?;
    listing::select_names(&mut items, &request.public_ips, "PublicIp", no_address)?;
    listing::answer(
        items,
        Wish { filters: request.filters, ..Wish::default() },
        FILTERS,
        "Addresses",
        "AllocationId",
    )
}

/// `DescribeAddressesAttribute`: none of them has a name of its own.
pub(super) fn describe_attribute(context: &Context<'_>, request: DescribeAddressesAttribute) -> Answer {
    let rows = context.plane.networks().elastic_addresses()?;
    let one = |row: &ElasticAddress| json!({"AllocationId": row.id.to_string(), "PublicIp": row.address.to_string()});
    let mut items: Vec<_> = rows.iter().map(one).collect();
    listing::select(&mut items, &request.allocation_ids, "AllocationId", ALLOCATION)?;
    let wish = Wish { max_results: request.max_results, next_token: request.next_token, ..Wish::default() };
    listing::answer(items, wish, &[], "Addresses", "AllocationId")
}
