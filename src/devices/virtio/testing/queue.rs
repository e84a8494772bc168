//! The driver's side of a split virtqueue (virtio 1.2 §2.7).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::TestMachine;

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Address.
    pub addr: u64,
    /// Length.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next.
    pub next: u16,
}

/// A buffer of a well-formed chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Address.
    pub addr: u64,
    /// Length.
    pub len: u32,
    /// For the device to write.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// For the device to write.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

/// One queue of a driver.
pub struct GuestQueue {
    mem: GuestMemoryMmap,
    /// Index.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    /// Free memory after the queue.
    pub end: u64,
    next_descriptor: u16,
    avail_idx: u16,
    used_idx: u16,
}

impl GuestQueue {
    /// Lays out an empty queue from `at` on.
    pub fn new(machine: &TestMachine, index: u16, size: u16, at: u64) -> Self {
        let entries = u64::from(size);
        let desc = at.next_multiple_of(4096);
        let avail = desc + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        let end = (used + 6 + 8 * entries).next_multiple_of(4096);
        machine.mem.write_slice(&vec![0; (end - desc) as usize], GuestAddress(desc)).unwrap();
        let mem = machine.mem.clone();
        Self { mem, index, size, desc, avail, used, end, next_descriptor: 0, avail_idx: 0, used_idx: 0 }
    }

    /// Adds a chain of `buffers` in the next free descriptors; returns its head. The caller keeps
    /// no more in flight than there are descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (i, buffer) in buffers.iter().enumerate() {
            let slot = self.next_descriptor % self.size;
            self.next_descriptor = (slot + 1) % self.size;
            let write = if buffer.writable { WRITE } else { 0 };
            let next = if i + 1 < buffers.len() { NEXT } else { 0 };
            let (addr, len) = (buffer.addr, buffer.len);
            self.set_descriptor(
                slot,
                RawDescriptor { addr, len, flags: write | next, next: self.next_descriptor },
            );
        }
        self.publish(head);
        head
    }

    /// Writes descriptor `slot` as it is.
    pub fn set_descriptor(&self, slot: u16, descriptor: RawDescriptor) {
        self.set_descriptor_at(self.desc + 16 * u64::from(slot), descriptor);
    }

    /// Writes a descriptor anywhere, for indirect tables.
    pub fn set_descriptor_at(&self, at: u64, descriptor: RawDescriptor) {
        let RawDescriptor { addr, len, flags, next } = descriptor;
        self.mem.write_obj(addr, GuestAddress(at)).unwrap();
        self.mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.mem.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available, whatever `head` is.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.mem.write_obj(head, GuestAddress(self.avail + 4 + 2 * slot)).unwrap();
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Writes the index of the available ring, whatever it is.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.mem.write_obj(idx, GuestAddress(self.avail + 2)).unwrap();
    }

    /// Asks for an interrupt when the used index passes `idx` (`VIRTIO_F_EVENT_IDX`).
    pub fn set_used_event(&self, idx: u16) {
        self.mem.write_obj(idx, GuestAddress(self.avail + 4 + 2 * u64::from(self.size))).unwrap();
    }

    /// The next chain that the device used: head and length.
    pub fn poll_used(&mut self) -> Option<(u32, u32)> {
        let idx: u16 = self.mem.read_obj(GuestAddress(self.used + 2)).unwrap();
        if idx == self.used_idx {
            return None;
        }
        let element = self.used + 4 + 8 * u64::from(self.used_idx % self.size);
        self.used_idx = self.used_idx.wrapping_add(1);
        let head = self.mem.read_obj(GuestAddress(element)).unwrap();
        let len = self.mem.read_obj(GuestAddress(element + 4)).unwrap();
        Some((head, len))
    }

    /// The used index as the device wrote it.
    pub fn used_idx(&self) -> u16 {
        self.mem.read_obj(GuestAddress(self.used + 2)).unwrap()
    }
}
