//! Everything a guest can touch, without KVM.
//!
//! ```text
//!  vCPU exit ─▶ bus ─▶ serial · rtc · power · pci::PciRoot (0xcf8, ECAM, BAR window)
//!                                                              │
//!                                            virtio::transport (status, features, queues)
//!                                                              │ activate
//!  ioeventfd ─▶ worker thread or event loop ─▶ QueueWorker ◀───┘ ─▶ irqfd
//! ```
//!
//! What KVM does (irqfd, ioeventfd, MSI routes) is behind the traits of [`interrupt`]; tests use
//! recording fakes. Everything here treats the guest as hostile: values are copied once, checked,
//! then used; nothing a guest does panics, blocks for ever or allocates without a bound.

pub mod bus;
mod guest_faults;
pub mod interrupt;
pub mod pci;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod virtio;

pub use guest_faults::GuestFaults;
