//! What the metadata service is told of an instance.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kiln_hostnet::OneToOne;
use kiln_model::InterfaceId;
use kiln_vmspec::{LeafValue, MetadataSnapshot};

use super::{BaseImage, Instance};
use crate::metadata::{
    self, ACCOUNT, BuildError, InstanceFacts, InstanceRole, InterfaceDescription, KeyPair, Placement,
    PublicAddress, REGION, SecurityGroupName, ZONE, ZONE_ID, private_domain, private_host_name,
    public_host_name,
};
use crate::network::{ElasticAddress, Interface, Membership, OwnElastic, SecurityGroup};
use crate::state::{Store, StoreError, transact};
use crate::volumes::attached;

/// Name under which the key given with `--ssh-key` is listed.
const KEY_NAME: &str = "kiln";

/// What of an instance's metadata is not in its row.
#[derive(Debug, Clone)]
pub(super) struct Live {
    /// Grows with each snapshot.
    pub generation: u64,
    /// Time of publication, Unix seconds.
    pub published: u64,
    /// The role in its profile, with the credentials of the moment.
    pub role: Option<InstanceRole>,
    /// Credentials of its own.
    pub own: Option<LeafValue>,
    /// What is around its interfaces.
    pub around: Around,
}

/// What the network's rows say of an instance and its neighbours.
#[derive(Debug, Clone, Default)]
pub(super) struct Around {
    interfaces: BTreeMap<InterfaceId, AroundInterface>,
    host_names: BTreeMap<String, Vec<IpAddr>>,
    data_devices: Vec<String>,
}

/// As above, of one interface.
#[derive(Debug, Clone, Default)]
struct AroundInterface {
    device: Option<u32>,
    security_groups: Vec<SecurityGroupName>,
    secondary: Vec<Ipv4Addr>,
    forwards: bool,
    elastic: OwnElastic,
}

impl Around {
    /// Reads it. Host names are those of all interfaces of the VPC.
    pub(super) fn read(store: &dyn Store, instance: &Instance) -> Result<Self, StoreError> {
        let interface = &instance.interface;
        transact(store, |tx| {
            let mut around = Around::default();
            let volumes = attached(tx, instance.id)?;
            let data = volumes.into_iter().filter(|volume| !volume.is_root());
            around.data_devices = data.filter_map(|volume| Some(volume.attachment?.device)).collect();
            for member in tx.rows::<Membership>()?.iter() {
                if member.interface.subnet.vpc != interface.subnet.vpc {
                    continue;
                }
                let address = member.interface.address;
                let ipv6 = member.interface.ipv6.map(IpAddr::V6);
                let addresses = [IpAddr::V4(address)].into_iter().chain(ipv6).collect();
                around.host_names.insert(private_host_name(address, Some(REGION)), addresses);
                if member.instance != Some(instance.id) {
                    continue;
                }
                let own = around.interfaces.entry(member.interface.id).or_default();
                own.device = Some(member.device);
                own.secondary.clone_from(&member.secondary);
                own.forwards = member.forwards;
                own.elastic = OwnElastic::among(&tx.list::<ElasticAddress>()?, member.interface.id);
                for id in &member.groups {
                    let group = tx.get::<SecurityGroup>(id)?;
                    own.security_groups.extend(
                        group.map(|group| SecurityGroupName { id: id.to_string(), name: group.name }),
                    );
                }
            }
            Ok(around)
        })
    }
}

/// What the instance's metadata say.
pub(super) fn snapshot(instance: &Instance, live: Live) -> Result<MetadataSnapshot, BuildError> {
    metadata::build(&facts(instance, live))
}

/// The identity document of the instance's last start.
pub(super) fn identity_document(instance: &Instance) -> String {
    let around = Around::default();
    let live = Live { generation: 0, published: 0, role: None, own: None, around };
    metadata::identity_document(&facts(instance, live))
}

/// Domain that DHCP hands out.
pub(super) fn domain() -> String {
    private_domain(REGION)
}

/// An interface as metadata show it.
fn described(
    device_number: u32,
    interface: &Interface,
    around: AroundInterface,
    public: Option<Ipv4Addr>,
) -> InterfaceDescription {
    let subnet = &interface.subnet;
    let primary = public.map(|public| OneToOne { private: interface.address, public });
    let pairs = primary.into_iter().chain(around.elastic.secondary);
    let public = pairs.map(|OneToOne { private, public }| PublicAddress {
        public,
        private,
        hostname: Some(public_host_name(public, REGION)),
    });
    InterfaceDescription {
        id: interface.id,
        mac: interface.mac,
        device_number,
        private_ipv4: [interface.address].into_iter().chain(around.secondary).collect(),
        ipv6: interface.ipv6.into_iter().collect(),
        public_ipv4: public.collect(),
        local_hostname: private_host_name(interface.address, Some(REGION)),
        subnet_id: subnet.id,
        subnet_cidr: subnet.cidr,
        subnet_ipv6_cidrs: subnet.ipv6.iter().map(ToString::to_string).collect(),
        vpc_id: subnet.vpc,
        vpc_cidrs: vec![subnet.vpc_cidr],
        vpc_ipv6_cidrs: subnet.vpc_ipv6.iter().map(ToString::to_string).collect(),
        security_groups: around.security_groups,
        source_dest_check: !around.forwards,
    }
}

fn facts(instance: &Instance, mut live: Live) -> InstanceFacts {
    let interfaces = (0..).zip(instance.interfaces()).map(|(number, interface)| {
        let around = live.around.interfaces.remove(&interface.id).unwrap_or_default();
        let number = around.device.unwrap_or(number);
        let public = if number == 0 { instance.public_address } else { around.elastic.primary };
        described(number, interface, around, public)
    });
    let interfaces = interfaces.collect();
    let ami_id = match instance.root.base {
        BaseImage::Imported { image } => Some(image),
        BaseImage::InPlace { .. } => None,
    };
    InstanceFacts {
        generation: live.generation,
        published: live.published,
        options: instance.metadata_options,
        instance_id: instance.id,
        ami_id,
        instance_type: instance.instance_type.clone(),
        reservation_id: instance.reservation,
        launch_index: instance.launch_index,
        account_id: ACCOUNT.to_owned(),
        launched: instance.launched,
        placement: Placement {
            region: REGION.to_owned(),
            zone: ZONE.to_owned(),
            zone_id: ZONE_ID.to_owned(),
        },
        interfaces,
        root_device: instance.root.device.clone(),
        data_devices: live.around.data_devices,
        key: instance.ssh_key.clone().map(|public_key| KeyPair {
            name: instance.key_name.clone().unwrap_or_else(|| KEY_NAME.to_owned()),
            public_key,
        }),
        tags: instance.tags.clone(),
        user_data: instance.user_data.clone(),
        role: live.role,
        instance_credentials: live.own,
        identity: instance.identity.clone(),
        monitoring: instance.remembered.monitoring,
        host_names: live.around.host_names,
    }
}
