//! What is behind a network device: the tap that the control plane opened, and the link-local
//! services that are answered right here.
//!
//! ```text
//!              ┌ ours ──▶ Services (mutex, one per NIC) ─ replies ─▶ receive of the same pair
//!  transmit ───┤ classify on the private copy, no lock
//!              └ else ──▶ tap queue of the pair: one writev
//!
//!  receive ◀── Services if they have something, else one readv from the tap queue
//! ```
//!
//! The VMM neither names nor configures a tap: it gets descriptors of open queues, and asks of the
//! kernel only which offloads the guest has negotiated (`TUNSETOFFLOAD`) and which queues are in use
//! (`TUNSETQUEUE`). What a frame may reach is decided by the packet filter behind the tap; here only
//! frames for the services are kept from it, malformed ones included.

mod backend;
mod services;
mod tap;
#[cfg(test)]
mod tests;

pub use backend::TapBackend;
pub use tap::NicError;
