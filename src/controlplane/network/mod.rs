//! Networks of instances: VPCs, subnets, addresses and security groups in the store, in force
//! through the [`NetworkFabric`].
//!
//! [`Networks`] is the service: what the command line and an API call. Its errors name their EC2
//! codes ([`NetworkError::code`]).

mod acls;
mod addresses;
mod elastic;
mod error;
mod fabric;
mod gateways;
mod groups;
mod host_fabric;
mod interfaces;
mod ipv6;
mod prefix_lists;
mod route_tables;
mod routing_error;
mod rule_spec;
mod secondary;
mod service;

pub use acls::{AclAssociation, MAX_ACL_ENTRIES, MAX_ACLS, NetworkAcl};
pub use addresses::{Interface, Subnet, Vpc, choose_range, ensure_default_subnet};
pub use elastic::{Association, ElasticAddress, Moved};
pub(crate) use elastic::{OwnElastic, elastic_of};
pub use error::NetworkError;
pub use fabric::{Attached, FabricError, NetworkFabric, NicRequest};
pub use gateways::{InternetGateway, NatGateway};
pub use groups::{DEFAULT_GROUP, MAX_GROUPS_PER_INTERFACE, MAX_RULES, Membership, SecurityGroup};
pub use host_fabric::HostFabric;
pub use interfaces::MAX_ADDRESSES;
pub(crate) use interfaces::{interfaces_of, let_go};
pub use ipv6::Ipv6Wish;
pub use kiln_hostnet::{Count, Counters, InterfaceCounters, Ipv6Plan, PolicySource, Public, Published};
pub use prefix_lists::{PrefixList, PrefixListChange, PrefixListEntry};
pub use route_tables::{MainTable, RouteTable, RouteTables, RouteTarget, TableAssociation, TableRoute};
pub use routing_error::RoutingError;
pub use rule_spec::{PeerSpec, RuleSpec};
pub use secondary::Secondary;
pub(crate) use service::policy_source;
pub use service::{Also, Explanation, MAX_INTERFACES, Networks, Placement, Reason};

#[cfg(test)]
mod tests;
