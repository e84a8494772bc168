//! `RunInstances`: a wish in the words of EC2 to a wish of ours.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::images::ImageError;
use kiln_controlplane::instances::{
    Instance, LaunchError, LaunchRequest, Remembered, RequestError, ShutdownBehavior, SupervisorError,
};
use kiln_controlplane::network::{DEFAULT_GROUP, Ipv6Wish, Placement, Secondary};
use kiln_model::{ImageId, InstanceType, InterfaceId, SubnetId, UserData, VpcId};
use serde_json::Value;

use super::devices::{self, Mapping};
use super::ids::{GROUP, IMAGE, INTERFACE, SUBNET};
use super::instances::World;
use super::interfaces::{self, Address};
use super::launch_templates::{self, Specification};
use super::metadata_options::{self, MetadataOptionsRequest};
use super::tagging::{self, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, attributes, input, key_pairs, parse, profiles, subnets};
use crate::error::ApiError;

/// Instances of one request.
const MAX_COUNT: u32 = 100;

input!(PlacementRequest { availability_zone: Option<String>, availability_zone_id: Option<String>,
    tenancy: Option<String> });
input!(Enabled { enabled: bool });
input!(Credits { cpu_credits: Option<String> });
input!(Maintenance { auto_recovery: Option<String> });
input!(HostNames { hostname_type: Option<String>, enable_resource_name_dns_a_record: bool,
    #[serde(rename = "EnableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool });
input!(Reservation { capacity_reservation_preference: Option<String>,
    capacity_reservation_target: Option<Value> });
input!(Configured { configured: bool });
input!(Interface { device_index: i64, subnet_id: Option<String>, groups: Vec<String>,
    associate_public_ip_address: Option<bool>, delete_on_termination: Option<bool>, private_ip_address: Option<String>,
    description: Option<String>, network_card_index: Option<i64>, interface_type: Option<String>,
    ipv6_address_count: Option<i64>, ipv6_addresses: Vec<Ipv6Address>, network_interface_id: Option<String>,
    private_ip_addresses: Vec<Address>, secondary_private_ip_address_count: Option<i64> });
input!(Ipv6Address { ipv6_address: String });
input!(RunInstances { image_id: Option<String>, instance_type: Option<String>, min_count: i64, max_count: i64,
    key_name: Option<String>, security_group_ids: Vec<String>, security_groups: Vec<String>,
    subnet_id: Option<String>, private_ip_address: Option<String>, user_data: Option<String>,
    ipv6_address_count: Option<i64>, ipv6_addresses: Vec<Ipv6Address>,
    iam_instance_profile: Option<profiles::ProfileReference>, metadata_options: MetadataOptionsRequest,
    instance_initiated_shutdown_behavior: Option<String>, ebs_optimized: bool, placement: PlacementRequest,
    network_interfaces: Vec<Interface>, tag_specifications: Vec<TagSpecification>,
    block_device_mappings: Vec<Mapping>, disable_api_termination: bool, disable_api_stop: bool,
    monitoring: Enabled, enclave_options: Enabled, hibernation_options: Configured,
    credit_specification: Credits, maintenance_options: Maintenance,
    private_dns_name_options: HostNames, additional_info: Option<String>,
    capacity_reservation_specification: Reservation, launch_template: Option<Specification> });

/// Where an interface shall be, from either of the two forms.
struct Where {
    subnet: Option<String>,
    address: Option<Ipv4Addr>,
    secondary: Secondary,
    groups: Vec<String>,
    ipv6: Ipv6Wish,
    /// As the subnet says where this does not.
    public: Option<bool>,
    /// One that is there already, with all of the above.
    interface: Option<InterfaceId>,
    stays: bool,
    description: String,
}

fn texts(addresses: &[Ipv6Address]) -> Vec<String> {
    addresses.iter().map(|one| one.ipv6_address.clone()).collect()
}

impl HostNames {
    fn are_other(&self) -> bool {
        self.hostname_type.as_ref().is_some_and(|kind| kind != "ip-name")
            || self.enable_resource_name_dns_a_record
            || self.enable_resource_name_dns_aaaa_record
    }
}

impl Reservation {
    fn wants_one(&self) -> bool {
        let preference = self.capacity_reservation_preference.as_deref();
        self.capacity_reservation_target.is_some()
            || preference.is_some_and(|preference| !["open", "none"].contains(&preference))
    }
}

impl Interface {
    /// Whether it says what only a new interface can be told.
    fn says_more(&self) -> bool {
        self.subnet_id.is_some()
            || !self.groups.is_empty()
            || self.associate_public_ip_address.is_some()
            || self.private_ip_address.is_some()
            || !self.private_ip_addresses.is_empty()
            || self.secondary_private_ip_address_count.is_some()
            || self.description.is_some()
            || self.ipv6_address_count.is_some()
            || !self.ipv6_addresses.is_empty()
    }
}

/// An interface has one IPv6 address, or none.
pub(super) fn ipv6(count: Option<i64>, addresses: &[String]) -> Result<Ipv6Wish, ApiError> {
    match (count.unwrap_or(0), addresses) {
        (0, []) => Ok(Ipv6Wish::None),
        (1, []) => Ok(Ipv6Wish::Any),
        (0, [text]) => text
            .parse()
            .map(Ipv6Wish::Address)
            .map_err(|_| ApiError::value(format!("Value ({text}) for parameter ipv6Address is invalid"))),
        _ => Err(ApiError::unsupported("A network interface has at most one IPv6 address")),
    }
}

impl RunInstances {
    /// The primary interface, and the others.
    fn place(&mut self) -> Result<(Where, Vec<Where>), ApiError> {
        let top = Where {
            subnet: self.subnet_id.take(),
            address: address(self.private_ip_address.as_deref())?,
            secondary: Secondary::default(),
            groups: std::mem::take(&mut self.security_group_ids),
            ipv6: ipv6(self.ipv6_address_count, &texts(&self.ipv6_addresses))?,
            public: None,
            interface: None,
            stays: false,
            description: String::new(),
        };
        let mut interfaces = std::mem::take(&mut self.network_interfaces);
        if interfaces.is_empty() {
            return Ok((top, Vec::new()));
        }
        interfaces.sort_by_key(|own| own.device_index);
        if (0..).zip(&interfaces).any(|(device, own)| own.device_index != device) {
            return Err(ApiError::value(
                "Network interfaces have the device indexes 0, 1, 2 and so on, each once",
            ));
        }
        for own in &interfaces {
            if own.network_card_index.is_some_and(|card| card != 0)
                || own.interface_type.as_ref().is_some_and(|kind| kind != "interface")
            {
                return Err(ApiError::unsupported("The interface of an instance is a plain one"));
            }
            if own.network_interface_id.is_some() && own.says_more() {
                return Err(ApiError::combination(
                    "An interface that is there already has its subnet, addresses, groups and description",
                ));
            }
            if own.network_interface_id.is_some() && self.max_count != 1 {
                return Err(ApiError::combination("An interface that is there already is for one instance"));
            }
            if own.device_index != 0 && own.associate_public_ip_address == Some(true) {
                return Err(ApiError::unsupported("The primary interface alone has a public address"));
            }
        }
        if top.subnet.is_some()
            || top.address.is_some()
            || !top.groups.is_empty()
            || !self.security_groups.is_empty()
            || top.ipv6 != Ipv6Wish::None
        {
            return Err(ApiError::combination(
                "Network interfaces and an instance-level subnet, address or security groups may not be \
                 specified on the same request",
            ));
        }
        let place = |own: Interface| {
            let interface = own.network_interface_id.as_deref().map(|id| INTERFACE.parse(id)).transpose()?;
            let (address, secondary) = interfaces::private(
                own.private_ip_address,
                &own.private_ip_addresses,
                own.secondary_private_ip_address_count,
            )?;
            Ok(Where {
                // One that was there before stays, unless somebody says else.
                stays: own.delete_on_termination.map_or(interface.is_some(), |goes| !goes),
                interface,
                description: own.description.unwrap_or_default(),
                ipv6: ipv6(own.ipv6_address_count, &texts(&own.ipv6_addresses))?,
                subnet: own.subnet_id,
                address,
                secondary,
                groups: own.groups,
                public: own.associate_public_ip_address,
            })
        };
        let mut all = interfaces.into_iter().map(place).collect::<Result<Vec<_>, ApiError>>()?;
        let first = all.remove(0);
        Ok((first, all))
    }

    /// Refuses what would be a promise that is not kept.
    fn check_unsupported(&self) -> Result<(), ApiError> {
        let refused = [
            (self.enclave_options.enabled, "An enclave"),
            (self.hibernation_options.configured, "Hibernation"),
            (self.disable_api_stop, "Stop protection"),
            (self.private_dns_name_options.are_other(), "A host name that is not made of the address"),
            // There are none, so an instance runs without one.
            (self.capacity_reservation_specification.wants_one(), "A capacity reservation"),
            (self.placement.tenancy.as_ref().is_some_and(|t| t != "default"), "Tenancy other than default"),
        ];
        match refused.iter().find(|(wanted, _)| *wanted) {
            Some((_, what)) => Err(ApiError::unsupported(format!("{what} is not supported"))),
            None => Ok(()),
        }
    }

    fn counts(&self) -> Result<(u32, u32), ApiError> {
        let count = |count: i64| u32::try_from(count).ok().filter(|count| *count > 0);
        let (Some(least), Some(most)) = (count(self.min_count), count(self.max_count)) else {
            return Err(ApiError::value("MinCount and MaxCount are 1 or more"));
        };
        if least > most {
            return Err(ApiError::combination("MinCount is more than MaxCount"));
        }
        if most > MAX_COUNT {
            return Err(ApiError::new(
                "InstanceLimitExceeded",
                format!("A request makes at most {MAX_COUNT} instances"),
            ));
        }
        Ok((least, most))
    }
}

/// Ids of groups for an interface in `vpc`; without any, the default group.
fn groups(
    context: &Context<'_>,
    vpc: VpcId,
    ids: Vec<String>,
    names: Vec<String>,
) -> Result<Vec<String>, ApiError> {
    ids.iter().try_for_each(|id| GROUP.check(id))?;
    let networks = context.plane.networks();
    let mut found = ids;
    let names = if found.is_empty() && names.is_empty() { vec![DEFAULT_GROUP.to_owned()] } else { names };
    for name in names {
        found.push(networks.find_group(vpc, &name)?.id.to_string());
    }
    Ok(found)
}

pub(super) fn address(text: Option<&str>) -> Result<Option<Ipv4Addr>, ApiError> {
    let invalid = |text| ApiError::value(format!("Value ({text}) for parameter privateIpAddress is invalid"));
    text.map(|text| text.parse().map_err(|_| invalid(text))).transpose()
}

fn user_data(text: &str) -> Result<UserData, ApiError> {
    let malformed = || ApiError::new("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.");
    let bytes = STANDARD.decode(text.trim()).map_err(|_| malformed())?;
    UserData::new(bytes).map_err(|e| ApiError::value(e.to_string()))
}

/// Whether a launch would take these parameters, as far as they are of its kind.
pub(super) fn check_template(data: Value) -> Result<(), ApiError> {
    parse::<RunInstances>(data)?.check_unsupported()
}

/// `RunInstances`. What a launch template says is among the parameters already.
pub(super) fn run(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "RunInstances", &mut input)?;
    if let Some(made) = token.made(context.plane.store())? {
        return answer(context, &made);
    }
    let mut wish: RunInstances = parse(input)?;
    wish.check_unsupported()?;
    let counts = wish.counts()?;
    let (place, others) = wish.place()?;
    subnets::check_zone(
        wish.placement.availability_zone.as_deref(),
        wish.placement.availability_zone_id.as_deref(),
    )?;
    let mut tags = tagging::specified_for(
        std::mem::take(&mut wish.tag_specifications),
        &["instance", "volume", "network-interface"],
    )?;
    let named = wish.image_id.clone().ok_or_else(|| ApiError::missing("ImageId"))?;
    let id: ImageId = IMAGE.parse(&named)?;
    let image = context.plane.images().find(&id.to_string()).map_err(|e| match e {
        ImageError::NotFound { .. } => IMAGE.missing(&named),
        e => refused(e.into()),
    })?;
    let kind = wish.instance_type.clone().unwrap_or_else(|| InstanceType::DEFAULT.to_owned());
    if InstanceType::find(&kind).is_err() {
        return Err(ApiError::value(format!("Invalid value '{kind}' for InstanceType.")));
    }
    let mut request = LaunchRequest::new(&named, &kind);
    let default = context.plane.networks().default_subnet()?;
    let members = context.plane.networks().memberships()?;
    let there = |id: InterfaceId| {
        let found = members.iter().find(|member| member.interface.id == id);
        found.ok_or_else(|| INTERFACE.missing(&id.to_string()))
    };
    let subnet = match (&place.interface, &place.subnet) {
        (Some(id), _) => there(*id)?.interface.subnet.clone(),
        (None, Some(subnet)) => {
            let id: SubnetId = SUBNET.parse(subnet)?;
            let all = context.plane.networks().subnets()?;
            all.into_iter().find(|row| row.id == id).ok_or_else(|| SUBNET.missing(subnet))?
        }
        (None, None) => default.clone(),
    };
    for other in others {
        if let Some(id) = other.interface {
            there(id)?;
            let (interface, stays) = (Some(id), other.stays);
            request.more_interfaces.push(Placement { interface, stays, ..Placement::default() });
            continue;
        }
        request.more_interfaces.push(Placement {
            address: other.address,
            secondary: other.secondary,
            subnet: other
                .subnet
                .map(|id| SUBNET.parse(&id).map(|id: SubnetId| id.to_string()))
                .transpose()?,
            ipv6: other.ipv6,
            groups: groups(context, subnet.vpc, other.groups, Vec::new())?,
            stays: other.stays,
            description: other.description,
            ..Placement::default()
        });
    }
    request.placement = Placement {
        address: place.address,
        secondary: place.secondary,
        subnet: place.subnet,
        ipv6: place.ipv6,
        groups: groups(context, subnet.vpc, place.groups, std::mem::take(&mut wish.security_groups))?,
        interface: place.interface,
        stays: place.stays,
        description: place.description,
        public_ip: place.interface.is_none()
            && place.public.unwrap_or(subnets::maps_public(&subnet, default.id)),
        ..Placement::default()
    };
    let devices = devices::read(std::mem::take(&mut wish.block_device_mappings))?;
    if let Some(root) = devices.root {
        let other = |snapshot| image.root.is_none_or(|own| own != snapshot);
        if root.snapshot.is_some_and(other) {
            let message = "The snapshot of the root volume is that of the image";
            return Err(ApiError::new("InvalidBlockDeviceMapping", message));
        }
        request.volume_size = root.size;
        request.keep_root = root.delete_on_termination.map(|goes| !goes);
        request.root_kind = root.kind;
    }
    request.volumes = devices.others;
    let credits = wish.credit_specification.cpu_credits.as_deref();
    request.remembered = Remembered {
        monitoring: wish.monitoring.enabled,
        ebs_optimized: wish.ebs_optimized,
        unlimited_credits: credits.map(|word| attributes::credits(&kind, word)).transpose()?,
        no_recovery: wish.maintenance_options.auto_recovery.as_deref() == Some("disabled"),
        no_reservation: wish.capacity_reservation_specification.capacity_reservation_preference.as_deref()
            == Some("none"),
    };
    request.launch_template = wish.launch_template.as_ref().and_then(launch_templates::used);
    request.user_data = wish.user_data.as_deref().map(user_data).transpose()?;
    if let Some(name) = &wish.key_name {
        request.ssh_key = Some(key_pairs::service(context).get(name)?.public);
        request.key_name = Some(name.clone());
    }
    metadata_options::change(&mut request.metadata_options, &wish.metadata_options)?;
    request.protected = wish.disable_api_termination;
    if wish.instance_initiated_shutdown_behavior.as_deref() == Some("terminate") {
        request.shutdown = ShutdownBehavior::Terminate;
    }
    request.profile = match &wish.iam_instance_profile {
        Some(profile) => Some(profiles::find(context, profile)?.name),
        None => None,
    };
    request.tags = tags.remove("instance").unwrap_or_default();
    let (volume_tags, interface_tags) = (tags.remove("volume"), tags.remove("network-interface"));
    let launched = context.supervisor.launch(&request, counts, &mut |tx, instances, volumes| {
        for volume in volumes {
            tagging::set_new(tx, &volume.id.to_string(), volume_tags.as_deref().unwrap_or_default())?;
        }
        for own in instances.iter().flat_map(Instance::interfaces) {
            tagging::set_new(tx, &own.id.to_string(), interface_tags.as_deref().unwrap_or_default())?;
        }
        token.note(tx, instances.iter().map(|instance| instance.id.to_string()).collect())
    });
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => {
            // The same request may have been faster.
            return match token.made(context.plane.store())? {
                Some(made) => answer(context, &made),
                None => Err(error.into()),
            };
        }
    };
    let ids: Vec<_> = launched.iter().map(|instance| instance.id.to_string()).collect();
    answer(context, &ids)
}

/// The reservation of these instances, as it is now.
fn answer(context: &Context<'_>, ids: &[String]) -> Answer {
    let all = context.plane.instance_rows()?;
    let own = ids.iter().filter_map(|id| all.get(&id.parse().ok()?));
    let mut own: Vec<&Instance> = own.map(AsRef::as_ref).collect();
    own.sort_by_key(|instance| (instance.created, instance.id));
    let mut reservations = World::read(context)?.reservations(&own);
    // All that the token made are gone for long.
    let gone = || ApiError::new("InvalidInstanceID.NotFound", "The instances of this ClientToken are gone");
    reservations.pop().ok_or_else(gone)
}

/// Why an instance cannot be launched or started, in the words of EC2.
pub(super) fn refused(error: LaunchError) -> ApiError {
    let text = error.to_string();
    let code = match error {
        LaunchError::Request(RequestError::TooManyTags(_)) => "TagLimitExceeded",
        LaunchError::Request(RequestError::MemoryTooLarge { .. } | RequestError::HugepagesTooFew { .. }) => {
            "InsufficientInstanceCapacity"
        }
        LaunchError::Request(_) => "InvalidParameterValue",
        LaunchError::Image(error) => return error.into(),
        LaunchError::Volume(error) => return devices::refused(error),
        LaunchError::VolumeTooSmall { .. } | LaunchError::VolumeTooLarge(_) => "InvalidBlockDeviceMapping",
        LaunchError::Network(error) => return error.into(),
        LaunchError::Role(_) => "InvalidParameterValue",
        error => return ApiError::internal(&SupervisorError::Launch(error)),
    };
    ApiError::new(code, text)
}
