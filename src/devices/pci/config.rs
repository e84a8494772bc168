//! Configuration space of one function (PCI 3.0 §6.1, header type 0).
//!
//! A byte array with a mask of what the guest may write. Sizing a BAR needs no code of its own:
//! only the address bits above its size are writable, so that all ones read back as the size. Memory
//! BARs are 32 bits wide; what we offer is counted in KiB.

use std::ops::Range;

/// Bytes that exist. Enhanced configuration space reads as zero beyond (no extended capabilities).
pub const CONFIG_LEN: usize = 256;
/// BARs of a type 0 header.
pub const BAR_COUNT: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x08;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u8 = 1 << 1;
/// Memory space, bus master, parity response, SERR; no I/O BARs exist.
const COMMAND_WRITABLE: u16 = 0x0146;
/// INTx disable.
const COMMAND_INTX_DISABLE: u16 = 0x0400;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, subclass and programming interface, such as `0x02_00_00`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A type 0 configuration header with its capabilities.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    bar_sizes: [u32; BAR_COUNT],
    /// Addresses after a machine reset.
    bar_homes: [u32; BAR_COUNT],
    /// A BAR outside of this decodes nothing.
    window: Range<u64>,
    /// Where the next capability goes.
    free: usize,
    /// Pointer byte to hang it on.
    last_link: usize,
}

impl ConfigSpace {
    /// A header without BARs and capabilities. Interrupt pin 0: no INTx.
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            bar_sizes: [0; BAR_COUNT],
            bar_homes: [0; BAR_COUNT],
            window: 0..0,
            free: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.put(CLASS, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &(COMMAND_WRITABLE | COMMAND_INTX_DISABLE).to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Declares BAR `index` as non-prefetchable 32-bit memory of `size` bytes, a power of two of at
    /// least 4 KiB.
    pub fn add_memory_bar(&mut self, index: usize, size: u32) {
        assert!(size.is_power_of_two() && size >= 0x1000, "BAR size {size:#x}");
        self.bar_sizes[index] = size;
        self.allow(BAR0 + index * 4, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows the id and the link; `writable` masks what the guest may
    /// write of it. Returns the offset of the capability.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let (at, len) = (self.free, 2 + body.len());
        assert!(at + len <= CONFIG_LEN && writable.len() <= body.len(), "capability {id:#x} does not fit");
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.last_link, &[at as u8]);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.last_link = at + 1;
        self.free = (at + len).next_multiple_of(4);
        at
    }

    /// Reads any number of bytes from any offset.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..=usize::MAX) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes what is writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (&value, at) in data.iter().zip(offset..=usize::MAX) {
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// A little-endian word, for the owner of a capability.
    pub fn word(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// A little-endian double word, for the owner of a capability.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sizes of the BARs; zero where there is none.
    pub fn bar_sizes(&self) -> &[u32; BAR_COUNT] {
        &self.bar_sizes
    }

    /// Says where BARs may decode.
    pub fn set_window(&mut self, window: Range<u64>) {
        self.window = window;
    }

    /// Gives BAR `index` the address that it has after a reset.
    pub fn place_bar(&mut self, index: usize, address: u32) {
        self.bar_homes[index] = address;
        self.write(BAR0 + index * 4, &address.to_le_bytes());
    }

    /// Machine reset: what the guest can write is zero, BARs are where they were placed.
    pub fn reset(&mut self) {
        self.bytes.iter_mut().zip(&self.writable).for_each(|(byte, mask)| *byte &= !mask);
        for (index, home) in self.bar_homes.into_iter().enumerate() {
            self.write(BAR0 + index * 4, &home.to_le_bytes());
        }
    }

    /// Where BAR `index` decodes now, if it does: memory decoding is on and it lies inside the
    /// window. A BAR that is being sized with decoding on falls out of the window for that time.
    pub fn decoded_bar(&self, index: usize) -> Option<Range<u64>> {
        let size = u64::from(*self.bar_sizes.get(index)?);
        if size == 0 || self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let start = u64::from(self.dword(BAR0 + index * 4) & !0xf);
        let end = start + size;
        (start >= self.window.start && end <= self.window.end).then_some(start..end)
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1042,
    };

    #[test]
    fn header_shows_identity_and_no_intx() {
        let config = ConfigSpace::new(&IDENTITY);
        assert_eq!(config.dword(0), 0x1042_1af4);
        assert_eq!(config.dword(8), 0x0180_0001);
        assert_eq!(config.dword(0x2c), 0x1042_1af4);
        assert_eq!(config.dword(0x3c), 0);
    }

    #[test]
    fn read_only_bytes_ignore_writes() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.write(0, &[0xff; CONFIG_LEN + 10]);
        assert_eq!(config.dword(0), 0x1042_1af4);
        assert_eq!(config.word(4), 0x0546);
        assert_eq!(config.dword(0x3c), 0xff);
        assert_eq!(config.dword(0x10), 0);
        let mut beyond = [0xff; 8];
        config.read(0xfc, &mut beyond);
        assert_eq!(beyond, [0; 8]);
        config.read(usize::MAX - 2, &mut beyond);
    }

    #[test]
    fn bar_reads_its_size_after_all_ones_and_decodes_only_when_told() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.add_memory_bar(0, 0x8000);
        config.set_window(0xc000_0000..0xe000_0000);
        config.place_bar(0, 0xc001_0000);
        assert_eq!(config.decoded_bar(0), None);
        config.write(4, &[2]);
        assert_eq!(config.decoded_bar(0), Some(0xc001_0000..0xc001_8000));
        config.write(0x10, &[0xff; 4]);
        assert_eq!(config.dword(0x10), 0xffff_8000);
        assert_eq!(config.decoded_bar(0), None, "outside of the window");
        config.write(0x10, &0xdfff_8000u32.to_le_bytes());
        assert_eq!(config.decoded_bar(0), Some(0xdfff_8000..0xe000_0000));
        config.write(0x10, &0u32.to_le_bytes());
        assert_eq!((config.decoded_bar(0), config.decoded_bar(1), config.decoded_bar(9)), (None, None, None));
    }

    #[test]
    fn reset_undoes_what_the_guest_wrote() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.add_memory_bar(2, 0x1000);
        config.set_window(0xc000_0000..0xe000_0000);
        config.place_bar(2, 0xc000_0000);
        let fresh = config.clone();
        config.write(0, &[0xff; CONFIG_LEN]);
        config.reset();
        assert_eq!(config.bytes, fresh.bytes);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = ConfigSpace::new(&IDENTITY);
        assert_eq!(config.word(6) & 0x10, 0);
        let first = config.add_capability(0x09, &[1, 2, 3], &[]);
        let second = config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(config.word(6) & 0x10, 0x10);
        assert_eq!(config.word(0x34), 0x40);
        assert_eq!(config.dword(0x40), 0x0201_4809);
        assert_eq!(config.word(0x48), 0x0011);
        config.write(0x48, &[0xff; 4]);
        assert_eq!(config.dword(0x48), 0xc000_0011);
    }
}
