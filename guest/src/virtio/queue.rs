//! A split virtqueue, driver side (virtio 1.2 §2.7). Every field can also be set to nonsense.

use core::sync::atomic::{Ordering, fence};

use super::F_EVENT_IDX;
use crate::clock;
use crate::io;
use crate::memory::{self, Buffer};
use crate::report::{Failure, Outcome};

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

const USED_NO_NOTIFY: u16 = 1;

/// One descriptor of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
}

impl Part {
    /// Read by the device.
    pub fn out(buffer: Buffer) -> Self {
        Part { address: buffer.address, len: buffer.len as u32, flags: 0 }
    }

    /// Written by the device.
    pub fn to_fill(buffer: Buffer) -> Self {
        Part { address: buffer.address, len: buffer.len as u32, flags: F_WRITE }
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    pub id: u32,
    pub len: u32,
}

/// The rings, and how far both sides are.
pub struct Queue {
    pub index: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    doorbell: u64,
    event_idx: bool,
    next_desc: u16,
    avail_idx: u16,
    last_notified: u16,
    last_used: u16,
}

impl Queue {
    pub(super) fn new(index: u16, size: u16, features: u64, doorbell: u64) -> Self {
        let entries = usize::from(size);
        Queue {
            index,
            size,
            desc: memory::allocate(16 * entries).address,
            avail: memory::allocate(6 + 2 * entries).address,
            used: memory::allocate(6 + 8 * entries).address,
            doorbell,
            event_idx: features & F_EVENT_IDX != 0,
            next_desc: 0,
            avail_idx: 0,
            last_notified: 0,
            last_used: 0,
        }
    }

    /// Writes descriptor `at`, which may lie anywhere in the table.
    pub fn set_desc(&self, at: u16, part: Part, next: u16) {
        write_desc(self.desc + 16 * u64::from(at), part, next);
    }

    /// Writes a chain in the next free descriptors and returns its head. Descriptors are reused in a
    /// circle: no more may be in flight than the queue has.
    pub fn chain(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_desc;
        for (n, part) in parts.iter().enumerate() {
            let at = self.next_desc;
            self.next_desc = (at + 1) % self.size;
            let more = n + 1 < parts.len();
            let flags = part.flags | if more { F_NEXT } else { 0 };
            self.set_desc(at, Part { flags, ..*part }, if more { self.next_desc } else { 0 });
        }
        head
    }

    /// Puts `head` into the available ring; not yet visible.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        io::write16(self.avail + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows the device all that was offered.
    pub fn publish(&self) {
        self.set_avail_idx(self.avail_idx);
    }

    /// Writes any index.
    pub fn set_avail_idx(&self, idx: u16) {
        fence(Ordering::SeqCst);
        io::write16(self.avail + 2, idx);
        fence(Ordering::SeqCst);
    }

    /// The notification area is elsewhere now.
    pub fn move_doorbell(&mut self, from: u64, to: u64) {
        self.doorbell = self.doorbell - from + to;
    }

    /// Rings the doorbell, whether or not the device wants it.
    pub fn kick(&self) {
        io::write16(self.doorbell, self.index);
    }

    /// Rings the doorbell if the device asked for it.
    pub fn kick_if_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.last_notified, self.avail_idx);
        self.last_notified = new;
        let wanted = if self.event_idx {
            let event = io::read16(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            io::read16(self.used) & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
        wanted
    }

    /// One chain to the device.
    pub fn submit(&mut self, parts: &[Part]) -> u16 {
        let head = self.chain(parts);
        self.offer(head);
        self.publish();
        self.kick_if_wanted();
        head
    }

    pub fn used_idx(&self) -> u16 {
        let idx = io::read16(self.used + 2);
        fence(Ordering::SeqCst);
        idx
    }

    /// The next used entry, if there is one.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used_idx() == self.last_used {
            return None;
        }
        let entry = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        self.last_used = self.last_used.wrapping_add(1);
        if self.event_idx {
            // Ask for nothing: this driver polls.
            io::write16(self.avail + 4 + 2 * u64::from(self.size), self.last_used.wrapping_sub(1));
        }
        Some(Used { id: io::read32(entry), len: io::read32(entry + 4) })
    }

    /// Waits for the next used entry.
    pub fn wait_used(&mut self, ms: u64) -> Outcome<Used> {
        let index = self.index;
        clock::poll(ms, || self.take_used())
            .ok_or_else(|| Failure::new(format_args!("queue {index} gave nothing back in {ms} ms")))
    }
}

/// Writes a descriptor anywhere, such as into an indirect table.
pub fn write_desc(at: u64, part: Part, next: u16) {
    io::write64(at, part.address);
    io::write32(at + 8, part.len);
    io::write16(at + 12, part.flags);
    io::write16(at + 14, next);
}
