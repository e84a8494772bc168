//! Port and memory-mapped I/O dispatch.
//!
//! ```text
//!  vCPU exit ─▶ Bus::read/write(address) ─ binary search ─▶ BusTarget(offset) ─▶ [Mutex] ─▶ BusDevice
//! ```
//!
//! A [`Bus`] is filled while the machine is assembled and shared afterwards: look-ups take no lock.
//! What moves at run time (PCI BARs) moves behind one fixed window, see [`crate::pci`].
//!
//! Reads that nobody answers are all ones and writes are dropped, as on a PC; both are counted. The
//! same holds for an access that starts inside a range and ends outside it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::guest_faults::GuestFaults;

/// A device on a bus. `offset` counts from the start of the registered range.
///
/// `data` has 1, 2, 4 or 8 bytes for a single access, and may be of any length for a string
/// instruction. A device must accept every offset and length of its range: what does not exist
/// reads as all ones and ignores writes.
pub trait BusDevice: Send {
    /// Fills `data`, which the bus has preset to all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// What a [`Bus`] dispatches to: a [`BusDevice`] behind its mutex, or something that does its own,
/// finer locking (the PCI windows).
pub trait BusTarget: Send + Sync {
    /// As [`BusDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]);

    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: BusDevice + ?Sized> BusTarget for Mutex<D> {
    // A device that panicked in a test still answers others; in production a panic ends the VMM.
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// A range could not be registered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// It is empty or passes the end of the address space.
    #[error("range of {len:#x} at {base:#x} is not a range of addresses")]
    BadRange {
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
    /// Another device is there.
    #[error("range of {len:#x} at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length.
        len: u64,
        /// Start of the range that is already registered.
        other: u64,
    },
}

struct Entry {
    range: Range<u64>,
    target: Arc<dyn BusTarget>,
}

/// An address space of devices: ports, or memory that is not RAM.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, without overlaps.
    entries: Vec<Entry>,
    unclaimed_reads: GuestFaults,
    unclaimed_writes: GuestFaults,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `target` for `len` addresses from `base` on.
    pub fn insert(&mut self, base: u64, len: u64, target: Arc<dyn BusTarget>) -> Result<(), BusError> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(BusError::BadRange { base, len })?;
        let place = self.entries.partition_point(|entry| entry.range.start < base);
        let before = place.checked_sub(1).and_then(|i| self.entries.get(i));
        let overlapping = before
            .filter(|entry| entry.range.end > base)
            .or_else(|| self.entries.get(place).filter(|entry| entry.range.start < end));
        if let Some(other) = overlapping {
            return Err(BusError::Overlap { base, len, other: other.range.start });
        }
        self.entries.insert(place, Entry { range: base..end, target });
        Ok(())
    }

    /// One read access. `data` is filled whatever it held.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.find(address, data.len()) {
            Some((target, offset)) => target.read(offset, data),
            None if self.unclaimed_reads.record() => {
                tracing::debug!(address, len = data.len(), "read that no device claims");
            }
            None => {}
        }
    }

    /// One write access.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((target, offset)) => target.write(offset, data),
            None if self.unclaimed_writes.record() => {
                tracing::debug!(address, len = data.len(), "write that no device claims");
            }
            None => {}
        }
    }

    /// A string instruction (`rep ins`): fills `data` with reads of `size` bytes, all at `address`.
    pub fn read_string(&self, address: u64, size: usize, data: &mut [u8]) {
        data.chunks_mut(size.max(1)).for_each(|element| self.read(address, element));
    }

    /// A string instruction (`rep outs`): writes elements of `size` bytes, all to `address`.
    pub fn write_string(&self, address: u64, size: usize, data: &[u8]) {
        data.chunks(size.max(1)).for_each(|element| self.write(address, element));
    }

    /// Reads and writes that no device claimed, since start.
    pub fn unclaimed(&self) -> (u64, u64) {
        (self.unclaimed_reads.count(), self.unclaimed_writes.count())
    }

    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusTarget, u64)> {
        let after = self.entries.partition_point(|entry| entry.range.start <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        (end <= entry.range.end && address < entry.range.end)
            .then(|| (entry.target.as_ref(), address - entry.range.start))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads as its offset in every byte; remembers writes.
    #[derive(Default)]
    struct Echo(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::default()
    }

    fn read<const N: usize>(bus: &Bus, address: u64) -> [u8; N] {
        let mut data = [0x55; N];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn access_reaches_the_device_that_covers_it() {
        let (low, high) = (echo(), echo());
        let mut bus = Bus::new();
        bus.insert(0x200, 0x10, high.clone()).unwrap();
        bus.insert(0x100, 0x10, low.clone()).unwrap();
        assert_eq!(read::<2>(&bus, 0x105), [5, 5]);
        assert_eq!(read::<1>(&bus, 0x20f), [15]);
        bus.write(0x201, &[7, 8]);
        assert_eq!(high.lock().unwrap().0, [(1, vec![7, 8])]);
        assert!(low.lock().unwrap().0.is_empty());
        assert_eq!(bus.unclaimed(), (0, 0));
    }

    #[test]
    fn unclaimed_and_crossing_accesses_read_ones_and_are_counted() {
        let device = echo();
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device.clone()).unwrap();
        for address in [0, 0xff, 0x110, 0x10d, u64::MAX] {
            assert_eq!(read::<4>(&bus, address), [0xff; 4], "{address:#x}");
            bus.write(address, &[1, 2, 3, 4]);
        }
        assert!(device.lock().unwrap().0.is_empty());
        assert_eq!(bus.unclaimed(), (5, 5));
    }

    #[test]
    fn string_access_repeats_at_the_same_address() {
        let device = echo();
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        bus.write_string(0x3ff, 1, b"abc");
        bus.write_string(0x3f8, 2, b"abcd");
        let elements: Vec<_> = device.lock().unwrap().0.iter().map(|(o, d)| (*o, d.len())).collect();
        assert_eq!(elements, [(7, 1), (7, 1), (7, 1), (0, 2), (0, 2)]);
        let mut data = [0; 5];
        bus.read_string(0x3fa, 1, &mut data);
        assert_eq!(data, [2; 5]);
    }

    #[test]
    fn bad_ranges_are_refused() {
        let mut bus = Bus::new();
        assert!(matches!(bus.insert(5, 0, echo()), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.insert(u64::MAX, 2, echo()), Err(BusError::BadRange { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ranges_never_overlap_and_look_up_agrees_with_a_scan(
            ranges in prop::collection::vec((0u64..200, 1u64..20), 0..30),
        ) {
            let mut bus = Bus::new();
            let mut accepted: Vec<Range<u64>> = Vec::new();
            for (base, len) in ranges {
                let free = accepted.iter().all(|r| base + len <= r.start || base >= r.end);
                prop_assert_eq!(bus.insert(base, len, echo()).is_ok(), free);
                if free {
                    accepted.push(base..base + len);
                }
            }
            for address in 0..230u64 {
                let expected = accepted.iter().find(|r| r.contains(&address)).map_or(0xff, |r| (address - r.start) as u8);
                prop_assert_eq!(read::<1>(&bus, address), [expected]);
            }
        }
    }
}
