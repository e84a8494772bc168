//! Puts a Linux kernel, its initial RAM disk and what they need to know into guest memory, and tells
//! the state in which the first vCPU starts. No firmware runs in between.
//!
//! ```text
//!               ┌ bzImage ─▶ 64-bit boot protocol: zero page, long mode, RIP = kernel + 0x200
//!  kernel file ─┤
//!               └ ELF ─────▶ PVH: hvm_start_info, 32-bit protected mode, RIP from an ELF note
//!
//!  0x6000 start info · 0x7000 zero page · 0x9000 page tables · 0x20000 command line
//!  1 MiB … kernel with the room it wants … initrd as high as the kernel allows … end of low RAM
//! ```
//!
//! Kernel and initrd come out of a tenant's disk, so every field is checked before use and no
//! length is trusted. What a broken kernel then does inside its machine is its own affair.
//!
//! Guest memory must be all zeroes before [`load`]: uninitialised data of an ELF is not written.

mod blob;
mod bzimage;
mod cpu_state;
mod elf;
mod initrd;

use std::io;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub use blob::Blob;
pub use cpu_state::{BootCpu, boot_cpu, boot_fpu, set_local_interrupts};

use crate::firmware::e820::{Entry, Kind};
use crate::layout;

const MIB: u64 = 1 << 20;

/// What to boot.
pub struct BootImage<'a> {
    /// bzImage, or ELF with a PVH note.
    pub kernel: Blob<'a>,
    /// Initial RAM disks; several are joined, and a later one overrides files of an earlier.
    pub initrds: &'a [Blob<'a>],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// The memory map to tell the kernel.
    pub e820: &'a [Entry],
    /// Address of the ACPI RSDP.
    pub rsdp: GuestAddress,
    /// Entropy for the kernel's random number generator. Used by the Linux protocol only (kernels
    /// from 6.0 on), and erased by the kernel.
    pub rng_seed: Option<[u8; 32]>,
}

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPoint {
    /// First instruction.
    pub rip: u64,
    /// State it expects.
    pub protocol: Protocol,
    /// Memory that the kernel claims, for logs.
    pub kernel: Range<u64>,
    /// The joined initial RAM disks, for logs.
    pub initrd: Option<Range<u64>>,
}

/// How a kernel wants to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux/x86 64-bit boot protocol: long mode, `boot_params` at [`layout::ZERO_PAGE`].
    Linux64,
    /// PVH: 32-bit protected mode, `hvm_start_info` at [`layout::PVH_START_INFO`].
    Pvh,
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file cannot be read.
    #[error("reading the kernel failed")]
    ReadKernel(#[source] io::Error),
    /// An initial RAM disk cannot be read.
    #[error("reading initrd {index} failed")]
    ReadInitrd {
        /// Its place in the list.
        index: usize,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "the kernel file is {found}; give a bzImage (vmlinuz) for x86-64 or an ELF with a PVH entry point"
    )]
    NotAKernel {
        /// What it looks like.
        found: &'static str,
    },
    /// The file is shorter than it says.
    #[error("the kernel file of {len} bytes ends inside its {part}")]
    Truncated {
        /// What is cut.
        part: &'static str,
        /// Length of the file.
        len: u64,
    },
    /// A field of the kernel's headers makes no sense.
    #[error("the kernel's header is malformed: {field} is {value:#x}")]
    BadHeader {
        /// Name of the field in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A kernel of a kind that cannot work here.
    #[error("the kernel cannot be booted: {reason}")]
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// Kernel and initrd need more memory than there is.
    #[error("{what} does not fit: the instance needs at least {needed_mib} MiB of memory below 3 GiB")]
    TooLittleMemory {
        /// Which part did not fit.
        what: &'static str,
        /// Memory size at which it would fit.
        needed_mib: u64,
    },
    /// The command line is longer than the kernel accepts.
    #[error("the kernel command line has {len} bytes, this kernel takes {max}")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// Most that fits.
        max: usize,
    },
    /// The command line has a zero byte in it.
    #[error("the kernel command line contains a zero byte")]
    CmdlineZero,
    /// Guest memory refused.
    #[error("writing the {what} to guest memory failed")]
    Write {
        /// What was written.
        what: &'static str,
        /// The refusal.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads everything and returns where to start. Guest memory must be zeroed.
pub fn load(mem: &GuestMemoryMmap, image: &BootImage<'_>) -> Result<EntryPoint, BootError> {
    if image.cmdline.contains('\0') {
        return Err(BootError::CmdlineZero);
    }
    let len = image.kernel.len().map_err(BootError::ReadKernel)?;
    let mut head = vec![0; len.min(HEAD_LEN) as usize];
    image.kernel.read_at(0, &mut head).map_err(BootError::ReadKernel)?;
    match identify(&head)? {
        Format::BzImage => bzimage::load(mem, image, &head, len),
        Format::Elf => elf::load(mem, image, &head, len),
    }
}

/// Bytes from the start of a kernel file that hold its first header.
const HEAD_LEN: u64 = 1024;

enum Format {
    BzImage,
    Elf,
}

fn identify(head: &[u8]) -> Result<Format, BootError> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let found = if at(bzimage::MAGIC_OFFSET, bzimage::MAGIC) {
        return Ok(Format::BzImage);
    } else if at(0, b"\x7fELF") {
        return Ok(Format::Elf);
    } else if at(0x38, b"ARM\x64") {
        "an arm64 image"
    } else if at(0x30, b"RISCV") {
        "a RISC-V image"
    } else if at(0, b"MZ") {
        "an EFI program without a Linux boot header (a unified kernel image?)"
    } else if at(0, b"\x1f\x8b") || at(0, b"\xfd7zXZ") || at(0, b"\x28\xb5\x2f\xfd") {
        "a compressed file"
    } else if at(0, b"070701") {
        "a cpio archive (an initrd?)"
    } else if head.is_empty() {
        "empty"
    } else {
        "of an unknown kind"
    };
    Err(BootError::NotAKernel { found })
}

/// Checks the command line against `max` bytes without the terminating zero and writes it.
fn write_cmdline(mem: &GuestMemoryMmap, cmdline: &str, max: usize) -> Result<(), BootError> {
    let max = max.min(layout::CMDLINE_MAX - 1);
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len(), max });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(mem, "kernel command line", &bytes, layout::CMDLINE_START)
}

fn write(mem: &GuestMemoryMmap, what: &'static str, bytes: &[u8], address: u64) -> Result<(), BootError> {
    mem.write_slice(bytes, GuestAddress(address)).map_err(|source| BootError::Write { what, source })
}

/// End of the RAM that begins at 1 MiB: kernel and initrd go below.
fn low_ram_end(e820: &[Entry]) -> u64 {
    e820.iter()
        .filter(|e| e.kind == Kind::Ram && e.address == layout::HIMEM_START)
        .map(Entry::end)
        .max()
        .unwrap_or(layout::HIMEM_START)
}

/// Refuses a range that is not within low RAM above 1 MiB.
fn check_in_low_ram(what: &'static str, range: &Range<u64>, e820: &[Entry]) -> Result<(), BootError> {
    if range.start < layout::HIMEM_START || range.end < range.start {
        return Err(BootError::BadHeader { field: "load address", value: range.start });
    }
    if range.end > low_ram_end(e820) {
        return Err(BootError::TooLittleMemory { what, needed_mib: range.end.div_ceil(MIB) });
    }
    Ok(())
}

/// What property tests and fuzzers share.
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
#[cfg(test)]
mod tests;
