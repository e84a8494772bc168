//! One virtqueue in the hands of its worker.
//!
//! Used entries are written as they come and published together: a driver must see all buffers of
//! a merged frame at once (virtio 1.2 §5.1.6.4), and one interrupt is raised per batch.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::Malformed;
use super::counters::Counters;
use crate::virtio::Virtqueue;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2 §2.7.6).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// A virtqueue and what of it is not yet published.
pub(super) struct Ring {
    virtqueue: Virtqueue,
    event_idx: bool,
    /// Used entries written after the published index.
    unpublished: u16,
    /// Used index when the driver was last considered for an interrupt.
    signalled: u16,
}

impl Ring {
    /// Takes over a queue.
    pub fn new(virtqueue: Virtqueue, event_idx: bool) -> Self {
        let signalled = virtqueue.queue.next_used();
        Ring { virtqueue, event_idx, unpublished: 0, signalled }
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.virtqueue.queue.size()
    }

    /// Readable when the driver has notified.
    pub fn kick_fd(&self) -> RawFd {
        self.virtqueue.kick.as_raw_fd()
    }

    /// Takes note of a notification.
    pub fn clear_kick(&self) {
        // The count does not matter, nor does a spurious wake.
        let _ = self.virtqueue.kick.read();
    }

    /// The next available chain.
    pub fn pop<'m>(
        &mut self,
        mem: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, Malformed> {
        let queue = &mut self.virtqueue.queue;
        let index = queue.avail_idx(mem, Ordering::Acquire).map_err(|_| Malformed::Ring)?;
        if index.0 == queue.next_avail() {
            return Ok(None);
        }
        // There is one, so an iterator that has none could not read the ring.
        let chain = queue.iter(mem).map_err(|_| Malformed::Ring)?.next();
        chain.map(Some).ok_or(Malformed::Ring)
    }

    /// Gives back the last `count` chains as if they had not been popped. Nothing that was popped
    /// after them may have been used.
    pub fn unpop(&mut self, count: u16) {
        let next = self.virtqueue.queue.next_avail().wrapping_sub(count);
        self.virtqueue.queue.set_next_avail(next);
    }

    /// Writes a used entry; the driver sees it at the next [`Ring::publish`].
    pub fn push_used(&mut self, mem: &GuestMemoryMmap, head: u16, len: u32) -> Result<(), Malformed> {
        let queue = &self.virtqueue.queue;
        let slot = queue.next_used().wrapping_add(self.unpublished) % queue.size();
        let addr = ring_address(queue.used_ring(), 4 + 8 * u64::from(slot))?;
        let mut element = [0u8; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        mem.write_slice(&element, addr).map_err(|_| Malformed::Ring)?;
        self.unpublished = self.unpublished.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver all entries written so far.
    pub fn publish(&mut self, mem: &GuestMemoryMmap) -> Result<(), Malformed> {
        if self.unpublished == 0 {
            return Ok(());
        }
        let queue = &mut self.virtqueue.queue;
        let next_used = queue.next_used().wrapping_add(self.unpublished);
        let addr = ring_address(queue.used_ring(), 2)?;
        mem.store(next_used.to_le(), addr, Ordering::Release).map_err(|_| Malformed::Ring)?;
        queue.set_next_used(next_used);
        self.unpublished = 0;
        Ok(())
    }

    /// Interrupts the driver if it wants to hear of what was published since the last call
    /// (virtio 1.2 §2.7.7.2).
    pub fn signal(&mut self, mem: &GuestMemoryMmap, counters: &Counters) -> Result<(), Malformed> {
        let queue = &self.virtqueue.queue;
        let new = queue.next_used();
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old {
            return Ok(());
        }
        // The used index must be visible before the driver's wish is read: the driver does the two
        // in the other order.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let addr = ring_address(queue.avail_ring(), 4 + 2 * u64::from(queue.size()))?;
            let used_event = load(mem, addr)?;
            new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(mem, GuestAddress(queue.avail_ring()))? & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            counters.interrupts.add(1);
            // A full event counter already means a pending interrupt.
            let _ = self.virtqueue.interrupt.write(1);
        }
        Ok(())
    }

    /// Asks the driver to notify when it adds a chain; true if it has added one meanwhile.
    pub fn enable_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<bool, Malformed> {
        self.virtqueue.queue.enable_notification(mem).map_err(|_| Malformed::Ring)
    }

    /// Lets the driver add chains without notifying.
    pub fn disable_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<(), Malformed> {
        self.virtqueue.queue.disable_notification(mem).map_err(|_| Malformed::Ring)
    }

    /// Where the queue stands, for the next owner.
    pub fn into_state(self) -> (u16, QueueState) {
        (self.virtqueue.index, self.virtqueue.queue.state())
    }
}

fn ring_address(base: u64, offset: u64) -> Result<GuestAddress, Malformed> {
    base.checked_add(offset).map(GuestAddress).ok_or(Malformed::Ring)
}

fn load(mem: &GuestMemoryMmap, addr: GuestAddress) -> Result<u16, Malformed> {
    mem.load(addr, Ordering::Relaxed).map(u16::from_le).map_err(|_| Malformed::Ring)
}
