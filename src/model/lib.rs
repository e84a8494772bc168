//! EC2 nouns as plain data. No I/O, no clocks, no global state.
//!
//! Every other crate may use this one; it uses none of them.

#![forbid(unsafe_code)]

mod attachment;
mod cidr;
mod clock;
mod cpu_template;
mod id;
mod instance_state;
mod instance_type;
mod ipv6_cidr;
mod mac;
mod secret;
pub mod security;
pub mod size;
mod ssh_key;
mod suggest;
mod tag;
mod user_data;
mod utc;
mod wildcard;

pub use attachment::AttachmentState;
pub use cidr::{Ipv4Cidr, ParseCidrError};
pub use clock::Clock;
pub use cpu_template::CpuTemplate;
pub use id::{
    AllocationId, AssociationId, ImageId, InstanceId, InterfaceId, InternetGatewayId, KeyPairId,
    LaunchTemplateId, NatGatewayId, NetworkAclId, ParseIdError, PrefixListId, ReservationId,
    RouteTableAssociationId, RouteTableId, SecurityGroupId, SecurityGroupRuleId, SnapshotId, SubnetId,
    VolumeId, VpcId,
};
pub use instance_state::{IllegalTransition, InstanceEvent, InstanceState};
pub use instance_type::{InstanceType, Performance, UnknownInstanceType};
pub use ipv6_cidr::Ipv6Cidr;
pub use mac::{MacAddr, ParseMacError};
pub use secret::Secret;
pub use size::{ByteSize, ParseSizeError};
pub use ssh_key::{ParseSshKeyError, SshPublicKey};
pub use suggest::nearest;
pub use tag::{InvalidTag, Tag};
pub use user_data::{InvalidUserData, UserData};
pub use utc::Utc;
pub use wildcard::Wildcard;
