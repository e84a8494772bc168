//! The tables that the loader left in memory, found as an operating system finds them.

use core::slice;

use crate::report::{Outcome, ensure, ensure_eq, fail, println};
use crate::start;

fn bytes(address: u64, len: usize) -> &'static [u8] {
    unsafe { slice::from_raw_parts(address as *const u8, len) }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// First multiple of 16 in the BIOS area with this text.
fn scan(anchor: &[u8]) -> Option<u64> {
    (0xe_0000..0x10_0000).step_by(16).find(|address| bytes(*address, anchor.len()) == anchor)
}

/// A table with its checksum verified.
fn table(address: u64) -> Outcome<&'static [u8]> {
    let len = u32_at(bytes(address, 8), 4) as usize;
    ensure!((36..0x1_0000).contains(&len), "table at {address:#x} has {len} bytes");
    let table = bytes(address, len);
    ensure_eq!(sum(table), 0, "checksum of the table at {address:#x}");
    Ok(table)
}

/// Visits every table that the XSDT lists, and the DSDT.
fn tables(mut visit: impl FnMut(&'static [u8]) -> Outcome) -> Outcome {
    let Some(rsdp) = scan(b"RSD PTR ") else { fail!("a scan finds no RSDP") };
    if start::rsdp() != 0 {
        ensure_eq!(rsdp, start::rsdp(), "address of the RSDP");
    }
    let rsdp = bytes(rsdp, 36);
    ensure_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0), "checksums of the RSDP");
    let xsdt = table(u64_at(rsdp, 24))?;
    for entry in xsdt[36..].chunks_exact(8) {
        let table = table(u64_at(entry, 0))?;
        visit(table)?;
        if &table[..4] == b"FACP" {
            visit(self::table(u64_at(table, 140))?)?;
        }
    }
    Ok(())
}

fn name(table: &[u8]) -> &str {
    core::str::from_utf8(&table[..4]).unwrap_or("????")
}

/// RSDP, XSDT and the tables that Linux wants.
pub fn acpi() -> Outcome {
    let wanted = ["FACP", "DSDT", "APIC", "MCFG"];
    let mut seen = [false; 4];
    tables(|table| {
        println!("  {} {} bytes", name(table), table.len());
        if let Some(at) = wanted.iter().position(|w| *w == name(table)) {
            seen[at] = true;
        }
        Ok(())
    })?;
    for (wanted, seen) in wanted.iter().zip(seen) {
        ensure!(seen, "there is no {wanted}");
    }
    Ok(())
}

/// The entry point and its structures.
pub fn smbios() -> Outcome {
    let Some(point) = scan(b"_SM_") else { fail!("a scan finds no SMBIOS entry point") };
    let point = bytes(point, 0x1f);
    ensure_eq!((sum(point), sum(&point[0x10..])), (0, 0), "checksums of the entry point");
    let (address, len) =
        (u64::from(u32_at(point, 0x18)), usize::from(point[0x16]) | usize::from(point[0x17]) << 8);
    let mut rest = bytes(address, len);
    let mut uuid = None;
    while rest.len() >= 4 {
        let area = usize::from(rest[1]);
        let Some(strings) = rest.get(area..).and_then(|s| s.windows(2).position(|w| w == [0, 0])) else {
            fail!("structure of type {} has no end", rest[0]);
        };
        if rest[0] == 1 && area >= 24 {
            uuid = Some(&rest[8..24]);
        }
        rest = &rest[area + strings + 2..];
    }
    let Some(uuid) = uuid else { fail!("there is no system structure") };
    println!("  uuid {:02x}{:02x}{:02x}{:02x}-...", uuid[3], uuid[2], uuid[1], uuid[0]);
    Ok(())
}

/// The VM generation id is where the DSDT says, and printed for others to compare.
pub fn generation_id() -> Outcome {
    let mut address = None;
    tables(|table| {
        // Name (ADDR, Package (2) { low, … }): the one package that is called so.
        let at = table.windows(4).position(|w| w == b"ADDR").filter(|_| name(table) == "DSDT");
        if let Some(at) = at {
            let package = &table[at + 4..];
            // PackageOp, length, number of elements, DWordPrefix
            ensure_eq!((package[0], package[2], package[3]), (0x12, 2, 0x0c), "the package ADDR");
            address = Some(u64::from(u32_at(package, 4)));
        }
        Ok(())
    })?;
    let Some(address) = address else { fail!("the DSDT has no ADDR") };
    let id = bytes(address, 16);
    ensure!(id.iter().any(|b| *b != 0), "it is zero");
    println!("  generation id {:016x}{:016x}", u64_at(id, 0).swap_bytes(), u64_at(id, 8).swap_bytes());
    Ok(())
}
