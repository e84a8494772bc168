//! The device's registers behind PCI capabilities (virtio 1.2 §4.1).

use super::{F_VERSION_1, Queue};
use crate::io;
use crate::pci::{self, Function};
use crate::report::{Outcome, ensure, fail};

const VENDOR: u16 = 0x1af4;
const MODERN_ID_BASE: u16 = 0x1040;
const CAP_VENDOR: u8 = 9;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;

/// Offsets in the common configuration (§4.1.4.3).
pub mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// Device status bits (§2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// Where the parts of one device are.
#[derive(Clone, Copy)]
pub struct Transport {
    pub function: Function,
    /// Address of the common configuration.
    pub common: u64,
    /// Address of the notification area.
    pub notify: u64,
    pub notify_len: u32,
    notify_multiplier: u32,
    pub isr: u64,
    /// Address of the device configuration.
    pub device: u64,
    pub device_len: u32,
}

impl Transport {
    /// The `nth` device of a type.
    pub fn find(device_type: u16, nth: usize) -> Outcome<Self> {
        let wanted = (VENDOR, MODERN_ID_BASE + device_type);
        let Some(function) = pci::functions().filter(|f| f.id() == wanted).nth(nth) else {
            fail!("no virtio device {nth} of type {device_type}");
        };
        Self::of(function)
    }

    /// Reads the capabilities of a function.
    pub fn of(function: Function) -> Outcome<Self> {
        let mut found = Transport {
            function,
            common: 0,
            notify: 0,
            notify_len: 0,
            notify_multiplier: 0,
            isr: 0,
            device: 0,
            device_len: 0,
        };
        for cap in function.capabilities(CAP_VENDOR) {
            let (kind, bar) = (function.read8(cap + 3), function.read8(cap + 4));
            if bar > 5 || !(CFG_COMMON..=CFG_DEVICE).contains(&kind) {
                continue;
            }
            let Some(base) = function.bar(bar) else { fail!("capability {kind} names a missing BAR {bar}") };
            let address = base + u64::from(function.read32(cap + 8));
            let len = function.read32(cap + 12);
            match kind {
                CFG_COMMON if found.common == 0 => found.common = address,
                CFG_NOTIFY if found.notify == 0 => {
                    (found.notify, found.notify_len) = (address, len);
                    found.notify_multiplier = function.read32(cap + 16);
                }
                CFG_ISR if found.isr == 0 => found.isr = address,
                CFG_DEVICE if found.device == 0 => (found.device, found.device_len) = (address, len),
                _ => {}
            }
        }
        ensure!(found.common != 0 && found.notify != 0 && found.isr != 0, "capabilities are missing");
        Ok(found)
    }

    pub fn status(&self) -> u8 {
        io::read8(self.common + common::DEVICE_STATUS)
    }

    pub fn set_status(&self, status: u8) {
        io::write8(self.common + common::DEVICE_STATUS, status);
    }

    pub fn config_generation(&self) -> u8 {
        io::read8(self.common + common::CONFIG_GENERATION)
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Resets the device and waits until it is.
    pub fn reset(&self) -> Outcome {
        self.set_status(0);
        let done = crate::clock::poll(5000, || (self.status() == 0).then_some(()));
        ensure!(done.is_some(), "status is {:#x} after reset", self.status());
        Ok(())
    }

    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            io::write32(self.common + common::DEVICE_FEATURE_SELECT, select);
            u64::from(io::read32(self.common + common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    pub fn accept(&self, features: u64) {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            io::write32(self.common + common::DRIVER_FEATURE_SELECT, select);
            io::write32(self.common + common::DRIVER_FEATURE, half);
        }
    }

    /// Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK. Returns what was negotiated: what is on
    /// offer of `wanted`, and VERSION_1.
    pub fn negotiate(&self, wanted: u64) -> Outcome<u64> {
        self.reset()?;
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = self.offered() & (wanted | F_VERSION_1);
        ensure!(features & F_VERSION_1 != 0, "VERSION_1 is not offered");
        self.accept(features);
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(ready);
        ensure!(self.status() == ready, "status is {:#x} after FEATURES_OK", self.status());
        Ok(features)
    }

    /// DRIVER_OK.
    pub fn go(&self) -> Outcome {
        self.set_status(self.status() | status::DRIVER_OK);
        let status = self.status();
        ensure!(
            status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK,
            "status is {status:#x} after DRIVER_OK"
        );
        Ok(())
    }

    pub fn queues(&self) -> u16 {
        io::read16(self.common + common::NUM_QUEUES)
    }

    pub fn select(&self, queue: u16) {
        io::write16(self.common + common::QUEUE_SELECT, queue);
    }

    /// Size of the selected queue.
    pub fn queue_size(&self) -> u16 {
        io::read16(self.common + common::QUEUE_SIZE)
    }

    /// A 64-bit field of the selected queue, in halves.
    pub fn set_address(&self, field: u64, address: u64) {
        io::write32(self.common + field, address as u32);
        io::write32(self.common + field + 4, (address >> 32) as u32);
    }

    pub fn address(&self, field: u64) -> u64 {
        let half = |at| u64::from(io::read32(self.common + field + at));
        half(0) | half(4) << 32
    }

    /// Makes and enables a queue of at most `size` entries.
    pub fn enable(&self, index: u16, size: u16, features: u64) -> Outcome<Queue> {
        self.select(index);
        let max = self.queue_size();
        ensure!(max != 0, "queue {index} does not exist");
        let size = size.min(max);
        io::write16(self.common + common::QUEUE_SIZE, size);
        ensure!(self.queue_size() == size, "queue {index} refuses size {size}");
        let doorbell = self.doorbell(io::read16(self.common + common::QUEUE_NOTIFY_OFF));
        let queue = Queue::new(index, size, features, doorbell);
        self.set_address(common::QUEUE_DESC, queue.desc);
        self.set_address(common::QUEUE_DRIVER, queue.avail);
        self.set_address(common::QUEUE_DEVICE, queue.used);
        io::write16(self.common + common::QUEUE_ENABLE, 1);
        ensure!(io::read16(self.common + common::QUEUE_ENABLE) == 1, "queue {index} is not enabled");
        Ok(queue)
    }

    fn doorbell(&self, notify_off: u16) -> u64 {
        self.notify + u64::from(notify_off) * u64::from(self.notify_multiplier)
    }
}
