//! Ports and memory-mapped registers: one instruction each, of a kind that every instruction
//! emulator knows.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        pub fn $read(port: u16) -> $type {
            let value: $type;
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }

        pub fn $write(port: u16, value: $type) {
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nomem, nostack, preserves_flags));
            }
        }
    };
}

port!(in8, out8, u8, "al");
port!(in16, out16, u16, "ax");
port!(in32, out32, u32, "eax");

macro_rules! mmio {
    ($read:ident, $write:ident, $type:ty, $class:ident, $load:literal, $store:literal) => {
        pub fn $read(address: u64) -> $type {
            let value: $type;
            unsafe {
                asm!($load, in(reg) address, out($class) value, options(nostack, preserves_flags));
            }
            value
        }

        pub fn $write(address: u64, value: $type) {
            unsafe {
                asm!($store, in(reg) address, in($class) value, options(nostack, preserves_flags));
            }
        }
    };
}

mmio!(read8, write8, u8, reg_byte, "mov {1}, [{0}]", "mov [{0}], {1}");
mmio!(read16, write16, u16, reg, "mov {1:x}, [{0}]", "mov [{0}], {1:x}");
mmio!(read32, write32, u32, reg, "mov {1:e}, [{0}]", "mov [{0}], {1:e}");
mmio!(read64, write64, u64, reg, "mov {1}, [{0}]", "mov [{0}], {1}");
