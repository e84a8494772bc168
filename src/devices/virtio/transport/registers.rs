//! Common configuration and the device status (virtio 1.2 §2.1, §4.1.4.3). No I/O: a write returns
//! the [`Effect`] for the transport to bring about.
//!
//! ```text
//!  0 ─ACKNOWLEDGE─▶ ─DRIVER─▶ ─FEATURES_OK─▶ ─DRIVER_OK─▶ running     FAILED: any time, then only reset
//!           feature writes ▲  ▲ refused without VERSION_1 or with bits not on offer
//!           queue registers: open from reset to DRIVER_OK, each queue's own until it is enabled
//! ```
//!
//! Status bits are set in this order only: one whose predecessor is not set is ignored, as is a write
//! that takes back a bit. Accesses have the width of the field (64-bit fields also as two halves);
//! others are ignored. Reads are tolerant: any offset and length.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::guest_faults::GuestFaults;

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Both sides agree on the features.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}
use status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;

/// Bytes of `struct virtio_pci_common_cfg` up to `queue_device`; the rest belongs to features that
/// are not on offer.
pub(super) const COMMON_LEN: usize = 56;

/// Offsets in `struct virtio_pci_common_cfg`.
#[allow(missing_docs, reason = "the names of the spec; public for tests only")]
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

/// What a write asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    None,
    /// Status became 0.
    Reset,
    /// DRIVER_OK was set.
    Activate,
    /// MSI-X vector of the configuration change interrupt.
    ConfigVector(u16),
    /// MSI-X vector of an existing queue.
    QueueVector(u16, u16),
}

/// What reads show besides the registers.
pub(super) struct View {
    pub(super) needs_reset: bool,
    pub(super) generation: u8,
    pub(super) config_vector: u16,
    /// Of the selected queue.
    pub(super) queue_vector: u16,
}

/// Why a queue cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    /// A ring is not aligned as virtio 1.2 §2.7 demands.
    #[error("the {0} is not aligned")]
    Unaligned(&'static str),
    /// A ring does not lie in guest memory.
    #[error("the {0} does not lie in guest memory")]
    OutsideMemory(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// The queue as configured, if its rings are usable (virtio 1.2 §2.7).
    pub(super) fn build(&self, mem: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, QueueError> {
        let size = usize::from(self.size);
        let check = |what, address: u64, align: u64, len: usize, access| {
            if !address.is_multiple_of(align) {
                return Err(QueueError::Unaligned(what));
            }
            // The queue implementation takes an available ring at 0 for one that was never set.
            if address == 0 || !mem.check_range(GuestAddress(address), len, access) {
                return Err(QueueError::OutsideMemory(what));
            }
            Ok(())
        };
        check("descriptor table", self.desc, 16, 16 * size, Permissions::Read)?;
        check("available ring", self.driver, 2, 6 + 2 * size, Permissions::Read)?;
        check("used ring", self.device, 4, 6 + 8 * size, Permissions::ReadWrite)?;

        let halves = |value: u64| (Some(value as u32), Some((value >> 32) as u32));
        let mut queue =
            Queue::new(self.max_size).expect("maximum sizes were checked when the device was made");
        queue.set_size(self.size);
        let (low, high) = halves(self.desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        debug_assert!(queue.is_valid(mem));
        Ok(queue)
    }
}

/// Registers of one device. Made anew at reset.
#[derive(Debug)]
pub(super) struct Registers {
    offered: u64,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    /// State after reset of a device that offers `offered` and has queues of at most `max_sizes`.
    pub(super) fn new(offered: u64, max_sizes: &[u16]) -> Self {
        Self {
            offered,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: max_sizes.iter().copied().map(QueueRegisters::new).collect(),
        }
    }

    pub(super) fn driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// Negotiated features, final once FEATURES_OK is set.
    pub(super) fn features(&self) -> u64 {
        self.driver_features
    }

    pub(super) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// The selected queue; it may not exist.
    pub(super) fn queue_select(&self) -> u16 {
        self.queue_select
    }

    /// Reads any part of the structure.
    pub(super) fn read(&self, view: &View, offset: u64, data: &mut [u8]) {
        let bytes = self.render(view);
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn render(&self, view: &View) -> [u8; COMMON_LEN] {
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut status = self.status;
        if view.needs_reset {
            status |= DEVICE_NEEDS_RESET;
        }
        let mut bytes = [0; COMMON_LEN];
        let mut put = |at: u64, value: &[u8]| bytes[at as usize..][..value.len()].copy_from_slice(value);
        put(common::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(common::DEVICE_FEATURE, &word(self.offered, self.device_feature_select).to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(common::DRIVER_FEATURE, &word(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &view.config_vector.to_le_bytes());
        put(common::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(common::DEVICE_STATUS, &[status]);
        put(common::CONFIG_GENERATION, &[view.generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(common::QUEUE_MSIX_VECTOR, &view.queue_vector.to_le_bytes());
        // A queue that does not exist has size 0 (§4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(common::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        bytes
    }

    /// Takes one write access. What the driver may not do now is counted in `faults`.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], faults: &GuestFaults) -> Effect {
        let effect = match *data {
            [a] => self.write_byte(offset, a),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d])).map(|()| Effect::None),
            [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                let low = self.queue_address(offset, u32::from_le_bytes([a, b, c, d]));
                low.and_then(|()| self.queue_address(offset + 4, u32::from_le_bytes([e, f, g, h])))
                    .map(|()| Effect::None)
            }
            _ => None,
        };
        if effect.is_none() && faults.record() {
            tracing::debug!(offset, ?data, status = self.status, "common configuration write ignored");
        }
        effect.unwrap_or(Effect::None)
    }

    fn write_byte(&mut self, offset: u64, value: u8) -> Option<Effect> {
        (offset == common::DEVICE_STATUS).then(|| self.write_status(value))?
    }

    fn write_word(&mut self, offset: u64, value: u16) -> Option<Effect> {
        let selected = self.queue_select;
        match offset {
            common::CONFIG_MSIX_VECTOR => return Some(Effect::ConfigVector(value)),
            common::QUEUE_SELECT => self.queue_select = value,
            common::QUEUE_SIZE => {
                let queue = self.open_queue()?;
                if !value.is_power_of_two() || value > queue.max_size {
                    return None;
                }
                queue.size = value;
            }
            common::QUEUE_MSIX_VECTOR => {
                self.queues.get(usize::from(selected))?;
                return Some(Effect::QueueVector(selected, value));
            }
            // There is no way back but a reset (§4.1.4.3.2).
            common::QUEUE_ENABLE if value == 1 => self.open_queue()?.enabled = true,
            _ => return None,
        }
        Some(Effect::None)
    }

    fn write_dword(&mut self, offset: u64, value: u32) -> Option<()> {
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE => return self.write_features(value),
            _ => return self.queue_address(offset, value),
        }
        Some(())
    }

    fn write_features(&mut self, value: u32) -> Option<()> {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return None;
        }
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            // No feature lives there: zero is the only right answer.
            _ => return (value == 0).then_some(()),
        }
        Some(())
    }

    fn queue_address(&mut self, offset: u64, value: u32) -> Option<()> {
        let queue = self.open_queue()?;
        let field = match offset & !4 {
            common::QUEUE_DESC => &mut queue.desc,
            common::QUEUE_DRIVER => &mut queue.driver,
            common::QUEUE_DEVICE => &mut queue.device,
            _ => return None,
        };
        let shift = (offset & 4) * 8;
        *field = *field & !(0xffff_ffff << shift) | u64::from(value) << shift;
        Some(())
    }

    /// The selected queue, if its registers may still change.
    fn open_queue(&mut self) -> Option<&mut QueueRegisters> {
        let open = !self.driver_ok();
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| open && !queue.enabled)
    }

    fn write_status(&mut self, value: u8) -> Option<Effect> {
        if value == 0 {
            return Some(Effect::Reset);
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
        }
        // DEVICE_NEEDS_RESET is ours; drivers write back what they read.
        let value = value & !DEVICE_NEEDS_RESET;
        if self.status & FAILED != 0 || value & self.status != self.status {
            return None;
        }
        let mut effect = Effect::None;
        for (bit, needs) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, ACKNOWLEDGE | DRIVER),
            (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ] {
            if value & !self.status & bit == 0 {
                continue;
            }
            if self.status & needs != needs || bit == FEATURES_OK && !self.features_acceptable() {
                return None;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                effect = Effect::Activate;
            }
        }
        Some(effect)
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & VERSION_1 != 0
    }
}

#[cfg(test)]
mod tests;
