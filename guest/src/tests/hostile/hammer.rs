//! Registers that move under a running device, and accesses of all kinds at random.

use crate::pci::{Function, functions};
use crate::report::{Outcome, ensure, ensure_eq, println};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN};
use crate::virtio::{self, Transport};
use crate::{io, memory, start};

/// Decoding off and on again and the BAR elsewhere, with the queue running: doorbells follow.
pub fn moving_bars() -> Outcome {
    let mut blk = Blk::start(0)?;
    let sector = memory::allocate(SECTOR);
    let function = blk.transport.function;
    for round in 0..4 {
        let old = blk.transport;
        function.move_bar(0);
        let new = Transport::of(function)?;
        ensure!(new.notify != old.notify, "the BAR did not move");
        blk.queue.move_doorbell(old.notify, new.notify);
        blk.transport = new;
        ensure_eq!(blk.request(T_IN, round, Some(sector))?, S_OK, "a request in round {round}");
        // At the old place nobody is.
        io::write16(old.notify, 0);
        ensure_eq!(io::read16(old.notify), 0xffff, "the old doorbell");
    }
    function.set_memory_decoding(false);
    io::write16(blk.transport.notify, 0);
    function.set_memory_decoding(true);
    ensure_eq!(blk.request(T_IN, 0, Some(sector))?, S_OK, "a request in the end");
    super::aftermath("moving BARs")
}

/// Numbers that look random (xorshift), the same for the same `seed=`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Small numbers, single bits and all ones are more telling than others.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(32),
            1 => 1 << self.below(64),
            2 => u64::MAX << self.below(64),
            _ => self.roll(),
        }
    }
}

/// Random reads and writes of BARs, configuration space and ports; then everything must still work.
pub fn hammer() -> Outcome {
    let option = |name, default| start::option(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seed, rounds) = (option("seed", 0x6b69_6c6e), option("count", 20_000_u64));
    println!("  seed {seed}, {rounds} rounds");
    let mut dice = Dice(seed | 1);
    let mut targets = [None; 8];
    for (slot, function) in targets.iter_mut().zip(functions().filter(|f| f.id().0 == 0x1af4)) {
        let transport = Transport::of(function)?;
        transport.reset()?;
        *slot = Some(transport);
    }
    for _ in 0..rounds {
        if let Some(transport) = targets[dice.below(8) as usize] {
            match dice.below(16) {
                0 => poke_config(&mut dice, transport.function),
                1 => poke_ports(&mut dice),
                _ => poke_memory(&mut dice, transport.common & !0x7fff),
            }
        }
    }
    for transport in targets.iter().flatten() {
        // Wherever the BAR is now, and whatever the command register says.
        transport.function.move_bar(0);
        Transport::of(transport.function)?.reset()?;
    }
    let mut blk = Blk::start(0)?;
    let status = blk.request(T_IN, 0, Some(memory::allocate(SECTOR)))?;
    ensure_eq!(status, S_OK, "the disk afterwards");
    if Transport::find(virtio::NET, 0).is_ok() {
        super::super::net::dhcp()?;
    }
    super::aftermath("hammer")
}

fn poke_memory(dice: &mut Dice, bar: u64) {
    // Queue addresses would let the device write over this program, rightly so.
    const ADDRESSES: core::ops::Range<u64> = 0x19..0x38;
    let offset = match dice.below(4) {
        0 => dice.below(0x8000),
        1 => 0x4000 + dice.below(0x100),
        2 => 0x3000 + dice.below(0x20),
        _ => dice.below(0x40),
    };
    let (at, value) = (bar + offset, dice.value());
    let write = dice.below(2) == 0 && !ADDRESSES.contains(&offset);
    match (dice.below(4), write) {
        (0, true) => io::write8(at, value as u8),
        (1, true) => io::write16(at, value as u16),
        (2, true) => io::write32(at, value as u32),
        (_, true) => io::write64(at, value),
        (0, false) => _ = io::read8(at),
        (1, false) => _ = io::read16(at),
        (2, false) => _ = io::read32(at),
        (_, false) => _ = io::read64(at),
    }
}

fn poke_config(dice: &mut Dice, function: Function) {
    let (offset, value) = (dice.below(256) as u8, dice.value());
    // The window into the BAR at the end of the capabilities reaches the queue addresses.
    let write = dice.below(2) == 0 && offset < 0x40;
    match (dice.below(3), write) {
        (0, true) => function.write8(offset, value as u8),
        (1, true) => function.write16(offset & !1, value as u16),
        (_, true) => function.write32(offset & !3, value as u32),
        (0, false) => _ = function.read8(offset),
        (1, false) => _ = function.read16(offset),
        (_, false) => _ = function.read32(offset),
    }
    let ecam = function.ecam(dice.below(0x1000) as u16);
    let _ = (io::read8(ecam), io::read16(ecam), io::read32(ecam));
}

fn poke_ports(dice: &mut Dice) {
    // Not the data register of the serial port, whose output is read by others, nor sleep and reset.
    let port = [0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3ff, 0x70, 0x71, 0x604, 0x606, 0xcf9, 0x64]
        [dice.below(12) as usize];
    let value = dice.value();
    match (dice.below(2), port) {
        // A divisor latch left open would swallow what is printed; 0xcf9 and 0x64 may restart.
        (0, 0x3f9 | 0x3fa | 0x3fc | 0x3ff | 0x70 | 0x71 | 0x604) => io::out8(port, value as u8),
        _ => _ = (io::in8(port), io::in16(port), io::in32(port)),
    }
}
