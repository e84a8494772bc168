//! ACPI tables (specification 6.4) for a hardware-reduced machine: no SCI, no PM timer, no SMI.
//!
//! ```text
//!  ACPI_START   RSDP ─▶ XSDT ─┬▶ FADT ─▶ DSDT (AML: what `dsdt` describes)
//!                             ├▶ MADT  local APICs, I/O APIC
//!                             └▶ MCFG  configuration space of PCI bus 0
//!  GENERATION_ID              VM generation id, 16 bytes, alone in its page
//! ```
//!
//! The RSDP lies at the start of the area, where a kernel that scans for it looks (§5.2.5.1).
//! Power off, reset and events go through the block of ports at [`layout::POWER_PORT`].

mod dsdt;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::FirmwareError;
use crate::layout;

/// Most vCPUs that fit 8-bit APIC ids comfortably and that the machine promises.
pub const MAX_VCPUS: u8 = 32;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`]; APIC ids are 0 up.
    pub vcpus: u8,
    /// 64-bit window for PCI memory BARs: first byte and size; `None` for none.
    pub pci_mmio64: Option<(u64, u64)>,
    /// VM generation id: fresh for each launch and each restored copy.
    pub generation_id: [u8; 16],
    /// Whether a CMOS clock answers at [`layout::RTC_PORT`]. If not, the guest is told not to touch
    /// those ports.
    pub cmos_rtc: bool,
}

/// Writes all tables into the ACPI area and returns the address of the RSDP.
pub fn build(mem: &GuestMemoryMmap, spec: &AcpiSpec) -> Result<GuestAddress, FirmwareError> {
    if spec.vcpus == 0 || spec.vcpus > MAX_VCPUS {
        return Err(FirmwareError::Invalid {
            what: "number of vCPUs",
            reason: format!("{} is not in 1 to {MAX_VCPUS}", spec.vcpus),
        });
    }
    if let Some((start, size)) = spec.pci_mmio64
        && (size == 0 || start < layout::HIGH_RAM_START || start.checked_add(size - 1).is_none())
    {
        return Err(FirmwareError::Invalid {
            what: "64-bit PCI window",
            reason: format!("{size:#x} bytes at {start:#x} is not a range above 4 GiB"),
        });
    }
    let mut area = Area::new(mem);
    area.skip(Rsdp::len() as u64);
    let dsdt = area.put(&tables::dsdt(spec))?;
    let entries =
        [area.put(&tables::fadt(spec, dsdt))?, area.put(&tables::madt(spec))?, area.put(&tables::mcfg())?];
    let xsdt = area.put(&tables::xsdt(&entries))?;

    let mut rsdp = Vec::new();
    Rsdp::new(tables::OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.write(layout::ACPI_START, &rsdp)?;
    set_generation_id(mem, spec.generation_id)?;
    Ok(GuestAddress(layout::ACPI_START))
}

/// Changes the VM generation id. The caller then raises [`layout::EVENT_GENERATION_ID`], so that the
/// guest reseeds its random number generator.
pub fn set_generation_id(mem: &GuestMemoryMmap, id: [u8; 16]) -> Result<(), FirmwareError> {
    Area::new(mem).write(layout::GENERATION_ID, &id)
}

/// Hands out the ACPI area from the bottom up.
struct Area<'a> {
    mem: &'a GuestMemoryMmap,
    next: u64,
}

impl<'a> Area<'a> {
    fn new(mem: &'a GuestMemoryMmap) -> Self {
        Area { mem, next: layout::ACPI_START }
    }

    fn skip(&mut self, bytes: u64) {
        // Tables need no alignment (§5.2); 64 keeps dumps readable.
        self.next = (self.next + bytes).next_multiple_of(64);
    }

    /// Writes a table to the next free place and returns its address.
    fn put(&mut self, table: &[u8]) -> Result<u64, FirmwareError> {
        let (address, len) = (self.next, table.len() as u64);
        let available = layout::GENERATION_ID - layout::ACPI_START;
        if address + len > layout::GENERATION_ID {
            let needed = address + len - layout::ACPI_START;
            return Err(FirmwareError::NoRoom { what: "ACPI tables", needed, available });
        }
        self.write(address, table)?;
        self.skip(len);
        Ok(address)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), FirmwareError> {
        self.mem
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| FirmwareError::Write { what: "ACPI tables", source })
    }
}

#[cfg(test)]
mod tests;
