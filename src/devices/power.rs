//! Power control block: how a guest turns itself off, restarts, and hears of power events.
//!
//! ```text
//!  offset  width  register                                                       ACPI 6.4
//!   0       1     sleep control: SLP_TYP bits 2..=4, SLP_EN bit 5 (write-only)   §4.8.3.7
//!   1       1     sleep status: WAK_STS bit 7, write one to clear                §4.8.3.7
//!   2       1     reset: writing RESET_VALUE restarts the machine                §4.8.3.6
//!   4       4     pending events, cleared by reading; read by the _EVT method    §5.6.9 (GED)
//! ```
//!
//! A block of our own instead of a chipset's PM registers: hardware-reduced ACPI needs no more, and
//! tells the guest through FADT and DSDT where it is.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Number of ports.
pub const POWER_PORTS: u16 = 8;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Value that restarts the machine.
pub const RESET_VALUE: u8 = 0x01;
/// Offset of the pending events, four bytes.
pub const EVENTS: u16 = 4;
/// Event: the power button was pressed.
pub const EVENT_POWER_BUTTON: u32 = 1 << 0;
/// Event: the VM generation id changed.
pub const EVENT_GENERATION_ID: u32 = 1 << 1;
/// Event: functions come to the PCI bus or are to go: see [`crate::pci::hotplug`].
pub const EVENT_HOTPLUG: u32 = 1 << 2;
/// SLP_TYP value of S5, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;

const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0x7;
const SLP_EN: u8 = 1 << 5;
const WAK_STS: u8 = 1 << 7;

/// What the guest asks of its machine. Called on a vCPU thread with the block locked: note the
/// wish and return. A guest may ask any number of times.
pub trait PowerSink: Send + Sync {
    /// The guest entered S5.
    fn power_off(&self);

    /// The guest wrote the reset register.
    fn reset(&self);
}

/// The block.
pub struct Power {
    irq: Arc<dyn InterruptLine>,
    sink: Arc<dyn PowerSink>,
    sleep_type: u8,
    events: u32,
}

impl Power {
    /// `irq` is the interrupt of the generic event device.
    pub fn new(irq: Arc<dyn InterruptLine>, sink: Arc<dyn PowerSink>) -> Self {
        Self { irq, sink, sleep_type: 0, events: 0 }
    }

    /// Tells the guest that its power button was pressed.
    pub fn press_power_button(&mut self) {
        self.signal(EVENT_POWER_BUTTON);
    }

    /// Tells the guest that the VM generation id in its memory has a new value.
    pub fn generation_id_changed(&mut self) {
        self.signal(EVENT_GENERATION_ID);
    }

    /// Tells the guest that there is something to be read in the hot-plug registers.
    pub fn hotplug_changed(&mut self) {
        self.signal(EVENT_HOTPLUG);
    }

    /// Machine reset: pending events are gone.
    pub fn reset(&mut self) {
        let Self { irq: _, sink: _, sleep_type, events } = self;
        (*sleep_type, *events) = (0, 0);
    }

    fn signal(&mut self, event: u32) {
        self.events |= event;
        if let Err(error) = self.irq.trigger() {
            tracing::warn!(%error, "power event interrupt was not delivered");
        }
    }

    fn read_byte(&mut self, offset: u64) -> u8 {
        match u16::try_from(offset) {
            Ok(SLEEP_CONTROL) => self.sleep_type << SLP_TYP_SHIFT,
            // Never set: the machine does not come back from S5.
            Ok(SLEEP_STATUS | RESET) => 0,
            Ok(register @ EVENTS..POWER_PORTS) => {
                let shift = u32::from(register - EVENTS) * 8;
                let byte = (self.events >> shift) as u8;
                self.events &= !(0xff << shift);
                byte
            }
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match u16::try_from(offset) {
            Ok(SLEEP_CONTROL) => {
                self.sleep_type = value >> SLP_TYP_SHIFT & SLP_TYP_MASK;
                if value & SLP_EN != 0 && self.sleep_type == S5_SLEEP_TYPE {
                    self.sink.power_off();
                }
            }
            Ok(SLEEP_STATUS) if value & WAK_STS != 0 => {}
            Ok(RESET) if value == RESET_VALUE => self.sink.reset(),
            _ => {}
        }
    }
}

impl BusDevice for Power {
    /// Every byte of `data` is one of the block: a four-byte read takes all events at once.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = self.read_byte(offset);
        }
    }

    /// What can be written is one byte wide: the rest of a wider access must not spill into the
    /// reset register.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(&value) = data.first() {
            self.write_byte(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Host {
        interrupts: AtomicUsize,
        offs: AtomicUsize,
        resets: AtomicUsize,
    }

    impl InterruptLine for Host {
        fn trigger(&self) -> io::Result<()> {
            self.interrupts.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    impl PowerSink for Host {
        fn power_off(&self) {
            self.offs.fetch_add(1, Ordering::Relaxed);
        }
        fn reset(&self) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn power() -> (Power, Arc<Host>) {
        let host = Arc::new(Host::default());
        (Power::new(host.clone(), host.clone()), host)
    }

    fn read<const N: usize>(power: &mut Power, offset: u16) -> [u8; N] {
        let mut data = [0xff; N];
        power.read(u64::from(offset), &mut data);
        data
    }

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        let (mut power, host) = power();
        for value in 0..=0xffu8 {
            power.write(u64::from(SLEEP_CONTROL), &[value]);
            assert_eq!(read(&mut power, SLEEP_CONTROL), [value & 0x1c]);
        }
        // SLP_EN | 5 << 2 with the bits 0, 1, 6 and 7 free.
        assert_eq!(host.offs.load(Ordering::Relaxed), 16);
        assert_eq!(host.resets.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (mut power, host) = power();
        for value in 0..=0xffu8 {
            power.write(u64::from(RESET), &[value]);
        }
        assert_eq!(host.resets.load(Ordering::Relaxed), 1);
        assert_eq!(host.offs.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn events_interrupt_and_are_cleared_by_reading() {
        let (mut power, host) = power();
        power.press_power_button();
        power.generation_id_changed();
        assert_eq!(host.interrupts.load(Ordering::Relaxed), 2);
        assert_eq!(u32::from_le_bytes(read(&mut power, EVENTS)), EVENT_POWER_BUTTON | EVENT_GENERATION_ID);
        assert_eq!(u32::from_le_bytes(read(&mut power, EVENTS)), 0);
        power.press_power_button();
        assert_eq!(read(&mut power, EVENTS + 1), [0]);
        assert_eq!(read(&mut power, EVENTS), [1]);
        power.press_power_button();
        power.reset();
        assert_eq!(read(&mut power, EVENTS), [0]);
    }

    #[test]
    fn every_offset_and_length_is_answered() {
        let (mut power, _) = power();
        for offset in 0..10 {
            for len in 0..9 {
                power.read(offset, &mut vec![0xff; len]);
                power.write(offset, &vec![0; len]);
            }
        }
        assert_eq!(read(&mut power, 3), [0xff]);
    }
}
