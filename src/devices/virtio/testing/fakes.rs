//! What KVM does for interrupts, doorbells and threads, done in memory and on record.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_queue::QueueState;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{DoorbellRegistry, MsiController, MsiMessage};
use crate::virtio::{DEADLINE, QueueWorker, Wake, WorkerHandle, WorkerHost};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Delivers interrupts into a list, as irqfd would into a local APIC.
#[derive(Default)]
pub struct FakeMsi {
    allocated: AtomicU32,
    released: AtomicU32,
    refuse: AtomicBool,
    state: Mutex<MsiState>,
}

#[derive(Default)]
struct MsiState {
    connected: BTreeMap<u32, (EventFd, MsiMessage)>,
    delivered: Vec<MsiMessage>,
}

impl MsiState {
    /// The kernel consumes the count the moment it is written; we do when somebody looks.
    fn deliver(&mut self, only: Option<u32>) {
        for (line, (event, message)) in &self.connected {
            if only.is_none_or(|only| only == *line) && event.read().is_ok() {
                self.delivered.push(*message);
            }
        }
    }
}

impl FakeMsi {
    /// Interrupts delivered since the last call.
    pub fn take_delivered(&self) -> Vec<MsiMessage> {
        let mut state = lock(&self.state);
        state.deliver(None);
        std::mem::take(&mut state.delivered)
    }

    /// Lines that are connected now, with their messages.
    pub fn connected(&self) -> Vec<(u32, MsiMessage)> {
        lock(&self.state).connected.iter().map(|(line, (_, message))| (*line, *message)).collect()
    }

    /// Lines that are reserved now.
    pub fn reserved(&self) -> u32 {
        self.allocated.load(Ordering::Relaxed) - self.released.load(Ordering::Relaxed)
    }

    /// Makes `connect` fail from now on, or work again.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }
}

impl MsiController for FakeMsi {
    fn allocate(&self) -> io::Result<u32> {
        Ok(self.allocated.fetch_add(1, Ordering::Relaxed))
    }

    fn connect(&self, line: u32, event: &EventFd, message: MsiMessage) -> io::Result<()> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::other("refused by the test"));
        }
        let mut state = lock(&self.state);
        state.deliver(Some(line));
        state.connected.insert(line, (event.try_clone()?, message));
        Ok(())
    }

    fn disconnect(&self, line: u32, _event: &EventFd) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.deliver(Some(line));
        state.connected.remove(&line);
        Ok(())
    }

    fn release(&self, line: u32) {
        assert!(!lock(&self.state).connected.contains_key(&line), "line {line} is connected");
        self.released.fetch_add(1, Ordering::Relaxed);
    }
}

/// Doorbells by address, as ioeventfd has them: one address, one descriptor.
#[derive(Default)]
pub struct FakeDoorbells {
    bound: Mutex<BTreeMap<u64, EventFd>>,
    refuse: AtomicBool,
}

impl FakeDoorbells {
    /// Addresses with a doorbell.
    pub fn addresses(&self) -> Vec<u64> {
        lock(&self.bound).keys().copied().collect()
    }

    /// A guest write to `address`; tells whether a doorbell took it.
    pub fn ring(&self, address: u64) -> bool {
        lock(&self.bound).get(&address).is_some_and(|kick| {
            kick.write(1).unwrap();
            true
        })
    }

    /// Makes `bind` fail from now on, or work again.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }
}

impl DoorbellRegistry for FakeDoorbells {
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let mut bound = lock(&self.bound);
        if self.refuse.load(Ordering::Relaxed) || bound.contains_key(&address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        bound.insert(address, kick.try_clone()?);
        Ok(())
    }

    fn unbind(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        let removed = lock(&self.bound).remove(&address);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Runs workers on the thread that calls [`InlineWorkers::run`].
#[derive(Default)]
pub struct InlineWorkers {
    workers: Arc<Mutex<BTreeMap<u32, Box<dyn QueueWorker>>>>,
    started: AtomicU32,
    refuse: AtomicBool,
}

impl InlineWorkers {
    /// Wakes workers until none has anything to do. Panics when they go on for ever.
    pub fn run(&self) {
        for _ in 0..100_000 {
            if !self.run_once(Duration::ZERO) {
                return;
            }
        }
        panic!("the workers never come to rest");
    }

    /// Runs workers until `done`, waiting for the host where they do. Panics after 20 seconds.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "the workers did not get there in time");
            self.run_once(Duration::from_millis(1));
        }
    }

    /// Number of workers now.
    pub fn running(&self) -> usize {
        lock(&self.workers).len()
    }

    /// Number of workers ever started.
    pub fn started(&self) -> u32 {
        self.started.load(Ordering::Relaxed)
    }

    /// Makes `start` fail from now on, or work again.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    fn run_once(&self, patience: Duration) -> bool {
        let mut worked = false;
        let mut sources = 0;
        for worker in lock(&self.workers).values_mut() {
            let now = Instant::now();
            if worker.deadline(now) == Some(Duration::ZERO) {
                worker.wake(DEADLINE, now);
                worked = true;
            }
            for source in worker.wake_sources() {
                sources += 1;
                if ready(source.fd, source.writable) {
                    worked = true;
                    if worker.wake(source.token, Instant::now()) == Wake::SourcesChanged {
                        break;
                    }
                }
            }
        }
        if !worked && sources > 0 && !patience.is_zero() {
            // Any wait will do: something on the host is to make progress.
            let _ = Epoll::new().unwrap().wait(patience.as_millis() as i32, &mut [EpollEvent::default()]);
        }
        worked
    }
}

fn ready(fd: i32, writable: bool) -> bool {
    let epoll = Epoll::new().unwrap();
    let events = if writable { EventSet::OUT } else { EventSet::IN };
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, 0)).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
}

impl WorkerHost for InlineWorkers {
    fn start(&self, mut worker: Box<dyn QueueWorker>) -> io::Result<Box<dyn WorkerHandle>> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::other("refused by the test"));
        }
        let id = self.started.fetch_add(1, Ordering::Relaxed);
        let mut workers = lock(&self.workers);
        let name = worker.name();
        assert!(workers.values().all(|other| other.name() != name), "{name} was started twice");
        worker.started(Instant::now());
        workers.insert(id, worker);
        Ok(Box::new(InlineHandle { id, workers: self.workers.clone() }))
    }
}

struct InlineHandle {
    id: u32,
    workers: Arc<Mutex<BTreeMap<u32, Box<dyn QueueWorker>>>>,
}

impl WorkerHandle for InlineHandle {
    fn stop(self: Box<Self>) -> Vec<(u16, QueueState)> {
        let worker = lock(&self.workers).remove(&self.id);
        worker.map_or_else(Vec::new, QueueWorker::drain)
    }
}
