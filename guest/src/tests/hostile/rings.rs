//! Queues and rings that make no sense.

use super::{Answer, answer, case};
use crate::io;
use crate::memory;
use crate::report::{Outcome, ensure, println};
use crate::virtio::blk::Blk;
use crate::virtio::{BLK, Transport, common, status};

/// Sets one register of queue 0 to `value`, then starts the device.
fn start_with(field: u64, value: u64) -> Outcome<u8> {
    memory::release_all();
    let transport = Transport::find(BLK, 0)?;
    transport.negotiate(0)?;
    transport.select(0);
    let rings = memory::allocate(0x4000);
    io::write16(transport.common + common::QUEUE_SIZE, 16);
    transport.set_address(common::QUEUE_DESC, rings.address);
    transport.set_address(common::QUEUE_DRIVER, rings.address + 0x1000);
    transport.set_address(common::QUEUE_DEVICE, rings.address + 0x2000);
    if field == common::QUEUE_SIZE {
        io::write16(transport.common + field, value as u16);
    } else {
        transport.set_address(field, value);
    }
    io::write16(transport.common + common::QUEUE_ENABLE, 1);
    transport.set_status(transport.status() | status::DRIVER_OK);
    // A doorbell of a queue that did not start.
    io::write16(transport.notify, 0);
    Ok(transport.status())
}

/// Sizes and addresses that no queue can have: the device refuses or says NEEDS_RESET.
pub fn queue_setups() -> Outcome {
    // Sizes that the register may simply not take are of no consequence.
    for size in [0, 3, 17, 0x4000, 0x8000, 0xffff] {
        let status = start_with(common::QUEUE_SIZE, size)?;
        println!("  size {size:#x}: status {status:#x}");
    }
    for (what, field, address) in [
        ("descriptors past RAM", common::QUEUE_DESC, 0x0000_7fff_0000_0000),
        ("descriptors at the end of all", common::QUEUE_DESC, 0xffff_ffff_ffff_fff0),
        ("descriptors in a BAR window", common::QUEUE_DESC, 0xc000_0000),
        ("descriptors unaligned", common::QUEUE_DESC, 0x100_0008),
        ("available ring past RAM", common::QUEUE_DRIVER, 0x0000_7fff_0000_0000),
        ("available ring at the end of all", common::QUEUE_DRIVER, 0xffff_ffff_ffff_fffe),
        ("available ring unaligned", common::QUEUE_DRIVER, 0x100_0001),
        ("used ring past RAM", common::QUEUE_DEVICE, 0x0000_7fff_0000_0000),
        ("used ring at the end of all", common::QUEUE_DEVICE, 0xffff_ffff_ffff_fffc),
        ("used ring over the local APIC", common::QUEUE_DEVICE, 0xfee0_0000),
        ("used ring unaligned", common::QUEUE_DEVICE, 0x100_0002),
    ] {
        let status = start_with(field, address)?;
        ensure!(status & status::NEEDS_RESET != 0, "{what}: status {status:#x}");
        super::aftermath(what)?;
    }
    // No queue at all.
    let transport = Transport::find(BLK, 0)?;
    transport.negotiate(0)?;
    transport.set_status(transport.status() | status::DRIVER_OK);
    let status = transport.status();
    ensure!(status & status::NEEDS_RESET != 0, "no queue: status {status:#x}");
    super::aftermath("no queue")
}

/// Rings whose contents contradict themselves.
pub fn ring_contents() -> Outcome {
    let size = |blk: &Blk| blk.queue.size;
    case("head past the table", |blk| {
        let head = size(blk);
        blk.queue.offer(head);
        show(blk)
    })?;
    case("head 0xffff", |blk| {
        blk.queue.offer(0xffff);
        show(blk)
    })?;
    case("index one round ahead and one", |blk| {
        let idx = size(blk) + 1;
        blk.queue.set_avail_idx(idx);
        kick(blk)
    })?;
    case("index far ahead", |blk| {
        blk.queue.set_avail_idx(0x8000);
        kick(blk)
    })?;
    case("index behind", |blk| {
        blk.queue.set_avail_idx(0xffff);
        kick(blk)
    })?;
    case("rings on top of each other", |blk| {
        let t = blk.transport;
        t.negotiate(0)?;
        t.select(0);
        let page = memory::allocate(0x2000).address;
        io::write16(t.common + common::QUEUE_SIZE, 64);
        t.set_address(common::QUEUE_DESC, page);
        t.set_address(common::QUEUE_DRIVER, page);
        t.set_address(common::QUEUE_DEVICE, page);
        io::write16(t.common + common::QUEUE_ENABLE, 1);
        t.go()?;
        // flags and index of both rings, and a descriptor that is its own ring.
        io::write32(page, 0x0010_0000);
        io::write16(t.notify, 0);
        // Whatever the device makes of it, it makes something, or nothing is there to be made.
        let settled = crate::clock::poll(200, || t.needs_reset().then_some(()));
        println!(
            "  (status {:#x}, {})",
            t.status(),
            if settled.is_some() { "refused" } else { "carried on" }
        );
        Ok(Answer::NeedsReset)
    })
}

fn show(blk: &mut Blk) -> Outcome<Answer> {
    blk.queue.publish();
    kick(blk)
}

fn kick(blk: &mut Blk) -> Outcome<Answer> {
    blk.queue.kick();
    answer(&blk.transport, &mut blk.queue)
}

/// Doorbells with nothing behind them, many of them, and of every width.
pub fn doorbells() -> Outcome {
    const MANY: u64 = 2000;
    let blk = Blk::start(0)?;
    let transport = blk.transport;
    for _ in 0..MANY {
        io::write16(transport.notify, 0);
    }
    for offset in (0..0x400).chain([0xffc, 0xfff]) {
        let at = transport.notify + offset;
        io::write8(at, 0);
        io::write16(at, 0xffff);
        io::write32(at, 0xffff_ffff);
        io::write64(at, 1);
        let _ = (io::read8(at), io::read32(at));
    }
    ensure!(!transport.needs_reset(), "a doorbell alone broke the device");
    super::aftermath("doorbells")?;
    // And while the device is not running.
    transport.reset()?;
    for queue in 0..8 {
        io::write16(transport.notify + 4 * queue, queue as u16);
    }
    super::aftermath("doorbells after reset")
}
