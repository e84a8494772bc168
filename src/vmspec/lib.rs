//! The contract between the control plane and one `kiln-vmm` process.
//!
//! ```text
//!  control plane                                      kiln-vmm (one per instance)
//!      │  spawn, with a listening Unix socket inherited      │
//!      │ ── connect ─────────────────────────────────────▶   │
//!      │ ── Command::Start(VmSpec) + descriptors ────────▶   │  assemble, boot
//!      │ ◀─ Event::Running / Event::Failed ───────────────   │
//!      │ ── Command::{Pause,Resume,PowerButton,…} ───────▶   │  any number of clients,
//!      │ ◀─ Reply / Event::{Exited,…} ────────────────────   │  also after the first has gone
//! ```
//!
//! Every file the VMM needs is opened by the control plane and handed over as a descriptor; the
//! spec names it by its place in the message ([`FdIndex`]). No path crosses this border, because
//! the VMM lives in an empty root.

#![forbid(unsafe_code)]

pub mod control;
pub mod frame;
pub mod metadata;
mod spec;

pub use control::{AttachedDisk, AttachedNic, Command, Event, ExitReason, Message, Reply, Request, Stats};
pub use metadata::{HttpTokens, InterfaceFacts, LeafValue, MetadataOptions, MetadataSnapshot, SnapshotError};
pub use spec::{
    BootSource, ConsoleSpec, DiskFormat, DiskSpec, FdIndex, ImageLayer, LinkLocalIpv6, LinkLocalSpec,
    MemorySpec, NicSpec, Rate, RateLimits, SmbiosSpec, VmSpec,
};
