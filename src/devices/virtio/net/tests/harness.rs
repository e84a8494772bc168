//! A driver over plain memory and a backend that records.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::{Net, NetConfig, NetHeader, NicBackend, NicQueue, Offloads, Received, TxFrame, TxOutcome};
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
        let mem = memory();
        let net = device(backend.clone());
        let count = u16::try_from(net.queue_max_sizes().len()).unwrap();
        let queues = (0..count).map(|i| DriverQueue::new(&mem, i, size)).collect();
        let fault = DeviceFault {
            needs_reset: Arc::new(AtomicBool::new(false)),
            config_interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        let mut rig = Rig { mem, backend, net, queues, workers: Vec::new(), fault };
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
