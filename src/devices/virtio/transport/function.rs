//! The device as a PCI function: accesses to its configuration space and its BAR.

use super::layout::{self, Region};
use super::registers::View;
use super::{CONFIG_SOURCE, VirtioPci, queue_source};
use crate::pci::PciFunction;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::NO_VECTOR;

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
        // `pci_cfg_data` shows the BAR (§4.1.4.9).
        let window = self.capabilities.pci_cfg + layout::CAP_DATA;
        let touches = offset < window + layout::CAP_DATA_LEN && window < offset.saturating_add(data.len());
        if touches && let Some((bar_offset, length)) = self.indirect_access() {
            let mut value = [0xff; layout::CAP_DATA_LEN];
            self.read_bar(layout::BAR, bar_offset, &mut value[..length]);
            for (byte, at) in data.iter_mut().zip(offset..=usize::MAX) {
                if let Some(value) = at.checked_sub(window).and_then(|i| value[..length].get(i)) {
                    *byte = *value;
                }
            }
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let before = self.config.clone();
        self.config.write(offset, data);
        if let Err(error) = self.place_doorbells() {
            if self.guest_faults.record() {
                tracing::debug!(device = self.device.name(), %error, "BAR move refused");
            }
            self.config = before;
            return;
        }
        let control = self.config.word(self.capabilities.msix_control);
        if control != before.word(self.capabilities.msix_control) {
            self.msix.set_control(control);
        }
        if offset == self.capabilities.pci_cfg + layout::CAP_DATA
            && let Some((bar_offset, length)) = self.indirect_access()
            && let Some(value) = data.get(..length)
        {
            self.write_bar(layout::BAR, bar_offset, value);
        }
    }

    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar != layout::BAR {
            return;
        }
        match Region::of(offset, data.len()) {
            Some((Region::Common, at)) => self.registers.read(&self.view(), at, data),
            Some((Region::Isr, _)) => data.fill(self.take_isr()),
            Some((Region::Device, at)) => {
                data.fill(0);
                self.device.read_config(at, data);
            }
            Some((Region::Notify, _)) => data.fill(0),
            Some((Region::Table, at)) => self.msix.read_table(at, data),
            Some((Region::Pba, at)) => self.msix.read_pba(at, data),
            None => {}
        }
    }

    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]) {
        if bar != layout::BAR {
            return;
        }
        match Region::of(offset, data.len()) {
            Some((Region::Common, at)) => {
                let effect = self.registers.write(at, data, &self.guest_faults);
                self.apply(effect);
            }
            Some((Region::Device, at)) => self.device.write_config(at, data),
            Some((Region::Notify, at)) => self.notify(at),
            Some((Region::Table, at)) => self.msix.write_table(at, data),
            Some((Region::Isr | Region::Pba, _)) | None => {}
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        self.config.reset();
    }
}

impl VirtioPci {
    fn view(&self) -> View {
        let selected = self.registers.queue_select();
        let exists = usize::from(selected) < self.registers.queues().len();
        View {
            needs_reset: self.needs_reset(),
            generation: self.generation,
            config_vector: self.msix.vector(CONFIG_SOURCE),
            queue_vector: if exists { self.msix.vector(queue_source(selected)) } else { NO_VECTOR },
        }
    }

    /// A notification that reached us instead of its doorbell: through the configuration space, or
    /// while no doorbell could be bound.
    fn notify(&mut self, offset: u64) {
        let slot = u64::from(layout::NOTIFY_MULTIPLIER);
        let queue = u16::try_from(offset / slot).ok().filter(|queue| self.active.contains(queue));
        let kick = queue.filter(|_| offset.is_multiple_of(slot)).and_then(|queue| self.doorbells.kick(queue));
        if let Some(kick) = kick {
            self.counters.notify_exits += 1;
            // A full counter wakes the worker as well.
            let _ = kick.write(1);
        } else if self.guest_faults.record() {
            tracing::debug!(
                device = self.device.name(),
                offset,
                "notification of a queue that is not in use"
            );
        }
    }

    /// ISR status (§4.1.4.5): reading acknowledges. Bit 0 queues, bit 1 configuration.
    fn take_isr(&self) -> u8 {
        let (config, queue) = self.msix.take_polled();
        u8::from(queue) | u8::from(config) << 1
    }

    /// The BAR access that `struct virtio_pci_cfg_cap` describes: offset and length, if allowed.
    fn indirect_access(&self) -> Option<(u64, usize)> {
        let at = self.capabilities.pci_cfg;
        let bar = usize::from(self.config.word(at + layout::CAP_BAR) & 0xff);
        let offset = u64::from(self.config.dword(at + layout::CAP_OFFSET));
        let length = self.config.dword(at + layout::CAP_LENGTH);
        let allowed =
            bar == layout::BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length.into());
        allowed.then_some((offset, length as usize))
    }
}

/// What a driver must not be able to change.
#[cfg(any(test, feature = "test-utils"))]
pub(crate) struct Frozen {
    resets: u64,
    running: bool,
    queues: Vec<super::registers::QueueRegisters>,
}

#[cfg(any(test, feature = "test-utils"))]
impl Frozen {
    /// Panics when something that was frozen is not the same in `later`, short of a reset.
    pub(crate) fn assert_kept(&self, later: &Self) {
        if self.resets != later.resets {
            return;
        }
        assert!(later.running || !self.running, "stopped without a reset");
        for (before, after) in self.queues.iter().zip(&later.queues) {
            let frozen = self.running || before.enabled();
            assert!(!frozen || before == after, "{before:x?} became {after:x?}");
        }
    }
}

#[cfg(any(test, feature = "test-utils"))]
impl VirtioPci {
    pub(crate) fn frozen(&self) -> Frozen {
        Frozen {
            resets: self.counters.resets,
            running: self.registers.driver_ok(),
            queues: self.registers.queues().to_vec(),
        }
    }
}
