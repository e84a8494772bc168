//! The metadata tree of an instance as a pure function of facts about it.
//!
//! ```text
//!   rows of the store ──▶ InstanceFacts ──build──▶ MetadataSnapshot ──Command──▶ VMM ──▶ guest
//! ```
//!
//! The tree is that of EC2: a name is there exactly when its value exists, because a listed name that
//! answers 404 makes cloud-init drop everything. Change of a fact means another snapshot with a higher
//! generation; nothing is edited in place.

pub(crate) mod document;
mod facts;
mod identity;
mod names;
mod options;
mod tags;
mod tree;

pub use facts::{
    InstanceFacts, InstanceRole, InterfaceDescription, KeyPair, Placement, PublicAddress, SecurityGroupName,
    SignedIdentity,
};
pub use identity::identity_document;
pub use names::{ACCOUNT, REGION, ZONE, ZONE_ID, private_domain, private_host_name, public_host_name};
pub use options::{ParseOptionsError, parse_options};
pub use tags::{InvalidMetadataTag, check_tag_keys};
pub use tree::{BuildError, build};

pub use kiln_vmspec::{HttpTokens, MetadataOptions};

#[cfg(test)]
mod tests;
