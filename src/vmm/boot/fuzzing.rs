//! Kernels of any bytes.

use std::sync::OnceLock;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{Blob, BootImage, EntryPoint, MIB, boot_cpu, load};
use crate::firmware::e820;
use crate::layout;

/// Memory of the machine that the kernels are loaded into.
pub const RAM: u64 = 64 * MIB;
const INITRD: [u8; 5000] = [0x5a; 5000];

/// Loads `kernel` beside a small initrd. Panics when what was loaded is not within RAM, overlaps, or
/// starts outside of the kernel.
pub fn kernel(bytes: &[u8]) -> Option<EntryPoint> {
    // Not wiped between runs: what an earlier kernel left behind cannot matter.
    static MEMORY: OnceLock<GuestMemoryMmap> = OnceLock::new();
    let mem = MEMORY.get_or_init(|| {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("memory can be mapped")
    });
    let image = BootImage {
        kernel: Blob::Bytes(bytes),
        initrds: &[Blob::Bytes(&INITRD)],
        cmdline: "console=ttyS0",
        e820: &e820::map(RAM),
        rsdp: GuestAddress(layout::ACPI_START),
        rng_seed: Some([1; 32]),
    };
    let entry = load(mem, &image).ok()?;
    assert!(entry.kernel.start >= layout::HIMEM_START && entry.kernel.end <= RAM, "{entry:x?}");
    assert!(entry.kernel.contains(&entry.rip), "{entry:x?}");
    let initrd = entry.initrd.clone().expect("there is an initrd");
    assert!(initrd.start >= entry.kernel.end && initrd.end <= RAM, "{entry:x?}");
    assert_eq!(initrd.end - initrd.start, INITRD.len() as u64);
    boot_cpu(mem, &entry).expect("boot structures fit");
    Some(entry)
}
