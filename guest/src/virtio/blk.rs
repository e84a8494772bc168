//! A block device (virtio 1.2 §5.2).

use super::{BLK, F_EVENT_IDX, F_INDIRECT_DESC, Part, Queue, Transport};
use crate::io;
use crate::memory::{self, Buffer};
use crate::pci::Function;
use crate::report::Outcome;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;

pub const S_OK: u8 = 0;
pub const S_IOERR: u8 = 1;
pub const S_UNSUPP: u8 = 2;

pub const SECTOR: usize = 512;
pub const HEADER: usize = 16;
/// What a status byte is set to before the device does.
pub const STATUS_UNTOUCHED: u8 = 0xee;

pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;

pub struct Blk {
    pub transport: Transport,
    pub queue: Queue,
    pub features: u64,
    /// In sectors.
    pub capacity: u64,
    header: Buffer,
    status: Buffer,
}

impl Blk {
    /// Starts the `nth` block device with its first queue.
    pub fn start(nth: usize) -> Outcome<Self> {
        Self::start_with(nth, u64::MAX, 256)
    }

    /// The same with a choice of features and queue size.
    pub fn start_with(nth: usize, features: u64, size: u16) -> Outcome<Self> {
        Self::start_on(Transport::find(BLK, nth)?, features, size)
    }

    /// Starts the block device in this place.
    pub fn start_at(function: Function) -> Outcome<Self> {
        Self::start_on(Transport::of(function)?, u64::MAX, 256)
    }

    fn start_on(transport: Transport, features: u64, size: u16) -> Outcome<Self> {
        // Multi-queue changes nothing for a driver that uses one.
        let wanted = features & (F_EVENT_IDX | F_INDIRECT_DESC | F_RO | F_FLUSH);
        let features = transport.negotiate(wanted)?;
        let queue = transport.enable(0, size, features)?;
        transport.go()?;
        let (header, status) = (memory::allocate(HEADER), memory::allocate(1));
        let mut blk = Blk { transport, queue, features, capacity: 0, header, status };
        blk.capacity = blk.read_capacity();
        Ok(blk)
    }

    /// The capacity as the device says it now (§4.1.4.3: the same generation before and after).
    pub fn read_capacity(&self) -> u64 {
        let half = |at| u64::from(io::read32(self.transport.device + at));
        loop {
            let generation = self.transport.config_generation();
            let capacity = half(0) | half(4) << 32;
            if self.transport.config_generation() == generation {
                return capacity;
            }
        }
    }

    /// One request with its data in `data`; returns the status byte.
    pub fn request(&mut self, kind: u32, sector: u64, data: Option<Buffer>) -> Outcome<u8> {
        fill_header(self.header, kind, sector);
        self.status.fill(STATUS_UNTOUCHED);
        let data = data.map(|buffer| if kind == T_OUT { Part::out(buffer) } else { Part::to_fill(buffer) });
        let (head, status) = (Part::out(self.header), Part::to_fill(self.status));
        match data {
            Some(data) => self.queue.submit(&[head, data, status]),
            None => self.queue.submit(&[head, status]),
        };
        self.queue.wait_used(5000)?;
        Ok(self.status.bytes()[0])
    }

    pub fn is_read_only(&self) -> bool {
        self.features & F_RO != 0
    }
}

/// `struct virtio_blk_req` up to its data.
pub fn fill_header(header: Buffer, kind: u32, sector: u64) {
    header.write(0, &kind.to_le_bytes());
    header.write(4, &[0; 4]);
    header.write(8, &sector.to_le_bytes());
}
