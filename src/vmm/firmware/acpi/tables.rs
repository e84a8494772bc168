//! The fixed tables, byte by byte after the specification's own.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{AcpiSpec, dsdt as aml};
use crate::layout;

/// Shown by the guest for every table.
pub(super) const OEM_ID: [u8; 6] = *b"KILN  ";
const OEM_TABLE_ID: [u8; 8] = *b"KILNVM  ";
const OEM_REVISION: u32 = 1;
const HEADER_LEN: u32 = 36;

/// IA-PC boot architecture flags (§5.2.9.3). "Legacy devices" and "8042" stay clear: there is no
/// keyboard controller to probe for, and the serial port is in the DSDT.
const IAPC_VGA_NOT_PRESENT: u16 = 1 << 2;
const IAPC_CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(*signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Differentiated description: everything that is described in AML. Revision 2: 64-bit integers.
pub(super) fn dsdt(spec: &AcpiSpec) -> Vec<u8> {
    table(b"DSDT", 2, &aml::definition_block(spec))
}

/// Fixed description (§5.2.9).
pub(super) fn fadt(spec: &AcpiSpec, dsdt: u64) -> Vec<u8> {
    let port = |offset: u16| {
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::POWER_PORT + offset))
    };
    let mut boot_flags = IAPC_VGA_NOT_PRESENT;
    if !spec.cmos_rtc {
        boot_flags |= IAPC_CMOS_RTC_NOT_PRESENT;
    }
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // No fixed power or sleep button: the power button is a device in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.preferred_pm_profile = PmProfile::EnterpriseServer as u8;
    fadt.iapc_boot_arch = boot_flags.into();
    fadt.reset_reg = port(layout::POWER_RESET);
    fadt.reset_value = layout::POWER_RESET_VALUE;
    fadt.sleep_control_reg = port(layout::POWER_SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::POWER_SLEEP_STATUS);
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// Interrupt controllers (§5.2.12). No legacy PIC is announced, so GSIs map one to one and need no
/// source overrides.
pub(super) fn madt(spec: &AcpiSpec) -> Vec<u8> {
    const LOCAL_APIC: [u8; 2] = [0, 8];
    const IO_APIC: [u8; 2] = [1, 12];
    const LOCAL_APIC_NMI: [u8; 2] = [4, 6];
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    const IO_APIC_ID: u8 = 0;

    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LAPIC_START as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for id in 0..spec.vcpus {
        body.extend_from_slice(&LOCAL_APIC);
        body.extend_from_slice(&[id, id]); // ACPI processor uid, APIC id
        body.extend_from_slice(&ENABLED.to_le_bytes());
    }
    body.extend_from_slice(&IO_APIC);
    body.extend_from_slice(&[IO_APIC_ID, 0]);
    body.extend_from_slice(&(layout::IOAPIC_START as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // GSI base
    body.extend_from_slice(&LOCAL_APIC_NMI);
    body.push(ALL_PROCESSORS);
    body.extend_from_slice(&0u16.to_le_bytes()); // polarity and trigger: as the bus has it
    body.push(1); // LINT1
    table(b"APIC", 5, &body)
}

/// PCI Express configuration space (PCI Firmware 3.2 §4.1.2): segment 0, bus 0 only.
pub(super) fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend_from_slice(&layout::ECAM_START.to_le_bytes());
    body.extend_from_slice(&[0; 8]); // segment, first bus, last bus, reserved
    table(b"MCFG", 1, &body)
}

/// Extended system description: addresses of the others (§5.2.8).
pub(super) fn xsdt(entries: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}
