//! Starting a child with exactly the descriptors it is meant to have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal};

/// What a child takes from its parent besides its arguments and standard streams.
#[derive(Debug, Clone, Copy)]
pub struct Inherit<'a> {
    /// The one further descriptor that stays open, under the same number.
    pub fd: BorrowedFd<'a>,
    /// Kill the child when the *thread* that calls [`spawn`] ends (that is what Linux watches). Let
    /// that thread wait for the child.
    pub die_with_thread: bool,
    /// Make the child the first process of a PID namespace. Needs root, and the *thread* that calls
    /// [`spawn`] can start neither threads nor other processes afterwards.
    pub new_pid_namespace: bool,
    /// Open `cgroup.procs` files: the child joins these groups before it becomes the program.
    pub cgroups: &'a [OwnedFd],
}

/// Most groups that a child joins: one per controller of cgroup version 1.
const MOST_CGROUPS: usize = 8;

/// Starts `command` in a process group of its own, so that signals of the terminal do not reach it.
/// Every descriptor of this process but `inherit.fd` must be close-on-exec, as Rust makes them.
pub fn spawn(mut command: Command, inherit: Inherit<'_>) -> io::Result<Child> {
    let Inherit { die_with_thread, cgroups, .. } = inherit;
    if inherit.new_pid_namespace {
        unshare(CloneFlags::CLONE_NEWPID)?;
    }
    // In another PID namespace the child cannot ask for its parent by number, so it gets a handle.
    let parent = pidfd_open(getpid(), PidfdFlags::empty())?;
    let raw: RawFd = inherit.fd.as_raw_fd();
    let mut joined = [-1; MOST_CGROUPS];
    if cgroups.len() > joined.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    joined.iter_mut().zip(cgroups).for_each(|(slot, fd)| *slot = fd.as_raw_fd());
    let hook = move || {
        for fd in joined.into_iter().filter(|fd| *fd >= 0) {
            // SAFETY: open for the same reason as `fd` below: `inherit` borrows all of them.
            let procs = unsafe { BorrowedFd::borrow_raw(fd) };
            // Zero is whoever writes.
            rustix::io::write(procs, b"0")?;
        }
        // SAFETY: the descriptor is open: `inherit` borrows it until `spawn` has returned, which
        // is after this hook ran in the child, and a fork copies the descriptor table.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl_setfd(fd, FdFlags::empty())?;
        if die_with_thread {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above: then nobody would tell us.
            let mut ended = [PollFd::from_borrowed_fd(parent.as_fd(), PollFlags::IN)];
            if poll(&mut ended, Some(&Timespec::default()))? > 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    };
    command.process_group(0);
    // SAFETY: the hook makes only system calls and allocates nothing, so it may run between fork
    // and exec of a threaded program.
    unsafe { command.pre_exec(hook) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    fn only(fd: BorrowedFd<'_>) -> Inherit<'_> {
        Inherit { fd, die_with_thread: true, new_pid_namespace: false, cgroups: &[] }
    }

    /// Children inherit every descriptor that is open without close-on-exec for a moment, so tests
    /// of this file must not do that; all use pipes made by std.
    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn child_has_the_inherited_descriptor_and_its_own_group() {
        let (mut reader, writer) = io::pipe().unwrap();
        let fd = writer.as_raw_fd();
        let script = format!("echo $(($(cut -d' ' -f5 /proc/$$/stat) == $$)) >/proc/self/fd/{fd}");
        let inherit = Inherit { die_with_thread: false, ..only(writer.as_fd()) };
        let mut child = spawn(shell(&script), inherit).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(text, "1\n");
    }

    #[test]
    fn child_in_a_pid_namespace_is_its_first_process_and_dies_with_the_thread() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root can make PID namespaces");
            return;
        }
        let (mut reader, writer) = io::pipe().unwrap();
        let child = std::thread::spawn(move || {
            let mut command = shell("echo $$; exec sleep 1000");
            command.stdout(Stdio::piped());
            let inherit = Inherit { new_pid_namespace: true, ..only(writer.as_fd()) };
            let mut child = spawn(command, inherit).unwrap();
            let mut pid = [0; 2];
            child.stdout.take().unwrap().read_exact(&mut pid).unwrap();
            assert_eq!(&pid, b"1\n");
            child
        });
        let mut child = child.join().unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn child_dies_with_the_thread_that_started_it() {
        let (mut reader, writer) = io::pipe().unwrap();
        let child = std::thread::spawn(move || {
            let mut command = shell("echo up; exec sleep 1000");
            command.stdout(Stdio::piped());
            let inherit = only(writer.as_fd());
            let mut child = spawn(command, inherit).unwrap();
            let mut up = [0; 3];
            child.stdout.take().unwrap().read_exact(&mut up).unwrap();
            child
        });
        let mut child = child.join().unwrap();
        // The pipe closes with its last holder, which is the child.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn missing_program_is_an_error_of_spawn() {
        let (_reader, writer) = io::pipe().unwrap();
        let inherit = only(writer.as_fd());
        let error = spawn(Command::new("/nonexistent/kiln-vmm"), inherit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
