//! An epoll loop over the wake sources of its workers.
//!
//! Level-triggered and fair: each ready source gives its worker one bounded piece of work, then the
//! next one has its turn.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use kiln_devices::virtio::{DEADLINE, QueueWorker, Wake};
use virtio_queue::QueueState;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Table;

/// What other threads ask of a loop.
pub enum Message {
    /// Serve this worker from now on.
    Add {
        /// Chosen by the sender.
        id: u32,
        /// The worker.
        worker: Box<dyn QueueWorker>,
    },
    /// Drain a worker and tell where its queues stand.
    Remove {
        /// As given to `Add`.
        id: u32,
        /// Where the answer goes.
        reply: SyncSender<Vec<(u16, QueueState)>>,
    },
}

/// Marks the loop's own wake descriptor among the epoll events.
const INBOX: u64 = u64::MAX;

/// Events taken per system call.
const BATCH: usize = 32;

/// One descriptor a worker waits on; epoll knows a descriptor only once, whatever it waits for.
struct Watch {
    fd: RawFd,
    readable: Option<u32>,
    writable: Option<u32>,
}

struct Entry {
    worker: Box<dyn QueueWorker>,
    watches: Vec<Watch>,
}

/// The loop. Owned by its thread.
pub struct EventLoop {
    epoll: Epoll,
    wake: Arc<EventFd>,
    inbox: Receiver<Message>,
    workers: Table<Entry>,
}

impl EventLoop {
    /// A loop that reads `inbox` whenever `wake` is signalled.
    pub fn new(wake: Arc<EventFd>, inbox: Receiver<Message>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, INBOX))?;
        Ok(EventLoop { epoll, wake, inbox, workers: Table::new() })
    }

    /// Serves for good; returns only when it cannot wait any more. Without anybody left who could send messages
    /// it waits on: the process may be writing down why it ends, and what this thread would close on its way out
    /// takes a system call that it may not make.
    pub fn run(&mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let ready = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(ready) => ready,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => {
                    tracing::error!("waiting for device events failed: {e}");
                    return;
                }
            };
            let now = Instant::now();
            let mut inbox = false;
            for event in events.iter().take(ready) {
                match event.data() {
                    INBOX => inbox = true,
                    key => self.dispatch(key, event.event_set(), now),
                }
            }
            self.expire(now);
            // Last, so that no event of this batch can hit a worker that has gone.
            if inbox {
                self.read_inbox();
            }
        }
    }

    /// Milliseconds until the next deadline, rounded up so that it is over when we wake.
    fn timeout(&self) -> i32 {
        let now = Instant::now();
        let next = self.workers.values().filter_map(|entry| entry.worker.deadline(now)).min();
        next.map_or(-1, |wait| {
            let millis = wait.saturating_add(Duration::from_micros(999)).as_millis();
            i32::try_from(millis).unwrap_or(i32::MAX)
        })
    }

    fn dispatch(&mut self, key: u64, set: EventSet, now: Instant) {
        let (id, index) = split(key);
        let Some(entry) = self.workers.get_mut(&id) else { return };
        let Some(watch) = entry.watches.get(index) else { return };
        // An error or hang-up shows itself to whoever tries to read or write.
        let failed = set.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let readable = watch.readable.filter(|_| failed || set.contains(EventSet::IN));
        let writable = watch.writable.filter(|_| failed || set.contains(EventSet::OUT));
        let mut changed = false;
        for token in readable.into_iter().chain(writable) {
            changed |= entry.worker.wake(token, now) == Wake::SourcesChanged;
        }
        if changed {
            self.watch_again(id);
        }
    }

    fn expire(&mut self, now: Instant) {
        let due: Vec<u32> = self
            .workers
            .iter()
            .filter(|(_, entry)| entry.worker.deadline(now).is_some_and(|wait| wait.is_zero()))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let woken = self.workers.get_mut(&id).map(|entry| entry.worker.wake(DEADLINE, now));
            if woken == Some(Wake::SourcesChanged) {
                self.watch_again(id);
            }
        }
    }

    fn read_inbox(&mut self) {
        // Reset the event first: a message sent after this wakes us again.
        let _ = self.wake.read();
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Add { id, mut worker }) => {
                    worker.started(Instant::now());
                    self.workers.insert(id, Entry { worker, watches: Vec::new() });
                    self.watch_again(id);
                }
                Ok(Message::Remove { id, reply }) => {
                    let states = self.remove(id);
                    let _ = reply.send(states);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn remove(&mut self, id: u32) -> Vec<(u16, QueueState)> {
        let Some(entry) = self.workers.remove(&id) else { return Vec::new() };
        for watch in &entry.watches {
            let _ = self.epoll.ctl(ControlOperation::Delete, watch.fd, EpollEvent::default());
        }
        entry.worker.drain()
    }

    /// Makes epoll wait for what the worker now wants.
    fn watch_again(&mut self, id: u32) {
        let Some(entry) = self.workers.get_mut(&id) else { return };
        for watch in entry.watches.drain(..) {
            let _ = self.epoll.ctl(ControlOperation::Delete, watch.fd, EpollEvent::default());
        }
        for source in entry.worker.wake_sources() {
            let place = entry.watches.iter().position(|watch| watch.fd == source.fd);
            let place = place.unwrap_or_else(|| {
                entry.watches.push(Watch { fd: source.fd, readable: None, writable: None });
                entry.watches.len() - 1
            });
            if let Some(watch) = entry.watches.get_mut(place) {
                let slot = if source.writable { &mut watch.writable } else { &mut watch.readable };
                *slot = Some(source.token);
            }
        }
        for (index, watch) in entry.watches.iter().enumerate() {
            let mut set = EventSet::empty();
            set.set(EventSet::IN, watch.readable.is_some());
            set.set(EventSet::OUT, watch.writable.is_some());
            let event = EpollEvent::new(set, join(id, index));
            if let Err(e) = self.epoll.ctl(ControlOperation::Add, watch.fd, event) {
                tracing::error!("{} cannot wait for one of its descriptors: {e}", entry.worker.name());
            }
        }
    }
}

fn join(id: u32, index: usize) -> u64 {
    u64::from(id) << 32 | u64::from(u32::try_from(index).unwrap_or(u32::MAX))
}

fn split(key: u64) -> (u32, usize) {
    let [a, b, c, d, e, f, g, h] = key.to_le_bytes();
    let index = u32::from_le_bytes([a, b, c, d]);
    (u32::from_le_bytes([e, f, g, h]), usize::try_from(index).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};

    use super::*;

    #[test]
    fn loop_that_nobody_can_reach_any_more_keeps_what_it_has() {
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (inbox, messages) = channel();
        let mut event_loop = EventLoop::new(Arc::clone(&wake), messages).unwrap();
        let thread = std::thread::spawn(move || event_loop.run());
        let (reply, answer) = sync_channel(1);
        assert!(inbox.send(Message::Remove { id: 1, reply }).is_ok());
        drop(inbox);
        wake.write(1).unwrap();
        assert!(answer.recv().unwrap().is_empty());
        // It has looked again by now, and found that nobody is left.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
    }
}
