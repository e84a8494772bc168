//! Frames from the guest.
//!
//! ```text
//!  chain ──copy──▶ header + first bytes (private) ── check ──▶ backend: writev(copy, rest in place)
//! ```

use std::time::Instant;

use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::backend::{FRAME_HEAD, NicQueue, TxFrame, TxOutcome};
use super::chain::{Direction, Malformed, resolve, walk};
use super::counters::Counters;
use super::features::Offloads;
use super::header::{HEADER_LEN, NetHeader};
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
    backlog: bool,
}

impl Tx {
    /// `allowed`: what the guest may leave to the host.
    pub fn new(ring: Ring, allowed: Offloads) -> Self {
        Tx { ring, allowed, backlog: false }
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
        loop {
            while let Some(chain) = self.ring.pop(mem)? {
                let head = chain.head_index();
                let limit = self.ring.size();
                match backend.as_deref_mut() {
                    Some(backend) => send(mem, chain, limit, self.allowed, backend, counters, now)?,
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
            if self.backlog || !self.ring.enable_kicks(mem)? {
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

/// Reads one chain and hands its frame to the backend.
fn send(
    mem: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    limit: u16,
    allowed: Offloads,
    backend: &mut dyn NicQueue,
    counters: &Counters,
    now: Instant,
) -> Result<(), Malformed> {
    let mut copy = [0u8; COPY];
    let mut filled = 0;
    let mut rest: Rest<'_> = SmallVec::new();
    let mut total = 0usize;
    walk(mem, chain, limit, |segment, direction| {
        if direction != Direction::FromGuest {
            return Err(Malformed::Direction);
        }
        resolve(mem, segment, |slice| {
            total = total.saturating_add(slice.len());
            let n = copy.get_mut(filled..).map_or(0, |room| slice.copy_to(room));
            filled += n;
            if let Ok(tail) = slice.offset(n)
                && !tail.is_empty()
            {
                rest.push(tail);
            }
        })
    })?;

    let Some((header, _)) = copy.split_first_chunk::<HEADER_LEN>().filter(|_| total >= HEADER_LEN) else {
        counters.tx_malformed.add(1);
        return Ok(());
    };
    let len = total - HEADER_LEN;
    let header = match NetHeader::from_bytes(*header).from_guest(allowed, len) {
        Ok(header) => header,
        Err(error) => {
            tracing::trace!(%error, "frame from the guest dropped");
            counters.tx_malformed.add(1);
            return Ok(());
        }
    };
    copy[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    let frame = TxFrame { header, copy: copy.get(..filled).unwrap_or_default(), rest: &rest, len };
    match backend.transmit(&frame, now) {
        TxOutcome::Sent => {}
        TxOutcome::Local => counters.tx_local.add(1),
        TxOutcome::Dropped => {
            counters.tx_dropped.add(1);
            return Ok(());
        }
    }
    counters.tx_packets.add(1);
    counters.tx_bytes.add(len);
    Ok(())
}
