//! bzImage by the 64-bit boot protocol (Linux Documentation/arch/x86/boot).
//!
//! ```text
//!  file    │ boot sector │ setup code, (setup_sects + 1) × 512 bytes │ protected-mode kernel … │
//!  memory                                        pref_address ─▶ kernel, init_size bytes of room
//!                                                + 0x200: 64-bit entry
//! ```
//!
//! The setup header lies at 0x1f1 of the file and at the same offset of `boot_params`. Its numbers
//! below are offsets in both.

use vm_memory::GuestMemoryMmap;

use super::{BootError, BootImage, EntryPoint, Protocol, check_in_low_ram, initrd, low_ram_end, write};
use crate::layout;

/// `header`
pub(super) const MAGIC: &[u8] = b"HdrS";
pub(super) const MAGIC_OFFSET: usize = 0x202;

/// Protocol 2.12, Linux 3.8: the first with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// `loadflags`: the kernel goes to 1 MiB and above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: has a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel, command line and initrd may be anywhere.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// Boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
/// Second byte of the `jump`: the header ends that many bytes after 0x202.
const JUMP_DISTANCE: usize = 0x201;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// Fields up to here exist from protocol 2.12 on.
const HEADER_END_2_12: usize = 0x268;
/// `boot_params` has other fields from here on.
const HEADER_END_MAX: usize = 0x290;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;
const E820_MAX: usize = 128;
const BOOT_PARAMS_LEN: usize = 4096;

/// `setup_data` type of a random seed.
const SETUP_RNG_SEED: u32 = 9;

/// The fields that matter, each checked as far as it can be alone.
#[derive(Debug)]
struct Header {
    /// Offset of the protected-mode kernel in the file.
    setup_len: u64,
    pref_address: u64,
    init_size: u64,
    /// First address that the initrd may not touch.
    initrd_limit: u64,
    cmdline_size: usize,
    /// First byte after the setup header.
    end: usize,
}

impl Header {
    fn parse(head: &[u8], file_len: u64) -> Result<Self, BootError> {
        let part = "setup header";
        if head.len() < HEADER_END_2_12 {
            return Err(BootError::Truncated { part, len: file_len });
        }
        let bad = |field, value| Err(BootError::BadHeader { field, value });
        let flag = read_u16(head, BOOT_FLAG);
        if flag != 0xaa55 {
            return bad("boot_flag", u64::from(flag));
        }
        let version = read_u16(head, VERSION);
        if version < MIN_VERSION {
            return Err(BootError::Unsupported {
                reason: "its boot protocol is older than 2.12 (Linux 3.8); use a newer kernel",
            });
        }
        if head[LOADFLAGS] & LOADED_HIGH == 0 {
            return Err(BootError::Unsupported { reason: "it is a zImage; build a bzImage" });
        }
        let xloadflags = read_u16(head, XLOADFLAGS);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BootError::Unsupported { reason: "it has no 64-bit entry point (a 32-bit kernel?)" });
        }
        let end = MAGIC_OFFSET + usize::from(head[JUMP_DISTANCE]);
        if !(HEADER_END_2_12..=HEADER_END_MAX).contains(&end) || end > head.len() {
            return bad("jump", u64::from(head[JUMP_DISTANCE]));
        }
        let setup_sects = match head[SETUP_SECTS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup_len = (setup_sects + 1) * SECTOR;
        if file_len <= setup_len + ENTRY_64 {
            return Err(BootError::Truncated { part: "setup code", len: file_len });
        }
        // In units of 16 bytes; the last may be incomplete. A signature may follow.
        let min_len = setup_len + u64::from(read_u32(head, SYSSIZE)) * 16;
        if file_len + 15 < min_len {
            return Err(BootError::Truncated { part: "protected-mode code", len: file_len });
        }
        let initrd_limit = match read_u32(head, INITRD_ADDR_MAX) {
            _ if xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 => u64::MAX,
            max => u64::from(max) + 1,
        };
        Ok(Header {
            setup_len,
            pref_address: read_u64(head, PREF_ADDRESS),
            init_size: u64::from(read_u32(head, INIT_SIZE)),
            initrd_limit,
            cmdline_size: read_u32(head, CMDLINE_SIZE) as usize,
            end,
        })
    }
}

/// Loads kernel, initrd and zero page. `head` holds the start of the file of `file_len` bytes.
pub(super) fn load(
    mem: &GuestMemoryMmap,
    image: &BootImage<'_>,
    head: &[u8],
    file_len: u64,
) -> Result<EntryPoint, BootError> {
    let header = Header::parse(head, file_len)?;
    let kernel_len = file_len - header.setup_len;
    // A relocatable kernel that is put lower moves itself up to `pref_address` all the same, so
    // trying elsewhere would need no less memory.
    let room = header.init_size.max(kernel_len);
    let end = header.pref_address.checked_add(room);
    let end = end.ok_or(BootError::BadHeader { field: "pref_address", value: header.pref_address })?;
    if header.pref_address >= layout::LOW_RAM_END {
        return Err(BootError::BadHeader { field: "pref_address", value: header.pref_address });
    }
    let kernel = header.pref_address..end;
    check_in_low_ram("the kernel", &kernel, image.e820)?;

    super::write_cmdline(mem, image.cmdline, header.cmdline_size)?;
    image
        .kernel
        .copy_to(mem, kernel.start, header.setup_len, kernel_len)
        .map_err(|source| BootError::Write { what: "kernel", source })?;
    let limit = header.initrd_limit.min(low_ram_end(image.e820));
    let initrd = initrd::load(mem, image.initrds, kernel.end, limit)?;

    let mut params = BootParams::new(head, header.end);
    params.byte(TYPE_OF_LOADER, LOADER_UNDEFINED);
    params.dword(CODE32_START, kernel.start as u32);
    params.dword(CMD_LINE_PTR, layout::CMDLINE_START as u32);
    params.qword(ACPI_RSDP_ADDR, image.rsdp.0);
    if let Some(initrd) = &initrd {
        // Low RAM is below 4 GiB, so the `ext_ramdisk_*` halves stay zero.
        params.dword(RAMDISK_IMAGE, initrd.start as u32);
        params.dword(RAMDISK_SIZE, (initrd.end - initrd.start) as u32);
    }
    params.qword(SETUP_DATA, 0);
    if let Some(seed) = &image.rng_seed {
        write_seed(mem, seed)?;
        params.qword(SETUP_DATA, layout::SETUP_DATA);
    }
    params.memory_map(image)?;
    write(mem, "zero page", &params.bytes, layout::ZERO_PAGE)?;
    Ok(EntryPoint { rip: kernel.start + ENTRY_64, protocol: Protocol::Linux64, kernel, initrd })
}

/// `struct setup_data`: next, type, length, data.
fn write_seed(mem: &GuestMemoryMmap, seed: &[u8; 32]) -> Result<(), BootError> {
    let mut bytes = Vec::with_capacity(48);
    bytes.extend_from_slice(&0u64.to_le_bytes());
    bytes.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    bytes.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(seed);
    write(mem, "random seed", &bytes, layout::SETUP_DATA)
}

/// The zero page.
struct BootParams {
    bytes: [u8; BOOT_PARAMS_LEN],
}

impl BootParams {
    /// All zeroes but for the setup header, which [`Header::parse`] found to end at `header_end`.
    fn new(head: &[u8], header_end: usize) -> Self {
        let mut bytes = [0; BOOT_PARAMS_LEN];
        bytes[SETUP_SECTS..header_end].copy_from_slice(&head[SETUP_SECTS..header_end]);
        BootParams { bytes }
    }

    fn byte(&mut self, at: usize, value: u8) {
        self.put(at, &[value]);
    }

    fn dword(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn qword(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// `at` is one of the constants above, never from outside.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn memory_map(&mut self, image: &BootImage<'_>) -> Result<(), BootError> {
        let count = image.e820.len();
        if count > E820_MAX {
            return Err(BootError::Unsupported { reason: "the memory map has more than 128 entries" });
        }
        self.byte(E820_ENTRIES, count as u8);
        for (entry, at) in image.e820.iter().zip((E820_TABLE..).step_by(E820_ENTRY_LEN)) {
            self.qword(at, entry.address);
            self.qword(at + 8, entry.size);
            self.dword(at + 16, entry.kind as u32);
        }
        Ok(())
    }
}

/// `at` is a constant below [`HEADER_END_2_12`], which the caller has compared with the length.
fn read_u16(head: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn read_u32(head: &[u8], at: usize) -> u32 {
    u32::from(read_u16(head, at)) | u32::from(read_u16(head, at + 2)) << 16
}

fn read_u64(head: &[u8], at: usize) -> u64 {
    u64::from(read_u32(head, at)) | u64::from(read_u32(head, at + 4)) << 32
}
