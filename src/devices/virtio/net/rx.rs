//! Frames to the guest.
//!
//! ```text
//!                 ┌ buffers in hand ≥ longest frame ─▶ readv straight into them ─┐
//!  backend ───────┤                                                             ├▶ header, used, interrupt
//!                 └ fewer (mergeable only) ─▶ one private frame ─ copied when it fits ─┘
//! ```
//! Chains are popped ahead of frames, because a frame's length is not known before it is read. They
//! are used in the order they were popped, so what is left at the end can be handed back by moving
//! the ring index.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use super::backend::{NicQueue, Received};
use super::chain::{Direction, Malformed, Segment, resolve, walk};
use super::counters::Counters;
use super::features::{Negotiated, Offloads};
use super::header::{HEADER_LEN, MAX_FRAME, NetHeader};
use super::limit::Limit;
use super::ring::Ring;

/// Most frames delivered in one wake.
const RX_BUDGET: u32 = 256;
/// Most buffers that one read may name: the kernel's `UIO_MAXIOV`, less one for the header.
const MAX_IOVECS: usize = 1023;

/// Host views of the buffers in hand. 64 KiB in buffers of a Linux guest are 44.
type Buffers<'m> = SmallVec<[VolatileSlice<'m>; 48]>;

/// A popped chain.
#[derive(Debug, Clone, Copy)]
struct Chain {
    head: u16,
    /// Number of its segments.
    segments: usize,
    /// Sum of their lengths.
    capacity: usize,
}

/// A frame that waits for buffers.
struct Waiting {
    header: NetHeader,
    len: usize,
    local: bool,
}

/// The receive queue of one pair.
pub(super) struct Rx {
    ring: Ring,
    mergeable: bool,
    accepted: Offloads,
    /// Longest frame the backend may bring, with header.
    longest: usize,
    chains: VecDeque<Chain>,
    segments: VecDeque<Segment>,
    /// Sum of `capacity` over `chains`.
    capacity: usize,
    waiting: Option<Waiting>,
    /// Storage of `waiting`; allocated when first needed.
    scratch: Vec<u8>,
    limit: Limit,
    starved: bool,
    backlog: bool,
}

/// How an attempt to deliver one frame ended.
enum Step {
    Delivered,
    Nothing,
    NoBuffers,
    Throttled,
}

impl Rx {
    /// `mtu` bounds the frames while the guest accepts no segmentation.
    pub fn new(ring: Ring, negotiated: Negotiated, mtu: u16, limit: Limit) -> Self {
        let longest = if negotiated.to_guest.intersects(Offloads::SEGMENTATION) {
            MAX_FRAME
        } else {
            usize::from(mtu) + 18
        };
        Rx {
            ring,
            mergeable: negotiated.mergeable,
            accepted: negotiated.to_guest,
            longest: longest + HEADER_LEN,
            chains: VecDeque::new(),
            segments: VecDeque::new(),
            capacity: 0,
            waiting: None,
            scratch: Vec::new(),
            limit,
            // Until the first look there are none, and the driver may notify.
            starved: true,
            backlog: false,
        }
    }

    /// The queue.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether the last call of [`Rx::pump`] stopped for lack of budget.
    pub fn backlog(&self) -> bool {
        self.backlog
    }

    /// How long frames have to wait for the rate limit.
    pub fn throttled(&self, now: Instant) -> Option<Duration> {
        self.limit.wait(now)
    }

    /// Whether frames have to wait until the guest offers more buffers.
    pub fn starved(&self) -> bool {
        self.starved
    }

    /// Delivers what the backend has.
    pub fn pump(
        &mut self,
        mem: &GuestMemoryMmap,
        backend: &mut dyn NicQueue,
        counters: &Counters,
        now: Instant,
    ) -> Result<(), Malformed> {
        if std::mem::take(&mut self.starved) {
            self.ring.disable_kicks(mem)?;
        }
        self.backlog = true;
        for _ in 0..RX_BUDGET {
            match self.deliver_one(mem, backend, counters, now)? {
                Step::Delivered => {}
                Step::Nothing | Step::Throttled => {
                    self.backlog = false;
                    break;
                }
                Step::NoBuffers => {
                    self.backlog = false;
                    if self.ring.enable_kicks(mem)? {
                        // More came while we asked to be told.
                        self.ring.disable_kicks(mem)?;
                        self.backlog = true;
                        continue;
                    }
                    self.starved = true;
                    counters.rx_starved.add(1);
                    break;
                }
            }
        }
        self.ring.signal(mem, counters)
    }

    fn deliver_one(
        &mut self,
        mem: &GuestMemoryMmap,
        backend: &mut dyn NicQueue,
        counters: &Counters,
        now: Instant,
    ) -> Result<Step, Malformed> {
        self.refill(mem)?;
        if let Some(waiting) = self.waiting.take() {
            return self.deliver_waiting(mem, waiting, counters);
        }
        if self.chains.is_empty() {
            return Ok(Step::NoBuffers);
        }
        if !self.limit.admit_next(now) {
            return Ok(Step::Throttled);
        }
        if self.mergeable && self.capacity < self.longest && self.may_grow() {
            return self.receive_aside(mem, backend, counters, now);
        }
        let (buffers, room) = self.buffers(mem)?;
        match backend.receive(&buffers, now) {
            Received::Nothing => Ok(Step::Nothing),
            Received::Lost => {
                counters.rx_dropped.add(1);
                Ok(Step::Delivered)
            }
            Received::Frame { len, .. } if len > room => {
                // Its end is lost; the buffers serve the next one.
                counters.rx_dropped.add(1);
                Ok(Step::Delivered)
            }
            Received::Frame { header, len, local } => {
                self.complete(mem, header, len, local, counters)?;
                Ok(Step::Delivered)
            }
        }
    }

    /// Whether the guest could still add buffers to those in hand.
    fn may_grow(&self) -> bool {
        self.chains.len() < usize::from(self.ring.size()) && self.segments.len() < MAX_IOVECS
    }

    /// Reads one frame into private memory, because it might not fit the buffers in hand.
    fn receive_aside(
        &mut self,
        mem: &GuestMemoryMmap,
        backend: &mut dyn NicQueue,
        counters: &Counters,
        now: Instant,
    ) -> Result<Step, Malformed> {
        self.scratch.resize(MAX_FRAME, 0);
        let room = self.scratch.len();
        match backend.receive(&[VolatileSlice::from(self.scratch.as_mut_slice())], now) {
            Received::Nothing => Ok(Step::Nothing),
            Received::Frame { header, len, local } if len <= room => {
                self.deliver_waiting(mem, Waiting { header, len, local }, counters)
            }
            Received::Frame { .. } | Received::Lost => {
                counters.rx_dropped.add(1);
                Ok(Step::Delivered)
            }
        }
    }

    /// Copies the waiting frame into buffers, or keeps it if they do not suffice yet.
    fn deliver_waiting(
        &mut self,
        mem: &GuestMemoryMmap,
        waiting: Waiting,
        counters: &Counters,
    ) -> Result<Step, Malformed> {
        if waiting.len + HEADER_LEN > self.capacity {
            if self.needs_more() {
                self.waiting = Some(waiting);
                return Ok(Step::NoBuffers);
            }
            // The driver has offered all it can, and it is not enough.
            counters.rx_dropped.add(1);
            return Ok(Step::Delivered);
        }
        let (buffers, room) = self.buffers(mem)?;
        if waiting.len > room {
            counters.rx_dropped.add(1);
            return Ok(Step::Delivered);
        }
        let mut left = self.scratch.get(..waiting.len).unwrap_or_default();
        for buffer in &buffers {
            let n = left.len().min(buffer.len());
            let (now, later) = left.split_at(n);
            buffer.copy_from(now);
            left = later;
        }
        drop(buffers);
        self.complete(mem, waiting.header, waiting.len, waiting.local, counters)?;
        Ok(Step::Delivered)
    }

    /// Pops chains until the longest frame fits, or there are no more.
    fn refill(&mut self, mem: &GuestMemoryMmap) -> Result<(), Malformed> {
        while self.needs_more() {
            let Some(chain) = self.ring.pop(mem)? else { return Ok(()) };
            let head = chain.head_index();
            let before = self.segments.len();
            let mut capacity = 0usize;
            let segments = &mut self.segments;
            walk(mem, chain, self.ring.size(), |segment, direction| {
                if direction != Direction::ToGuest {
                    return Err(Malformed::Direction);
                }
                capacity = capacity.saturating_add(usize::try_from(segment.len).unwrap_or(usize::MAX));
                segments.push_back(segment);
                Ok(())
            })?;
            if capacity < HEADER_LEN {
                return Err(Malformed::ShortBuffer);
            }
            self.capacity = self.capacity.saturating_add(capacity);
            self.chains.push_back(Chain { head, segments: self.segments.len() - before, capacity });
        }
        Ok(())
    }

    fn needs_more(&self) -> bool {
        if self.mergeable { self.capacity < self.longest && self.may_grow() } else { self.chains.is_empty() }
    }

    /// Host views of the buffers in hand after the header, with the sum of their lengths.
    fn buffers<'m>(&self, mem: &'m GuestMemoryMmap) -> Result<(Buffers<'m>, usize), Malformed> {
        let usable = match self.chains.front() {
            Some(first) if !self.mergeable => first.segments,
            _ => self.segments.len(),
        };
        let mut skip = HEADER_LEN;
        let mut room = 0usize;
        let mut out: Buffers<'m> = SmallVec::new();
        for segment in self.segments.iter().take(usable) {
            resolve(mem, *segment, |slice| {
                let skipped = skip.min(slice.len());
                skip -= skipped;
                if let Ok(slice) = slice.offset(skipped)
                    && !slice.is_empty()
                    && out.len() < MAX_IOVECS
                {
                    room = room.saturating_add(slice.len());
                    out.push(slice);
                }
            })?;
        }
        Ok((out, room))
    }

    /// Writes the header of a frame whose `len` bytes are in place and gives its buffers to the
    /// guest, all at once.
    fn complete(
        &mut self,
        mem: &GuestMemoryMmap,
        header: NetHeader,
        len: usize,
        local: bool,
        counters: &Counters,
    ) -> Result<(), Malformed> {
        let mut left = len + HEADER_LEN;
        let mut buffers = 0u16;
        for chain in &self.chains {
            buffers = buffers.saturating_add(1);
            left = left.saturating_sub(chain.capacity);
            if left == 0 {
                break;
            }
        }
        let header = header.to_guest(self.accepted, buffers).to_bytes();
        let mut header = header.as_slice();
        for segment in &self.segments {
            let n = header.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX));
            let (now, later) = header.split_at(n);
            mem.write_slice(now, segment.addr).map_err(|_| Malformed::Address)?;
            header = later;
            if header.is_empty() {
                break;
            }
        }

        let mut left = len + HEADER_LEN;
        for _ in 0..buffers {
            let Some(chain) = self.chains.pop_front() else { break };
            self.segments.drain(..chain.segments);
            self.capacity = self.capacity.saturating_sub(chain.capacity);
            let used = left.min(chain.capacity);
            left -= used;
            self.ring.push_used(mem, chain.head, u32::try_from(used).unwrap_or(u32::MAX))?;
        }
        self.ring.publish(mem)?;
        self.limit.passed(len);
        counters.rx_packets.add(1);
        counters.rx_bytes.add(len);
        if local {
            counters.rx_local.add(1);
        }
        Ok(())
    }

    /// Gives up the queue with every unused buffer handed back.
    pub fn into_ring(mut self, counters: &Counters) -> Ring {
        if self.waiting.is_some() {
            counters.rx_dropped.add(1);
        }
        self.ring.unpop(u16::try_from(self.chains.len()).unwrap_or(u16::MAX));
        self.ring
    }
}
