//! Serves one request queue.
//!
//! A request in flight holds a *slot*; the slot's number is its tag in the engine. There are as
//! many slots as the queue has entries, so a driver that makes one head available twice only waits.
//!
//! Invariants: every chain taken is either in a slot, in the list of answers, or given back; a slot
//! is freed exactly once, when the last of its operations has completed; used entries are written
//! only by [`BlkQueue::publish`].

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kiln_disk::engine::{Completion, Engine, Op};
use kiln_disk::{DiskError, Segment};
use tracing::warn;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::request::{self, Action, Buffers, Refusal, Request, Written};
use super::{QUEUE_SIZE, Shared};
use crate::virtio::{DEADLINE, DeviceFault, Placement, QueueWorker, Virtqueue, Wake, WakeSource};

const KICK: u32 = 0;
const ENGINE: u32 = 1;

/// Descriptors of one chain: as many as a direct chain can have. Holds for indirect tables too.
const MAX_CHAIN: usize = QUEUE_SIZE as usize;

/// The driver broke the rules of the queue; nothing in it can be trusted any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueFault {
    #[error("a ring cannot be used: {0}")]
    Ring(virtio_queue::Error),
    #[error("a descriptor chain has no proper end, or its descriptors are in the wrong order")]
    Chain,
}

impl From<virtio_queue::Error> for QueueFault {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

/// One queue with its engine.
pub(super) struct BlkQueue {
    virtqueue: Virtqueue,
    mem: GuestMemoryMmap,
    fault: DeviceFault,
    requests: Requests,
    /// Set by [`QueueFault`]: no chain is taken any more.
    broken: bool,
    /// Serving stops until then, because of the throttle.
    stalled_until: Option<Instant>,
}

impl BlkQueue {
    pub fn new(
        virtqueue: Virtqueue,
        mem: GuestMemoryMmap,
        fault: DeviceFault,
        engine: Box<dyn Engine>,
        shared: Arc<Shared>,
        write_through: bool,
    ) -> Self {
        let slots = usize::from(virtqueue.queue.size());
        let requests = Requests {
            engine,
            shared,
            write_through,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            spare: Vec::new(),
            buffers: Buffers::default(),
            answers: Vec::new(),
        };
        Self { virtqueue, mem, fault, requests, broken: false, stalled_until: None }
    }

    /// Takes what is available, up to a ring's worth, and answers what is done.
    fn serve(&mut self, now: Instant) {
        if !self.broken
            && let Err(fault) = self.take_chains(now)
        {
            self.break_down(&fault);
        }
        self.answer();
    }

    fn take_chains(&mut self, now: Instant) -> Result<(), QueueFault> {
        // A driver that refills as fast as we serve must not keep us from anything else.
        let mut budget = self.virtqueue.queue.size();
        let mut promised = false;
        loop {
            let before = budget;
            self.virtqueue.queue.disable_notification(&self.mem)?;
            self.take_batch(&mut budget, now)?;
            self.requests.engine.kick();
            self.answer();
            if self.stalled_until.is_some() || (self.requests.free.is_empty() && !self.broken) {
                // The deadline, or a completion, brings us back.
                return Ok(());
            }
            if budget == 0 {
                // Come back after others had their turn.
                let _ = self.virtqueue.kick.write(1);
                return Ok(());
            }
            if promised && budget == before {
                // There were chains, and none can be read: the ring lies outside guest memory. One
                // that appeared only after we had looked is no promise broken.
                return Err(virtio_queue::Error::InvalidChain.into());
            }
            promised = !self.broken && self.virtqueue.queue.enable_notification(&self.mem)?;
            if !promised {
                return Ok(());
            }
        }
    }

    /// Takes available chains until there are none, the budget is used up, all slots are taken, or
    /// the throttle says stop.
    fn take_batch(&mut self, budget: &mut u16, now: Instant) -> Result<(), QueueFault> {
        self.stalled_until = None;
        let mut chains = self.virtqueue.queue.iter(&self.mem)?;
        let mut stalled = None;
        while *budget > 0 && !self.requests.free.is_empty() {
            let Some(chain) = chains.next() else { break };
            *budget -= 1;
            if let Some(wait) = self.requests.take(&self.mem, chain, now)? {
                stalled = now.checked_add(wait);
                break;
            }
        }
        if stalled.is_some() {
            self.virtqueue.queue.go_to_previous_position();
            self.stalled_until = stalled;
        }
        Ok(())
    }

    /// Collects completions and shows them to the driver, with one interrupt for all.
    fn answer(&mut self) {
        self.requests.reap(&self.mem);
        if !self.requests.answers.is_empty()
            && let Err(error) = self.publish()
        {
            self.requests.answers.clear();
            self.break_down(&error.into());
        }
    }

    fn publish(&mut self) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.virtqueue.queue;
        for (head, written) in self.requests.answers.drain(..) {
            queue.add_used(&self.mem, head, written)?;
        }
        if wants_interrupt(queue, &self.mem)? {
            // A full event counter already means a pending interrupt.
            let _ = self.virtqueue.interrupt.write(1);
        }
        Ok(())
    }

    fn break_down(&mut self, fault: &QueueFault) {
        if self.broken {
            return;
        }
        self.broken = true;
        self.stalled_until = None;
        self.requests.shared.counters.malformed.add(1);
        warn!(
            device = self.requests.shared.name,
            queue = self.virtqueue.index,
            "{fault}; the device needs a reset"
        );
        self.fault.raise();
    }
}

impl QueueWorker for BlkQueue {
    fn name(&self) -> String {
        format!("{}-q{}", self.requests.shared.name, self.virtqueue.index)
    }

    fn placement(&self) -> Placement {
        Placement::Thread
    }

    fn wake_sources(&self) -> Vec<WakeSource> {
        let kick = WakeSource { fd: self.virtqueue.kick.as_raw_fd(), writable: false, token: KICK };
        let engine = self.requests.engine.event_fd();
        let engine = engine.map(|fd| WakeSource { fd, writable: false, token: ENGINE });
        std::iter::once(kick).chain(engine).collect()
    }

    fn started(&mut self, now: Instant) {
        self.serve(now);
    }

    fn wake(&mut self, token: u32, now: Instant) -> Wake {
        match token {
            // The count says nothing; an error means another wake took it.
            KICK => {
                let _ = self.virtqueue.kick.read();
            }
            DEADLINE | ENGINE => {}
            _ => return Wake::Continue,
        }
        if self.stalled_until.is_some_and(|until| now < until) {
            self.answer();
        } else {
            self.serve(now);
        }
        Wake::Continue
    }

    fn deadline(&self, now: Instant) -> Option<Duration> {
        self.stalled_until.map(|until| until.saturating_duration_since(now))
    }

    fn drain(mut self: Box<Self>) -> Vec<(u16, QueueState)> {
        self.answer();
        while self.requests.engine.in_flight() > 0 {
            self.requests.engine.wait();
            self.answer();
        }
        let Self { virtqueue, requests, .. } = *self;
        requests.shared.engines.idle().push(requests.engine);
        vec![(virtqueue.index, virtqueue.queue.state())]
    }
}

/// The requests of one queue between its rings.
struct Requests {
    engine: Box<dyn Engine>,
    shared: Arc<Shared>,
    /// Flush after each write.
    write_through: bool,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Emptied lists of segments, to be filled again.
    spare: Vec<Vec<Segment>>,
    /// The chain that is being read.
    buffers: Buffers,
    /// Finished requests, as `(head, length)` for the used ring.
    answers: Vec<(u16, u32)>,
}

/// A request in flight.
struct Slot {
    head: u16,
    status: GuestAddress,
    written: Written,
    kind: Kind,
    /// Operations of the engine that have not completed.
    pending: usize,
    /// The first thing that went wrong.
    result: Result<(), DiskError>,
}

/// What to count.
#[derive(Clone, Copy)]
enum Kind {
    Read(u64),
    Write(u64),
    /// A write whose data are on their way to stable storage.
    WriteFlush(u64),
    Flush,
    Discard,
    Other,
}

impl Requests {
    /// Takes one chain, unless the throttle wants a wait: then nothing has happened.
    fn take(
        &mut self,
        mem: &GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        now: Instant,
    ) -> Result<Option<Duration>, QueueFault> {
        let head = chain.head_index();
        collect(chain, &mut self.buffers)?;
        if let Some(wait) = self.throttle(now) {
            self.shared.counters.throttled.add(1);
            return Ok(Some(wait));
        }
        let spare = self.spare.pop().unwrap_or_default();
        match request::parse(mem, &mut self.buffers, &self.shared.limits(), spare) {
            Ok(request) => self.start(mem, head, request),
            Err(request::NoStatus) => {
                self.shared.counters.malformed.add(1);
                self.answers.push((head, 0));
            }
        }
        Ok(None)
    }

    /// Charged by the size of the chain, before anything of it is believed.
    fn throttle(&self, now: Instant) -> Option<Duration> {
        let throttle = self.shared.throttle.as_ref()?;
        let segments = self.buffers.readable.iter().chain(&self.buffers.writable);
        let bytes = segments.fold(0u64, |sum, segment| sum.saturating_add(u64::from(segment.len)));
        throttle.lock().unwrap_or_else(PoisonError::into_inner).admit(bytes, now)
    }

    fn start(&mut self, mem: &GuestMemoryMmap, head: u16, request: Request) {
        let Request { status, written, action } = request;
        let slot = |kind, pending| Slot { head, status, written, kind, pending, result: Ok(()) };
        match action {
            Ok(Action::Io(op)) => {
                let kind = match &op {
                    Op::Read { .. } => Kind::Read(u64::from(written.success).saturating_sub(1)),
                    Op::Write { segments, .. } => {
                        Kind::Write(segments.iter().map(|segment| u64::from(segment.len)).sum())
                    }
                    _ => Kind::Flush,
                };
                let tag = self.occupy(slot(kind, 1));
                self.engine.submit(tag, op);
            }
            Ok(Action::Discard(ranges)) => {
                let tag = self.occupy(slot(Kind::Discard, ranges.as_slice().len()));
                for range in ranges.as_slice() {
                    self.engine.submit(tag, Op::Discard { offset: range.offset, len: range.len });
                }
            }
            Ok(Action::WriteZeroes(ranges)) => {
                let tag = self.occupy(slot(Kind::Discard, ranges.as_slice().len()));
                for &request::Range { offset, len, unmap } in ranges.as_slice() {
                    self.engine.submit(tag, Op::WriteZeroes { offset, len, unmap });
                }
            }
            Ok(Action::GetId(segments)) => {
                let mut slot = slot(Kind::Other, 0);
                slot.result = self.write_id(mem, &segments);
                self.recycle(segments);
                self.finish(mem, slot);
            }
            Ok(Action::Nothing) => self.finish(mem, slot(Kind::Other, 0)),
            Err(refusal) => {
                let mut slot = slot(Kind::Other, 0);
                slot.result = Err(match refusal {
                    Refusal::Unsupported => DiskError::Unsupported("the request"),
                    Refusal::Invalid => DiskError::BadBuffer,
                });
                self.finish(mem, slot);
            }
        }
    }

    /// Puts a request into a slot and returns its tag. There is one: chains are taken only then.
    fn occupy(&mut self, slot: Slot) -> u64 {
        let index = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(index) {
            Some(place) => *place = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        index as u64
    }

    fn write_id(&self, mem: &GuestMemoryMmap, segments: &[Segment]) -> Result<(), DiskError> {
        let mut rest = &self.shared.serial[..];
        for segment in segments {
            let (part, after) = rest.split_at(rest.len().min(segment.len as usize));
            mem.write_slice(part, segment.addr).map_err(|_| DiskError::BadBuffer)?;
            rest = after;
        }
        Ok(())
    }

    fn recycle(&mut self, mut segments: Vec<Segment>) {
        if segments.capacity() > 0 && self.spare.len() < self.slots.len() {
            segments.clear();
            self.spare.push(segments);
        }
    }

    /// Takes every completion there is.
    fn reap(&mut self, mem: &GuestMemoryMmap) {
        while let Some(Completion { tag, result, segments }) = self.engine.poll() {
            self.recycle(segments);
            let Some((index, place)) =
                usize::try_from(tag).ok().and_then(|index| Some((index, self.slots.get_mut(index)?)))
            else {
                continue;
            };
            let Some(slot) = place else { continue };
            slot.pending = slot.pending.saturating_sub(1);
            if slot.result.is_ok() {
                slot.result = result;
            }
            if slot.pending > 0 {
                continue;
            }
            if self.write_through
                && slot.result.is_ok()
                && let Kind::Write(bytes) = slot.kind
            {
                slot.kind = Kind::WriteFlush(bytes);
                slot.pending = 1;
                self.engine.submit(tag, Op::Flush);
                self.engine.kick();
                continue;
            }
            if let Some(slot) = place.take() {
                self.free.push(index);
                self.finish(mem, slot);
            }
        }
    }

    /// Writes the status byte and queues the answer. The one place where a result becomes a status.
    fn finish(&mut self, mem: &GuestMemoryMmap, slot: Slot) {
        let Slot { head, status: address, written, kind, result, .. } = slot;
        let (status, written) = match &result {
            Ok(()) => (VIRTIO_BLK_S_OK, written.success),
            Err(DiskError::Unsupported(_)) => (VIRTIO_BLK_S_UNSUPP, written.failure),
            Err(_) => (VIRTIO_BLK_S_IOERR, written.failure),
        };
        let told = mem.write_obj(status as u8, address).is_ok();
        self.count(kind, result);
        self.answers.push((head, if told { written } else { 0 }));
    }

    fn count(&self, kind: Kind, result: Result<(), DiskError>) {
        let counters = &self.shared.counters;
        if let Err(error) = result {
            let count = counters.errors.add(1);
            // The host's troubles are worth a line each time; but a guest must not fill the log.
            if let DiskError::Io { action, source } = &error
                && (count <= 16 || count.is_power_of_two())
            {
                warn!(device = self.shared.name, "{action} failed: {source}");
            }
            return;
        }
        match kind {
            Kind::Read(bytes) => {
                counters.read_ops.add(1);
                counters.read_bytes.add(bytes);
            }
            Kind::Write(bytes) | Kind::WriteFlush(bytes) => {
                counters.write_ops.add(1);
                counters.write_bytes.add(bytes);
            }
            Kind::Flush => {
                counters.flush_ops.add(1);
            }
            Kind::Discard => {
                counters.discard_ops.add(1);
            }
            Kind::Other => {}
        }
    }
}

/// Whether the driver wants to hear of the used entries since the last call (virtio 1.2 §2.7.7.2).
fn wants_interrupt(queue: &mut Queue, mem: &GuestMemoryMmap) -> Result<bool, virtio_queue::Error> {
    // This also orders the used index before what is read next.
    let wanted = queue.needs_notification(mem)?;
    if queue.event_idx_enabled() {
        return Ok(wanted);
    }
    // Without the event index the flag says it, which `Queue` does not look at.
    let flags: u16 = mem
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
}

/// Reads the descriptors of a chain. The iterator ends without a word at a link or table that it
/// cannot follow; we notice because the last descriptor seen promised another.
fn collect(chain: DescriptorChain<&GuestMemoryMmap>, buffers: &mut Buffers) -> Result<(), QueueFault> {
    buffers.clear();
    let mut more = true;
    for (count, descriptor) in chain.enumerate() {
        if count == MAX_CHAIN {
            return Err(QueueFault::Chain);
        }
        more = descriptor.has_next();
        let segment = Segment { addr: descriptor.addr(), len: descriptor.len() };
        if descriptor.is_write_only() {
            buffers.writable.push(segment);
        } else if buffers.writable.is_empty() {
            buffers.readable.push(segment);
        } else {
            return Err(QueueFault::Chain);
        }
    }
    if more { Err(QueueFault::Chain) } else { Ok(()) }
}
