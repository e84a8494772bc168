//! Instances as they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_controlplane::credentials::InstanceProfile;
use kiln_controlplane::instances::{BaseImage, Health, Instance};
use kiln_controlplane::metadata::{ACCOUNT, REGION, ZONE, ZONE_ID, private_host_name, public_host_name};
use kiln_controlplane::network::{ElasticAddress, Interface, Membership, SecurityGroup};
use kiln_controlplane::state::{Rows, rows};
use kiln_controlplane::volumes::{Attachment, Volume};
use kiln_model::{InstanceId, InstanceState, InterfaceId};
use serde_json::{Value, json};

use super::ids::INSTANCE;
use super::listing::{self, Filter, Filters, Sieve, listing};
use super::{
    Answer, Context, attributes, groups, interfaces, lifecycle, metadata_options, profiles, tagging,
};
use crate::error::ApiError;

listing!(DescribeInstances { instance_ids: Vec<String>, include_managed_resources: bool });
listing!(DescribeInstanceStatus { instance_ids: Vec<String>, include_all_instances: bool,
    include_managed_resources: bool });
listing!(DescribeInstanceCreditSpecifications { instance_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("instance-id", "InstanceId"),
    ("image-id", "ImageId"),
    ("instance-type", "InstanceType"),
    ("instance-state-name", "State.Name"),
    ("instance-state-code", "State.Code"),
    ("architecture", "Architecture"),
    ("availability-zone", "Placement.AvailabilityZone"),
    ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
    ("block-device-mapping.volume-id", "BlockDeviceMappings.Ebs.VolumeId"),
    ("block-device-mapping.status", "BlockDeviceMappings.Ebs.Status"),
    ("dns-name", "PublicDnsName"),
    ("group-id", "SecurityGroups.GroupId"),
    ("group-name", "SecurityGroups.GroupName"),
    ("hypervisor", "Hypervisor"),
    ("iam-instance-profile.arn", "IamInstanceProfile.Arn"),
    ("iam-instance-profile.id", "IamInstanceProfile.Id"),
    ("instance.group-id", "SecurityGroups.GroupId"),
    ("instance.group-name", "SecurityGroups.GroupName"),
    ("ip-address", "PublicIpAddress"),
    ("key-name", "KeyName"),
    ("launch-index", "AmiLaunchIndex"),
    ("block-device-mapping.attach-time", "BlockDeviceMappings.Ebs.AttachTime"),
    ("block-device-mapping.delete-on-termination", "BlockDeviceMappings.Ebs.DeleteOnTermination"),
    ("monitoring-state", "Monitoring.State"),
    ("metadata-options.http-tokens", "MetadataOptions.HttpTokens"),
    ("metadata-options.http-endpoint", "MetadataOptions.HttpEndpoint"),
    ("metadata-options.http-put-response-hop-limit", "MetadataOptions.HttpPutResponseHopLimit"),
    (
        "network-interface.addresses.association.public-ip",
        "NetworkInterfaces.PrivateIpAddresses.Association.PublicIp",
    ),
    (
        "network-interface.addresses.private-ip-address",
        "NetworkInterfaces.PrivateIpAddresses.PrivateIpAddress",
    ),
    ("network-interface.association.public-ip", "NetworkInterfaces.Association.PublicIp"),
    ("network-interface.group-id", "NetworkInterfaces.Groups.GroupId"),
    ("network-interface.mac-address", "NetworkInterfaces.MacAddress"),
    ("network-interface.network-interface-id", "NetworkInterfaces.NetworkInterfaceId"),
    ("network-interface.subnet-id", "NetworkInterfaces.SubnetId"),
    ("network-interface.vpc-id", "NetworkInterfaces.VpcId"),
    ("private-dns-name", "PrivateDnsName"),
    ("private-ip-address", "PrivateIpAddress"),
    ("root-device-name", "RootDeviceName"),
    ("root-device-type", "RootDeviceType"),
    ("source-dest-check", "SourceDestCheck"),
    ("state-reason-code", "StateReason.Code"),
    ("subnet-id", "SubnetId"),
    ("tenancy", "Placement.Tenancy"),
    ("virtualization-type", "VirtualizationType"),
    ("vpc-id", "VpcId"),
];
const STATUS_FILTERS: &Filters = &[
    ("availability-zone", "AvailabilityZone"),
    ("instance-state-name", "InstanceState.Name"),
    ("instance-state-code", "InstanceState.Code"),
    ("instance-status.status", "InstanceStatus.Status"),
    ("instance-status.reachability", "InstanceStatus.Details.Status"),
    ("system-status.status", "SystemStatus.Status"),
    ("system-status.reachability", "SystemStatus.Details.Status"),
];

/// What an instance shows besides its row.
pub(super) struct World {
    members: Arc<Rows<Membership>>,
    groups: Arc<Rows<SecurityGroup>>,
    elastic: Vec<ElasticAddress>,
    profiles: Arc<Rows<InstanceProfile>>,
    volumes: Arc<Rows<Volume>>,
}

/// An instance shows the public addresses of its interfaces without the ids of Elastic addresses.
fn without_ids(mut association: Value) -> Value {
    if let Some(members) = association.as_object_mut() {
        members.retain(|name, _| !matches!(name.as_str(), "AllocationId" | "AssociationId"));
    }
    association
}

impl World {
    pub(super) fn read(context: &Context<'_>) -> Result<Self, ApiError> {
        let store = context.plane.store();
        Ok(World {
            members: rows(store)?,
            groups: rows(store)?,
            elastic: context.plane.networks().elastic_addresses()?,
            profiles: rows(store)?,
            volumes: rows(store)?,
        })
    }

    fn member(&self, interface: InterfaceId) -> Option<&Arc<Membership>> {
        self.members.get(&interface)
    }

    /// Groups of an instance, while it has an interface.
    pub(super) fn groups_of(&self, instance: &Instance) -> Vec<Value> {
        let member = self.member(instance.interface.id);
        groups::identifiers(member.into_iter().flat_map(|member| member.groups.iter()), &self.groups)
    }

    /// Volumes of an instance, its root volume first.
    pub(super) fn devices_of(&self, instance: &Instance) -> Vec<Value> {
        let holder = instance.id.to_string();
        let own = self.volumes.held_by(&holder);
        let mut own: Vec<_> =
            own.filter_map(|volume| Some((volume.as_ref(), volume.attachment.as_ref()?))).collect();
        own.sort_by_key(|(volume, attachment)| (volume.id != instance.root.id, attachment.device.as_str()));
        let one = |(volume, attachment): (&Volume, &Attachment)| {
            json!({
                "DeviceName": attachment.device,
                "Ebs": {
                    "VolumeId": volume.id.to_string(), "Status": attachment.state.name(), "AttachTime": attachment.since,
                    "DeleteOnTermination": attachment.delete_on_termination,
                },
            })
        };
        own.into_iter().map(one).collect()
    }

    pub(super) fn shown(&self, instance: &Instance) -> Value {
        let mut shown = json!({
            "InstanceId": instance.id.to_string(), "InstanceType": instance.instance_type,
            "State": lifecycle::state(instance.state), "AmiLaunchIndex": instance.launch_index,
            "LaunchTime": instance.launched, "Architecture": "x86_64", "Hypervisor": "xen",
            "VirtualizationType": "hvm", "RootDeviceName": instance.root.device, "RootDeviceType": "ebs",
            "Monitoring": attributes::shown_monitoring(instance), "EnaSupport": false,
            "EbsOptimized": instance.remembered.ebs_optimized,
            "Placement": {"AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID, "GroupName": "", "Tenancy": "default"},
            "CpuOptions": {"CoreCount": instance.vcpus, "ThreadsPerCore": 1}, "KeyName": instance.key_name,
            "StateTransitionReason": instance.reason.as_ref().map(|r| r.transition()).unwrap_or_default(),
            "StateReason": instance.reason.as_ref().map(|r| json!({"Code": r.code, "Message": r.message})),
            "IamInstanceProfile": instance.profile.as_ref().map(|own| profiles::specification(&self.profiles, own)),
            "MetadataOptions": metadata_options::shown(instance), "Tags": tagging::shown_of_instance(instance),
            "PrivateDnsName": "", "PublicDnsName": "", "SecurityGroups": self.groups_of(instance),
            "BlockDeviceMappings": [], "NetworkInterfaces": [], "ProductCodes": [],
            "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false},
            "PrivateDnsNameOptions": {
                "HostnameType": "ip-name", "EnableResourceNameDnsARecord": false,
                "EnableResourceNameDnsAAAARecord": false,
            },
            "MaintenanceOptions": {"AutoRecovery": if instance.remembered.no_recovery { "disabled" } else { "default" }},
            "CapacityReservationSpecification": {
                "CapacityReservationPreference": if instance.remembered.no_reservation { "none" } else { "open" },
            },
            "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "ClientToken": "",
        });
        if let BaseImage::Imported { image } = instance.root.base {
            shown["ImageId"] = image.to_string().into();
        }
        if instance.state != InstanceState::Terminated {
            self.show_network(instance, &mut shown);
            shown["BlockDeviceMappings"] = self.devices_of(instance).into();
        }
        shown
    }

    fn show_network(&self, instance: &Instance, shown: &mut Value) {
        let interface = &instance.interface;
        let name = private_host_name(interface.address, Some(REGION));
        let mut association =
            interfaces::association(interface.id, None, instance.public_address, &self.elastic)
                .map(without_ids);
        let address = interface.address.to_string();
        let (subnet, vpc) = (interface.subnet.id.to_string(), interface.subnet.vpc.to_string());
        if let Some(public) = association.as_ref().and_then(|a| a["PublicIp"].as_str()?.parse().ok()) {
            shown["PublicIpAddress"] = format!("{public}").into();
            shown["PublicDnsName"] = public_host_name(public, REGION).into();
        }
        shown["PrivateIpAddress"] = address.as_str().into();
        shown["PrivateDnsName"] = name.as_str().into();
        shown["SubnetId"] = subnet.as_str().into();
        shown["VpcId"] = vpc.as_str().into();
        shown["SourceDestCheck"] = self.member(interface.id).is_none_or(|member| !member.forwards).into();
        shown["NetworkInterfaces"] = instance
            .interfaces()
            .map(|interface| self.interface(instance, interface, association.take()))
            .collect();
    }

    /// One of an instance's interfaces, as the instance shows it.
    fn interface(&self, instance: &Instance, interface: &Interface, association: Option<Value>) -> Value {
        let name = private_host_name(interface.address, Some(REGION));
        let member = self.member(interface.id);
        let groups =
            groups::identifiers(member.into_iter().flat_map(|member| member.groups.iter()), &self.groups);
        // Of others than the primary one only those of Elastic addresses.
        let elastic = |secondary| {
            interfaces::association(interface.id, secondary, None, &self.elastic).map(without_ids)
        };
        let association = association.or_else(|| elastic(None));
        let of_secondary = |address| elastic(Some(address));
        json!({
            "NetworkInterfaceId": interface.id.to_string(), "SubnetId": interface.subnet.id.to_string(),
            "VpcId": interface.subnet.vpc.to_string(), "OwnerId": ACCOUNT, "Status": "in-use",
            "Description": member.map(|member| member.description.as_str()).unwrap_or_default(),
            "InterfaceType": "interface", "SourceDestCheck": member.is_none_or(|member| !member.forwards),
            "MacAddress": interface.mac.to_string(), "PrivateIpAddress": interface.address.to_string(),
            "PrivateDnsName": name, "Association": association, "Groups": groups,
            "Ipv6Addresses": interfaces::ipv6_addresses(interface),
            "PrivateIpAddresses":
                member.map(|member| interfaces::private_addresses(member, association.as_ref(), of_secondary)),
            "Attachment": member.map(|member| interfaces::attachment(member, instance)),
        })
    }

    /// Instances by reservation.
    pub(super) fn reservations(&self, instances: &[&Instance]) -> Vec<Value> {
        group(instances.iter().map(|i| (i.reservation.to_string(), self.shown(i))))
    }
}

fn group(items: impl Iterator<Item = (String, Value)>) -> Vec<Value> {
    let mut reservations: Vec<(String, Vec<Value>)> = Vec::new();
    for (id, item) in items {
        match reservations.last_mut().filter(|(last, _)| *last == id) {
            Some((_, all)) => all.push(item),
            None => reservations.push((id, vec![item])),
        }
    }
    let one = |(id, instances)| json!({"ReservationId": id, "OwnerId": ACCOUNT, "Groups": [], "Instances": instances});
    reservations.into_iter().map(one).collect()
}

fn no_pages(ids: &[String], max: Option<i64>) -> Result<(), ApiError> {
    match !ids.is_empty() && max.is_some() {
        true => Err(ApiError::combination(
            "The parameter instancesSet cannot be used with the parameter maxResults",
        )),
        false => Ok(()),
    }
}

/// The rows that a request names, or all.
fn named(all: &Rows<Instance>, ids: &[String]) -> Result<Vec<Arc<Instance>>, ApiError> {
    if ids.is_empty() {
        return Ok(all.iter().cloned().collect());
    }
    ids.iter().try_for_each(|id| INSTANCE.check(id))?;
    let mut found = BTreeMap::new();
    for wanted in ids {
        let id: InstanceId = INSTANCE.parse(wanted)?;
        found.insert(id, all.get(&id).cloned().ok_or_else(|| INSTANCE.missing(wanted))?);
    }
    Ok(found.into_values().collect())
}

/// The rows that can pass a filter by id. `None`: there is none, or it has wildcards.
fn by_ids(all: &Rows<Instance>, filters: &[Filter]) -> Option<Vec<Arc<Instance>>> {
    let filter = filters.iter().find(|filter| filter.name.as_deref() == Some("instance-id"))?;
    if filter.values.iter().any(|value| value.contains(['*', '?', '\\'])) {
        return None;
    }
    let ids: BTreeSet<InstanceId> = filter.values.iter().filter_map(|value| value.parse().ok()).collect();
    Some(ids.iter().filter_map(|id| all.get(id).cloned()).collect())
}

/// `DescribeInstances`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeInstances) -> Answer {
    no_pages(&request.instance_ids, request.max_results)?;
    let world = World::read(context)?;
    let all = context.plane.instance_rows()?;
    let mut meant = match by_ids(&all, &request.filters).filter(|_| request.instance_ids.is_empty()) {
        Some(few) => few,
        None => named(&all, &request.instance_ids)?,
    };
    let mut wish = request.wish();
    // Of the reservation, which all instances of the list are in.
    let (own, mut filters): (Vec<_>, Vec<_>) = std::mem::take(&mut wish.filters)
        .into_iter()
        .partition(|filter| filter.name.as_deref() == Some("reservation-id"));
    for filter in own {
        let wanted: BTreeSet<String> = filter.values.into_iter().collect();
        meant.retain(|instance| wanted.contains(&instance.reservation.to_string()));
    }
    for filter in &mut filters {
        if filter.name.as_deref() == Some("owner-id") {
            let own = filter.values.iter().any(|value| value == ACCOUNT);
            (filter.name, filter.values) =
                (Some("architecture".into()), vec![if own { "*" } else { "" }.into()]);
        }
    }
    let sieve = Sieve::new(&filters, FILTERS)?;
    // In the order of their reservations, so that a page cuts few of them.
    let meant = meant.into_iter().map(|i| (format!("{} {}", i.reservation, i.id), i)).collect();
    let (items, token) = listing::page_of(meant, &wish, |instance| {
        Some(world.shown(instance)).filter(|item| sieve.passes(item))
    })?;
    let reservation = |item: &Value| {
        let id = item["InstanceId"].as_str().and_then(|id| id.parse().ok());
        id.and_then(|id| all.get(&id)).map(|instance| instance.reservation.to_string()).unwrap_or_default()
    };
    let reservations = group(items.into_iter().map(|item| (reservation(&item), item)));
    Ok(json!({"Reservations": reservations, "NextToken": token}))
}

/// `DescribeInstanceStatus`: of running instances unless all are wanted.
pub(super) fn describe_status(context: &Context<'_>, mut request: DescribeInstanceStatus) -> Answer {
    no_pages(&request.instance_ids, request.max_results)?;
    let one = |instance: &Instance| {
        let (status, details) = match context.supervisor.health(instance) {
            Health::Ok => ("ok", "passed"),
            Health::Initializing => ("initializing", "initializing"),
            _ => ("not-applicable", ""),
        };
        let details =
            if details.is_empty() { json!([]) } else { json!([{"Name": "reachability", "Status": details}]) };
        let summary = json!({"Status": status, "Details": details});
        json!({
            "InstanceId": instance.id.to_string(), "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID,
            "InstanceState": lifecycle::state(instance.state), "InstanceStatus": summary, "SystemStatus": summary,
        })
    };
    let mut meant = named(&*context.plane.instance_rows()?, &request.instance_ids)?;
    meant.retain(|i| request.include_all_instances || i.state == InstanceState::Running);
    let wish = request.wish();
    let sieve = Sieve::new(&wish.filters, STATUS_FILTERS)?;
    let meant = meant.into_iter().map(|instance| (instance.id.to_string(), instance)).collect();
    let (items, token) =
        listing::page_of(meant, &wish, |instance| Some(one(instance)).filter(|item| sieve.passes(item)))?;
    Ok(json!({"InstanceStatuses": items, "NextToken": token}))
}

/// `DescribeInstanceCreditSpecifications`: nothing is metered, so nothing runs out.
pub(super) fn describe_credits(
    context: &Context<'_>,
    mut request: DescribeInstanceCreditSpecifications,
) -> Answer {
    let mut meant = named(&*context.plane.instance_rows()?, &request.instance_ids)?;
    meant.retain(|i| attributes::is_burstable(&i.instance_type) && !i.is_gone());
    let one = |i: &Arc<Instance>| json!({"InstanceId": i.id.to_string(), "CpuCredits": attributes::shown_credits(i)});
    let items = meant.iter().map(one).collect();
    listing::answer(
        items,
        request.wish(),
        &[("instance-id", "InstanceId")],
        "InstanceCreditSpecifications",
        "InstanceId",
    )
}
