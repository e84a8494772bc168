//! Frames from the guest.
//!
//! ```text
//!  chain ──copy──▶ header + first bytes (private) ── check ──▶ backend: writev(copy, rest in place)
//! ```

use std::time::{Duration, Instant};

use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::backend::{FRAME_HEAD, NicQueue, TxFrame, TxOutcome};
use super::chain::{Direction, Malformed, resolve, walk};
use super::counters::Counters;
use super::features::Offloads;
use super::header::{HEADER_LEN, NetHeader};
use super::limit::Limit;
use super::ring::Ring;

/// Most frames taken in one wake, so that a guest that refills its ring as fast as it is drained
/// does not keep the event loop from others.
const TX_BUDGET: u32 = 256;
/// Frames after which their buffers are given back, without an interrupt.
const PUBLISH_EVERY: u32 = 32;
/// Bytes copied out of each chain.
const COPY: usize = HEADER_LEN + FRAME_HEAD;

/// Buffers of one frame beyond the private copy. A 64 KiB frame of a Linux guest has 18.
type Rest<'m> = SmallVec<[VolatileSlice<'m>; 20]>;

/// The transmit queue of one pair.
pub(super) struct Tx {
    ring: Ring,
    allowed: Offloads,
    limit: Limit,
    held: bool,
    backlog: bool,
}

impl Tx {
    /// `allowed`: what the guest may leave to the host.
    pub fn new(ring: Ring, allowed: Offloads, limit: Limit) -> Self {
        Tx { ring, allowed, limit, held: false, backlog: false }
    }

    /// Whether the last call of [`Tx::pump`] stopped for the rate limit.
    pub fn held(&self) -> bool {
        self.held
    }

    /// How long frames have to wait for the rate limit.
    pub fn throttled(&self, now: Instant) -> Option<Duration> {
        self.limit.wait(now)
    }

    /// The queue.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether the last call of [`Tx::pump`] stopped for lack of budget.
    pub fn backlog(&self) -> bool {
        self.backlog
    }

    /// Sends what the guest has queued. Without `backend` (a pair out of use) frames are dropped.
    pub fn pump(
        &mut self,
        mem: &GuestMemoryMmap,
        mut backend: Option<&mut dyn NicQueue>,
        counters: &Counters,
        now: Instant,
    ) -> Result<(), Malformed> {
        self.backlog = false;
        self.ring.disable_kicks(mem)?;
        let mut taken = 0;
        self.held = self.throttled(now).is_some();
        while !self.held {
            while let Some(chain) = self.ring.pop(mem)? {
                let head = chain.head_index();
                let frame = Frame::read(mem, chain, self.ring.size())?;
                if !self.limit.admit(frame.total, now) {
                    self.ring.unpop(1);
                    self.held = true;
                    break;
                }
                match backend.as_deref_mut() {
                    Some(backend) => frame.send(self.allowed, backend, counters, now),
                    None => counters.tx_dropped.add(1),
                }
                self.ring.push_used(mem, head, 0)?;
                taken += 1;
                if taken % PUBLISH_EVERY == 0 {
                    self.ring.publish(mem)?;
                }
                if taken == TX_BUDGET {
                    self.backlog = true;
                    break;
                }
            }
            self.ring.publish(mem)?;
            if self.backlog || self.held || !self.ring.enable_kicks(mem)? {
                break;
            }
            self.ring.disable_kicks(mem)?;
        }
        self.ring.signal(mem, counters)
    }

    /// Gives up the queue.
    pub fn into_ring(self) -> Ring {
        self.ring
    }
}

/// One chain, read.
struct Frame<'m> {
    /// Header and first bytes, copied.
    copy: [u8; COPY],
    /// Bytes of `copy` in use.
    filled: usize,
    /// What follows, in guest memory.
    rest: Rest<'m>,
    /// Length of header and frame.
    total: usize,
}

impl<'m> Frame<'m> {
    fn read(
        mem: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        limit: u16,
    ) -> Result<Self, Malformed> {
        let mut frame = Frame { copy: [0; COPY], filled: 0, rest: SmallVec::new(), total: 0 };
        walk(mem, chain, limit, |segment, direction| {
            if direction != Direction::FromGuest {
                return Err(Malformed::Direction);
            }
            resolve(mem, segment, |slice| {
                frame.total = frame.total.saturating_add(slice.len());
                let n = frame.copy.get_mut(frame.filled..).map_or(0, |room| slice.copy_to(room));
                frame.filled += n;
                if let Ok(tail) = slice.offset(n)
                    && !tail.is_empty()
                {
                    frame.rest.push(tail);
                }
            })
        })?;
        Ok(frame)
    }

    /// Checks the header and hands the frame to the backend.
    fn send(mut self, allowed: Offloads, backend: &mut dyn NicQueue, counters: &Counters, now: Instant) {
        let header = self.copy.first_chunk::<HEADER_LEN>().filter(|_| self.total >= HEADER_LEN);
        let Some(header) = header else { return counters.tx_malformed.add(1) };
        let len = self.total - HEADER_LEN;
        let header = match NetHeader::from_bytes(*header).from_guest(allowed, len) {
            Ok(header) => header,
            Err(error) => {
                tracing::trace!(%error, "frame from the guest dropped");
                return counters.tx_malformed.add(1);
            }
        };
        self.copy[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        let copy = self.copy.get(..self.filled).unwrap_or_default();
        match backend.transmit(&TxFrame { header, copy, rest: &self.rest, len }, now) {
            TxOutcome::Sent => {}
            TxOutcome::Local => counters.tx_local.add(1),
            TxOutcome::Dropped => return counters.tx_dropped.add(1),
        }
        counters.tx_packets.add(1);
        counters.tx_bytes.add(len);
    }
}
