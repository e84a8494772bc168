//! Figures, in ticks of the processor's counter and microseconds. Nothing here passes or fails by
//! its speed.
//!
//! The lines `begin` and `end` around the work are for whoever measures the VMM from outside; the
//! pause after `begin` is their time to read counters.

use crate::memory;
use crate::report::{Outcome, ensure, ensure_eq, println};
use crate::virtio::Part;
use crate::virtio::blk::{Blk, HEADER, S_OK, T_IN, T_OUT, fill_header};
use crate::virtio::net::{HEADER as NET_HEADER, Net};
use crate::{clock, io, start};

const BLOCK: usize = 4096;
/// A busy host may hold back a write for seconds.
const PATIENCE_MS: u64 = 60_000;

/// `count=` on the command line, or a default.
fn count(default: u64) -> u64 {
    start::option("count").and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Does the work, says so outside, and returns the ticks that it took.
fn measured(work: impl FnOnce() -> Outcome) -> Outcome<u64> {
    println!("  begin");
    clock::poll(50, || None::<()>);
    let began = clock::ticks();
    work()?;
    let ticks = clock::ticks() - began;
    println!("  end");
    Ok(ticks)
}

fn print(what: &str, count: u64, ticks: u64) {
    let per_ms = clock::ticks_per_ms();
    let each = ticks / count.max(1);
    println!(
        "  {what}: {count} in {} us, {} ns each, {each} ticks",
        ticks * 1000 / per_ms,
        each * 1_000_000 / per_ms
    );
}

/// A port that nobody claims: out to the VMM and back.
pub fn exit() -> Outcome {
    let count = count(10_000);
    let began = clock::ticks();
    for _ in 0..count {
        io::out8(0x80, 0);
    }
    print("exit", count, clock::ticks() - began);
    Ok(())
}

/// Transfers of 4 KiB, one at a time and many at once: reads, or with `op=write` writes of zeroes.
/// `depth=` asks for one number in flight alone.
pub fn blk() -> Outcome {
    let total = count(2000);
    let kind = if start::option("op") == Some("write") { T_OUT } else { T_IN };
    let only = start::option("depth").and_then(|text| text.parse::<usize>().ok());
    for depth in [1, 32] {
        if only.is_some_and(|only| only != depth) {
            continue;
        }
        memory::release_all();
        let mut blk = Blk::start(0)?;
        let blocks = blk.capacity / 8;
        ensure!(blocks > 0, "the disk is too small");
        let slots = depth.min(usize::from(blk.queue.size) / 3);
        let (headers, statuses) = (memory::allocate(slots * HEADER), memory::allocate(slots));
        let data = memory::allocate(slots * BLOCK);
        let (mut done, mut kicks) = (0, 0);
        let ticks = measured(|| {
            while done < total {
                for slot in 0..slots {
                    let header = headers.part(slot * HEADER, HEADER);
                    // A stride that visits all of the disk in no order.
                    fill_header(header, kind, (done + slot as u64).wrapping_mul(7919) % blocks * 8);
                    let block = data.part(slot * BLOCK, BLOCK);
                    let head = blk.queue.chain(&[
                        Part::out(header),
                        if kind == T_OUT { Part::out(block) } else { Part::to_fill(block) },
                        Part::to_fill(statuses.part(slot, 1)),
                    ]);
                    blk.queue.offer(head);
                }
                blk.queue.publish();
                kicks += u64::from(blk.queue.kick_if_wanted());
                for _ in 0..slots {
                    blk.queue.wait_used(PATIENCE_MS)?;
                }
                ensure_eq!(statuses.bytes()[0], S_OK, "status");
                done += slots as u64;
            }
            Ok(())
        })?;
        let what = match (kind, depth) {
            (T_OUT, 1) => "4 KiB writes, one at a time",
            (T_OUT, _) => "4 KiB writes, 32 at once",
            (_, 1) => "4 KiB reads, one at a time",
            _ => "4 KiB reads, 32 at once",
        };
        print(what, done, ticks);
        println!("  {kicks} doorbells");
    }
    Ok(())
}

/// Frames of 1514 bytes in batches of 32, to nobody.
pub fn net() -> Outcome {
    const BATCH: usize = 32;
    const FRAME: usize = 1514;
    let total = count(8000);
    let mut net = Net::start(0)?;
    let frame = memory::allocate(NET_HEADER + FRAME);
    frame.write(NET_HEADER, &[2, 0, 0, 0, 0, 1]);
    frame.write(NET_HEADER + 6, &net.mac);
    frame.write(NET_HEADER + 12, &[0x88, 0xb5]); // for experiments
    let (mut done, mut kicks) = (0, 0);
    let ticks = measured(|| {
        while done < total {
            for _ in 0..BATCH {
                let head = net.tx.chain(&[Part::out(frame)]);
                net.tx.offer(head);
            }
            net.tx.publish();
            kicks += u64::from(net.tx.kick_if_wanted());
            for _ in 0..BATCH {
                net.tx.wait_used(PATIENCE_MS)?;
            }
            done += BATCH as u64;
        }
        Ok(())
    })?;
    print("1514-byte frames, batches of 32", done, ticks);
    println!("  {kicks} doorbells");
    Ok(())
}
