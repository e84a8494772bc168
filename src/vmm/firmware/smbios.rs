//! SMBIOS 2.7: who made this machine and which one it is.
//!
//! ```text
//!  0xf0000  entry point "_SM_" (31 bytes), holds address and length of
//!  0xf0020  structures: 0 BIOS · 1 system · 2 board · 3 chassis · 4 processor
//!                       16 memory array · 17 memory devices · 19 address ranges · 32 boot · 127 end
//! ```
//!
//! Clause numbers are those of DSP0134 2.7.1. Version 2.7 with the 32-bit entry point is what EC2's
//! own machines show, and places the first three fields of the UUID in little-endian order (§7.2.1).
//!
//! cloud-init recognises EC2 by type 1 alone: UUID and serial number must start with `ec2` and be
//! the same text. That is up to the caller's [`SmbiosSpec`]; this module only writes it down.

use kiln_vmspec::SmbiosSpec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::FirmwareError;
use super::e820::{Entry, Kind};
use crate::layout;

/// Longest string; what is beyond is cut off. Some readers stop at 64 (§6.1.3 of older versions).
pub const MAX_STRING: usize = 64;

const ENTRY_POINT_LEN: usize = 0x1f;
const MAX_TABLES: u64 = layout::RESET_VECTOR - layout::SMBIOS_TABLES;
/// "No handle" in fields that name another structure.
const NO_HANDLE: u16 = 0xffff;
/// §7.18.1: sizes from this many MiB on go to the extended field.
const EXTENDED_SIZE_MIB: u64 = 0x7fff;

/// What type 4 tells about the processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorInfo {
    /// Vendor, such as `AuthenticAMD`.
    pub vendor: String,
    /// Marketing name.
    pub brand: String,
    /// EAX of CPUID leaf 1.
    pub signature: u32,
    /// EDX of CPUID leaf 1.
    pub features: u32,
    /// Number of vCPUs, 1 to 32: all cores of one socket.
    pub cores: u8,
}

/// Writes entry point and structures to [`layout::SMBIOS_ENTRY`].
///
/// `e820` supplies the RAM ranges of types 17 and 19. Fails when the UUID is not in the form
/// 8-4-4-4-12; strings are cut and cleaned rather than refused.
pub fn build(
    mem: &GuestMemoryMmap,
    spec: &SmbiosSpec,
    processor: &ProcessorInfo,
    e820: &[Entry],
) -> Result<(), FirmwareError> {
    let tables = Tables::of(spec, processor, e820)?;
    let needed = tables.bytes.len() as u64;
    if needed > MAX_TABLES || tables.bytes.len() > usize::from(u16::MAX) {
        return Err(FirmwareError::NoRoom { what: "SMBIOS structures", needed, available: MAX_TABLES });
    }
    let write = |bytes: &[u8], address| {
        mem.write_slice(bytes, GuestAddress(address))
            .map_err(|source| FirmwareError::Write { what: "SMBIOS", source })
    };
    write(&tables.bytes, layout::SMBIOS_TABLES)?;
    write(&tables.entry_point(), layout::SMBIOS_ENTRY)
}

/// The structure table under construction.
struct Tables {
    bytes: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Tables {
    fn of(spec: &SmbiosSpec, processor: &ProcessorInfo, e820: &[Entry]) -> Result<Self, FirmwareError> {
        let mut tables = Tables { bytes: Vec::with_capacity(1024), count: 0, largest: 0 };
        tables.bios(spec);
        tables.system(spec)?;
        let chassis = tables.next_handle() + 1;
        tables.board(spec, chassis);
        tables.chassis(spec);
        tables.processor(processor);
        tables.memory(e820);
        tables.push(Structure::new(32).zeroes(6).byte(0));
        tables.push(Structure::new(127));
        Ok(tables)
    }

    fn next_handle(&self) -> u16 {
        self.count
    }

    /// Appends a structure, giving it the next handle.
    fn push(&mut self, structure: Structure) -> u16 {
        let handle = self.count;
        let start = self.bytes.len();
        structure.write_to(handle, &mut self.bytes);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.largest = self.largest.max(len);
        self.count += 1;
        handle
    }

    /// Type 0 (§7.1).
    fn bios(&mut self, spec: &SmbiosSpec) {
        /// "BIOS characteristics are not supported."
        const CHARACTERISTICS: u64 = 1 << 3;
        /// Extension byte 2, bit 4: "SMBIOS table describes a virtual machine".
        const VIRTUAL_MACHINE: u8 = 1 << 4;
        self.push(
            Structure::new(0)
                .string(&spec.manufacturer)
                .string(&spec.bios_version)
                .word(0xe800) // starting segment; nothing is there
                .string(&spec.bios_date)
                .byte(0) // ROM size: 64 KiB × (n + 1)
                .qword(CHARACTERISTICS)
                .byte(0)
                .byte(VIRTUAL_MACHINE)
                .bytes(&[0xff; 2]) // no release but the version string
                .bytes(&[0xff; 2]), // no embedded controller
        );
    }

    /// Type 1 (§7.2).
    fn system(&mut self, spec: &SmbiosSpec) -> Result<(), FirmwareError> {
        const WAKE_UP_POWER_SWITCH: u8 = 6;
        let uuid = encode_uuid(&spec.uuid).ok_or_else(|| FirmwareError::Invalid {
            what: "SMBIOS UUID",
            reason: format!("{:?} is not of the form 8-4-4-4-12 in hexadecimal", spec.uuid),
        })?;
        self.push(
            Structure::new(1)
                .string(&spec.manufacturer)
                .string(&spec.product_name)
                .string("") // version
                .string(&spec.serial)
                .bytes(&uuid)
                .byte(WAKE_UP_POWER_SWITCH)
                .string("") // SKU
                .string(""), // family
        );
        Ok(())
    }

    /// Type 2 (§7.3).
    fn board(&mut self, spec: &SmbiosSpec, chassis: u16) {
        const HOSTING_BOARD: u8 = 1;
        const MOTHERBOARD: u8 = 0x0a;
        self.push(
            Structure::new(2)
                .string(&spec.manufacturer)
                .string("") // product
                .string("") // version
                .string("") // serial
                .string(&spec.board_asset_tag)
                .byte(HOSTING_BOARD)
                .string("") // location in chassis
                .word(chassis)
                .byte(MOTHERBOARD)
                .byte(0), // contained objects
        );
    }

    /// Type 3 (§7.4).
    fn chassis(&mut self, spec: &SmbiosSpec) {
        const OTHER: u8 = 1;
        const SAFE: u8 = 3;
        const SECURITY_NONE: u8 = 3;
        self.push(
            Structure::new(3)
                .string(&spec.manufacturer)
                .byte(OTHER)
                .string("") // version
                .string("") // serial
                .string(&spec.chassis_asset_tag)
                .bytes(&[SAFE, SAFE, SAFE, SECURITY_NONE])
                .dword(0) // OEM-defined
                .byte(0) // height
                .byte(0) // power cords
                .byte(0) // contained elements
                .byte(0) // their record length
                .string(""), // SKU
        );
    }

    /// Type 4 (§7.5): one socket.
    fn processor(&mut self, info: &ProcessorInfo) {
        const CENTRAL_PROCESSOR: u8 = 3;
        const FAMILY_UNKNOWN: u8 = 2;
        /// Populated, enabled.
        const STATUS: u8 = 0x41;
        const UPGRADE_OTHER: u8 = 1;
        // 64-bit capable; more than one core.
        let characteristics = if info.cores > 1 { 0x0c } else { 0x04 };
        self.push(
            Structure::new(4)
                .string("CPU 0")
                .byte(CENTRAL_PROCESSOR)
                .byte(FAMILY_UNKNOWN)
                .string(&info.vendor)
                .dword(info.signature)
                .dword(info.features)
                .string(&info.brand)
                .byte(0) // voltage
                .word(0) // external clock
                .word(0) // speeds: unknown, a vCPU has no fixed one
                .word(0)
                .byte(STATUS)
                .byte(UPGRADE_OTHER)
                .word(NO_HANDLE) // caches
                .word(NO_HANDLE)
                .word(NO_HANDLE)
                .string("") // serial
                .string("") // asset tag
                .string("") // part number
                .bytes(&[info.cores, info.cores, info.cores]) // cores, enabled, threads
                .word(characteristics)
                .word(u16::from(FAMILY_UNKNOWN)),
        );
    }

    /// Types 16, 17 and 19 (§7.17, 7.18, 7.20): one module that holds all memory.
    fn memory(&mut self, e820: &[Entry]) {
        const SYSTEM_BOARD: u8 = 3;
        const SYSTEM_MEMORY: u8 = 3;
        const MULTI_BIT_ECC: u8 = 6;
        const NO_ERROR_INFORMATION: u16 = 0xfffe;
        const FORM_FACTOR_DIMM: u8 = 9;
        const TYPE_RAM: u8 = 7;
        const DETAIL_OTHER: u16 = 1 << 1;

        let ram = ram_ranges(e820);
        let total: u64 = ram.iter().map(|(start, end)| end - start).sum();
        let capacity = Capacity::of(total);
        let array = self.push(
            Structure::new(16)
                .byte(SYSTEM_BOARD)
                .byte(SYSTEM_MEMORY)
                .byte(MULTI_BIT_ECC)
                .dword(capacity.kib)
                .word(NO_ERROR_INFORMATION)
                .word(1) // devices
                .qword(capacity.extended),
        );
        let mib = total >> 20;
        let (size, extended) = if mib < EXTENDED_SIZE_MIB {
            (mib as u16, 0)
        } else {
            (EXTENDED_SIZE_MIB as u16, u32::try_from(mib).unwrap_or(u32::MAX) & 0x7fff_ffff)
        };
        self.push(
            Structure::new(17)
                .word(array)
                .word(NO_ERROR_INFORMATION)
                .word(0xffff) // total width: unknown
                .word(0xffff) // data width
                .word(size)
                .byte(FORM_FACTOR_DIMM)
                .byte(0) // set
                .string("DIMM 0")
                .string("") // bank
                .byte(TYPE_RAM)
                .word(DETAIL_OTHER)
                .word(0) // speed
                .string("") // manufacturer
                .string("") // serial
                .string("") // asset tag
                .string("") // part number
                .byte(0) // rank: unknown
                .dword(extended)
                .word(0), // configured speed
        );
        for (start, end) in ram {
            let (first, last) = (start >> 10, (end >> 10) - 1);
            let structure = match (u32::try_from(first), u32::try_from(last)) {
                (Ok(first), Ok(last)) if last != u32::MAX => {
                    Structure::new(19).dword(first).dword(last).word(array).byte(1).qword(0).qword(0)
                }
                _ => Structure::new(19)
                    .dword(u32::MAX)
                    .dword(u32::MAX)
                    .word(array)
                    .byte(1)
                    .qword(start)
                    .qword(end - 1),
            };
            self.push(structure);
        }
    }

    /// The 32-bit entry point (§5.2.1).
    fn entry_point(&self) -> [u8; ENTRY_POINT_LEN] {
        let mut point = [0; ENTRY_POINT_LEN];
        let mut put = |at: usize, bytes: &[u8]| point[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, b"_SM_");
        put(0x05, &[ENTRY_POINT_LEN as u8, 2, 7]);
        put(0x08, &self.largest.to_le_bytes());
        put(0x10, b"_DMI_");
        // `build` has checked that the length fits.
        put(0x16, &(self.bytes.len() as u16).to_le_bytes());
        put(0x18, &(layout::SMBIOS_TABLES as u32).to_le_bytes());
        put(0x1c, &self.count.to_le_bytes());
        put(0x1e, &[0x27]);
        point[0x15] = checksum(&point[0x10..]);
        point[0x04] = checksum(&point);
        point
    }
}

/// Merges RAM entries on both sides of the first mebibyte's reserved tail, and rounds to KiB.
fn ram_ranges(e820: &[Entry]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for entry in e820.iter().filter(|e| e.kind == Kind::Ram && e.size >= 1024) {
        match ranges.last_mut() {
            // The tail is memory too, only kept for the tables here.
            Some((_, end)) if *end <= layout::HIMEM_START && entry.address == layout::HIMEM_START => {
                *end = entry.end();
            }
            _ => ranges.push((entry.address, entry.end())),
        }
    }
    ranges
}

/// Maximum capacity of a type 16 structure: KiB, or bytes in the extended field from 2 TiB on.
struct Capacity {
    kib: u32,
    extended: u64,
}

impl Capacity {
    fn of(bytes: u64) -> Self {
        const USE_EXTENDED: u32 = 0x8000_0000;
        match u32::try_from(bytes >> 10) {
            Ok(kib) if kib < USE_EXTENDED => Capacity { kib, extended: 0 },
            _ => Capacity { kib: USE_EXTENDED, extended: bytes },
        }
    }
}

/// One structure: formatted area, then its strings.
struct Structure {
    kind: u8,
    /// Formatted area after the four bytes of header.
    area: Vec<u8>,
    strings: Vec<u8>,
    string_count: u8,
}

impl Structure {
    fn new(kind: u8) -> Self {
        Structure { kind, area: Vec::new(), strings: Vec::new(), string_count: 0 }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.area.extend_from_slice(bytes);
        self
    }

    fn zeroes(mut self, count: usize) -> Self {
        self.area.resize(self.area.len() + count, 0);
        self
    }

    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds a string and its number; an empty one is number 0, "none" (§6.1.3).
    fn string(mut self, text: &str) -> Self {
        let clean = clean_string(text);
        if clean.is_empty() {
            return self.byte(0);
        }
        self.strings.extend_from_slice(&clean);
        self.strings.push(0);
        self.string_count += 1;
        let number = self.string_count;
        self.byte(number)
    }

    fn write_to(self, handle: u16, out: &mut Vec<u8>) {
        let len = u8::try_from(self.area.len() + 4).expect("structures are far below 255 bytes");
        out.extend_from_slice(&[self.kind, len]);
        out.extend_from_slice(&handle.to_le_bytes());
        out.extend_from_slice(&self.area);
        out.extend_from_slice(&self.strings);
        if self.strings.is_empty() {
            out.push(0);
        }
        out.push(0);
    }
}

/// Printable ASCII only, at most [`MAX_STRING`] bytes, no blanks around: readers print these raw.
fn clean_string(text: &str) -> Vec<u8> {
    text.trim()
        .chars()
        .take(MAX_STRING)
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c as u8 } else { b'?' })
        .collect()
}

/// `00112233-4455-6677-8899-aabbccddeeff` → `33 22 11 00 55 44 77 66 88 99 aa …` (§7.2.1).
fn encode_uuid(text: &str) -> Option<[u8; 16]> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let mut uuid = [0; 16];
    let mut at = 0;
    let mut groups = text.split('-');
    for digits in GROUPS {
        let group = groups.next()?;
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for pair in 0..digits / 2 {
            uuid[at] = u8::from_str_radix(&group[pair * 2..pair * 2 + 2], 16).ok()?;
            at += 1;
        }
    }
    if groups.next().is_some() {
        return None;
    }
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Some(uuid)
}

/// The byte that makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests;
