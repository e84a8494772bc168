//! The common configuration, misused.

use super::queue_registers;
use crate::io;
use crate::memory;
use crate::report::{Outcome, ensure, ensure_eq};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN};
use crate::virtio::{BLK, F_VERSION_1, Transport, common, status};

const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

/// Status bits out of order do not start the device.
pub fn status_order() -> Outcome {
    let transport = Transport::find(BLK, 0)?;
    for (what, sequence) in [
        ("DRIVER_OK alone", &[status::DRIVER_OK][..]),
        ("DRIVER_OK before FEATURES_OK", &[1, 3, 7]),
        ("FEATURES_OK before DRIVER", &[1, 9, 13]),
        ("everything at once", &[0xff]),
    ] {
        transport.reset()?;
        sequence.iter().for_each(|value| transport.set_status(*value));
        let found = transport.status();
        let running = READY | status::DRIVER_OK;
        ensure!(found & running != running || found & status::NEEDS_RESET != 0, "{what}: status {found:#x}");
    }
    transport.reset()?;
    // Taking back a bit is no way to reset.
    transport.set_status(3);
    transport.set_status(1);
    io::write16(transport.common + common::DEVICE_STATUS, 0xffff);
    io::write32(transport.common + common::DEVICE_STATUS, 0xffff_ffff);
    transport.reset()?;
    super::aftermath("status order")
}

/// Features that are not on offer, none at all, or changed late.
pub fn features() -> Outcome {
    let transport = Transport::find(BLK, 0)?;
    let offered = transport.offered();
    for (what, features) in [
        ("no VERSION_1", offered & !F_VERSION_1),
        ("none", 0),
        ("all bits", u64::MAX),
        ("one that is not offered", F_VERSION_1 | 1 << 63),
    ] {
        transport.reset()?;
        transport.set_status(1);
        transport.set_status(3);
        transport.accept(features);
        transport.set_status(READY);
        // 64 bits are shown through a window of 32: what is beyond cannot be offered or refused.
        ensure_eq!(transport.status() & status::FEATURES_OK, 0, "FEATURES_OK with {what}");
    }
    for select in [2, 3, 0xffff_ffff] {
        io::write32(transport.common + common::DEVICE_FEATURE_SELECT, select);
        ensure_eq!(io::read32(transport.common + common::DEVICE_FEATURE), 0, "features {select:#x}");
        io::write32(transport.common + common::DRIVER_FEATURE_SELECT, select);
        io::write32(transport.common + common::DRIVER_FEATURE, 0xffff_ffff);
    }
    // After FEATURES_OK the choice is made.
    let chosen = transport.negotiate(0)?;
    transport.accept(u64::MAX);
    ensure_eq!(transport.status(), READY, "status after late features");
    io::write32(transport.common + common::DRIVER_FEATURE_SELECT, 1);
    let kept = io::read32(transport.common + common::DRIVER_FEATURE);
    ensure!(kept == (chosen >> 32) as u32 || kept == 0, "features became {kept:#x}");
    super::aftermath("features")
}

/// Queue registers do not change after DRIVER_OK, and requests still work while one tries.
pub fn frozen() -> Outcome {
    let mut blk = Blk::start(0)?;
    let (transport, sector) = (blk.transport, memory::allocate(SECTOR));
    transport.select(0);
    let before = queue_registers(&transport);
    for value in [0, 1, 3, 0x8000, 0xffff] {
        io::write16(transport.common + common::QUEUE_SIZE, value);
        ensure_eq!(queue_registers(&transport), before, "queue after size {value:#x}");
        io::write16(transport.common + common::QUEUE_ENABLE, value);
        ensure_eq!(queue_registers(&transport), before, "queue after enable {value:#x}");
    }
    for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
        for address in [0, 0x1000, 0xffff_ffff_ffff_f000, 3] {
            transport.set_address(field, address);
            io::write64(transport.common + field, address);
            ensure_eq!(queue_registers(&transport), before, "queue after address {address:#x}");
        }
    }
    ensure_eq!(blk.request(T_IN, 0, Some(sector))?, S_OK, "a request after all that");
    // Queues that were not set up stay so.
    for queue in 1..transport.queues() {
        transport.select(queue);
        io::write16(transport.common + common::QUEUE_ENABLE, 1);
        ensure_eq!(io::read16(transport.common + common::QUEUE_ENABLE), 0, "late enabling of queue {queue}");
    }
    ensure_eq!(blk.request(T_IN, 0, Some(sector))?, S_OK, "a request in the end");
    super::aftermath("frozen registers")
}

/// Every offset at every width, read and written, aligned or not.
pub fn odd_accesses() -> Outcome {
    let transport = Transport::find(BLK, 0)?;
    transport.reset()?;
    for queue in [transport.queues(), 0x7fff, 0xffff] {
        transport.select(queue);
        ensure_eq!(transport.queue_size(), 0, "size of queue {queue:#x}");
        io::write16(transport.common + common::QUEUE_SIZE, 8);
        io::write16(transport.common + common::QUEUE_ENABLE, 1);
        transport.set_address(common::QUEUE_DESC, 0x1000);
        ensure_eq!(transport.queue_size(), 0, "size of queue {queue:#x} after writes");
    }
    let areas = [transport.common, transport.device, transport.isr, transport.notify];
    for base in areas.into_iter().filter(|base| *base != 0) {
        for offset in (0..0x48).chain([0xff8, 0xff9, 0xffc, 0xffd, 0xfff]) {
            let at = base + offset;
            let _ = (io::read8(at), io::read16(at), io::read32(at), io::read64(at));
        }
    }
    for value in [0_u64, u64::MAX, 0x0102_0408_1020_4080] {
        for offset in (0..0x48).chain([0xff8, 0xffd, 0xfff]) {
            let at = transport.common + offset;
            io::write8(at, value as u8);
            io::write16(at, value as u16);
            io::write32(at, value as u32);
            io::write64(at, value);
        }
    }
    for offset in 0..0x48 {
        io::write64(transport.device + offset, u64::MAX);
        io::write8(transport.isr + offset, 0xff);
    }
    super::aftermath("odd accesses")
}
