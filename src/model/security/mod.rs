//! Security groups: lists of rules that allow, and the reference of what they mean.
//!
//! ```text
//!  NetworkPolicy ─ interfaces ─▶ groups ─▶ rules ─▶ (direction, traffic, peer)
//!        │
//!        ├── evaluated here, plainly: the reference, and what `kiln sg explain` says
//!        └── compiled to the packet filter by hostnet, and held against the reference by tests
//! ```
//! Network ACLs ([`AclEntry`]) are the other thing that a packet meets, at the edge of its subnet.
//!
//! There are only rules that allow, without order: an interface is open to the union of what all of
//! its groups allow. Replies to what was allowed pass, whatever the other direction says.

mod acl;
mod policy;
mod routing;
mod rule;
mod traffic;

pub use acl::{AclDecision, AclEntry, AclRange, SubnetAcl};
pub use policy::{Decision, Member, Message, NetworkPolicy, Packet, Verdict};
pub use routing::{Route, SubnetRouting, TableNumber, Way};
pub use rule::{Direction, Peer, Rule};
pub use traffic::{IcmpMatch, InvalidTraffic, PortRange, Traffic};
