//! The host's side of instance networks: namespaces, links, taps, packet filter.
//!
//! This is the privileged part. A VMM gets open tap queues and nothing else; what they reach is
//! decided here, in the kernel, where neither a guest nor a VMM that a guest has taken over can
//! change it. See [`attach`] for the picture.
//!
//! All functions block and belong on a thread that may. The calling thread's network namespace is
//! taken for the host's, and is left as it is.

mod check;
mod conntrack;
mod error;
mod fabric;
mod names;
mod netlink;
mod netns;
mod nft;
mod plan;
mod policy;
mod record;
mod sysctl;
mod tap;

pub use check::{Finding, State, check};
pub use error::HostNetError;
pub use fabric::{attach, detach, sweep};
pub use plan::{MAX_QUEUES, MTU_RANGE, Nic, NicPlan};
pub use policy::{Allow, Peer, Policy, Ports, Traffic};
