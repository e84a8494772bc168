//! Hot-plug registers: how a guest hears of functions that have come, and lets go of those that are to go.
//!
//! ```text
//!  offset  width  register
//!   0       4     slots with a new function, cleared by reading
//!   4       4     slots whose function is to go, cleared by reading
//!   8       4     write: these slots are let go of; reads as zero
//!
//!  host: attach ─▶ "new" ─ event ─▶ guest: Notify (slot, device check) ─▶ driver
//!  host: detach ─▶ "to go" ─ event ─▶ guest: Notify (slot, eject request) ─▶ _EJ0 writes the slot ─▶ gone
//! ```
//!
//! One bit per slot of bus 0. The registers are read by the DSDT's event method, and each slot's `_EJ0`
//! writes there. A guest may let go of what the host has asked for and of nothing else, so the host's
//! books and the bus stay the same: what it writes beyond that is dropped.

use std::sync::Arc;

use super::SLOT_COUNT;
use crate::bus::BusDevice;
use crate::guest_faults::GuestFaults;

/// Number of ports.
pub const HOTPLUG_PORTS: u16 = 12;
/// Offset of the slots with a new function.
pub const ARRIVED: u16 = 0;
/// Offset of the slots whose function is to go.
pub const LEAVING: u16 = 4;
/// Offset of the register that lets go of slots.
pub const EJECT: u16 = 8;

/// Takes a function out of its slot, once the guest has let go of it.
pub trait EjectSink: Send + Sync {
    /// Called on a vCPU thread with the registers locked. The slot is empty when it returns.
    fn eject(&self, slot: u8);
}

/// The registers.
pub struct PciHotplug {
    sink: Arc<dyn EjectSink>,
    arrived: u32,
    leaving: u32,
    /// The host wants these back and has not got them.
    wanted: u32,
    guest_faults: GuestFaults,
}

impl PciHotplug {
    /// Nothing comes or goes; `sink` empties slots.
    pub fn new(sink: Arc<dyn EjectSink>) -> Self {
        Self { sink, arrived: 0, leaving: 0, wanted: 0, guest_faults: GuestFaults::new() }
    }

    /// A function has been plugged into `slot`. The caller raises the event.
    pub fn arrive(&mut self, slot: u8) {
        self.arrived |= bit(slot);
        self.leaving &= !bit(slot);
        self.wanted &= !bit(slot);
    }

    /// The guest shall let go of `slot`. May be said again. The caller raises the event.
    pub fn ask_back(&mut self, slot: u8) {
        self.arrived &= !bit(slot);
        self.leaving |= bit(slot);
        self.wanted |= bit(slot);
    }

    fn register(&mut self, offset: u16) -> Option<&mut u32> {
        match offset {
            ARRIVED => Some(&mut self.arrived),
            LEAVING => Some(&mut self.leaving),
            _ => None,
        }
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for PciHotplug {
    /// Only whole registers are read: half a read would clear bits that nobody has seen.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let offset = u16::try_from(offset).unwrap_or(u16::MAX);
        *data = match self.register(offset) {
            Some(register) => std::mem::take(register).to_le_bytes(),
            None if offset == EJECT => [0; 4],
            None => return,
        };
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (true, Ok(data)) = (offset == u64::from(EJECT), <[u8; 4]>::try_from(data)) else { return };
        let slots = u32::from_le_bytes(data);
        if slots & !self.wanted != 0 && self.guest_faults.record() {
            tracing::debug!(slots, wanted = self.wanted, "slots were let go of that nobody asked for");
        }
        let granted = slots & self.wanted;
        for slot in (0u8..).take(SLOT_COUNT).filter(|slot| bit(*slot) & granted != 0) {
            self.wanted &= !bit(slot);
            self.leaving &= !bit(slot);
            self.sink.eject(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Ejected(Mutex<Vec<u8>>);

    impl EjectSink for Ejected {
        fn eject(&self, slot: u8) {
            self.0.lock().unwrap().push(slot);
        }
    }

    impl Ejected {
        fn take(&self) -> Vec<u8> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn hotplug() -> (PciHotplug, Arc<Ejected>) {
        let ejected = Arc::new(Ejected::default());
        (PciHotplug::new(ejected.clone()), ejected)
    }

    fn read(hotplug: &mut PciHotplug, offset: u16) -> u32 {
        let mut data = [0xff; 4];
        hotplug.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn eject(hotplug: &mut PciHotplug, slots: u32) {
        hotplug.write(EJECT.into(), &slots.to_le_bytes());
    }

    #[test]
    fn events_are_read_once_and_eject_empties_the_slot() {
        let (mut hotplug, ejected) = hotplug();
        hotplug.arrive(3);
        hotplug.arrive(31);
        assert_eq!((read(&mut hotplug, ARRIVED), read(&mut hotplug, ARRIVED)), (1 << 31 | 1 << 3, 0));
        hotplug.ask_back(3);
        assert_eq!((read(&mut hotplug, LEAVING), read(&mut hotplug, LEAVING)), (1 << 3, 0));
        assert_eq!(hotplug.wanted, 1 << 3, "until it is let go of");
        hotplug.ask_back(3);
        assert_eq!(read(&mut hotplug, LEAVING), 1 << 3, "asked again");
        eject(&mut hotplug, 1 << 3);
        assert_eq!((ejected.take(), hotplug.wanted), (vec![3], 0));
        eject(&mut hotplug, 1 << 3);
        assert_eq!(ejected.take(), [], "once");
    }

    #[test]
    fn what_came_and_went_before_anybody_looked_is_only_asked_back() {
        let (mut hotplug, ejected) = hotplug();
        hotplug.arrive(5);
        hotplug.ask_back(5);
        assert_eq!((read(&mut hotplug, ARRIVED), read(&mut hotplug, LEAVING)), (0, 1 << 5));
        hotplug.arrive(5);
        eject(&mut hotplug, !0);
        assert_eq!(ejected.take(), [], "another is there by now");
    }

    #[test]
    fn guest_cannot_let_go_of_what_the_host_did_not_ask_for() {
        let (mut hotplug, ejected) = hotplug();
        hotplug.arrive(4);
        hotplug.ask_back(6);
        eject(&mut hotplug, !0);
        assert_eq!(ejected.take(), [6]);
    }

    proptest! {
        /// Accesses of every shape, from a guest and a host that keep to no order.
        #[test]
        fn only_what_was_asked_for_is_ejected_and_each_time_once(
            steps in prop::collection::vec((0u8..4, any::<u8>(), 0u64..20, prop::collection::vec(any::<u8>(), 0..9)), 0..60),
        ) {
            let (mut hotplug, ejected) = hotplug();
            let mut open = 0u32;
            for (kind, slot, offset, data) in steps {
                match kind {
                    0 => {
                        hotplug.arrive(slot);
                        open &= !bit(slot);
                    }
                    1 => {
                        hotplug.ask_back(slot);
                        open |= bit(slot);
                    }
                    2 => {
                        let mut data = data;
                        let before = hotplug.wanted;
                        hotplug.read(offset, &mut data);
                        prop_assert_eq!(hotplug.wanted, before, "reading lets nothing go");
                    }
                    _ => hotplug.write(offset, &data),
                }
                for slot in ejected.take() {
                    prop_assert!(bit(slot) & open != 0, "slot {}", slot);
                    open &= !bit(slot);
                }
                prop_assert_eq!(hotplug.wanted, open);
            }
        }
    }
}
