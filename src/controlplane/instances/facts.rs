//! What the metadata service is told of an instance.

use std::collections::BTreeMap;

use kiln_vmspec::{LeafValue, MetadataSnapshot};

use super::{BaseImage, Instance};
use crate::metadata::{
    self, ACCOUNT, BuildError, InstanceFacts, InstanceRole, InterfaceDescription, KeyPair, Placement,
    private_domain, private_host_name,
};

/// Where this host is said to be. SDKs in the guest need some region they know.
const REGION: &str = "us-east-1";
const ZONE: &str = "us-east-1a";
const ZONE_ID: &str = "use1-az1";
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
}

/// What the instance's metadata say.
pub(super) fn snapshot(instance: &Instance, live: Live) -> Result<MetadataSnapshot, BuildError> {
    metadata::build(&facts(instance, live))
}

/// The identity document of the instance's last start.
pub(super) fn identity_document(instance: &Instance) -> String {
    let live = Live { generation: 0, published: 0, role: None, own: None };
    metadata::identity_document(&facts(instance, live))
}

/// Domain that DHCP hands out.
pub(super) fn domain() -> String {
    private_domain(REGION)
}

fn facts(instance: &Instance, live: Live) -> InstanceFacts {
    let interface = &instance.interface;
    let subnet = &interface.subnet;
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
        launch_index: 0,
        account_id: ACCOUNT.to_owned(),
        launched: instance.launched,
        placement: Placement {
            region: REGION.to_owned(),
            zone: ZONE.to_owned(),
            zone_id: ZONE_ID.to_owned(),
        },
        interfaces: vec![InterfaceDescription {
            id: interface.id,
            mac: interface.mac,
            device_number: 0,
            private_ipv4: vec![interface.address],
            ipv6: Vec::new(),
            public_ipv4: Vec::new(),
            local_hostname: private_host_name(interface.address, Some(REGION)),
            subnet_id: subnet.id,
            subnet_cidr: subnet.cidr,
            subnet_ipv6_cidrs: Vec::new(),
            vpc_id: subnet.vpc,
            vpc_cidrs: vec![subnet.vpc_cidr],
            vpc_ipv6_cidrs: Vec::new(),
            security_groups: Vec::new(),
            source_dest_check: true,
        }],
        root_device: "/dev/xvda".to_owned(),
        data_devices: Vec::new(),
        key: instance.ssh_key.clone().map(|public_key| KeyPair { name: KEY_NAME.to_owned(), public_key }),
        tags: instance.tags.clone(),
        user_data: instance.user_data.clone(),
        role: live.role,
        instance_credentials: live.own,
        identity: instance.identity.clone(),
        monitoring: false,
        host_names: BTreeMap::new(),
    }
}
