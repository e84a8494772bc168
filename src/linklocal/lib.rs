//! The services on a guest's link that the VMM answers itself: ARP and neighbour discovery, DHCP,
//! router advertisements, instance metadata, DNS, time, ICMP echo.
//!
//! ```text
//!   guest ── frame ──▶ Classifier ──Tap──▶ tap, the outside world
//!                          │Ours
//!                          ▼
//!                      LinkLocal ── frames ──▶ guest
//! ```
//!
//! They are answered here and not on the host because then there is nothing on the wire to spoof or
//! to overhear: each machine has its own, by construction, and no frame for them ever reaches the
//! tap. The crate does no I/O, starts no thread and reads no clock: frames and time are arguments, so
//! that tests and fuzzing drive exactly what runs.
//!
//! Invariants:
//! - Every frame comes from a hostile guest: it may be dropped, counted, answered with an error, and
//!   nothing else. Memory per interface is bounded.
//! - A request is answered from one [`kiln_vmspec::MetadataSnapshot`], which is swapped whole.
//! - Values of the tree and tokens are never logged.

#![forbid(unsafe_code)]

pub mod address;
mod allowance;
mod arp;
mod classify;
mod counters;
mod dhcp;
mod dhcpv6;
mod dns;
#[cfg(any(test, feature = "test-utils"))]
mod fixtures;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
mod icmp;
mod imds;
mod ndp;
mod ntp;
mod output;
mod packet;
mod secret;
mod stack;
mod tcp;
#[cfg(test)]
mod testing;
mod time;

pub use classify::{CLASSIFY_PREFIX, Classifier, Verdict};
pub use counters::Counters;
pub use dns::DnsForward;
pub use imds::read_metadata;
pub use stack::LinkLocal;
pub use time::Time;
