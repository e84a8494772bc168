//! MSI-X (PCI 3.0 §6.8.2): table, pending bits, masks.
//!
//! ```text
//!  source (configuration change, queue 0, queue 1, …)         table, written by the guest
//!    event ── written by workers, at any time        ┌──────▶ vector 0: address data mask
//!    vector ─ chosen by the driver ──────────────────┘        vector 1: …
//!    connected to that vector's message while: MSI-X enabled, function and vector not masked
//! ```
//!
//! A source has one event descriptor and one line of the [`MsiController`] for its whole life;
//! several sources may share a vector. While a source is not connected, what workers wrote stays in
//! its descriptor: that is the pending bit, and connecting delivers it. So neither masking nor the
//! choice of vectors ever concerns a worker.
//!
//! All vectors are masked after reset, so that a driver unmasks the ones it uses, once.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest_faults::GuestFaults;
use crate::interrupt::{MsiController, MsiMessage};

/// Length of a table entry in bytes.
pub const ENTRY_LEN: u64 = 16;
/// Most vectors of one function (PCI 3.0 §6.8.2.3).
pub const MAX_VECTORS: u16 = 2048;
/// "No vector" (virtio 1.2 §4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// Message control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Writable bits of message control.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;

/// Vector control: masked.
const VECTOR_MASKED: u32 = 1;

#[derive(Clone, Copy)]
struct TableEntry {
    message: MsiMessage,
    masked: bool,
}

impl TableEntry {
    const RESET: Self = Self { message: MsiMessage { address: 0, data: 0 }, masked: true };

    fn to_bytes(self) -> [u8; ENTRY_LEN as usize] {
        let mut bytes = [0; ENTRY_LEN as usize];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(self.masked).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; ENTRY_LEN as usize]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self {
            message: MsiMessage { address: value as u64 & !3, data: (value >> 64) as u32 },
            masked: (value >> 96) as u32 & VECTOR_MASKED != 0,
        }
    }
}

struct Source {
    event: Arc<EventFd>,
    line: u32,
    vector: Option<u16>,
    connected: Option<MsiMessage>,
}

/// MSI-X state of one function.
pub struct Msix {
    controller: Arc<dyn MsiController>,
    table: Vec<TableEntry>,
    sources: Vec<Source>,
    enabled: bool,
    function_masked: bool,
    bad_messages: GuestFaults,
}

impl Msix {
    /// As many vectors as `sources`, at most [`MAX_VECTORS`]. Reserves a line for each source.
    pub fn new(controller: Arc<dyn MsiController>, sources: u16) -> io::Result<Self> {
        if sources == 0 || sources > MAX_VECTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let source = || -> io::Result<Source> {
            let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
            Ok(Source { event, line: controller.allocate()?, vector: None, connected: None })
        };
        Ok(Self {
            sources: (0..sources).map(|_| source()).collect::<io::Result<_>>()?,
            table: vec![TableEntry::RESET; usize::from(sources)],
            enabled: false,
            function_masked: false,
            bad_messages: GuestFaults::new(),
            controller,
        })
    }

    /// Body of the capability after id and link: control, table and PBA offsets, both in BAR `bar`.
    pub fn capability(&self, bar: u8, table: u32, pba: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.table.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pba | u32::from(bar)).to_le_bytes());
        body
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        self.table.len() as u64 * ENTRY_LEN
    }

    /// Bytes of the pending bit array, in whole 64-bit words.
    pub fn pba_len(&self) -> u64 {
        self.table.len().div_ceil(64) as u64 * 8
    }

    /// What workers of `source` write to interrupt the driver.
    pub fn event(&self, source: usize) -> Arc<EventFd> {
        self.sources[source].event.clone()
    }

    /// Interrupts the driver on behalf of `source`.
    pub fn signal(&self, source: usize) {
        // A full counter means that an interrupt is pending anyway.
        let _ = self.sources[source].event.write(1);
    }

    /// The vector of `source`, or [`NO_VECTOR`].
    pub fn vector(&self, source: usize) -> u16 {
        self.sources.get(source).and_then(|s| s.vector).unwrap_or(NO_VECTOR)
    }

    /// Chooses the vector of `source`; one that does not exist leaves it with none. Interrupts that
    /// were pending for the old one are dropped.
    pub fn set_vector(&mut self, source: usize, vector: u16) {
        let exists = usize::from(vector) < self.table.len();
        let Some(chosen) = self.sources.get_mut(source) else { return };
        chosen.vector = exists.then_some(vector);
        self.update(source);
        let unused = &self.sources[source];
        if unused.connected.is_none() {
            let _ = unused.event.read();
        }
    }

    /// Takes the message control word as the guest left it.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        (0..self.sources.len()).for_each(|source| self.update(source));
    }

    /// Takes what sources have raised while MSI-X is off, for a driver that polls the ISR status:
    /// whether source 0 (configuration) has, and whether any other has.
    pub fn take_polled(&self) -> (bool, bool) {
        if self.enabled {
            return (false, false);
        }
        let mut raised = self.sources.iter().map(|source| source.event.read().is_ok());
        let config = raised.next().unwrap_or(false);
        (config, raised.fold(false, |any, one| any | one))
    }

    /// Reads the table: any offset and length; beyond its end `data` stays as it is.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            let entry = usize::try_from(at / ENTRY_LEN).ok().and_then(|i| self.table.get(i));
            if let Some(entry) = entry {
                *byte = entry.to_bytes()[(at % ENTRY_LEN) as usize];
            }
        }
    }

    /// Writes the table. Software shall use whole 32 or 64-bit words; other accesses merge bytes.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let start = (at % ENTRY_LEN) as usize;
            let (now, rest) = data.split_at(data.len().min(ENTRY_LEN as usize - start));
            let Some(index) = usize::try_from(at / ENTRY_LEN).ok().filter(|i| *i < self.table.len()) else {
                return;
            };
            let mut bytes = self.table[index].to_bytes();
            bytes[start..start + now.len()].copy_from_slice(now);
            self.table[index] = TableEntry::from_bytes(bytes);
            for source in 0..self.sources.len() {
                if self.sources[source].vector.map(usize::from) == Some(index) {
                    self.update(source);
                }
            }
            at += now.len() as u64;
            data = rest;
        }
    }

    /// Reads the pending bits; beyond their end `data` stays as it is.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let mut bits = vec![0u8; self.pba_len() as usize];
        for source in &self.sources {
            if let Some(vector) = source.vector
                && source.pending()
            {
                bits[usize::from(vector / 8)] |= 1 << (vector % 8);
            }
        }
        let from = usize::try_from(offset).ok().and_then(|offset| bits.get(offset..)).unwrap_or(&[]);
        data.iter_mut().zip(from).for_each(|(byte, bits)| *byte = *bits);
    }

    /// Device reset: no source has a vector and none is pending. The table belongs to the function
    /// and stays.
    pub fn reset_sources(&mut self) {
        (0..self.sources.len()).for_each(|source| self.set_vector(source, NO_VECTOR));
    }

    /// Machine reset.
    pub fn reset(&mut self) {
        self.reset_sources();
        self.set_control(0);
        self.table.fill(TableEntry::RESET);
    }

    /// Connects or disconnects `source` as the table and the masks say.
    fn update(&mut self, source: usize) {
        let wanted = self.wanted_message(source);
        let source = &mut self.sources[source];
        if wanted == source.connected {
            return;
        }
        let result = match wanted {
            Some(message) => self.controller.connect(source.line, &source.event, message),
            None => self.controller.disconnect(source.line, &source.event),
        };
        match result {
            Ok(()) => source.connected = wanted,
            // Tried again at the next change; until then the driver gets no interrupt.
            Err(error) => tracing::warn!(%error, ?wanted, "MSI-X vector could not be (dis)connected"),
        }
    }

    fn wanted_message(&self, source: usize) -> Option<MsiMessage> {
        let entry = self.table.get(usize::from(self.sources[source].vector?))?;
        if !self.enabled || self.function_masked || entry.masked {
            return None;
        }
        if entry.message.address & !0xf_ffff != 0xfee0_0000 {
            if self.bad_messages.record() {
                tracing::debug!(message = ?entry.message, "MSI-X message goes to no local APIC");
            }
            return None;
        }
        Some(entry.message)
    }
}

impl Source {
    fn pending(&self) -> bool {
        // Only we read an unconnected descriptor, so putting the count back loses nothing.
        self.connected.is_none()
            && self.event.read().is_ok_and(|count| {
                let _ = self.event.write(count);
                true
            })
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        for source in &self.sources {
            let connected = source.connected.is_some();
            // One that stays connected stays taken: its next owner would interrupt for this one.
            if !connected || self.controller.disconnect(source.line, &source.event).is_ok() {
                self.controller.release(source.line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::FakeMsi;

    const ENABLE: u16 = CONTROL_ENABLE;

    fn msix() -> (Msix, Arc<FakeMsi>) {
        let controller = Arc::new(FakeMsi::default());
        (Msix::new(controller.clone(), 3).unwrap(), controller)
    }

    /// Writes a vector's message, whose data are `data`, and its mask.
    fn program(msix: &mut Msix, vector: u64, data: u32, masked: bool) {
        msix.write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn delivered(controller: &FakeMsi) -> Vec<u32> {
        controller.take_delivered().iter().map(|message| message.data).collect()
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0xff; 8];
        msix.read_pba(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn nothing_is_connected_until_enabled_and_unmasked() {
        let (mut msix, controller) = msix();
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "masked at reset");
        msix.set_vector(1, 2);
        program(&mut msix, 2, 0x42, false);
        assert!(controller.connected().is_empty());
        msix.set_control(ENABLE | CONTROL_FUNCTION_MASK);
        assert!(controller.connected().is_empty());
        msix.set_control(ENABLE);
        assert_eq!(controller.connected().len(), 1);
        msix.signal(1);
        assert_eq!(delivered(&controller), [0x42]);
        program(&mut msix, 2, 0x43, true);
        assert!(controller.connected().is_empty());
    }

    #[test]
    fn interrupt_while_masked_is_pending_and_comes_with_the_unmasking() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        msix.set_vector(2, 1);
        program(&mut msix, 0, 0x40, false);
        program(&mut msix, 1, 0x41, true);
        msix.signal(2);
        msix.signal(2);
        assert_eq!(pending(&msix), 0b10);
        assert_eq!(pending(&msix), 0b10, "looking does not take it");
        assert_eq!(delivered(&controller), [] as [u32; 0]);
        msix.write_table(16 + 12, &[0; 4]);
        assert_eq!(delivered(&controller), [0x41]);
        assert_eq!(pending(&msix), 0);

        msix.set_control(ENABLE | CONTROL_FUNCTION_MASK);
        msix.signal(0);
        msix.signal(2);
        assert_eq!(pending(&msix), 0b11);
        msix.set_control(ENABLE);
        assert_eq!(delivered(&controller), [0x40, 0x41]);
    }

    #[test]
    fn message_changes_while_connected() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        program(&mut msix, 0, 0x40, false);
        msix.signal(0);
        msix.write_table(8, &0x50u32.to_le_bytes());
        msix.signal(0);
        assert_eq!(delivered(&controller), [0x40, 0x50]);
    }

    #[test]
    fn sources_share_a_vector() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        program(&mut msix, 1, 0x41, false);
        (0..3).for_each(|source| msix.set_vector(source, 1));
        assert_eq!(controller.connected().len(), 3);
        msix.signal(0);
        msix.signal(2);
        assert_eq!(delivered(&controller), [0x41, 0x41]);
    }

    #[test]
    fn vectors_out_of_range_read_back_as_none() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        program(&mut msix, 0, 0x40, false);
        for vector in [3, 4, 0x7ff, 0x800, 0xfffe, NO_VECTOR] {
            msix.set_vector(0, 0);
            assert_eq!(msix.vector(0), 0);
            msix.set_vector(0, vector);
            assert_eq!(msix.vector(0), NO_VECTOR);
            assert!(controller.connected().is_empty());
        }
        msix.signal(0);
        msix.set_vector(77, 0);
        msix.set_vector(0, 0);
        assert_eq!(msix.vector(77), NO_VECTOR);
    }

    #[test]
    fn message_to_elsewhere_is_never_connected() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        program(&mut msix, 0, 0x40, false);
        assert_eq!(controller.connected().len(), 1);
        for address in [0, 0x1000, 0xfed0_0000, 0x1_fee0_0000u64] {
            msix.write_table(0, &address.to_le_bytes());
            assert!(controller.connected().is_empty(), "{address:#x}");
        }
    }

    #[test]
    fn odd_accesses_merge_bytes_and_stay_inside() {
        let (mut msix, _) = msix();
        msix.write_table(0, &(0..16).collect::<Vec<u8>>());
        msix.write_table(3, &[0xee, 0xdd]);
        let mut bytes = [0xff; 18];
        msix.read_table(2, &mut bytes[..5]);
        assert_eq!(bytes[..5], [2, 0xee, 0xdd, 5, 6]);
        // Reserved bits of address and control stay zero.
        msix.write_table(0, &[0xff; 16]);
        msix.read_table(0, &mut bytes[..16]);
        assert_eq!(
            bytes[..16],
            [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]
        );
        // Across the end of the table, and far from it.
        let mut bytes = [0xff; 18];
        msix.write_table(46, &[0; 8]);
        msix.write_table(u64::MAX - 1, &[0; 8]);
        msix.read_table(46, &mut bytes);
        assert_eq!(bytes[..2], [0, 0]);
        assert_eq!(bytes[2..], [0xff; 16]);
        msix.read_table(u64::MAX - 1, &mut bytes);
        msix.read_pba(6, &mut bytes);
        msix.read_pba(u64::MAX, &mut bytes);
    }

    #[test]
    fn refused_connection_is_tried_again() {
        let (mut msix, controller) = msix();
        controller.refuse(true);
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        program(&mut msix, 0, 0x40, false);
        msix.signal(0);
        assert!(controller.connected().is_empty());
        controller.refuse(false);
        program(&mut msix, 0, 0x40, false);
        assert_eq!(delivered(&controller), [0x40]);
    }

    #[test]
    fn reset_of_sources_forgets_interrupts_and_keeps_the_table() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        program(&mut msix, 0, 0x40, true);
        msix.signal(0);
        msix.reset_sources();
        msix.set_vector(0, 0);
        msix.write_table(12, &[0; 4]);
        assert_eq!(delivered(&controller), [] as [u32; 0]);
        msix.signal(0);
        assert_eq!(delivered(&controller), [0x40]);
        msix.reset();
        assert!(controller.connected().is_empty());
        let mut entry = [0; 16];
        msix.read_table(0, &mut entry);
        assert_eq!(entry, TableEntry::RESET.to_bytes());
    }

    #[test]
    fn polling_takes_interrupts_only_while_msix_is_off() {
        let (mut msix, _) = msix();
        msix.signal(2);
        assert_eq!(msix.take_polled(), (false, true));
        msix.signal(0);
        msix.signal(1);
        assert_eq!(msix.take_polled(), (true, true));
        assert_eq!(msix.take_polled(), (false, false));
        msix.signal(0);
        msix.set_control(ENABLE);
        assert_eq!(msix.take_polled(), (false, false));
    }

    #[test]
    fn dropping_disconnects() {
        let (mut msix, controller) = msix();
        msix.set_control(ENABLE);
        msix.set_vector(0, 0);
        program(&mut msix, 0, 0x40, false);
        drop(msix);
        assert!(controller.connected().is_empty());
    }
}
