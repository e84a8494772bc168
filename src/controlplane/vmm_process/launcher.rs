//! The real launcher: a `kiln-vmm` process per instance, in a jail (see `kiln_sandbox`).
//!
//! What the process prints comes through a pipe, of which the log keeps a bounded part: a VMM that was
//! taken over can neither fill the disk with it nor stop anybody by it. One that outlives this process has
//! both ends of a named pipe, so that printing never fails; whoever adopts it reads on.
//!
//! | | dies with its parent | outlives it |
//! |---|---|---|
//! | its end | the reaper waits | the reaper waits; after an adoption, a process handle |
//! | why | its last event; exit status | its last event; the file it leaves; exit status |

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use kiln_sandbox::cgroup::Hierarchies;
use kiln_sandbox::seccomp;
use kiln_sandbox::spawn::{Inherit, spawn};
use kiln_vmspec::{Command, ExitReason, VmSpec};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::connection::with_short_path;
use super::{
    Bounds, Commands, ControlConnection, Pending, StartedVmm, VmmError, VmmEvent, VmmHandle, VmmLaunch,
    VmmLauncher,
};
use crate::host::{ProcessIdentity, open_kvm};
use crate::printable;
use crate::state::dir::InstanceDir;

/// Environment variable with the path of the VMM program.
const VMM_PROGRAM: &str = "KILN_VMM";
/// All that a VMM sees of the environment: what it shall log.
const LOG_VARIABLE: [&str; 1] = ["RUST_LOG"];
/// How much of the end of a VMM's log is looked at for its last line.
const LOG_TAIL: u64 = 4096;
/// How much of what a VMM prints is kept.
const MOST_LOG: u64 = 1 << 20;
/// More than the reason of an end can take.
const MOST_ENDING: u64 = 64 << 10;
/// How long after the connection closed a VMM may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The VMM program: `KILN_VMM`, or the file next to this program.
pub fn find_vmm() -> Result<PathBuf, VmmError> {
    if let Some(path) = std::env::var_os(VMM_PROGRAM) {
        return Ok(path.into());
    }
    let ourselves = std::env::current_exe()
        .map_err(|source| VmmError::Start { action: "find out where this program is", source })?;
    let dir = ourselves.parent().unwrap_or(Path::new("/"));
    let path = dir.join("kiln-vmm");
    if path.is_file() { Ok(path) } else { Err(VmmError::NotFound(dir.to_owned())) }
}

/// Starts `kiln-vmm` processes, and takes over those of an earlier process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessLauncher;

/// How the child ended, once it has.
#[derive(Debug, Default)]
struct Exit {
    status: Mutex<Option<ExitStatus>>,
    told: Condvar,
}

impl Exit {
    fn tell(&self, status: ExitStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.told.notify_all();
    }

    fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let guard = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, _) = self
            .told
            .wait_timeout_while(guard, patience, |status| status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *status
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Start { action, source }
}

impl VmmLauncher for ProcessLauncher {
    fn open_kvm(&self) -> Result<OwnedFd, VmmError> {
        find_vmm()?;
        Ok(open_kvm()?)
    }

    fn start(&self, launch: VmmLaunch) -> Result<StartedVmm, VmmError> {
        let VmmLaunch { dir, name, bounds, outlives } = launch;
        let program = find_vmm()?;
        let socket = dir.control_socket();
        let listener = with_short_path(&socket, |short| UnixListener::bind(short))
            .map_err(failed("create the control socket"))?;
        let log = open_log(&dir)?;
        // Each run has the room for itself.
        log.set_len(0).map_err(failed("empty the VMM's log"))?;
        // Connected before there is a process: it waits in the queue of the socket.
        let stream = with_short_path(&socket, |short| UnixStream::connect(short))
            .map_err(failed("connect to the control socket"))?;
        let (printed, print) = if outlives { named_pipe(&dir)? } else { pipe()? };
        let exit = Arc::new(Exit::default());
        let copy = log.try_clone().map_err(failed("open the VMM's log"))?;
        let child = NewProcess { program: &program, listener, printed, print, log: copy, bounds, outlives };
        let process = child.start(&name, &exit)?;
        let last_words = {
            let exit = Arc::clone(&exit);
            move || ending(exit.wait(END_PATIENCE), &log)
        };
        // From here on the caller ends the process through the handle, or dies and so ends it.
        let (connection, events) = ControlConnection::new(stream, last_words)?;
        Ok(StartedVmm { handle: Arc::new(ProcessHandle { connection, process, exit: Some(exit) }), events })
    }

    fn adopt(&self, dir: &InstanceDir, process: ProcessIdentity) -> Result<StartedVmm, VmmError> {
        let log = open_log(dir)?;
        let path = dir.control_socket();
        let stream = with_short_path(&path, |short| UnixStream::connect(short))
            .map_err(|source| VmmError::Connect { path, source })?;
        // Without its pipe a VMM goes on; only what it prints is lost.
        match open_to_read(&dir.vmm_pipe()).and_then(|printed| Ok((printed, log.try_clone()?))) {
            Ok((printed, log)) => {
                let reader = std::thread::Builder::new().name(format!("log of {}", process.pid));
                reader.spawn(move || keep_log(printed, log)).map_err(failed("start a thread"))?;
            }
            Err(e) => tracing::warn!(pid = process.pid, "what the VMM prints is not kept: {e}"),
        }
        let left = dir.clone();
        let last_words = move || {
            process.wait(END_PATIENCE);
            last_ending(&left)
        };
        let (connection, events) = ControlConnection::new(stream, last_words)?;
        Ok(StartedVmm {
            handle: Arc::new(ProcessHandle { connection, process: Some(process), exit: None }),
            events,
        })
    }
}

/// How a VMM ended that nobody was connected to: what it wrote down, or else the end of its log.
pub fn last_ending(dir: &InstanceDir) -> VmmEvent {
    if let Some(reason) = written_ending(&dir.ending()) {
        return VmmEvent::Exited(reason);
    }
    match open_log(dir) {
        Ok(log) => ending(None, &log),
        Err(e) => VmmEvent::Lost { detail: format!("kiln-vmm ended without a word, and {e}") },
    }
}

/// The process that wrote this may have been taken over by its guest.
fn written_ending(path: &Path) -> Option<ExitReason> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MOST_ENDING).read_to_end(&mut text).ok()?;
    match serde_json::from_slice(&text).ok()? {
        ExitReason::Failed { message } => Some(ExitReason::Failed { message: printable(&message) }),
        reason => Some(reason),
    }
}

fn open_log(dir: &InstanceDir) -> Result<File, VmmError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(true).mode(0o600);
    options.open(dir.vmm_log()).map_err(failed("create the VMM's log"))
}

/// Both ends of a pipe: what is printed, and where to print.
fn pipe() -> Result<(File, File), VmmError> {
    let (printed, print) = io::pipe().map_err(failed("make a pipe"))?;
    // Text that finds the pipe full is lost, not waited for.
    rustix::io::ioctl_fionbio(&print, true).map_err(|e| failed("set up a pipe")(e.into()))?;
    Ok((OwnedFd::from(printed).into(), OwnedFd::from(print).into()))
}

/// The same with a name. Who prints can read too, so the pipe never breaks.
fn named_pipe(dir: &InstanceDir) -> Result<(File, File), VmmError> {
    let path = dir.vmm_pipe();
    let make = || -> io::Result<(File, File)> {
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let print = OpenOptions::new().read(true).write(true).open(&path)?;
        rustix::io::ioctl_fionbio(&print, true)?;
        Ok((open_to_read(&path)?, print))
    };
    make().map_err(failed("make a pipe"))
}

/// Opens the reading end of a named pipe whose other end is open. Ends with the process at that end.
fn open_to_read(path: &Path) -> io::Result<File> {
    // Does not wait for a writer that may have gone meanwhile.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(file)
}

/// A process that is about to be started.
struct NewProcess<'a> {
    program: &'a Path,
    listener: UnixListener,
    printed: File,
    print: File,
    log: File,
    bounds: Bounds,
    outlives: bool,
}

impl NewProcess<'_> {
    /// Starts the process in a reaper thread of its own; see the module above.
    fn start(self, name: &str, exit: &Arc<Exit>) -> Result<Option<ProcessIdentity>, VmmError> {
        let NewProcess { program, listener, printed, print, log, bounds, outlives } = self;
        let root = rustix::process::geteuid().is_root();
        let group = Hierarchies::host().create(&bounds.cgroup, &bounds.limits);
        for gap in &group.gaps {
            tracing::warn!(instance = name, "the VMM runs without a {gap}");
        }
        let command = self::command(program, &listener, print, &bounds)?;
        let exit = Arc::clone(exit);
        let (started, result) = mpsc::sync_channel(1);
        let reaper = move || {
            let inherit = Inherit {
                fd: listener.as_fd(),
                die_with_thread: !outlives,
                new_pid_namespace: root,
                cgroups: &group.procs,
            };
            let child = spawn(command, inherit);
            // Only the child listens now; otherwise nobody would notice its end.
            drop(listener);
            match child {
                Ok(child) => {
                    let _ = started.send(Ok(ProcessIdentity::of(child.id())));
                    keep_log(printed, log);
                    reap(child, &exit);
                }
                Err(e) => {
                    let _ = started.send(Err(e));
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("reaper {name}"))
            .spawn(reaper)
            .map_err(failed("start a thread"))?;
        match result.recv() {
            Ok(Ok(process)) => Ok(process),
            Ok(Err(source)) if source.kind() == io::ErrorKind::NotFound => {
                Err(VmmError::NotFound(program.parent().unwrap_or(program).to_owned()))
            }
            Ok(Err(source)) => Err(VmmError::Start { action: "start kiln-vmm", source }),
            Err(_) => Err(VmmError::NoAnswer),
        }
    }
}

/// The command line of a VMM that prints to `print`. Nothing of this process's environment goes along: it
/// may hold secrets.
fn command(
    program: &Path,
    listener: &UnixListener,
    print: File,
    bounds: &Bounds,
) -> Result<std::process::Command, VmmError> {
    let mut command = std::process::Command::new(program);
    let number = std::os::fd::AsRawFd::as_raw_fd(listener);
    command.args(["--control-fd", &number.to_string()]);
    command.args(["--jail", &bounds.uid.to_string()]);
    command.args(["--largest-file", &bounds.largest_file.to_string()]);
    command.env_clear();
    command.envs(LOG_VARIABLE.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(Stdio::null());
    let stdout = print.try_clone().map_err(failed("set up a pipe"))?;
    command.stdout(stdout).stderr(print);
    Ok(command)
}

/// Copies what the process prints until it has ended, as far as there is room.
fn keep_log(mut printed: File, mut log: File) {
    let there = log.metadata().map_or(0, |metadata| metadata.len());
    let room = MOST_LOG.saturating_sub(there);
    let kept = io::copy(&mut Read::take(&mut printed, room), &mut log);
    if let Err(e) = kept {
        tracing::warn!("the log of kiln-vmm cannot be written: {e}");
    }
    let _ = io::copy(&mut printed, &mut io::sink());
}

fn reap(mut child: Child, exit: &Exit) {
    match child.wait() {
        Ok(status) => exit.tell(status),
        // Cannot happen: the child is ours and waited for once.
        Err(e) => tracing::error!("waiting for kiln-vmm failed: {e}"),
    }
}

/// How a VMM ended that did not say so itself, in one line.
fn ending(status: Option<ExitStatus>, log: &File) -> VmmEvent {
    let how = match status {
        None => "kiln-vmm ended without a word".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (_, Some(signal)) => format!("kiln-vmm was ended by signal {signal}"),
            (Some(seccomp::STATUS), _) => "kiln-vmm broke out of its list of system calls".to_owned(),
            (Some(code), _) => format!("kiln-vmm ended with status {code}"),
            _ => "kiln-vmm ended".to_owned(),
        },
    };
    let detail = match last_line(log) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    };
    VmmEvent::Lost { detail }
}

fn last_line(log: &File) -> Option<String> {
    let end = log.metadata().ok()?.len();
    let start = end.saturating_sub(LOG_TAIL);
    let mut tail = vec![0; usize::try_from(end - start).ok()?];
    log.read_exact_at(&mut tail, start).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(printable(line))
}

/// A process and the connection to it.
struct ProcessHandle {
    connection: ControlConnection,
    process: Option<ProcessIdentity>,
    /// Present for a child of ours, which is gone only when it has been waited for.
    exit: Option<Arc<Exit>>,
}

impl ProcessHandle {
    fn wait(&self, patience: Duration) -> bool {
        match (&self.exit, self.process) {
            (Some(exit), _) => exit.wait(patience).is_some(),
            (None, Some(process)) => process.wait(patience),
            (None, None) => true,
        }
    }
}

impl Commands for ProcessHandle {
    fn send(&self, command: Command) -> Result<(), VmmError> {
        self.connection.send(command)
    }

    fn hand_over(&self, command: Command, fds: Vec<OwnedFd>) -> Pending<'_> {
        self.connection.hand_over(command, fds)
    }
}

impl VmmHandle for ProcessHandle {
    fn process(&self) -> Option<ProcessIdentity> {
        self.process
    }

    fn begin(&self, spec: VmSpec, fds: Vec<OwnedFd>) {
        if let Err(e) = self.connection.begin(spec, &fds) {
            // A VMM that ended at once has said why in its log; the reader tells that as an event.
            tracing::debug!("sending the spec failed: {e}");
        }
    }

    fn end(&self, patience: Duration) {
        if self.wait(patience) {
            return;
        }
        if let Some(process) = self.process
            && let Err(e) = process.kill(END_PATIENCE)
        {
            tracing::error!("kiln-vmm process {} cannot be killed: {e}", process.pid);
        }
        self.wait(END_PATIENCE);
    }
}
