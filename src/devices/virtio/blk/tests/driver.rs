//! A driver for one request queue, and the thread that a VMM would give it.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_disk::{Disk, RawDisk};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::*;
use crate::virtio::{DEADLINE, DeviceFault, Virtqueue};

pub const MEM_SIZE: u64 = 32 << 20;
pub const SIZE: u16 = QUEUE_SIZE;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
/// Header, ranges and status of the request with head `h` are at `SMALL + h * 0x400`.
const SMALL: u64 = 0x1_0000;
const STATUS: u64 = 0x3ff;
pub const INDIRECT: u64 = 0x8_0000;
/// Data buffers: tests lay them out as they like.
pub const DATA: u64 = 0x10_0000;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT_TABLE: u16 = VRING_DESC_F_INDIRECT as u16;

pub fn temp_disk(size: u64, read_only: bool) -> Arc<dyn Disk> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    Arc::new(RawDisk::new(file, read_only).unwrap())
}

/// A used element, with the status byte of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub len: u32,
    pub status: u8,
}

pub struct Driver {
    pub mem: GuestMemoryMmap,
    pub device: Blk,
    pub worker: Option<Box<dyn QueueWorker>>,
    pub kick: Arc<EventFd>,
    interrupt: Arc<EventFd>,
    needs_reset: Arc<AtomicBool>,
    event_idx: bool,
    available: u16,
    seen: u16,
    next_descriptor: u16,
}

impl Driver {
    pub fn new(disk: &Arc<dyn Disk>) -> Self {
        Self::with(disk, None, true, !0)
    }

    pub fn with(disk: &Arc<dyn Disk>, throttle: Option<Throttle>, event_idx: bool, features: u64) -> Self {
        // Two regions, so that buffers may span them.
        let half = MEM_SIZE / 2;
        let ranges = [(GuestAddress(0), half as usize), (GuestAddress(half), half as usize)];
        let mem = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let config = BlkConfig { name: "blk0".to_owned(), serial: "vol-0123456789".to_owned(), throttle };
        let device = Blk::new(config, &**disk, Engines::new(disk, &mem, 1).unwrap());
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut driver = Self {
            mem,
            device,
            worker: None,
            kick: event(),
            interrupt: event(),
            needs_reset: Arc::default(),
            event_idx,
            available: 0,
            seen: 0,
            next_descriptor: 0,
        };
        driver.activate(features);
        driver
    }

    /// Sets DRIVER_OK with a fresh queue.
    pub fn activate(&mut self, features: u64) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(DESC as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.mem));
        for ring in [AVAIL, USED] {
            self.mem.write_slice(&[0; 8 * SIZE as usize + 6], GuestAddress(ring)).unwrap();
        }
        (self.available, self.seen, self.next_descriptor) = (0, 0, 0);
        let fault = DeviceFault {
            needs_reset: Arc::clone(&self.needs_reset),
            config_interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        let virtqueue = Virtqueue {
            index: 0,
            queue,
            kick: Arc::clone(&self.kick),
            interrupt: Arc::clone(&self.interrupt),
        };
        let features = features & self.device.features();
        let activation = Activation { mem: self.mem.clone(), features, queues: vec![virtqueue], fault };
        let mut workers = self.device.activate(activation).unwrap();
        assert_eq!(workers.len(), 1);
        let mut worker = workers.remove(0);
        worker.started(Instant::now());
        self.worker = Some(worker);
    }

    pub fn broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.interrupt.read().unwrap_or(0)
    }

    pub fn counter(&self, name: &str) -> u64 {
        let mut list = Vec::new();
        self.device.counters(&mut list);
        list.into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    pub fn put_descriptor_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.mem.write_obj(addr, GuestAddress(at)).unwrap();
        self.mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.mem.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    pub fn put_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.put_descriptor_at(DESC, index, addr, len, flags, next);
    }

    /// Makes a chain available without notifying.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + 2 * u64::from(self.available % SIZE);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.mem.write_obj(self.available, GuestAddress(AVAIL + 2)).unwrap();
    }

    pub fn set_available_index(&self, index: u16) {
        self.mem.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
    }

    /// Without the event index: whether the driver wants interrupts.
    pub fn set_no_interrupt(&self, off: bool) {
        self.mem.write_obj(u16::from(off), GuestAddress(AVAIL)).unwrap();
    }

    /// The driver wants an interrupt when the used index passes this.
    pub fn set_used_event(&self, index: u16) {
        self.mem.write_obj(index, GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE))).unwrap();
    }

    /// A header for the request with this head; returns its address.
    pub fn put_header(&self, head: u16, request_type: u32, sector: u64) -> u64 {
        let at = SMALL + 0x400 * u64::from(head);
        self.mem.write_obj(request_type, GuestAddress(at)).unwrap();
        self.mem.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.mem.write_obj(sector, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(0xffu8, GuestAddress(at + STATUS)).unwrap();
        at
    }

    pub fn status_addr(&self, head: u16) -> u64 {
        SMALL + 0x400 * u64::from(head) + STATUS
    }

    /// Builds and offers a request out of data buffers `(address, length)`; returns its head.
    pub fn request(&mut self, request_type: u32, sector: u64, data: &[(u64, u32)], data_flags: u16) -> u16 {
        let head = self.next_descriptor;
        let count = data.len() as u16 + 2;
        assert!(u32::from(head) + u32::from(count) <= u32::from(SIZE), "out of descriptors");
        self.next_descriptor += count;
        let header = self.put_header(head, request_type, sector);
        self.put_descriptor(head, header, 16, NEXT, head + 1);
        for (index, &(addr, len)) in (head + 1..).zip(data) {
            self.put_descriptor(index, addr, len, data_flags | NEXT, index + 1);
        }
        self.put_descriptor(head + count - 1, self.status_addr(head), 1, WRITE, 0);
        self.offer(head);
        head
    }

    /// Another processor of the guest, which offers the chain `head` again as soon as it has come
    /// back, until it was used `rounds` times. It has been offered once already.
    pub fn refill(&mut self, head: u16, rounds: u16) -> JoinHandle<()> {
        let (mem, kick) = (self.mem.clone(), Arc::clone(&self.kick));
        let offered = std::mem::replace(&mut self.available, rounds);
        let limit = Instant::now() + Duration::from_secs(60);
        std::thread::spawn(move || {
            for used in offered..rounds {
                while mem.load::<u16>(GuestAddress(USED + 2), Ordering::Acquire).unwrap() != used {
                    if Instant::now() > limit {
                        return;
                    }
                    std::hint::spin_loop();
                }
                let slot = AVAIL + 4 + 2 * u64::from(used % SIZE);
                mem.write_obj(head, GuestAddress(slot)).unwrap();
                mem.store(used + 1, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
                kick.write(1).unwrap();
            }
        })
    }

    pub fn notify(&self) {
        self.kick.write(1).unwrap();
    }

    /// Runs the worker until nothing wakes it any more and nothing is in flight at the host.
    pub fn run(&mut self) {
        self.run_until(|_| false);
    }

    /// Runs the worker until `done`, or until it is idle.
    pub fn run_until(&mut self, mut done: impl FnMut(&Driver) -> bool) {
        let epoll = Epoll::new().unwrap();
        for source in self.worker.as_ref().unwrap().wake_sources() {
            let event = EpollEvent::new(EventSet::IN, u64::from(source.token));
            epoll.ctl(ControlOperation::Add, source.fd as RawFd, event).unwrap();
        }
        while !done(self) {
            let Some((token, _)) = self.wait(&epoll) else { return };
            self.worker.as_mut().unwrap().wake(token, Instant::now());
        }
    }

    fn wait(&self, epoll: &Epoll) -> Option<(u32, Duration)> {
        let deadline = self.worker.as_ref().unwrap().deadline(Instant::now());
        // Requests at the host come back in well under this; only an idle worker waits it out.
        let idle = if self.seen_all() { Duration::ZERO } else { Duration::from_secs(5) };
        let patience = deadline.unwrap_or(idle);
        let mut events = [EpollEvent::default(); 1];
        let millis = patience.as_millis() as i32 + i32::from(deadline.is_some());
        let ready = loop {
            match epoll.wait(millis, &mut events) {
                Ok(ready) => break ready,
                // io_uring has work for this thread.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        };
        match ready {
            0 => deadline.map(|d| (DEADLINE, d)),
            _ => Some((events[0].data() as u32, patience)),
        }
    }

    pub fn used_index(&self) -> u16 {
        self.mem.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn seen_all(&self) -> bool {
        self.broken() || self.used_index() == self.available
    }

    /// Used elements since the last call, in order.
    pub fn used(&mut self) -> Vec<Used> {
        let mut list = Vec::new();
        while self.seen != self.used_index() {
            let at = USED + 4 + 8 * u64::from(self.seen % SIZE);
            let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
            let status = self.mem.read_obj(GuestAddress(self.status_addr(head as u16))).unwrap();
            list.push(Used { head: head as u16, len, status });
            self.seen = self.seen.wrapping_add(1);
        }
        if self.seen == self.available {
            self.next_descriptor = 0;
        }
        list
    }

    /// One request from start to end.
    pub fn transact(&mut self, request_type: u32, sector: u64, data: &[(u64, u32)], data_flags: u16) -> Used {
        let head = self.request(request_type, sector, data, data_flags);
        self.notify();
        self.run();
        let used = self.used();
        assert_eq!(used.len(), 1, "{used:?}");
        assert_eq!(used[0].head, head);
        used[0]
    }

    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn drain(&mut self) -> QueueState {
        let states = self.worker.take().unwrap().drain();
        assert_eq!(states.len(), 1);
        states.into_iter().next().unwrap().1
    }
}
