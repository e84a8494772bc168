//! What firmware leaves in memory for an operating system, without any firmware running: the memory
//! map, ACPI tables and SMBIOS structures.
//!
//! Everything here turns plain input into bytes of guest memory. The guest may overwrite all of it
//! later; nothing in the VMM reads it back.

pub mod acpi;
pub mod e820;
pub mod reset_vector;
pub mod smbios;

/// Why firmware tables could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The tables outgrew the area that the memory map leaves for them.
    #[error("{what} need {needed} bytes and only {available} are set aside")]
    NoRoom {
        /// Which tables.
        what: &'static str,
        /// Their size.
        needed: u64,
        /// The size of the area.
        available: u64,
    },
    /// Guest memory does not cover the firmware area.
    #[error("writing {what} to guest memory failed")]
    Write {
        /// Which tables.
        what: &'static str,
        /// The refusal.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// A value of the machine's description does not fit its table.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}
