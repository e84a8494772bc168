//! VMM processes: starting one, talking to it, knowing when it ends.
//!
//! ```text
//!   thread "reaper"  spawn ─▶ copy its log ─ wait ──▶ exit status ─┐
//!   thread "reader"            receive messages ──▶ VmmEvent ◀─┘ (when the connection closes)
//!   any task         request(command) ──▶ socket        │
//!                    ◀── reply (oneshot) ◀──────────────┘
//! ```
//!
//! The kernel kills a VMM when the *thread* that started it ends; the reaper lives exactly as long
//! as its child, so that is when this process ends, however it ends. A VMM that is to outlive this
//! process ([`VmmLaunch::outlives`]) is spared that. Then its log goes through a named pipe, and why it
//! ended into a file, so that a later process can take it over: [`VmmLauncher::adopt`].

mod connection;
mod launcher;

pub use connection::{ControlConnection, VmmEvent};
pub use launcher::{ProcessLauncher, find_vmm, last_ending};

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kiln_sandbox::cgroup::Limits;
use kiln_vmspec::{Command, Reply, VmSpec};
use tokio::sync::mpsc;

use crate::host::ProcessIdentity;
use crate::state::dir::InstanceDir;

/// Why a VMM cannot be started or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// There is no VMM program.
    #[error("cannot find the program kiln-vmm next to {0} (install it there, or set KILN_VMM to its path)")]
    NotFound(PathBuf),
    /// The host cannot run machines.
    #[error(transparent)]
    Kvm(#[from] crate::host::KvmError),
    /// A step of the start failed.
    #[error("cannot {action}")]
    Start {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A message could not be sent.
    #[error("cannot send a command to the VMM")]
    Send(#[from] kiln_vmspec::frame::FrameError),
    /// Nobody listens.
    #[error("the machine does not answer at {path} (it may have just ended: see `kiln ps`)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The VMM refused.
    #[error("{0}")]
    Refused(String),
    /// The connection closed, or the VMM hangs.
    #[error("the VMM does not answer")]
    NoAnswer,
}

/// What a new VMM process is given.
#[derive(Debug)]
pub struct VmmLaunch {
    /// Where its socket and its log go. The directory exists.
    pub dir: InstanceDir,
    /// Id of the instance.
    pub name: String,
    /// What it may take of the host.
    pub bounds: Bounds,
    /// Whether it goes on when this process ends.
    pub outlives: bool,
}

/// The limits around one VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// User and group id that it becomes.
    pub uid: u32,
    /// Size that no file may grow beyond.
    pub largest_file: u64,
    /// Name of its control group, a single path component.
    pub cgroup: String,
    /// Limits of that group.
    pub limits: Limits,
}

/// A reply on its way.
pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<Reply, VmmError>> + Send + 'a>>;

/// Whoever can be told what to do with a machine.
pub trait Commands: Send + Sync {
    /// Sends a command whose reply does not matter. Commands arrive in order.
    fn send(&self, command: Command) -> Result<(), VmmError>;

    /// Sends a command; the future ends with the reply or after some seconds.
    fn request(&self, command: Command) -> Pending<'_> {
        self.hand_over(command, Vec::new())
    }

    /// The same with the descriptors that the command names.
    fn hand_over(&self, command: Command, fds: Vec<OwnedFd>) -> Pending<'_>;
}

/// A running VMM. Dropping it leaves the process to its reaper.
pub trait VmmHandle: Commands {
    /// The process.
    fn process(&self) -> Option<ProcessIdentity>;

    /// Tells a new VMM what to run, with the descriptors that the spec names. Once; what is wrong with it
    /// comes as an event.
    fn begin(&self, spec: VmSpec, fds: Vec<OwnedFd>);

    /// Waits for the end of the process; kills it after `patience`. Blocks.
    fn end(&self, patience: Duration);
}

/// A started VMM with its news.
pub struct StartedVmm {
    /// To command it.
    pub handle: Arc<dyn VmmHandle>,
    /// What it says, console output included. Ends after the last word.
    pub events: mpsc::Receiver<VmmEvent>,
}

impl std::fmt::Debug for StartedVmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartedVmm").field("process", &self.handle.process()).finish_non_exhaustive()
    }
}

/// Starts VMMs.
pub trait VmmLauncher: Send + Sync {
    /// Opens `/dev/kvm`, if a VMM could run here at all. Asked for before anything is made for an
    /// instance.
    fn open_kvm(&self) -> Result<OwnedFd, VmmError>;

    /// Starts a process that waits for [`VmmHandle::begin`]. Until then it ends with this process, even
    /// one that is to outlive it: a caller that notes which process it is before it begins never loses
    /// one.
    fn start(&self, launch: VmmLaunch) -> Result<StartedVmm, VmmError>;

    /// Takes over a VMM that another process started and that goes on. Events from now on follow.
    fn adopt(&self, dir: &InstanceDir, process: ProcessIdentity) -> Result<StartedVmm, VmmError>;
}
