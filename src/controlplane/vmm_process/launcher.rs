//! The real launcher: a `kiln-vmm` process per instance, in a jail (see `kiln_sandbox`).
//!
//! What the process prints comes through a pipe, of which the log keeps a bounded part: a VMM that was
//! taken over can neither fill the disk with it nor stop anybody by it.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader};
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
use kiln_vmspec::Command;

use super::connection::with_short_path;
use super::{
    Bounds, Commands, ControlConnection, Pending, StartedVmm, VmmError, VmmHandle, VmmLaunch, VmmLauncher,
};
use crate::host::{ProcessIdentity, open_kvm};
use crate::printable;

/// Environment variable with the path of the VMM program.
const VMM_PROGRAM: &str = "KILN_VMM";
/// All that a VMM sees of the environment: what it shall log.
const LOG_VARIABLE: [&str; 1] = ["RUST_LOG"];
/// How much of the end of a VMM's log is looked at for its last line.
const LOG_TAIL: u64 = 4096;
/// How much of what a VMM prints is kept.
const MOST_LOG: u64 = 1 << 20;
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

/// Starts `kiln-vmm` processes that die with this one.
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
        let program = find_vmm()?;
        let socket = launch.dir.control_socket();
        let listener = with_short_path(&socket, |short| UnixListener::bind(short))
            .map_err(failed("create the control socket"))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(launch.dir.vmm_log())
            .map_err(failed("create the VMM's log"))?;
        // Connected before there is a process: it waits in the queue of the socket.
        let stream = with_short_path(&socket, |short| UnixStream::connect(short))
            .map_err(failed("connect to the control socket"))?;
        let exit = Arc::new(Exit::default());
        let copy = log.try_clone().map_err(failed("open the VMM's log"))?;
        let child = NewProcess { program: &program, listener, log: copy, bounds: &launch.bounds };
        let process = child.start(&launch.spec.instance_id, &exit)?;
        let last_words = {
            let exit = Arc::clone(&exit);
            move || last_words(exit.wait(END_PATIENCE), &log)
        };
        // From here on the caller ends the process through the handle, or dies and so ends it.
        let (connection, events) = ControlConnection::new(stream, last_words)?;
        let handle = ProcessHandle { connection, process, exit };
        if let Err(e) = handle.connection.start(launch.spec, &launch.fds) {
            // A VMM that ended at once has said why in its log; the reader tells that as an event.
            tracing::debug!("sending the spec failed: {e}");
        }
        Ok(StartedVmm { handle: Arc::new(handle), events })
    }
}

/// A process that is about to be started.
struct NewProcess<'a> {
    program: &'a Path,
    listener: UnixListener,
    log: File,
    bounds: &'a Bounds,
}

impl NewProcess<'_> {
    /// Starts the process in a reaper thread of its own; see the module above.
    fn start(self, name: &str, exit: &Arc<Exit>) -> Result<Option<ProcessIdentity>, VmmError> {
        let NewProcess { program, listener, log, bounds } = self;
        let root = rustix::process::geteuid().is_root();
        let group = Hierarchies::host().create(&bounds.cgroup, &bounds.limits);
        for gap in &group.gaps {
            tracing::warn!(instance = name, "the VMM runs without a {gap}");
        }
        let (printed, command) = self::command(program, &listener, bounds)?;
        let exit = Arc::clone(exit);
        let (started, result) = mpsc::sync_channel(1);
        let reaper = move || {
            let inherit = Inherit {
                fd: listener.as_fd(),
                die_with_thread: true,
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

/// The command line of a VMM, and what it will print. Nothing of this process's environment goes along:
/// it may hold secrets.
fn command(
    program: &Path,
    listener: &UnixListener,
    bounds: &Bounds,
) -> Result<(PipeReader, std::process::Command), VmmError> {
    let (printed, print) = io::pipe().map_err(failed("make a pipe"))?;
    // Text that finds the pipe full is lost, not waited for.
    rustix::io::ioctl_fionbio(&print, true).map_err(|e| failed("set up a pipe")(e.into()))?;
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
    Ok((printed, command))
}

/// Copies what the process prints until it has ended, as far as there is room.
fn keep_log(mut printed: PipeReader, mut log: File) {
    let kept = io::copy(&mut io::Read::take(&mut printed, MOST_LOG), &mut log);
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

/// One line on how a VMM ended that did not say so itself.
fn last_words(status: Option<ExitStatus>, log: &File) -> String {
    let how = match status {
        None => "kiln-vmm closed its control connection".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (_, Some(signal)) => format!("kiln-vmm was ended by signal {signal}"),
            (Some(seccomp::STATUS), _) => "kiln-vmm broke out of its list of system calls".to_owned(),
            (Some(code), _) => format!("kiln-vmm ended with status {code}"),
            _ => "kiln-vmm ended".to_owned(),
        },
    };
    match last_line(log) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    }
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

/// A process of ours and the connection to it.
struct ProcessHandle {
    connection: ControlConnection,
    process: Option<ProcessIdentity>,
    exit: Arc<Exit>,
}

impl Commands for ProcessHandle {
    fn send(&self, command: Command) -> Result<(), VmmError> {
        self.connection.send(command)
    }

    fn request(&self, command: Command) -> Pending<'_> {
        self.connection.request(command)
    }
}

impl VmmHandle for ProcessHandle {
    fn process(&self) -> Option<ProcessIdentity> {
        self.process
    }

    fn end(&self, patience: Duration) {
        if self.exit.wait(patience).is_some() {
            return;
        }
        if let Some(process) = self.process
            && let Err(e) = process.kill(END_PATIENCE)
        {
            tracing::error!("kiln-vmm process {} cannot be killed: {e}", process.pid);
        }
        self.exit.wait(END_PATIENCE);
    }
}
