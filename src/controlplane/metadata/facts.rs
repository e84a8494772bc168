//! What must be known of an instance to answer for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::{
    ImageId, InstanceId, InterfaceId, Ipv4Cidr, MacAddr, ReservationId, SshPublicKey, SubnetId, Tag,
    UserData, VpcId,
};
use kiln_vmspec::{LeafValue, MetadataOptions};
use serde::{Deserialize, Serialize};

/// An instance. Optional facts that are absent are absent from the tree.
#[derive(Debug, Clone)]
pub struct InstanceFacts {
    /// Grows with each snapshot of the instance.
    pub generation: u64,
    /// Time of publication, Unix seconds.
    pub published: u64,
    /// How the service may be used.
    pub options: MetadataOptions,
    /// `instance-id`.
    pub instance_id: InstanceId,
    /// `ami-id`. Absent for an instance that runs from a plain file.
    pub ami_id: Option<ImageId>,
    /// `instance-type`.
    pub instance_type: String,
    /// `reservation-id`.
    pub reservation_id: ReservationId,
    /// `ami-launch-index`: place in the reservation, from 0.
    pub launch_index: u32,
    /// Twelve digits: `owner-id` and `accountId`.
    pub account_id: String,
    /// When the instance was started, Unix seconds: `pendingTime` of its identity.
    pub launched: u64,
    /// Where it is.
    pub placement: Placement,
    /// Network interfaces in device order; the first is the primary one. Never empty.
    pub interfaces: Vec<InterfaceDescription>,
    /// Device name of the root volume, such as `/dev/xvda`.
    pub root_device: String,
    /// Device names of other volumes, such as `sdf`.
    pub data_devices: Vec<String>,
    /// Key that may log in.
    pub key: Option<KeyPair>,
    /// Tags; served where the options say so.
    pub tags: Vec<Tag>,
    /// User data.
    pub user_data: Option<UserData>,
    /// The role in its instance profile.
    pub role: Option<InstanceRole>,
    /// Credentials of the instance itself (`identity-credentials/…/ec2-instance`).
    pub instance_credentials: Option<LeafValue>,
    /// Signed identity; without one the document is served alone.
    pub identity: Option<SignedIdentity>,
    /// Detailed monitoring.
    pub monitoring: bool,
    /// Host names of the VPC for the resolver, besides the instance's own.
    pub host_names: BTreeMap<String, Vec<IpAddr>>,
}

/// Where an instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Such as `us-east-1`.
    pub region: String,
    /// Region and a letter: clients cut the last character to learn the region.
    pub zone: String,
    /// Such as `use1-az1`.
    pub zone_id: String,
}

/// A network interface.
#[derive(Debug, Clone)]
pub struct InterfaceDescription {
    /// `interface-id`.
    pub id: InterfaceId,
    /// Hardware address, equal to that of the virtio device.
    pub mac: MacAddr,
    /// 0 for the primary one.
    pub device_number: u32,
    /// Private addresses, primary first. Empty only where there are IPv6 addresses.
    pub private_ipv4: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// Public addresses.
    pub public_ipv4: Vec<PublicAddress>,
    /// Full private host name, such as `ip-10-0-1-10.ec2.internal`.
    pub local_hostname: String,
    /// `subnet-id`.
    pub subnet_id: SubnetId,
    /// `subnet-ipv4-cidr-block`.
    pub subnet_cidr: Ipv4Cidr,
    /// `subnet-ipv6-cidr-blocks`, in text form.
    pub subnet_ipv6_cidrs: Vec<String>,
    /// `vpc-id`.
    pub vpc_id: VpcId,
    /// `vpc-ipv4-cidr-blocks`, primary first.
    pub vpc_cidrs: Vec<Ipv4Cidr>,
    /// `vpc-ipv6-cidr-blocks`, in text form.
    pub vpc_ipv6_cidrs: Vec<String>,
    /// Security groups.
    pub security_groups: Vec<SecurityGroupName>,
    /// Source/destination check.
    pub source_dest_check: bool,
}

impl InterfaceDescription {
    /// The public address of the primary private one.
    pub fn primary_public(&self) -> Option<&PublicAddress> {
        self.public_ipv4.iter().find(|address| self.private_ipv4.first() == Some(&address.private))
    }
}

/// A public address mapped to a private one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddress {
    /// As seen from outside.
    pub public: Ipv4Addr,
    /// The private address it stands for.
    pub private: Ipv4Addr,
    /// Public host name, where the VPC gives names.
    pub hostname: Option<String>,
}

/// A security group as metadata name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupName {
    /// `sg-…`.
    pub id: String,
    /// Name in its VPC.
    pub name: String,
}

/// A key pair's public half.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// Name; shown in the listing as `0=name`.
    pub name: String,
    /// The key.
    pub public_key: SshPublicKey,
}

/// An instance profile with its role and the credentials of the moment.
#[derive(Debug, Clone)]
pub struct InstanceRole {
    /// `arn:aws:iam::…:instance-profile/…`.
    pub profile_arn: String,
    /// `AIPA…`.
    pub profile_id: String,
    /// Name of the role, not of the profile.
    pub role_name: String,
    /// When profile and role were attached, Unix seconds.
    pub updated: u64,
    /// The credentials document, exactly as it is served.
    pub credentials: LeafValue,
}

/// The identity document and signatures over exactly these bytes. A signature that is absent is not
/// listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedIdentity {
    /// What [`super::identity_document`] gave at launch.
    pub document: String,
    /// Base64 of an RSA signature.
    pub signature: Option<String>,
    /// Base64 of a PKCS #7 structure.
    pub rsa2048: Option<String>,
    /// Base64 of a PKCS #7 structure.
    pub pkcs7: Option<String>,
}
