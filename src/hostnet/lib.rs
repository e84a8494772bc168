//! The host's side of instance networks: namespaces, links, taps, packet filter.
//!
//! This is the privileged part. A VMM gets open tap queues and nothing else; what they reach is
//! decided here, in the kernel, where neither a guest nor a VMM that a guest has taken over can
//! change it. See [`attach`] for the picture.
//!
//! All functions block and belong on a thread that may. The calling thread's network namespace is
//! taken for the host's, and is left as it is.

mod batch;
mod change;
mod check;
mod conntrack;
mod counters;
mod enforce;
mod error;
mod expressions;
mod fabric;
mod ipv6;
mod names;
mod netlink;
mod netns;
mod nfnetlink;
mod nft;
mod note;
mod plan;
mod publish;
mod record;
mod routing;
mod sysctl;
mod tap;

pub use check::{Finding, State, check};
pub use counters::{Count, Counters, InterfaceCounters, counters};
pub use error::HostNetError;
pub use fabric::{PolicySource, apply, attach, detach, set_public, sweep};
pub use nft::Rate;
pub use plan::{Ipv6Plan, MAX_QUEUES, MTU_RANGE, Nic, NicPlan, host_address, host_ipv6};
pub use publish::{OneToOne, ParsePublishedError, Public, Published, Transport};
