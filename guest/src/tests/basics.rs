//! The machine without its virtio devices, and the simplest of these.

use crate::report::{Outcome, ensure, ensure_eq, println};
use crate::virtio::{self, Part, Transport};
use crate::{clock, io, memory, start};

const RAM: u32 = 1;

/// Gets here at all.
pub fn hello() -> Outcome {
    ensure!(start::is_valid(), "start info has no magic");
    Ok(())
}

/// The memory map ascends, and its RAM holds what is written, at both ends of each range.
pub fn memory() -> Outcome {
    let mut end = 0;
    let mut total = 0;
    for range in start::memory_map() {
        println!("  {:#x}..{:#x} type {}", range.address, range.address + range.size, range.kind);
        ensure!(range.address >= end && range.size > 0, "the map does not ascend at {:#x}", range.address);
        end = range.address + range.size;
        if range.kind != RAM {
            continue;
        }
        total += range.size;
        // Low ends hold this program, and what is past 4 GiB is not mapped.
        if (64 << 20..1 << 32).contains(&end) {
            for address in [range.address.max(memory::END), end - 8] {
                io::write64(address, !address);
                ensure_eq!(io::read64(address), !address, "RAM at {address:#x}");
            }
        }
    }
    ensure!(total >= 60 << 20, "{total} bytes of RAM");
    for module in start::modules() {
        println!("  initrd {:#x}, {} bytes", module.address, module.size);
        ensure!(module.address + module.size <= end, "the initrd lies outside of RAM");
    }
    Ok(())
}

/// Ports that nobody claims read as all ones, at any width, also at the end of the port space.
pub fn unclaimed_ports() -> Outcome {
    for port in [0x80, 0x2ff, 0x9999, 0xfffe] {
        ensure_eq!(io::in8(port), 0xff, "port {port:#x}");
        ensure_eq!(io::in16(port), 0xffff, "port {port:#x}");
        io::out8(port, 0x55);
        io::out16(port, 0x5555);
    }
    for port in [0x9999, 0xfffc] {
        ensure_eq!(io::in32(port), 0xffff_ffff, "port {port:#x}");
        io::out32(port, 0x5555_5555);
    }
    Ok(())
}

/// So does memory in the holes of the map.
pub fn unclaimed_memory() -> Outcome {
    for address in [0xcfff_f000_u64, 0xdfff_fff8, 0xe010_0000, 0xfec1_0000, 0xffff_f000] {
        io::write64(address, 0);
        io::write8(address + 1, 0);
        ensure_eq!(io::read64(address), u64::MAX, "address {address:#x}");
        ensure_eq!(io::read16(address + 3), 0xffff, "address {:#x}", address + 3);
        ensure_eq!(io::read8(address + 7), 0xff, "address {:#x}", address + 7);
    }
    Ok(())
}

/// The serial port survives accesses of every width at every offset, and still prints.
pub fn serial_odd() -> Outcome {
    const PORT: u16 = 0x3f8;
    let scratch = PORT + 7;
    io::out8(scratch, 0xa5);
    ensure_eq!(io::in8(scratch), 0xa5, "scratch register");
    // Not the data register and not the divisor latch, which would print or garble.
    for offset in 1..8 {
        let _ = (io::in8(PORT + offset), io::in16(PORT + offset), io::in32(PORT + offset));
    }
    for offset in [5, 6] {
        io::out16(PORT + offset, 0);
        io::out32(PORT + offset, 0);
    }
    println!("  still here");
    Ok(())
}

/// The clock ticks, is no update in progress for ever, and holds a date.
pub fn rtc() -> Outcome {
    let read = |register| {
        io::out8(0x70, register);
        io::in8(0x71)
    };
    ensure!(read(0x0a) != 0xff, "no clock answers");
    let idle = clock::poll(2000, || (read(0x0a) & 0x80 == 0).then_some(()));
    ensure!(idle.is_some(), "the clock is updating all the time");
    let [seconds, minutes, hours, day, month, year] = [0, 2, 4, 7, 8, 9].map(read);
    println!(
        "  20{year:02x}-{month:02x}-{day:02x} {hours:02x}:{minutes:02x}:{seconds:02x}, mode {:#x}",
        read(0x0b)
    );
    ensure!(day != 0 && month != 0 && month <= 0x12, "the date is no date");
    for register in 0..=255 {
        let _ = read(register);
    }
    let _ = (io::in16(0x70), io::in32(0x70), io::in16(0x71));
    Ok(())
}

/// The entropy device gives bytes, and not the same twice.
pub fn rng() -> Outcome {
    let transport = Transport::find(virtio::RNG, 0)?;
    let features = transport.negotiate(0)?;
    let mut queue = transport.enable(0, 8, features)?;
    transport.go()?;
    let buffer = memory::allocate(64);
    let mut draw = |to: memory::Buffer| -> Outcome {
        let mut filled = 0;
        while filled < to.len {
            let rest = to.part(filled, to.len - filled);
            queue.submit(&[Part::to_fill(rest)]);
            let used = queue.wait_used(5000)?;
            ensure!(used.len > 0 && used.len as usize <= rest.len, "{} bytes were given", used.len);
            filled += used.len as usize;
        }
        Ok(())
    };
    draw(buffer.part(0, 32))?;
    draw(buffer.part(32, 32))?;
    let (first, second) = buffer.bytes().split_at(32);
    ensure!(first != second, "the same bytes twice");
    ensure!(first != [0; 32] && second != [0; 32], "only zeroes");
    Ok(())
}
