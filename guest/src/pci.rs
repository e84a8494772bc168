//! PCI bus 0 by the ports 0xcf8 and 0xcfc, and by memory (ECAM).

use core::sync::atomic::{AtomicU32, Ordering};

use crate::io;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const ECAM: u64 = 0xe000_0000;
/// Where BARs go that nobody has placed yet: upper half of the 32-bit window.
const BAR_SPACE: u32 = 0xd000_0000;

const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const STATUS: u8 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;

static NEXT_BAR: AtomicU32 = AtomicU32::new(BAR_SPACE);

/// A function on bus 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    pub device: u8,
    pub function: u8,
}

impl Function {
    fn select(self, offset: u8) -> u16 {
        let place = u32::from(self.device) << 11 | u32::from(self.function) << 8 | u32::from(offset & 0xfc);
        io::out32(ADDRESS, ENABLE | place);
        DATA + u16::from(offset & 3)
    }

    pub fn read8(self, offset: u8) -> u8 {
        io::in8(self.select(offset))
    }

    pub fn read16(self, offset: u8) -> u16 {
        io::in16(self.select(offset))
    }

    pub fn read32(self, offset: u8) -> u32 {
        io::in32(self.select(offset))
    }

    pub fn write8(self, offset: u8, value: u8) {
        io::out8(self.select(offset), value);
    }

    pub fn write16(self, offset: u8, value: u16) {
        io::out16(self.select(offset), value);
    }

    pub fn write32(self, offset: u8, value: u32) {
        io::out32(self.select(offset), value);
    }

    /// Where the same registers are in memory.
    pub fn ecam(self, offset: u16) -> u64 {
        ECAM + (u64::from(self.device) << 15 | u64::from(self.function) << 12 | u64::from(offset))
    }

    pub fn id(self) -> (u16, u16) {
        (self.read16(0), self.read16(2))
    }

    pub fn class(self) -> u32 {
        self.read32(8) >> 8
    }

    pub fn set_memory_decoding(self, on: bool) {
        let command = self.read16(COMMAND);
        let bits = COMMAND_MEMORY | COMMAND_MASTER;
        self.write16(COMMAND, if on { command | bits } else { command & !bits });
    }

    /// Size of a memory BAR, 0 if there is none. Decoding must be off.
    pub fn bar_size(self, bar: u8) -> u32 {
        let at = BAR0 + bar * 4;
        let before = self.read32(at);
        self.write32(at, u32::MAX);
        let mask = self.read32(at) & !0xf;
        self.write32(at, before);
        mask.wrapping_neg()
    }

    /// Address of a memory BAR; gives it one if it has none, and lets the function decode it.
    /// `None` when there is no such BAR, or it lies where this guest maps nothing.
    pub fn bar(self, bar: u8) -> Option<u64> {
        let at = BAR0 + bar * 4;
        let is_64_bit = self.read32(at) & 0b110 == 0b100;
        let high = if is_64_bit { self.read32(at + 4) } else { 0 };
        if self.read32(at) & !0xf == 0 || high != 0 {
            self.set_memory_decoding(false);
            let size = self.bar_size(bar);
            if size == 0 {
                return None;
            }
            self.write32(at, reserve(size));
            if is_64_bit {
                self.write32(at + 4, 0);
            }
        }
        self.set_memory_decoding(true);
        Some(u64::from(self.read32(at) & !0xf))
    }

    /// Moves a 32-bit memory BAR to a new place, decoding on before and after.
    pub fn move_bar(self, bar: u8) -> u64 {
        self.set_memory_decoding(false);
        let address = reserve(self.bar_size(bar));
        self.write32(BAR0 + bar * 4, address);
        self.set_memory_decoding(true);
        u64::from(address)
    }

    /// Offsets of the capabilities with `id`.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u8> {
        let listed = self.read16(STATUS) & STATUS_CAPABILITIES != 0;
        let mut next = if listed { self.read8(CAPABILITIES) & !3 } else { 0 };
        // A list that bends back on itself ends here.
        (0..48)
            .map_while(move |_| {
                let at = next;
                next = if at >= 0x40 { self.read8(at + 1) & !3 } else { 0 };
                (at >= 0x40).then_some(at)
            })
            .filter(move |at| self.read8(*at) == id)
    }
}

/// Takes `size` bytes, a power of two, out of the 32-bit window.
fn reserve(size: u32) -> u32 {
    let address = NEXT_BAR.load(Ordering::Relaxed).next_multiple_of(size.max(0x1000));
    NEXT_BAR.store(address + size.max(0x1000), Ordering::Relaxed);
    address
}

/// All functions on bus 0.
pub fn functions() -> impl Iterator<Item = Function> {
    (0..32)
        .flat_map(|device| (0..8).map(move |function| Function { device, function }))
        .filter(|f| f.function == 0 || Function { function: 0, ..*f }.read8(0x0e) & 0x80 != 0)
        .filter(|f| f.read16(0) != 0xffff)
}
