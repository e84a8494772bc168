//! Interrupts and doorbells, as devices see them. The VMM implements these on KVM.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt: one write of `data` to `address` (PCI 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Guest-physical address, in the local APIC window.
    pub address: u64,
    /// Value written.
    pub data: u32,
}

/// Connects event descriptors to message-signalled interrupts.
///
/// Each source of interrupts (a queue, the configuration) has one line and one `EventFd` for its
/// whole life; which vector of the MSI-X table it uses, and so which message, is the guest's choice.
/// Workers write the `EventFd` whether or not the line is connected. While it is disconnected
/// (masked) the count in the descriptor *is* the pending bit; connecting delivers it. So neither
/// masking nor a change of vector needs a lock on the data path.
pub trait MsiController: Send + Sync {
    /// Reserves a line for one source of one device; fails when the VM has none left.
    fn allocate(&self) -> io::Result<u32>;

    /// Delivers `message` whenever `event` is written, from now on and for what is pending.
    /// Connecting a connected line changes its message. After an error the line is as it was.
    fn connect(&self, line: u32, event: &EventFd, message: MsiMessage) -> io::Result<()>;

    /// Leaves `event` unconnected. No effect on a line that is not connected.
    fn disconnect(&self, line: u32, event: &EventFd) -> io::Result<()>;

    /// Gives back a line that is not connected, for another source of another device.
    fn release(&self, line: u32);
}

/// A wired, edge-triggered interrupt (serial port, power events).
pub trait InterruptLine: Send + Sync {
    /// Raises the interrupt once.
    fn trigger(&self) -> io::Result<()>;
}

/// Binds guest writes at an address to an event descriptor, so that a notification does not leave
/// the kernel.
pub trait DoorbellRegistry: Send + Sync {
    /// From now on a 16-bit or 32-bit write at `address` of guest-physical memory signals `kick`,
    /// whatever the value. Fails when another descriptor is bound there.
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()>;

    /// Undoes [`DoorbellRegistry::bind`].
    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}
