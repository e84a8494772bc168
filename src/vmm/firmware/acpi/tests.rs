use std::process::Command;

use vm_memory::GuestMemoryMmap;

use super::*;

fn spec() -> AcpiSpec {
    AcpiSpec {
        vcpus: 4,
        pci_mmio64: Some((0x40_0000_0000, 0x40_0000_0000)),
        generation_id: *b"0123456789abcdef",
        cmos_rtc: true,
    }
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn read(mem: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

/// Reads a table as a guest would, checking length and checksum.
fn table(mem: &GuestMemoryMmap, address: u64) -> Vec<u8> {
    let len = u32::from_le_bytes(read(mem, address + 4, 4).try_into().unwrap());
    assert!(len >= 36 && address + u64::from(len) <= layout::GENERATION_ID);
    let table = read(mem, address, len as usize);
    assert_eq!(sum(&table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
    table
}

/// All tables that the RSDP leads to, the DSDT last.
fn tables(mem: &GuestMemoryMmap, rsdp: GuestAddress) -> Vec<Vec<u8>> {
    let rsdp = read(mem, rsdp.0, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(mem, u64_at(&rsdp, 24));
    let mut found: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(mem, u64_at(entry, 0))).collect();
    let fadt = found.iter().find(|t| &t[..4] == b"FACP").unwrap();
    let dsdt = table(mem, u64_at(fadt, 140));
    found.push(dsdt);
    found
}

#[test]
fn rsdp_leads_to_every_table_with_right_checksums() {
    let mem = memory();
    let rsdp = build(&mem, &spec()).unwrap();
    let names: Vec<_> =
        tables(&mem, rsdp).iter().map(|t| String::from_utf8_lossy(&t[..4]).into_owned()).collect();
    assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT"]);
}

#[test]
fn rsdp_lies_where_a_scan_finds_it() {
    let rsdp = build(&memory(), &spec()).unwrap().0;
    assert!((0xe_0000..0x10_0000).contains(&rsdp) && rsdp.is_multiple_of(16));
}

#[test]
fn largest_machine_fits_the_area() {
    let largest = AcpiSpec { vcpus: MAX_VCPUS, ..spec() };
    build(&memory(), &largest).unwrap();
}

#[test]
fn madt_lists_each_vcpu_once() {
    let madt = tables::madt(&spec());
    let mut at = 44;
    let mut apics = Vec::new();
    let mut kinds = Vec::new();
    while at < madt.len() {
        if madt[at] == 0 {
            apics.push((madt[at + 2], madt[at + 3], madt[at + 4]));
        }
        kinds.push(madt[at]);
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(at, madt.len());
    assert_eq!(apics, [(0, 0, 1), (1, 1, 1), (2, 2, 1), (3, 3, 1)]);
    assert_eq!(kinds, [0, 0, 0, 0, 1, 4]);
}

#[test]
fn fadt_points_at_the_power_block() {
    let fadt = tables::fadt(&spec(), 0xe_1000);
    assert_eq!(fadt.len(), 276);
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
    assert_ne!(flags & (1 << 10), 0, "reset register");
    for (at, offset) in
        [(116, layout::POWER_RESET), (244, layout::POWER_SLEEP_CONTROL), (256, layout::POWER_SLEEP_STATUS)]
    {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1], "system I/O, one byte");
        assert_eq!(u64_at(&fadt, at + 4), u64::from(layout::POWER_PORT + offset));
    }
    assert_eq!(fadt[128], layout::POWER_RESET_VALUE);
}

#[test]
fn without_cmos_clock_the_guest_is_told_so() {
    let boot_flags = |spec: &AcpiSpec| tables::fadt(spec, 0)[109];
    assert_eq!(boot_flags(&AcpiSpec { cmos_rtc: false, ..spec() }) & (1 << 5), 1 << 5);
    assert_eq!(boot_flags(&spec()) & (1 << 5), 0);
}

#[test]
fn generation_id_can_be_changed_in_place() {
    let mem = memory();
    build(&mem, &spec()).unwrap();
    assert_eq!(read(&mem, layout::GENERATION_ID, 16), b"0123456789abcdef");
    set_generation_id(&mem, [7; 16]).unwrap();
    assert_eq!(read(&mem, layout::GENERATION_ID, 16), [7; 16]);
}

#[test]
fn impossible_machines_are_refused() {
    for bad in [
        AcpiSpec { vcpus: 0, ..spec() },
        AcpiSpec { vcpus: MAX_VCPUS + 1, ..spec() },
        AcpiSpec { pci_mmio64: Some((0x1000, 0x1000)), ..spec() },
        AcpiSpec { pci_mmio64: Some((u64::MAX - 1, 0x1000)), ..spec() },
        AcpiSpec { pci_mmio64: Some((0x40_0000_0000, 0)), ..spec() },
    ] {
        assert!(matches!(build(&memory(), &bad), Err(FirmwareError::Invalid { .. })), "{bad:?}");
    }
}

#[test]
fn memory_without_firmware_area_is_an_error() {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(matches!(build(&mem, &spec()), Err(FirmwareError::Write { .. })));
}

/// Disassembles every table with ACPICA's own tool.
#[test]
fn tables_disassemble_without_complaint() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("SKIPPED: iasl (package acpica-tools) is not installed");
        return;
    }
    for spec in [spec(), AcpiSpec { vcpus: 32, pci_mmio64: None, cmos_rtc: false, ..spec() }] {
        let mem = memory();
        let rsdp = build(&mem, &spec).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for table in tables(&mem, rsdp) {
            let name = String::from_utf8_lossy(&table[..4]).into_owned();
            let file = dir.path().join(format!("{name}.aml"));
            std::fs::write(&file, &table).unwrap();
            let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
            let log = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            let text = std::fs::read_to_string(file.with_extension("dsl")).unwrap_or_default();
            assert!(output.status.success(), "{name}: {log}");
            for bad in ["Invalid", "Error", "Warning", "unresolved", "Unknown", "**** "] {
                assert!(!log.contains(bad) && !text.contains(bad), "{name}: {bad}\n{log}\n{text}");
            }
            if name == "DSDT" {
                let hotplug =
                    ["Notify (S01, One)", "Notify (S1F, 0x03)", "\\_SB.PCI0.SCAN ()", "_EJ0", "_SUN"];
                let plain = ["_OSC", "VMGENCTR", "Notify (\\_SB.PWRB, 0x80)", "PNP0501", "_S5"];
                for good in plain.into_iter().chain(hotplug) {
                    assert!(text.contains(good), "DSDT lacks {good}\n{text}");
                }
            }
        }
    }
}
