//! What a processor finds where a PC restarts: the address that real-mode software jumps to when it
//! wants a reset.
//!
//! Linux restarts a hardware-reduced ACPI machine through UEFI, and where it was not booted by UEFI
//! it goes on to this address without trying the ACPI reset register. So the few instructions here
//! write that register.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::FirmwareError;
use crate::layout;

/// `mov dx, port; mov al, value; out dx, al; hlt; jmp` back to the `hlt`.
fn code() -> [u8; 9] {
    let [low, high] = (layout::POWER_PORT + layout::POWER_RESET).to_le_bytes();
    [0xba, low, high, 0xb0, layout::POWER_RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Writes the instructions to [`layout::RESET_VECTOR`].
pub fn build(mem: &GuestMemoryMmap) -> Result<(), FirmwareError> {
    mem.write_slice(&code(), GuestAddress(layout::RESET_VECTOR))
        .map_err(|source| FirmwareError::Write { what: "reset vector", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_between_the_vector_and_the_end_of_the_first_mebibyte() {
        assert!(layout::RESET_VECTOR + code().len() as u64 <= layout::HIMEM_START);
    }

    #[test]
    fn code_writes_the_reset_register() {
        assert_eq!(code(), [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
    }
}
