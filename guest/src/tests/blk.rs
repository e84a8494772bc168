//! The first block device, by the rules. Sectors that are written are restored.

use crate::memory::{self, Buffer};
use crate::report::{Outcome, ensure, ensure_eq, println};
use crate::virtio::blk::{
    Blk, F_FLUSH, HEADER, S_IOERR, S_OK, S_UNSUPP, SECTOR, STATUS_UNTOUCHED, T_FLUSH, T_GET_ID, T_IN, T_OUT,
    fill_header,
};
use crate::virtio::{F_INDIRECT, F_INDIRECT_DESC, F_NEXT, Part, Queue, write_desc};

/// Sectors of one transfer.
const RUN: usize = 16;

/// Bytes that tell sector and generation.
fn pattern(buffer: Buffer, seed: u8) {
    for at in (0..buffer.len).step_by(8) {
        buffer.write(at, &((at as u64) << 8 | u64::from(seed)).to_le_bytes());
    }
}

/// Writes, reads back, and restores, at both ends of the disk.
pub fn read_write() -> Outcome {
    let mut blk = Blk::start(0)?;
    println!("  {} sectors, features {:#x}", blk.capacity, blk.features);
    ensure!(blk.capacity >= 2 * RUN as u64, "the disk has {} sectors", blk.capacity);
    if blk.is_read_only() {
        println!("  read-only: writes are not tried");
        return Ok(());
    }
    let (saved, written, found) =
        (memory::allocate(RUN * SECTOR), memory::allocate(RUN * SECTOR), memory::allocate(RUN * SECTOR));
    for (seed, sector) in [(1, 0), (2, blk.capacity / 2), (3, blk.capacity - RUN as u64)] {
        pattern(written, seed);
        ensure_eq!(blk.request(T_IN, sector, Some(saved))?, S_OK, "reading sector {sector}");
        ensure_eq!(blk.request(T_OUT, sector, Some(written))?, S_OK, "writing sector {sector}");
        if blk.features & F_FLUSH != 0 {
            ensure_eq!(blk.request(T_FLUSH, 0, None)?, S_OK, "flushing");
        }
        ensure_eq!(blk.request(T_IN, sector, Some(found))?, S_OK, "reading sector {sector} again");
        ensure!(found.bytes() == written.bytes(), "sector {sector} holds something else");
        ensure_eq!(blk.request(T_OUT, sector, Some(saved))?, S_OK, "restoring sector {sector}");
    }
    Ok(())
}

/// Requests that cannot be carried out get the status that the specification says.
pub fn errors() -> Outcome {
    let mut blk = Blk::start(0)?;
    let (one, two) = (memory::allocate(SECTOR), memory::allocate(2 * SECTOR));
    let last = blk.capacity - 1;
    ensure_eq!(blk.request(T_IN, last, Some(one))?, S_OK, "the last sector");
    for (what, kind, sector, buffer, wanted) in [
        ("past the end", T_IN, blk.capacity, one, S_IOERR),
        ("across the end", T_IN, last, two, S_IOERR),
        ("write past the end", T_OUT, blk.capacity, one, S_IOERR),
        ("sector that overflows bytes", T_IN, u64::MAX / 256, one, S_IOERR),
        ("last possible sector", T_OUT, u64::MAX, one, S_IOERR),
        ("part of a sector", T_IN, 0, memory::allocate(SECTOR - 1), S_IOERR),
        ("unknown request", 0x55, 0, one, S_UNSUPP),
        ("unknown request with all bits", u32::MAX, 0, one, S_UNSUPP),
    ] {
        let status = blk.request(kind, sector, Some(buffer))?;
        ensure_eq!(status, wanted, "status of {what}");
    }
    ensure_eq!(blk.request(T_IN, 0, Some(two))?, S_OK, "a good request after all that");
    Ok(())
}

/// The serial number.
pub fn id() -> Outcome {
    let mut blk = Blk::start(0)?;
    let text = memory::allocate(20);
    ensure_eq!(blk.request(T_GET_ID, 0, Some(text))?, S_OK, "status");
    let end = text.bytes().iter().position(|b| *b == 0).unwrap_or(20);
    println!("  id {:?}", core::str::from_utf8(&text.bytes()[..end]));
    Ok(())
}

/// The whole queue in flight at once, several rounds: every request comes back once, with its data.
pub fn depth() -> Outcome {
    const ROUNDS: usize = 8;
    let mut blk = Blk::start_with(0, u64::MAX, 128)?;
    let depth = usize::from(blk.queue.size) / 3;
    let (headers, statuses) = (memory::allocate(depth * HEADER), memory::allocate(depth));
    let data = memory::allocate(depth * SECTOR);
    let expected = memory::allocate(SECTOR * depth);
    ensure_eq!(blk.request(T_IN, 0, Some(expected))?, S_OK, "reading at once");
    for round in 0..ROUNDS {
        statuses.fill(STATUS_UNTOUCHED);
        data.fill(0x77);
        let mut heads = [u16::MAX; 128];
        for (n, slot) in heads.iter_mut().take(depth).enumerate() {
            let header = headers.part(n * HEADER, HEADER);
            fill_header(header, T_IN, n as u64);
            let head = blk.queue.chain(&[
                Part::out(header),
                Part::to_fill(data.part(n * SECTOR, SECTOR)),
                Part::to_fill(statuses.part(n, 1)),
            ]);
            *slot = head;
            blk.queue.offer(head);
        }
        blk.queue.publish();
        blk.queue.kick_if_wanted();
        for _ in 0..depth {
            let used = blk.queue.wait_used(5000)?;
            ensure_eq!(used.len, SECTOR as u32 + 1, "bytes written in round {round}");
            let Some(slot) = heads.iter_mut().find(|head| u32::from(**head) == used.id) else {
                crate::report::fail!("head {} came back twice or was never given", used.id);
            };
            *slot = u16::MAX;
        }
        ensure!(statuses.bytes().iter().all(|s| *s == S_OK), "a status in round {round}");
        ensure!(data.bytes() == expected.bytes(), "data in round {round}");
    }
    Ok(())
}

/// Writes an indirect table for a chain and gives it to the device.
pub fn submit_indirect(queue: &mut Queue, table: Buffer, parts: &[Part]) {
    for (n, part) in parts.iter().enumerate() {
        let last = n + 1 == parts.len();
        let flags = part.flags | if last { 0 } else { F_NEXT };
        write_desc(table.address + 16 * n as u64, Part { flags, ..*part }, n as u16 + 1);
    }
    let table = table.part(0, 16 * parts.len());
    queue.submit(&[Part { flags: F_INDIRECT, ..Part::out(table) }]);
}

/// A request of many pieces in a table of its own.
pub fn indirect() -> Outcome {
    const PIECES: usize = 32;
    let mut blk = Blk::start(0)?;
    if blk.features & F_INDIRECT_DESC == 0 {
        println!("  not offered");
        return Ok(());
    }
    let expected = memory::allocate(PIECES * SECTOR);
    ensure_eq!(blk.request(T_IN, 0, Some(expected))?, S_OK, "reading at once");
    let (header, status, data) =
        (memory::allocate(HEADER), memory::allocate(1), memory::allocate(PIECES * SECTOR));
    // An odd address: tables have no alignment (virtio 1.2 §2.7.5.3).
    let table = memory::allocate(16 * (PIECES + 2) + 1).part(1, 16 * (PIECES + 2));
    fill_header(header, T_IN, 0);
    status.fill(STATUS_UNTOUCHED);
    let mut parts = [Part::out(header); PIECES + 2];
    for n in 0..PIECES {
        parts[n + 1] = Part::to_fill(data.part(n * SECTOR, SECTOR));
    }
    parts[PIECES + 1] = Part::to_fill(status);
    submit_indirect(&mut blk.queue, table, &parts);
    ensure_eq!(blk.queue.wait_used(5000)?.len, data.len as u32 + 1, "bytes written");
    ensure_eq!(status.bytes()[0], S_OK, "status");
    ensure!(data.bytes() == expected.bytes(), "the pieces hold something else");
    Ok(())
}

/// Reset while requests are in flight: nothing is written afterwards, and the device starts again.
pub fn reset_in_flight() -> Outcome {
    for _ in 0..4 {
        memory::release_all();
        let mut blk = Blk::start(0)?;
        let data = memory::allocate(64 * SECTOR);
        let (header, status) = (memory::allocate(HEADER), memory::allocate(1));
        fill_header(header, T_IN, 0);
        for n in 0..16 {
            let piece = data.part(n * 4 * SECTOR, 4 * SECTOR);
            let head = blk.queue.chain(&[Part::out(header), Part::to_fill(piece), Part::to_fill(status)]);
            blk.queue.offer(head);
        }
        blk.queue.publish();
        blk.queue.kick();
        blk.transport.reset()?;
        data.fill(0x99);
        let mut again = Blk::start(0)?;
        let sector = memory::allocate(SECTOR);
        ensure_eq!(again.request(T_IN, 0, Some(sector))?, S_OK, "after the reset");
        ensure!(data.bytes().iter().all(|b| *b == 0x99), "a buffer changed after the reset");
        again.transport.reset()?;
    }
    Ok(())
}

/// Writes until the host has no room left. That is an error of the one request: what was written before is
/// there, and the device goes on.
pub fn fill() -> Outcome {
    let mut blk = Blk::start(0)?;
    let (data, found) = (memory::allocate(128 * SECTOR), memory::allocate(128 * SECTOR));
    let step = (data.len / SECTOR) as u64;
    pattern(data, 5);
    let mut sector = 0;
    let status = loop {
        ensure!(sector + step <= blk.capacity, "the host had room for all {} sectors", blk.capacity);
        match blk.request(T_OUT, sector, Some(data))? {
            S_OK => sector += step,
            status => break status,
        }
    };
    ensure_eq!(status, S_IOERR, "status of the write without room");
    ensure!(sector > 0, "there was no room from the start");
    ensure_eq!(blk.request(T_IN, 0, Some(found))?, S_OK, "reading what was written");
    ensure!(found.bytes() == data.bytes(), "it holds something else");
    println!("  no room from sector {sector}");
    Ok(())
}
