//! Configuration space, BARs and MSI-X, with accesses of every shape.

use crate::io;
use crate::pci::{Function, functions};
use crate::report::{Outcome, ensure, ensure_eq, fail, println};
use crate::virtio::{self, Transport, common};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const CAP_MSIX: u8 = 0x11;
const VENDOR_VIRTIO: u16 = 0x1af4;

/// Lists the functions on the bus.
pub fn list() -> Outcome {
    for f in functions() {
        let (vendor, device) = f.id();
        println!("  {:02x}.{} {vendor:04x}:{device:04x} class {:06x}", f.device, f.function, f.class());
    }
    Ok(())
}

fn first_virtio() -> Outcome<Function> {
    let Some(function) = functions().find(|f| f.id().0 == VENDOR_VIRTIO) else { fail!("no virtio device") };
    Ok(function)
}

/// Narrow and unaligned accesses to the two ports agree with whole ones; what does not exist reads
/// as all ones.
pub fn odd_accesses() -> Outcome {
    let f = first_virtio()?;
    let whole = f.read32(0);
    for n in 0..4 {
        ensure_eq!(f.read8(n), whole.to_le_bytes()[usize::from(n)], "byte {n}");
    }
    ensure_eq!(u32::from(f.read16(0)) | u32::from(f.read16(2)) << 16, whole, "words");
    // Across the end of the data port.
    let _ = (io::in16(DATA + 3), io::in32(DATA + 1), io::in32(DATA + 3));
    io::out16(DATA + 3, 0xffff);
    io::out32(DATA + 2, 0xffff_ffff);
    // Narrow writes do not reach the address port.
    let selected = 0x8000_0000 | u32::from(f.device) << 11;
    io::out32(ADDRESS, selected);
    io::out8(ADDRESS + 1, 0x5a);
    io::out16(ADDRESS, 0x5a5a);
    ensure_eq!(io::in32(ADDRESS), selected, "address port after narrow writes");
    ensure_eq!(f.read32(0), whole, "identity after narrow writes");

    let enable_off = u32::from(f.device) << 11;
    io::out32(ADDRESS, enable_off);
    ensure_eq!(io::in32(DATA), 0xffff_ffff, "data port without the enable bit");
    io::out32(DATA, 0);
    for missing in [0x8001_0000_u32, 0x80ff_ff00, 0x8000_f000, 0x8000_0700 | u32::from(f.device) << 11] {
        io::out32(ADDRESS, missing);
        ensure_eq!(io::in32(DATA), 0xffff_ffff, "function at {missing:#x}");
        io::out32(DATA, 0xffff_ffff);
    }
    // Read-only registers stay.
    f.write32(0, 0xffff_ffff);
    f.write32(8, 0);
    ensure_eq!(f.read32(0), whole, "identity after being written");
    Ok(())
}

/// Configuration space in memory shows the same, at every width, and ends cleanly.
pub fn ecam() -> Outcome {
    for f in functions() {
        for offset in (0..64).step_by(4) {
            let address = f.ecam(offset);
            let whole = f.read32(offset as u8);
            ensure_eq!(io::read32(address), whole, "{:02x}.{} at {offset:#x}", f.device, f.function);
            ensure_eq!(u32::from(io::read8(address + 3)), whole >> 24, "byte at {:#x}", offset + 3);
            ensure_eq!(u32::from(io::read16(address + 2)), whole >> 16, "word at {:#x}", offset + 2);
            let _ = (io::read64(address), io::read32(address + 1), io::read16(address + 3));
        }
        let _ = (io::read32(f.ecam(0xffc)), io::read64(f.ecam(0xffc)), io::read32(f.ecam(0xfff)));
    }
    let missing = Function { device: 31, function: 7 };
    if missing.read16(0) == 0xffff {
        ensure_eq!(io::read32(missing.ecam(0)), 0xffff_ffff, "a function that does not exist");
        io::write32(missing.ecam(4), 0xffff_ffff);
        ensure_eq!(io::read8(missing.ecam(0xfff)), 0xff, "the last byte of bus 0");
    }
    Ok(())
}

/// BARs tell their size, move, and answer only while decoding is on.
pub fn bars() -> Outcome {
    let mut transport = Transport::find(virtio::BLK, 0)?;
    let f = transport.function;
    let queues = transport.queues();
    ensure!(queues != 0 && queues != 0xffff, "{queues} queues before anything moved");
    f.set_memory_decoding(false);
    let bar = (0..6).find(|bar| f.bar_size(*bar) != 0).unwrap_or(0);
    let size = f.bar_size(bar);
    ensure!(size.is_power_of_two() && size >= 0x1000, "BAR {bar} has {size:#x} bytes");
    ensure_eq!(io::read16(transport.common + common::NUM_QUEUES), 0xffff, "the BAR with decoding off");
    f.set_memory_decoding(true);
    ensure_eq!(transport.queues(), queues, "queues with decoding on again");

    let old = transport.common;
    f.move_bar(bar);
    transport = Transport::of(f)?;
    ensure!(transport.common != old, "the BAR did not move");
    ensure_eq!(transport.queues(), queues, "queues at the new place");
    ensure_eq!(io::read16(old + common::NUM_QUEUES), 0xffff, "the old place");
    // Into RAM, over the local APIC, to the end of the address space: whatever comes of it.
    for address in [0x10_0000_u32, 0xfee0_0000, 0xe000_0000, 0xffff_f000, 0] {
        f.set_memory_decoding(false);
        f.write32(0x10 + bar * 4, address);
        f.set_memory_decoding(true);
    }
    f.move_bar(bar);
    ensure_eq!(Transport::of(f)?.queues(), queues, "queues after impossible places");
    Ok(())
}

/// Capability lists end, and lie in the upper part of the standard header.
pub fn capabilities() -> Outcome {
    for f in functions().filter(|f| f.id().0 == VENDOR_VIRTIO) {
        let count = (0..=255).map(|id| f.capabilities(id).count()).sum::<usize>();
        ensure!((4..40).contains(&count), "{:02x}.{} has {count} capabilities", f.device, f.function);
        ensure_eq!(f.capabilities(CAP_MSIX).count(), 1, "MSI-X capabilities");
        ensure_eq!(f.read8(0x3d), 0, "interrupt pin");
        // The window into BARs, pointed outside of them.
        for cap in f.capabilities(9).filter(|cap| f.read8(cap + 3) == 5) {
            for (bar, offset, len) in
                [(0, 0xffff_fffc_u32, 4_u32), (7, 0, 4), (255, 0, 4), (0, 0, 0xffff), (0, 1, 4)]
            {
                f.write8(cap + 4, bar);
                f.write32(cap + 8, offset);
                f.write32(cap + 12, len);
                let _ = (f.read32(cap + 16), f.read8(cap + 17), f.read16(cap + 18));
                f.write32(cap + 16, 0xffff_ffff);
                f.write8(cap + 19, 0xff);
            }
        }
    }
    Ok(())
}

/// MSI-X tables take only what exists, in pieces of any size.
pub fn msix_odd() -> Outcome {
    let transport = Transport::find(virtio::BLK, 0)?;
    let f = transport.function;
    let Some(cap) = f.capabilities(CAP_MSIX).next() else { fail!("no MSI-X capability") };
    let entries = (f.read16(cap + 2) & 0x7ff) + 1;
    let place = |at: u8| -> Outcome<u64> {
        let pointer = f.read32(cap + at);
        let Some(base) = f.bar((pointer & 7) as u8) else { fail!("no BAR {}", pointer & 7) };
        Ok(base + u64::from(pointer & !7))
    };
    let (table, pending) = (place(4)?, place(8)?);
    for n in 0..u64::from(entries) {
        ensure_eq!(io::read32(table + n * 16 + 12) & 1, 1, "mask of vector {n} after reset");
    }
    // Enable with everything masked, then bytes, words and whole entries.
    f.write16(cap + 2, 0x8000);
    for n in 0..u64::from(entries) {
        let entry = table + n * 16;
        io::write64(entry, 0xfee0_0000);
        io::write32(entry + 8, 0x41);
        ensure_eq!(io::read64(entry), 0xfee0_0000, "address of vector {n}");
        io::write8(entry + 12, 1);
        io::write16(entry + 14, 0xffff);
        io::write32(entry + 1, 0xffff_ffff);
        let _ = (io::read8(entry + 3), io::read16(entry + 7), io::read64(entry + 4), io::read32(entry + 13));
        io::write32(entry + 12, 1);
    }
    // Past the end of table and pending bits.
    for past in [u64::from(entries) * 16, 0xff0, 0xffc] {
        io::write64(table + past, u64::MAX);
        let _ = (io::read32(table + past), io::read64(table + past));
    }
    for at in [0, 1, 4, 8, 0x800, 0xffc] {
        io::write32(pending + at, 0xffff_ffff);
        let _ = (io::read8(pending + at), io::read64(pending + at));
    }
    f.write32(cap, 0xffff_ffff);
    f.write8(cap + 3, 0x40);
    f.write16(cap + 2, 0);
    // Vectors that do not exist become "none" (virtio 1.2 §4.1.5.1.2.1).
    let base = transport.common;
    for (register, queue) in
        [(common::CONFIG_MSIX_VECTOR, 0), (common::QUEUE_MSIX_VECTOR, 0), (common::QUEUE_MSIX_VECTOR, 0xffff)]
    {
        transport.select(queue);
        for vector in [entries, 0x7ff, 0xfffe] {
            io::write16(base + register, vector);
            ensure_eq!(io::read16(base + register), 0xffff, "vector {vector:#x} in register {register:#x}");
        }
    }
    io::write16(base + common::CONFIG_MSIX_VECTOR, 0);
    ensure_eq!(io::read16(base + common::CONFIG_MSIX_VECTOR), 0, "vector 0");
    transport.reset()
}
