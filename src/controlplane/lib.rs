//! Instances, images, networks and their state on one host.
//!
//! A library without a process of its own: `kiln` embeds it today, a daemon will serve it
//! tomorrow. Methods that touch the store, files or the network block; async callers run them on a
//! blocking thread.
//!
//! ```text
//!            instances ──▶ vmm_process ──▶ kiln-vmm
//!           ╱    │    ╲
//!      images network  host
//!           ╲    │    ╱
//!              state
//! ```

#![forbid(unsafe_code)]

pub mod credentials;
pub mod host;
pub mod identity;
pub mod images;
pub mod instances;
pub mod key_pairs;
pub mod launch_templates;
pub mod metadata;
pub mod network;
pub mod progress;
pub mod state;
pub mod tags;
pub mod vmm_process;
pub mod volumes;

/// Text that came from an image or a guest, made safe to show.
pub use kiln_disk::partition::printable;
