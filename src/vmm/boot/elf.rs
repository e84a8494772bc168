//! 64-bit ELF with the PVH entry point: an uncompressed `vmlinux`, or a bare-metal test.
//!
//! ```text
//!  PT_LOAD  p_offset, p_filesz ──copy──▶ p_paddr; the rest up to p_memsz stays zero
//!  PT_NOTE  "Xen", type 18 ────────────▶ 32-bit physical address of the entry point
//!
//!  0x6000 hvm_start_info ─▶ 0x6040 module (the initrd) · 0x6080 memory map · command line · RSDP
//! ```
//!
//! The layout of `hvm_start_info` is that of Xen's public header `arch-x86/hvm/start_info.h`,
//! version 1.

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::{Blob, BootError, BootImage, EntryPoint, Protocol, check_in_low_ram, initrd, low_ram_end, write};
use crate::layout;

const EHDR_LEN: usize = 64;
const PHDR_LEN: usize = 56;
/// A kernel has about five; this bounds the work.
const MAX_PHDRS: u16 = 64;
/// Likewise: a kernel's notes take some 500 bytes.
const MAX_NOTES_LEN: u64 = 64 << 10;

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

const START_MAGIC: u32 = 0x336e_c578;
const START_VERSION: u32 = 1;
const START_INFO_LEN: usize = 56;
const MODULE_OFFSET: u64 = 0x40;
const MEMORY_MAP_OFFSET: u64 = 0x80;
const MEMORY_MAP_ENTRY_LEN: usize = 24;
/// One page for all.
const MAX_MEMORY_MAP: usize = (0x1000 - MEMORY_MAP_OFFSET as usize) / MEMORY_MAP_ENTRY_LEN;

/// Loads segments, initrd and start info. `head` holds the start of the file of `file_len` bytes.
pub(super) fn load(
    mem: &GuestMemoryMmap,
    image: &BootImage<'_>,
    head: &[u8],
    file_len: u64,
) -> Result<EntryPoint, BootError> {
    let headers = program_headers(&image.kernel, head, file_len)?;
    let mut extent: Option<Range<u64>> = None;
    let mut entry = None;
    let mut total = 0u64;
    for header in &headers {
        match header.kind {
            PT_LOAD if header.mem_len > 0 => {
                let range = header.check(file_len, image)?;
                // Without this, overlapping segments could keep us copying for hours.
                total = total.saturating_add(range.end - range.start);
                if total > layout::LOW_RAM_END {
                    return Err(BootError::BadHeader { field: "sum of p_memsz", value: total });
                }
                extent = Some(match extent {
                    Some(all) => all.start.min(range.start)..all.end.max(range.end),
                    None => range,
                });
            }
            PT_NOTE if entry.is_none() => entry = pvh_entry(&image.kernel, header, file_len)?,
            _ => {}
        }
    }
    let kernel = extent.ok_or(BootError::Unsupported { reason: "its ELF file has nothing to load" })?;
    let rip = entry.ok_or(BootError::Unsupported {
        reason: "its ELF file has no PVH entry point (build it with CONFIG_PVH, or use the bzImage)",
    })?;
    if !kernel.contains(&rip) {
        return Err(BootError::BadHeader { field: "PVH entry point", value: rip });
    }
    super::write_cmdline(mem, image.cmdline, usize::MAX)?;
    for header in headers.iter().filter(|h| h.kind == PT_LOAD && h.file_len > 0) {
        image
            .kernel
            .copy_to(mem, header.address, header.offset, header.file_len)
            .map_err(|source| BootError::Write { what: "kernel", source })?;
    }
    let initrd = initrd::load(mem, image.initrds, kernel.end, low_ram_end(image.e820))?;
    write_start_info(mem, image, initrd.as_ref())?;
    Ok(EntryPoint { rip, protocol: Protocol::Pvh, kernel, initrd })
}

/// What is needed of an `Elf64_Phdr`.
#[derive(Debug)]
struct ProgramHeader {
    kind: u32,
    offset: u64,
    address: u64,
    file_len: u64,
    mem_len: u64,
}

impl ProgramHeader {
    fn parse(bytes: &[u8; PHDR_LEN]) -> Self {
        ProgramHeader {
            kind: read_u32(bytes, 0),
            offset: read_u64(bytes, 8),
            address: read_u64(bytes, 24),
            file_len: read_u64(bytes, 32),
            mem_len: read_u64(bytes, 40),
        }
    }

    /// Checks a PT_LOAD segment and returns the memory it takes.
    fn check(&self, file_len: u64, image: &BootImage<'_>) -> Result<Range<u64>, BootError> {
        self.check_in_file(file_len)?;
        if self.file_len > self.mem_len {
            return Err(BootError::BadHeader { field: "p_filesz", value: self.file_len });
        }
        let end = self.address.checked_add(self.mem_len).filter(|end| *end <= layout::LOW_RAM_END);
        let end = end.ok_or(BootError::BadHeader { field: "p_paddr + p_memsz", value: self.address })?;
        let range = self.address..end;
        check_in_low_ram("the kernel", &range, image.e820)?;
        Ok(range)
    }

    fn check_in_file(&self, file_len: u64) -> Result<(), BootError> {
        match self.offset.checked_add(self.file_len) {
            Some(end) if end <= file_len => Ok(()),
            _ => Err(BootError::Truncated { part: "segments", len: file_len }),
        }
    }
}

/// Reads the program headers of a 64-bit x86 ELF.
fn program_headers(kernel: &Blob<'_>, head: &[u8], file_len: u64) -> Result<Vec<ProgramHeader>, BootError> {
    let header = head.first_chunk::<EHDR_LEN>();
    let header = header.ok_or(BootError::Truncated { part: "ELF header", len: file_len })?;
    if header[4] != ELFCLASS64 || header[5] != ELFDATA2LSB || read_u16(header, 18) != EM_X86_64 {
        return Err(BootError::NotAKernel { found: "an ELF file for another architecture" });
    }
    let (offset, entry_len, count) = (read_u64(header, 32), read_u16(header, 54), read_u16(header, 56));
    if usize::from(entry_len) != PHDR_LEN {
        return Err(BootError::BadHeader { field: "e_phentsize", value: u64::from(entry_len) });
    }
    if count == 0 || count > MAX_PHDRS {
        return Err(BootError::BadHeader { field: "e_phnum", value: u64::from(count) });
    }
    let mut bytes = vec![0; PHDR_LEN * usize::from(count)];
    match offset.checked_add(bytes.len() as u64) {
        Some(end) if end <= file_len => {}
        _ => return Err(BootError::Truncated { part: "program headers", len: file_len }),
    }
    kernel.read_at(offset, &mut bytes).map_err(BootError::ReadKernel)?;
    Ok(bytes.as_chunks().0.iter().map(ProgramHeader::parse).collect())
}

/// Looks for the PVH note in a PT_NOTE segment.
fn pvh_entry(kernel: &Blob<'_>, header: &ProgramHeader, file_len: u64) -> Result<Option<u64>, BootError> {
    header.check_in_file(file_len)?;
    if header.file_len > MAX_NOTES_LEN {
        return Err(BootError::BadHeader { field: "p_filesz of the notes", value: header.file_len });
    }
    let mut notes = vec![0; header.file_len as usize];
    kernel.read_at(header.offset, &mut notes).map_err(BootError::ReadKernel)?;
    Ok(Notes { rest: &notes }
        .find(|note| note.kind == XEN_ELFNOTE_PHYS32_ENTRY && note.name == b"Xen\0")
        .and_then(|note| note.desc.first_chunk::<4>())
        .map(|entry| u64::from(u32::from_le_bytes(*entry))))
}

/// Iterates over notes; ends at the first that does not fit.
struct Notes<'a> {
    rest: &'a [u8],
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    desc: &'a [u8],
}

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        /// Name and description are each padded to a multiple of this.
        const ALIGN: usize = 4;
        let (header, rest) = self.rest.split_first_chunk::<12>()?;
        let (name_len, desc_len) = (read_u32(header, 0) as usize, read_u32(header, 4) as usize);
        let name = rest.get(..name_len)?;
        let rest = rest.get(name_len.checked_next_multiple_of(ALIGN)?..)?;
        let desc = rest.get(..desc_len)?;
        // The last note's padding may be missing.
        let next = desc_len.checked_next_multiple_of(ALIGN)?;
        self.rest = rest.get(next..).unwrap_or_default();
        Some(Note { kind: read_u32(header, 8), name, desc })
    }
}

/// Writes `hvm_start_info`, the module list and the memory map into one page.
fn write_start_info(
    mem: &GuestMemoryMmap,
    image: &BootImage<'_>,
    initrd: Option<&Range<u64>>,
) -> Result<(), BootError> {
    let base = layout::PVH_START_INFO;
    if image.e820.len() > MAX_MEMORY_MAP {
        return Err(BootError::Unsupported { reason: "the memory map does not fit its page" });
    }
    let mut info = Vec::with_capacity(START_INFO_LEN);
    info.extend_from_slice(&START_MAGIC.to_le_bytes());
    info.extend_from_slice(&START_VERSION.to_le_bytes());
    info.extend_from_slice(&0u32.to_le_bytes()); // flags
    info.extend_from_slice(&u32::from(initrd.is_some()).to_le_bytes());
    let modules = if initrd.is_some() { base + MODULE_OFFSET } else { 0 };
    for field in [modules, layout::CMDLINE_START, image.rsdp.0, base + MEMORY_MAP_OFFSET] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    info.extend_from_slice(&(image.e820.len() as u32).to_le_bytes());
    info.extend_from_slice(&0u32.to_le_bytes());
    write(mem, "start info", &info, base)?;

    if let Some(initrd) = initrd {
        let module = [initrd.start, initrd.end - initrd.start, 0, 0];
        let bytes: Vec<u8> = module.iter().flat_map(|field| field.to_le_bytes()).collect();
        write(mem, "module list", &bytes, base + MODULE_OFFSET)?;
    }
    let mut map = Vec::with_capacity(image.e820.len() * MEMORY_MAP_ENTRY_LEN);
    for entry in image.e820 {
        map.extend_from_slice(&entry.address.to_le_bytes());
        map.extend_from_slice(&entry.size.to_le_bytes());
        map.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        map.extend_from_slice(&0u32.to_le_bytes());
    }
    write(mem, "memory map", &map, base + MEMORY_MAP_OFFSET)
}

/// `at` is a constant within arrays of known length.
fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from(read_u16(bytes, at)) | u32::from(read_u16(bytes, at + 2)) << 16
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}
