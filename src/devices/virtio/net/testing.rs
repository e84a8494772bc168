//! A driver over plain memory and a backend that records, and what hostile drivers do with them: one
//! body for fuzzing and for property tests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "test support: failing is its way to report"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    HEADER_LEN, MAX_FRAME, MIN_FRAME, Net, NetConfig, NetHeader, NicBackend, NicQueue, Offloads, Received,
    TxFrame, TxOutcome,
};
use crate::virtio::{Activation, DeviceFault, QueueWorker, VirtioDevice, Virtqueue};

pub const MEM_SIZE: usize = 8 << 20;
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
pub const EVENT_IDX: u64 = 1 << 29;

pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEM_SIZE)]).unwrap()
}

/// The driver's side of one queue.
pub struct DriverQueue {
    pub mem: GuestMemoryMmap,
    pub size: u16,
    pub base: u64,
    pub next_desc: u16,
    pub avail_idx: u16,
    pub used_idx: u16,
    pub kick: Arc<EventFd>,
    pub interrupt: Arc<EventFd>,
}

/// Each queue's rings live in 64 KiB of their own, after 4 MiB.
pub fn ring_base(index: u16) -> u64 {
    (4 << 20) + 0x1_0000 * u64::from(index)
}

impl DriverQueue {
    pub fn new(mem: &GuestMemoryMmap, index: u16, size: u16) -> Self {
        let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        DriverQueue {
            mem: mem.clone(),
            size,
            base: ring_base(index),
            next_desc: 0,
            avail_idx: 0,
            used_idx: 0,
            kick: eventfd(),
            interrupt: eventfd(),
        }
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x8000
    }

    pub fn used(&self) -> u64 {
        self.base + 0xc000
    }

    /// What the device gets.
    pub fn virtqueue(&self, index: u16, event_idx: bool) -> Virtqueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used())).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Virtqueue { index, queue, kick: self.kick.clone(), interrupt: self.interrupt.clone() }
    }

    pub fn write_desc(&self, table: u64, slot: u16, desc: (u64, u32, u16, u16)) {
        let at = table + 16 * u64::from(slot);
        self.mem.write_obj(desc.0, GuestAddress(at)).unwrap();
        self.mem.write_obj(desc.1, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(desc.2, GuestAddress(at + 12)).unwrap();
        self.mem.write_obj(desc.3, GuestAddress(at + 14)).unwrap();
    }

    /// Makes `head` available.
    pub fn push_head(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.mem.write_obj(head, GuestAddress(self.avail() + 4 + 2 * slot)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.mem.write_obj(self.avail_idx, GuestAddress(self.avail() + 2)).unwrap();
    }

    /// Adds a chain of buffers `(address, length, writable)`; returns its head.
    pub fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc % self.size;
        for (i, (addr, len, writable)) in buffers.iter().enumerate() {
            let slot = self.next_desc % self.size;
            self.next_desc = self.next_desc.wrapping_add(1);
            let mut flags = if *writable { VIRTQ_DESC_F_WRITE } else { 0 };
            if i + 1 < buffers.len() {
                flags |= VIRTQ_DESC_F_NEXT;
            }
            self.write_desc(self.base, slot, (*addr, *len, flags, self.next_desc % self.size));
        }
        self.push_head(head);
        head
    }

    /// Used entries since the last call.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let idx: u16 = self.mem.read_obj(GuestAddress(self.used() + 2)).unwrap();
        let mut out = Vec::new();
        while self.used_idx != idx {
            let at = self.used() + 4 + 8 * u64::from(self.used_idx % self.size);
            let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
            out.push((head, len));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        out
    }

    pub fn interrupts(&self) -> u64 {
        self.interrupt.read().unwrap_or(0)
    }

    pub fn set_used_event(&self, value: u16) {
        let at = self.avail() + 4 + 2 * u64::from(self.size);
        self.mem.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub fn avail_event(&self) -> u16 {
        self.mem.read_obj(GuestAddress(self.used() + 4 + 8 * u64::from(self.size))).unwrap()
    }
}

#[derive(Default)]
pub struct FakeState {
    /// Frames taken, by pair.
    pub sent: Vec<(u16, NetHeader, Vec<u8>)>,
    /// Frames to deliver.
    pub inbox: VecDeque<(NetHeader, Vec<u8>)>,
    /// Replies of services to deliver.
    pub replies: VecDeque<Vec<u8>>,
    pub configured: Option<Offloads>,
    pub active: Option<u16>,
    pub gone: bool,
    pub drop_all: bool,
    pub echo: bool,
    /// Changes guest memory at this address after the frame was copied.
    pub rewrite: Option<(GuestMemoryMmap, u64)>,
}

pub struct FakeBackend {
    pub pairs: u16,
    pub offloads: Offloads,
    pub state: Arc<Mutex<FakeState>>,
    fd: Arc<EventFd>,
}

impl FakeBackend {
    pub fn new(pairs: u16) -> Arc<Self> {
        Arc::new(FakeBackend {
            pairs,
            offloads: Offloads::all(),
            state: Arc::default(),
            fd: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }
}

impl NicBackend for FakeBackend {
    fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn configure(&self, accepted: Offloads) -> io::Result<()> {
        self.state().configured = Some(accepted);
        Ok(())
    }

    fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        self.state().active = Some(pairs);
        Ok(())
    }

    fn open(&self, pair: u16) -> io::Result<Box<dyn NicQueue>> {
        Ok(Box::new(FakeQueue { pair, state: self.state.clone(), fd: self.fd.clone() }))
    }
}

struct FakeQueue {
    pair: u16,
    state: Arc<Mutex<FakeState>>,
    fd: Arc<EventFd>,
}

impl NicQueue for FakeQueue {
    fn transmit(&mut self, frame: &TxFrame<'_>, _now: Instant) -> TxOutcome {
        let mut state = self.state.lock().unwrap();
        if let Some((mem, at)) = &state.rewrite {
            mem.write_slice(&[0xee; 200], GuestAddress(*at)).unwrap();
        }
        let mut bytes = frame.head().to_vec();
        for part in frame.rest {
            let mut copy = vec![0; part.len()];
            part.copy_to(&mut copy);
            bytes.extend(copy);
        }
        assert_eq!(bytes.len(), frame.len);
        assert_eq!(frame.copy[..12], frame.header.to_bytes());
        if state.drop_all {
            return TxOutcome::Dropped;
        }
        if state.echo {
            state.replies.push_back(bytes);
            return TxOutcome::Local;
        }
        state.sent.push((self.pair, frame.header, bytes));
        TxOutcome::Sent
    }

    fn receive(&mut self, bufs: &[VolatileSlice<'_>], _now: Instant) -> Received {
        let mut state = self.state.lock().unwrap();
        let (header, bytes, local) = match state.replies.pop_front() {
            Some(bytes) => (NetHeader::default(), bytes, true),
            None => match state.inbox.pop_front() {
                Some((header, bytes)) => (header, bytes, false),
                None => return Received::Nothing,
            },
        };
        let mut left = bytes.as_slice();
        for buf in bufs {
            let n = left.len().min(buf.len());
            buf.copy_from(&left[..n]);
            left = &left[n..];
        }
        Received::Frame { header, len: bytes.len(), local }
    }

    fn readable_fd(&self) -> Option<RawFd> {
        (!self.state.lock().unwrap().gone).then(|| self.fd.as_raw_fd())
    }

    fn has_reply(&self, _now: Instant) -> bool {
        !self.state.lock().unwrap().replies.is_empty()
    }

    fn deadline(&self, _now: Instant) -> Option<Duration> {
        None
    }
}

/// A device with its driver, after DRIVER_OK.
pub struct Rig {
    pub mem: GuestMemoryMmap,
    pub backend: Arc<FakeBackend>,
    pub net: Net,
    pub queues: Vec<DriverQueue>,
    pub workers: Vec<Box<dyn QueueWorker>>,
    pub fault: DeviceFault,
    /// Bytes of used receive buffers so far.
    pub seen: u64,
}

pub fn device(backend: Arc<FakeBackend>) -> Net {
    let config = NetConfig { name: "net0".into(), mac: "02:00:0a:00:00:05".parse().unwrap(), mtu: 1500 };
    Net::new(config, backend)
}

impl Rig {
    /// Without the features in `without`.
    pub fn new(backend: Arc<FakeBackend>, without: u64) -> Self {
        Self::with_size(backend, without, 256)
    }

    pub fn with_size(backend: Arc<FakeBackend>, without: u64, size: u16) -> Self {
        let net = device(backend.clone());
        Self::around(net, backend, without, size)
    }

    pub fn around(net: Net, backend: Arc<FakeBackend>, without: u64, size: u16) -> Self {
        let mem = memory();
        let count = u16::try_from(net.queue_max_sizes().len()).unwrap();
        let queues = (0..count).map(|i| DriverQueue::new(&mem, i, size)).collect();
        let fault = DeviceFault {
            needs_reset: Arc::new(AtomicBool::new(false)),
            config_interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        let mut rig = Rig { mem, backend, net, queues, workers: Vec::new(), fault, seen: 0 };
        rig.activate((rig.net.features() | EVENT_IDX) & !without);
        rig
    }

    pub fn activate(&mut self, features: u64) {
        let event_idx = features & EVENT_IDX != 0;
        let queues = (0u16..).zip(&self.queues).map(|(i, q)| q.virtqueue(i, event_idx)).collect();
        let activation = Activation { mem: self.mem.clone(), features, queues, fault: self.fault.clone() };
        self.workers = self.net.activate(activation).unwrap();
        for worker in &mut self.workers {
            worker.started(Instant::now());
        }
    }

    /// Starts the driver over with empty rings.
    pub fn new_rings(&mut self) {
        for (index, queue) in (0u16..).zip(&mut self.queues) {
            *queue = DriverQueue::new(&self.mem, index, queue.size);
            self.mem.write_slice(&[0; 0x1_0000], GuestAddress(queue.base)).unwrap();
        }
    }

    /// Does what an event loop would do when everything is ready, until nothing is left over.
    pub fn run(&mut self) {
        for _ in 0..100 {
            let mut again = false;
            for worker in &mut self.workers {
                for source in worker.wake_sources() {
                    worker.wake(source.token, Instant::now());
                }
                again |= worker.deadline(Instant::now()) == Some(Duration::ZERO);
                if again {
                    worker.wake(crate::virtio::DEADLINE, Instant::now());
                }
            }
            if !again {
                return;
            }
        }
        panic!("worker never comes to rest");
    }

    pub fn needs_reset(&self) -> bool {
        self.fault.needs_reset.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn counter(&self, name: &str) -> u64 {
        let mut counters = Vec::new();
        self.net.counters(&mut counters);
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// Writes header and frame at `at` and makes them available on queue 1 as one buffer.
    pub fn send(&mut self, at: u64, header: NetHeader, frame: &[u8]) -> u16 {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.queues[1].add(&[(at, u32::try_from(bytes.len()).unwrap(), false)])
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn waits_on_backend(&self, worker: usize) -> bool {
        self.workers[worker].wake_sources().iter().any(|source| source.token == 3)
    }
}

/// A frame with recognisable content.
pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Reads values off a byte string; zeroes when it has ended.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn ended(&self) -> bool {
        self.0.is_empty()
    }

    /// Mostly inside of memory, sometimes at or beyond its end.
    fn address(&mut self) -> u64 {
        match self.byte() {
            0..0xf8 => 0x1000 + u64::from(self.word()) * 16,
            0xf8..0xfc => MEM_SIZE as u64 - u64::from(self.byte()),
            _ => u64::MAX - u64::from(self.word()),
        }
    }

    /// Mostly as long as buffers of drivers are.
    fn len(&mut self) -> u32 {
        match self.byte() {
            pick @ 0..0x40 => u32::from(pick),
            0x40..0xe0 => u32::from(self.word()) % 4096,
            0xe0..0xfc => u32::from(self.word()),
            _ => u32::MAX - u32::from(self.word()),
        }
    }

    /// A chain of buffers, `writable` with few exceptions.
    fn chain(&mut self, writable: bool) -> Vec<(u64, u32, bool)> {
        let count = match self.byte() {
            pick @ 0..0xf0 => usize::from(pick % 8) + 1,
            pick => usize::from(pick),
        };
        (0..count)
            .map(|_| (self.address(), self.len(), if self.byte() == 0xff { !writable } else { writable }))
            .collect()
    }
}

/// Chains and headers of any content on the transmit queue. Panics when the device does, when a
/// frame reaches the backend that must not, or when a buffer is lost.
pub fn fuzz_transmit(data: &[u8]) {
    let mut tape = Tape(data);
    let features = (u64::from(tape.word()) << 48 | u64::from(tape.word()) << 7) | u64::from(tape.byte() & 3);
    let mut rig = Rig::new(FakeBackend::new(1), features);
    let mut added = 0;
    while !tape.ended() && !rig.needs_reset() {
        let header: Vec<u8> = (0..HEADER_LEN).map(|_| tape.byte()).collect();
        let chain = tape.chain(false);
        if let Some((addr, ..)) = chain.first() {
            let _ = rig.mem.write_slice(&header, GuestAddress(*addr));
        }
        rig.queues[1].add(&chain);
        added += 1;
        rig.run();
        for (_, header, frame) in rig.backend.state().sent.drain(..) {
            assert!((MIN_FRAME..=MAX_FRAME).contains(&frame.len()));
            assert_eq!(header.num_buffers, 0);
            let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
            assert!(!header.needs_csum() || end <= frame.len());
        }
    }
    if !rig.needs_reset() {
        assert_eq!(rig.queues[1].take_used().len(), added % (1 << 16));
        let taken = ["tx_packets", "tx_malformed"].map(|name| rig.counter(name)).iter().sum::<u64>();
        assert_eq!(taken, added as u64);
    }
    for worker in rig.workers {
        worker.drain();
    }
}

/// Receive buffers of any shape and frames of any length. Panics when the device does, when a frame
/// arrives in part, or when buffers are lost.
pub fn fuzz_receive(data: &[u8]) {
    let mut tape = Tape(data);
    let features = u64::from(tape.word()) << 7 | u64::from(tape.byte() & 3);
    let size = 1 << (tape.byte() % 9);
    let mut rig = Rig::with_size(FakeBackend::new(1), features, size);
    let (mut added, mut frames) = (0u16, 0u64);
    while !tape.ended() && !rig.needs_reset() {
        if tape.byte() & 1 == 0 {
            let outstanding = added.wrapping_sub(rig.queues[0].used_idx);
            let chain = tape.chain(true);
            // More would not fit the descriptor table, which a driver knows.
            if outstanding < size && chain.len() <= usize::from(size) {
                rig.queues[0].add(&chain);
                added = added.wrapping_add(1);
            }
        } else {
            let len = usize::from(tape.word());
            let header = NetHeader { flags: tape.byte(), ..NetHeader::default() };
            rig.backend.state().inbox.push_back((header, vec![0x5a; len]));
            frames += 1;
        }
        rig.run();
        let before = rig.counter("rx_packets");
        let used: u64 = rig.queues[0].take_used().iter().map(|(_, len)| u64::from(*len)).sum();
        rig.seen += used;
        assert_eq!(rig.seen, rig.counter("rx_bytes") + before * HEADER_LEN as u64);
    }
    let settled = ["rx_packets", "rx_dropped"].map(|name| rig.counter(name)).iter().sum::<u64>();
    let waiting = rig.backend.state().inbox.len() as u64;
    assert!(rig.needs_reset() || frames - settled - waiting <= 1, "a frame was lost");
    let reset = rig.needs_reset();
    let used = rig.queues[0].used_idx;
    for worker in rig.workers {
        for (index, state) in worker.drain() {
            if index == 0 && !reset {
                assert_eq!((state.next_avail, state.next_used), (used, used), "buffers were not handed back");
            }
        }
    }
}
