//! A client of a control socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_model::MacAddr;
use kiln_vmspec::frame::{Connection, FrameError};
use kiln_vmspec::{Command, Event, ExitReason, Message, Reply, Request, VmSpec};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{mpsc, oneshot};

use super::{Commands, Pending, VmmError};

/// A VMM that takes longer to read or answer a command hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Console events that may wait for the terminal. A VMM drops console output for a client that does
/// not read, so nothing piles up there either.
const EVENT_BACKLOG: usize = 64;
/// Number of the request that starts the machine.
const START_ID: u64 = 1;

/// What a VMM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmEvent {
    /// vCPUs run.
    Running {
        /// What was booted, for people. Partly the guest's own words.
        booted: String,
    },
    /// The guest printed this.
    Console(Vec<u8>),
    /// A disk has been taken out and its files are closed.
    DiskDetached {
        /// Serial number of the disk.
        serial: String,
    },
    /// A network interface has been taken out and its tap is closed.
    NicDetached {
        /// Hardware address of the interface.
        mac: MacAddr,
    },
    /// The guest reset itself.
    Rebooting,
    /// The machine has ended. Nothing follows.
    Exited(ExitReason),
    /// The connection closed without that word. Nothing follows.
    Lost {
        /// How, one line.
        detail: String,
    },
}

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Reply>>>;

/// One connection with its reader thread.
#[derive(Debug)]
pub struct ControlConnection {
    /// Commands are short: a lock held for one system call.
    writer: Mutex<Connection>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` with a short path to a file that may have a long one: socket addresses end at 108
/// bytes, wherever the state directory is.
pub(super) fn with_short_path<T>(path: &Path, body: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&dir);
    body(&Path::new("/proc/self/fd").join(number.to_string()).join(name))
}

impl ControlConnection {
    /// Connects to a running VMM.
    pub fn connect(path: &Path) -> Result<(Self, mpsc::Receiver<VmmEvent>), VmmError> {
        let stream = with_short_path(path, |short| UnixStream::connect(short))
            .map_err(|source| VmmError::Connect { path: path.to_owned(), source })?;
        Self::new(stream, || VmmEvent::Lost { detail: "the connection to the VMM closed".to_owned() })
    }

    /// Starts reading. `last_words` says how the VMM ended if it does not say so itself; it may block.
    pub(super) fn new(
        stream: UnixStream,
        last_words: impl FnOnce() -> VmmEvent + Send + 'static,
    ) -> Result<(Self, mpsc::Receiver<VmmEvent>), VmmError> {
        let start = |action| move |source| VmmError::Start { action, source };
        stream.set_write_timeout(Some(PATIENCE)).map_err(start("set up the control connection"))?;
        let writer = Connection::new(stream);
        let reader = writer.try_clone().map_err(start("set up the control connection"))?;
        let waiting = Arc::new(Waiting::default());
        let (events, receiver) = mpsc::channel(EVENT_BACKLOG);
        let shared = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("vmm-reader".to_owned())
            .spawn(move || read(&reader, &shared, &events, last_words))
            .map_err(start("start a thread"))?;
        let connection =
            ControlConnection { writer: Mutex::new(writer), waiting, next_id: AtomicU64::new(START_ID + 1) };
        Ok((connection, receiver))
    }

    /// Sends the spec. A refusal arrives as [`VmmEvent::Exited`].
    pub(super) fn begin(&self, spec: VmSpec, fds: &[OwnedFd]) -> Result<(), VmmError> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = Request { id: START_ID, command: Command::Start(Box::new(spec)) };
        Ok(lock(&self.writer).send(&request, &fds)?)
    }

    async fn ask(&self, command: Command, fds: Vec<OwnedFd>) -> Result<Reply, VmmError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(e) = lock(&self.writer).send(&Request { id, command }, &borrowed) {
            lock(&self.waiting).remove(&id);
            return Err(e.into());
        }
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(Reply::Error { message })) => Err(VmmError::Refused(message)),
            Ok(Ok(reply)) => Ok(reply),
            _ => {
                lock(&self.waiting).remove(&id);
                Err(VmmError::NoAnswer)
            }
        }
    }
}

impl Commands for ControlConnection {
    fn send(&self, command: Command) -> Result<(), VmmError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(lock(&self.writer).send(&Request { id, command }, &[])?)
    }

    fn hand_over(&self, command: Command, fds: Vec<OwnedFd>) -> Pending<'_> {
        Box::pin(self.ask(command, fds))
    }
}

impl Drop for ControlConnection {
    fn drop(&mut self) {
        // Ends the reader thread too, which holds a handle of its own.
        let _ = lock(&self.writer).stream().shutdown(std::net::Shutdown::Both);
    }
}

/// Body of the reader thread.
fn read(
    connection: &Connection,
    waiting: &Waiting,
    events: &mpsc::Sender<VmmEvent>,
    last_words: impl FnOnce() -> VmmEvent,
) {
    let last = loop {
        let event = match connection.receive::<Message>() {
            Ok((Message::Reply { id: START_ID, reply: Reply::Error { message } }, _)) => {
                break VmmEvent::Exited(ExitReason::Failed { message });
            }
            Ok((Message::Reply { id, reply }, _)) => {
                if let Some(waiter) = lock(waiting).remove(&id) {
                    // Nobody may be waiting any more.
                    let _ = waiter.send(reply);
                }
                continue;
            }
            Ok((Message::Event(Event::Exited(reason)), _)) => break VmmEvent::Exited(reason),
            Ok((Message::Event(Event::Running { booted }), _)) => VmmEvent::Running { booted },
            Ok((Message::Event(Event::Console { bytes }), _)) => VmmEvent::Console(bytes),
            Ok((Message::Event(Event::Rebooting), _)) => VmmEvent::Rebooting,
            Ok((Message::Event(Event::DiskDetached { serial }), _)) => VmmEvent::DiskDetached { serial },
            Ok((Message::Event(Event::NicDetached { mac }), _)) => VmmEvent::NicDetached { mac },
            Err(FrameError::Closed | FrameError::Io(_)) => break last_words(),
            Err(e) => break VmmEvent::Lost { detail: format!("the VMM sent nonsense: {e}") },
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    };
    // Whoever still waits for a reply gets none.
    lock(waiting).clear();
    let _ = events.blocking_send(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn pair() -> (ControlConnection, mpsc::Receiver<VmmEvent>, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lost = || VmmEvent::Lost { detail: "last words".to_owned() };
        let (connection, events) = ControlConnection::new(ours, lost).unwrap();
        (connection, events, Connection::new(theirs))
    }

    /// Answers every request with `answer` in a thread of its own.
    fn serve(vmm: Connection, answer: impl Fn(&Command) -> Reply + Send + 'static) {
        std::thread::spawn(move || {
            while let Ok((request, _)) = vmm.receive::<Request>() {
                let reply = answer(&request.command);
                vmm.send(&Message::Reply { id: request.id, reply }, &[]).unwrap();
            }
        });
    }

    #[test]
    fn replies_find_their_requests_and_refusals_are_errors() {
        let (connection, _events, vmm) = pair();
        serve(vmm, |command| match command {
            Command::Pause => Reply::Ok,
            _ => Reply::Error { message: "not now".to_owned() },
        });
        runtime().block_on(async {
            let (pause, stats) =
                tokio::join!(connection.request(Command::Pause), connection.request(Command::Stats));
            assert_eq!(pause.unwrap(), Reply::Ok);
            assert_eq!(stats.unwrap_err().to_string(), "not now");
        });
    }

    #[test]
    fn events_arrive_in_order_and_end_with_the_exit() {
        let (_connection, mut events, vmm) = pair();
        for event in [
            Event::Running { booted: "k".into() },
            Event::Console { bytes: vec![1, 2] },
            Event::Rebooting,
            Event::Exited(ExitReason::PowerOff),
        ] {
            vmm.send(&Message::Event(event), &[]).unwrap();
        }
        let seen: Vec<_> = std::iter::from_fn(|| events.blocking_recv()).collect();
        assert_eq!(
            seen,
            [
                VmmEvent::Running { booted: "k".into() },
                VmmEvent::Console(vec![1, 2]),
                VmmEvent::Rebooting,
                VmmEvent::Exited(ExitReason::PowerOff),
            ]
        );
    }

    #[test]
    fn closed_connection_is_lost_with_last_words_and_fails_waiting_requests() {
        let (connection, mut events, vmm) = pair();
        std::thread::spawn(move || {
            let _ = vmm.receive::<Request>();
        });
        runtime().block_on(async {
            assert!(matches!(connection.request(Command::Stats).await, Err(VmmError::NoAnswer)));
        });
        assert_eq!(events.blocking_recv(), Some(VmmEvent::Lost { detail: "last words".into() }));
        assert_eq!(events.blocking_recv(), None);
    }

    #[test]
    fn refused_start_is_a_failed_exit() {
        let (_connection, mut events, vmm) = pair();
        let reply = Reply::Error { message: "no kernel".into() };
        vmm.send(&Message::Reply { id: START_ID, reply }, &[]).unwrap();
        let failed = ExitReason::Failed { message: "no kernel".into() };
        assert_eq!(events.blocking_recv(), Some(VmmEvent::Exited(failed)));
    }

    #[test]
    fn socket_with_a_long_path_can_be_bound_and_reached() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("control.sock");
        let listener = with_short_path(&path, |short| std::os::unix::net::UnixListener::bind(short)).unwrap();
        ControlConnection::connect(&path).unwrap();
        listener.accept().unwrap();
    }
}
