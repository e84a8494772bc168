//! The leaves of an instance's tree.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use kiln_vmspec::{InterfaceFacts, LeafValue, MetadataSnapshot, SnapshotError};
use serde_json::json;

use super::document::{object, timestamp};
use super::{
    InstanceFacts, InstanceRole, InterfaceDescription, InvalidMetadataTag, check_tag_keys, identity_document,
};

/// Why facts make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// An instance has at least one interface.
    #[error("an instance without a network interface has no metadata")]
    NoInterface,
    /// A tag that cannot be shown.
    #[error(transparent)]
    Tag(#[from] InvalidMetadataTag),
    /// A fact that cannot be a path segment, such as an empty role name.
    #[error("the metadata would be inconsistent")]
    Inconsistent(#[source] SnapshotError),
}

/// The snapshot that answers for an instance.
pub fn build(facts: &InstanceFacts) -> Result<MetadataSnapshot, BuildError> {
    let primary = facts.interfaces.first().ok_or(BuildError::NoInterface)?;
    let mut tree = Tree::default();
    instance(&mut tree, facts);
    addresses(&mut tree, primary);
    for interface in &facts.interfaces {
        network(&mut tree, &facts.account_id, interface);
    }
    if let Some(key) = &facts.key {
        tree.leaf("meta-data/public-keys/0/openssh-key", &key.public_key);
        tree.listings.insert("meta-data/public-keys".to_owned(), format!("0={}", key.name));
    }
    if facts.options.tags_enabled {
        check_tag_keys(&facts.tags)?;
        for tag in &facts.tags {
            tree.leaf(format!("meta-data/tags/instance/{}", tag.key()), tag.value());
        }
    }
    if let Some(role) = &facts.role {
        iam(&mut tree, role);
    }
    identity(&mut tree, facts);
    if let Some(data) = facts.user_data.as_ref().filter(|data| !data.as_bytes().is_empty()) {
        tree.bytes("user-data", data.as_bytes().to_vec().into());
    }
    let mut host_names = facts.host_names.clone();
    for interface in &facts.interfaces {
        let addresses = interface.private_ipv4.first().map(|&a| IpAddr::V4(a)).into_iter();
        let addresses = addresses.chain(interface.ipv6.first().map(|&a| IpAddr::V6(a))).collect();
        host_names.insert(interface.local_hostname.to_ascii_lowercase(), addresses);
    }
    let snapshot = MetadataSnapshot {
        generation: facts.generation,
        published: facts.published,
        instance_id: facts.instance_id.to_string(),
        options: facts.options,
        interfaces: facts.interfaces.iter().map(|i| (i.mac, source_facts(i))).collect(),
        host_names,
        leaves: tree.leaves,
        listings: tree.listings,
    };
    snapshot.check().map_err(BuildError::Inconsistent)?;
    Ok(snapshot)
}

#[derive(Default)]
struct Tree {
    leaves: BTreeMap<String, LeafValue>,
    listings: BTreeMap<String, String>,
}

impl Tree {
    fn bytes(&mut self, path: impl Into<String>, value: LeafValue) {
        self.leaves.insert(path.into(), value);
    }

    fn leaf(&mut self, path: impl Into<String>, value: impl Display) {
        self.bytes(path, value.to_string().into());
    }

    /// A value of several lines; absent where there is none.
    fn lines<T: Display>(&mut self, path: impl Into<String>, values: impl IntoIterator<Item = T>) {
        let lines: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        if !lines.is_empty() {
            self.leaf(path, lines.join("\n"));
        }
    }
}

/// What does not depend on the network.
fn instance(tree: &mut Tree, facts: &InstanceFacts) {
    let mut leaf = |name: &str, value: &dyn Display| tree.leaf(format!("meta-data/{name}"), value);
    if let Some(ami_id) = facts.ami_id {
        leaf("ami-id", &ami_id);
    }
    leaf("ami-launch-index", &facts.launch_index);
    leaf("ami-manifest-path", &"(unknown)");
    leaf("block-device-mapping/ami", &facts.root_device);
    leaf("block-device-mapping/root", &facts.root_device);
    for (number, device) in (1..).zip(&facts.data_devices) {
        let number: u32 = number;
        leaf(&format!("block-device-mapping/ebs{number}"), &device.trim_start_matches("/dev/"));
    }
    leaf("events/maintenance/history", &"[]");
    leaf("events/maintenance/scheduled", &"[]");
    leaf("hibernation/configured", &"false");
    leaf("instance-action", &"none");
    leaf("instance-id", &facts.instance_id);
    leaf("instance-life-cycle", &"on-demand");
    leaf("instance-type", &facts.instance_type);
    leaf("placement/availability-zone", &facts.placement.zone);
    leaf("placement/availability-zone-id", &facts.placement.zone_id);
    leaf("placement/region", &facts.placement.region);
    leaf("profile", &"default-hvm");
    leaf("reservation-id", &facts.reservation_id);
    leaf("services/domain", &"amazonaws.com");
    leaf("services/partition", &"aws");
    leaf("system", &"nitro");
    tree.leaf("dynamic/fws/instance-monitoring", if facts.monitoring { "enabled" } else { "disabled" });
}

/// What the top level says of the primary interface.
fn addresses(tree: &mut Tree, primary: &InterfaceDescription) {
    tree.leaf("meta-data/hostname", &primary.local_hostname);
    tree.leaf("meta-data/local-hostname", &primary.local_hostname);
    tree.leaf("meta-data/mac", primary.mac);
    tree.lines("meta-data/local-ipv4", primary.private_ipv4.first());
    tree.lines("meta-data/ipv6", primary.ipv6.first());
    tree.lines("meta-data/public-ipv4", primary.primary_public().map(|address| address.public));
    tree.lines("meta-data/public-hostname", primary.primary_public().and_then(|a| a.hostname.as_ref()));
    tree.lines("meta-data/security-groups", primary.security_groups.iter().map(|group| &group.name));
}

/// `network/interfaces/macs/<mac>/`.
fn network(tree: &mut Tree, account_id: &str, interface: &InterfaceDescription) {
    let path = |name: &str| format!("meta-data/network/interfaces/macs/{}/{name}", interface.mac);
    let has_ipv4 = !interface.private_ipv4.is_empty();
    tree.leaf(path("device-number"), interface.device_number);
    tree.leaf(path("interface-id"), interface.id);
    for address in &interface.public_ipv4 {
        // Several private addresses cannot share one public address.
        tree.leaf(path(&format!("ipv4-associations/{}", address.public)), address.private);
    }
    tree.lines(path("ipv6s"), &interface.ipv6);
    tree.leaf(path("local-hostname"), &interface.local_hostname);
    tree.lines(path("local-ipv4s"), &interface.private_ipv4);
    tree.leaf(path("mac"), interface.mac);
    tree.leaf(path("owner-id"), account_id);
    tree.lines(path("public-hostname"), interface.primary_public().and_then(|a| a.hostname.as_ref()));
    tree.lines(path("public-ipv4s"), interface.public_ipv4.iter().map(|address| address.public));
    tree.lines(path("security-group-ids"), interface.security_groups.iter().map(|group| &group.id));
    tree.lines(path("security-groups"), interface.security_groups.iter().map(|group| &group.name));
    tree.leaf(path("subnet-id"), interface.subnet_id);
    tree.lines(path("subnet-ipv4-cidr-block"), has_ipv4.then_some(interface.subnet_cidr));
    tree.lines(path("subnet-ipv6-cidr-blocks"), &interface.subnet_ipv6_cidrs);
    tree.leaf(path("vpc-id"), interface.vpc_id);
    tree.lines(path("vpc-ipv4-cidr-block"), interface.vpc_cidrs.first());
    tree.lines(path("vpc-ipv4-cidr-blocks"), &interface.vpc_cidrs);
    tree.lines(path("vpc-ipv6-cidr-blocks"), &interface.vpc_ipv6_cidrs);
}

/// `iam/`, which is there as long as a role is.
fn iam(tree: &mut Tree, role: &InstanceRole) {
    tree.leaf(
        "meta-data/iam/info",
        object(&[
            ("Code", json!("Success")),
            ("LastUpdated", json!(timestamp(role.updated))),
            ("InstanceProfileArn", json!(role.profile_arn)),
            ("InstanceProfileId", json!(role.profile_id)),
        ]),
    );
    tree.bytes(format!("meta-data/iam/security-credentials/{}", role.role_name), role.credentials.clone());
}

/// Who the instance is, with and without signature.
fn identity(tree: &mut Tree, facts: &InstanceFacts) {
    tree.leaf(
        "meta-data/identity-credentials/ec2/info",
        object(&[
            ("Code", json!("Success")),
            ("LastUpdated", json!(timestamp(facts.launched))),
            ("AccountId", json!(facts.account_id)),
        ]),
    );
    if let Some(credentials) = &facts.instance_credentials {
        tree.bytes(
            "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            credentials.clone(),
        );
    }
    let Some(signed) = &facts.identity else {
        tree.leaf("dynamic/instance-identity/document", identity_document(facts));
        return;
    };
    tree.leaf("dynamic/instance-identity/document", &signed.document);
    tree.lines("dynamic/instance-identity/pkcs7", &signed.pkcs7);
    tree.lines("dynamic/instance-identity/rsa2048", &signed.rsa2048);
    tree.lines("dynamic/instance-identity/signature", &signed.signature);
}

/// What the link-local services must know of an interface.
fn source_facts(interface: &InterfaceDescription) -> InterfaceFacts {
    let ipv4 = interface.private_ipv4.iter().map(|&address| IpAddr::V4(address));
    InterfaceFacts {
        addresses: ipv4.chain(interface.ipv6.iter().map(|&address| IpAddr::V6(address))).collect(),
        source_dest_check: interface.source_dest_check,
    }
}
