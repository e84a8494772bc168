//! Threads that serve virtio queues: one event loop for those that never block, and a thread each
//! for those that may. Both are the same loop, with many workers or with one.

mod event_loop;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_devices::virtio::{Placement, QueueWorker, WorkerHandle, WorkerHost};
use kiln_sandbox::seccomp::ThreadKind;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::confined::{self, Confinement};
use event_loop::{EventLoop, Message};

/// Runs workers where they ask to run.
pub struct Workers {
    event_loop: LoopThread,
    /// Threads that serve nobody at the moment.
    idle: Arc<Mutex<Vec<LoopThread>>>,
    next_id: AtomicU32,
}

impl Workers {
    /// Starts the event loop's thread and `disk_queues` further ones: as many workers as may ask for a
    /// thread of their own at the same time.
    pub fn new(disk_queues: usize, confinement: Confinement) -> io::Result<Self> {
        let disk = |n| LoopThread::spawn(&format!("disk{n}"), ThreadKind::Disk, confinement);
        Ok(Workers {
            event_loop: LoopThread::spawn("devices", ThreadKind::Devices, confinement)?,
            idle: Arc::new(Mutex::new((0..disk_queues).rev().map(disk).collect::<io::Result<_>>()?)),
            next_id: AtomicU32::new(0),
        })
    }

    fn idle(idle: &Mutex<Vec<LoopThread>>) -> MutexGuard<'_, Vec<LoopThread>> {
        idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerHost for Workers {
    fn start(&self, worker: Box<dyn QueueWorker>) -> io::Result<Box<dyn WorkerHandle>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        match worker.placement() {
            Placement::EventLoop => {
                let remote = self.event_loop.remote.clone();
                remote.send(Message::Add { id, worker })?;
                Ok(Box::new(Running { id, remote, thread: None }))
            }
            Placement::Thread => {
                let thread = Self::idle(&self.idle).pop();
                let thread = thread.ok_or_else(|| io::Error::other("all disk threads are busy"))?;
                let remote = thread.remote.clone();
                remote.send(Message::Add { id, worker })?;
                Ok(Box::new(Running { id, remote, thread: Some((thread, Arc::clone(&self.idle))) }))
            }
        }
    }
}

/// A handle on one worker of some loop.
struct Running {
    id: u32,
    remote: Remote,
    /// The loop itself where it serves nobody else, and where it goes once the worker has drained.
    thread: Option<(LoopThread, Arc<Mutex<Vec<LoopThread>>>)>,
}

impl WorkerHandle for Running {
    fn stop(self: Box<Self>) -> Vec<(u16, QueueState)> {
        let (reply, answer) = sync_channel(1);
        let asked = self.remote.send(Message::Remove { id: self.id, reply });
        let states = match asked {
            Ok(()) => answer.recv().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        if let Some((thread, idle)) = self.thread {
            Workers::idle(&idle).push(thread);
        }
        states
    }
}

/// Sends messages to a loop.
#[derive(Clone)]
struct Remote {
    inbox: Arc<Mutex<Sender<Message>>>,
    wake: Arc<EventFd>,
}

impl Remote {
    fn send(&self, message: Message) -> io::Result<()> {
        self.inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(message)
            .map_err(|_| io::Error::other("the worker thread has ended"))?;
        self.wake.write(1)
    }
}

/// A thread with a loop, as long as the process lives.
struct LoopThread {
    remote: Remote,
}

impl LoopThread {
    fn spawn(name: &str, kind: ThreadKind, confinement: Confinement) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (inbox, messages) = std::sync::mpsc::channel();
        let mut event_loop = EventLoop::new(Arc::clone(&wake), messages)?;
        confined::spawn(name, kind, confinement, move || event_loop.run())?;
        Ok(LoopThread { remote: Remote { inbox: Arc::new(Mutex::new(inbox)), wake } })
    }
}

/// Workers by id.
type Table<T> = BTreeMap<u32, T>;

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::{Duration, Instant};

    use kiln_devices::virtio::{DEADLINE, Wake, WakeSource};

    use super::*;

    /// Reports what happens to it.
    struct Probe {
        placement: Placement,
        kick: Arc<EventFd>,
        log: Sender<String>,
        timer: Option<Instant>,
    }

    impl QueueWorker for Probe {
        fn name(&self) -> String {
            "probe".into()
        }
        fn placement(&self) -> Placement {
            self.placement
        }
        fn wake_sources(&self) -> Vec<WakeSource> {
            vec![WakeSource { fd: self.kick.as_raw_fd(), writable: false, token: 7 }]
        }
        fn started(&mut self, _now: Instant) {
            self.log
                .send(format!("started on {}", std::thread::current().name().unwrap_or_default()))
                .unwrap();
        }
        fn wake(&mut self, token: u32, _now: Instant) -> Wake {
            if token == DEADLINE {
                self.timer = None;
                self.log.send("deadline".into()).unwrap();
            } else {
                let count = self.kick.read().unwrap();
                self.log.send(format!("token {token} count {count}")).unwrap();
            }
            Wake::Continue
        }
        fn deadline(&self, now: Instant) -> Option<Duration> {
            self.timer.map(|at| at.saturating_duration_since(now))
        }
        fn drain(self: Box<Self>) -> Vec<(u16, QueueState)> {
            self.log.send("drained".into()).unwrap();
            Vec::new()
        }
    }

    fn probe(placement: Placement, timer: Option<Instant>) -> (Box<Probe>, Arc<EventFd>, Receiver<String>) {
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (log, heard) = channel();
        (Box::new(Probe { placement, kick: Arc::clone(&kick), log, timer }), kick, heard)
    }

    fn hear(from: &Receiver<String>) -> String {
        from.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn workers_run_where_they_ask_and_drain_when_stopped() {
        let workers = Workers::new(1, Confinement::Off).unwrap();
        let all = [
            (Placement::EventLoop, "devices"),
            (Placement::Thread, "disk0"),
            // The same thread serves again.
            (Placement::Thread, "disk0"),
        ];
        for (placement, thread) in all {
            let (worker, kick, heard) = probe(placement, None);
            let handle = workers.start(worker).unwrap();
            assert_eq!(hear(&heard), format!("started on {thread}"));
            kick.write(3).unwrap();
            assert_eq!(hear(&heard), "token 7 count 3");
            handle.stop();
            assert_eq!(hear(&heard), "drained");
            assert!(heard.recv_timeout(Duration::from_secs(20)).is_err(), "the worker is gone");
        }
    }

    #[test]
    fn deadline_wakes_without_a_descriptor() {
        let workers = Workers::new(0, Confinement::Off).unwrap();
        let (worker, _kick, heard) =
            probe(Placement::EventLoop, Some(Instant::now() + Duration::from_millis(1)));
        let handle = workers.start(worker).unwrap();
        hear(&heard);
        assert_eq!(hear(&heard), "deadline");
        handle.stop();
    }
}
