//! The jail around an attempt, closed as around a real VMM.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_sandbox::cgroup::{Hierarchies, Limits};
use kiln_sandbox::spawn::{Inherit, spawn};
use kiln_sandbox::{jail, last_words, seccomp};
use kiln_vmm::confined::{Confinement, Crew};
use kiln_vmspec::frame::Connection;

use super::attempts::{self, Tools};
use super::bombs;
use seccomp::ThreadKind;

/// Names the attempt, the thread and whether there is a filter, for the process inside.
const ORDER: &str = "KILN_ESCAPE";
const KEPT: &str = "KILN_ESCAPE_FD";

pub const LARGEST_FILE: u64 = 4 << 20;
pub const MEMORY: u64 = 64 << 20;
pub const ADDRESS_SPACE: u64 = 1 << 30;
pub const DESCRIPTORS: u64 = 64;

/// Whether the whole jail can be closed here; prints why not.
pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: only root can close the whole jail");
    }
    root
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Installed,
    None,
}

/// A jail that is about to be closed.
pub struct Prison {
    cgroup: String,
    limits: Limits,
}

/// How an attempt ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub printed: String,
    pub errors: String,
    /// What it left in the file for last words.
    pub left: String,
}

impl Prison {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let limits =
            Limits { memory_bytes: MEMORY, cpu_thousandths: 500, cpu_weight: 100, threads: 64, disk: None };
        Prison { cgroup: format!("escape-{}-{number}", std::process::id()), limits }
    }

    /// Runs one attempt to its end.
    pub fn try_out(&self, kind: ThreadKind, name: &str, filter: Filter) -> Outcome {
        let host = Hierarchies::host();
        let group = host.create(&self.cgroup, &self.limits);
        let (ours, kept) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "attacker", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(ORDER, format!("{}|{name}|{filter:?}", kind.name()));
        command.env(KEPT, kept.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A thread that has made a PID namespace can start nothing else.
        let outcome = std::thread::spawn(move || {
            let inherit = Inherit {
                fd: kept.as_fd(),
                die_with_thread: true,
                new_pid_namespace: true,
                cgroups: &group.procs,
            };
            let mut child = spawn(command, inherit).unwrap();
            drop(kept);
            let kvm = File::options().read(true).write(true).open("/dev/kvm");
            let kvm = kvm.unwrap_or_else(|_| File::open("/dev/null").unwrap());
            let mut file = tempfile::tempfile().unwrap();
            // Some do not live to read it.
            let _ = Connection::new(ours).send(&(), &[file.as_fd(), kvm.as_fd()]);
            let (mut printed, mut errors) = (String::new(), String::new());
            child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            let status = child.wait().unwrap();
            // Its offset is that of the attacker too.
            let mut left = String::new();
            let _ = file.rewind().and_then(|()| file.take(1 << 10).read_to_string(&mut left));
            Outcome { status: status.code(), signal: status.signal(), printed, errors, left }
        });
        let outcome = outcome.join().unwrap();
        host.remove(&self.cgroup).unwrap();
        outcome
    }
}

/// Closes the jail around this process, then makes the attempt that it was started for.
pub fn attack() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let mut order = order.split('|').map(str::to_owned);
    let (kind, name, filter) = (order.next().unwrap(), order.next().unwrap(), order.next().unwrap());
    let kind = ThreadKind::ALL.into_iter().find(|known| known.name() == kind).unwrap();
    let kept: RawFd = std::env::var(KEPT).unwrap().parse().unwrap();
    // SAFETY: the parent left it open for this process, which owns it from here on.
    let kept = unsafe { OwnedFd::from_raw_fd(kept) };

    seccomp::one_heap();
    seccomp::report_violations().unwrap();
    let plan = jail::Plan {
        uid: jail::uid_of(u64::from(std::process::id())),
        largest_file: LARGEST_FILE,
        descriptors: DESCRIPTORS,
        threads: 16,
    };
    jail::enter(&plan, kept.as_fd()).unwrap();
    jail::limit_address_space(ADDRESS_SPACE).unwrap();
    // As a VMM gets its disks: over the socket.
    let ((), fds) = Connection::new(UnixStream::from(kept)).receive().unwrap();
    let [file, kvm] = fds.try_into().unwrap();
    last_words::keep_in(file.as_fd(), "[", "]");
    let tools = Tools { file, kvm };
    let confinement = if filter == "Installed" { Confinement::On } else { Confinement::Off };
    let work = move || {
        match attempts::find(&name) {
            Some(attempt) => attempts::report((attempt.run)(&tools)),
            None => bombs::explode(&name, &tools),
        }
        last_words::leave(0)
    };
    if kind == ThreadKind::Control {
        confinement.apply(kind).unwrap();
        work()
    } else {
        let crew = Crew::new(kind, 1, "attacker", confinement).unwrap();
        drop(crew.run::<()>(work).unwrap());
    }
}
