//! Starting a child with exactly the descriptors it is meant to have.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// What a child takes from its parent besides its arguments and standard streams.
#[derive(Debug, Clone, Copy)]
pub struct Inherit<'a> {
    /// The one further descriptor that stays open, under the same number.
    pub fd: BorrowedFd<'a>,
    /// Kill the child when the *thread* that calls [`spawn`] ends (that is what Linux watches). Let
    /// that thread wait for the child.
    pub die_with_thread: bool,
}

/// Starts `command` in a process group of its own, so that signals of the terminal do not reach it.
/// Every descriptor of this process but `inherit.fd` must be close-on-exec, as Rust makes them.
pub fn spawn(mut command: Command, inherit: Inherit<'_>) -> io::Result<Child> {
    let parent = getpid();
    let raw: RawFd = std::os::fd::AsRawFd::as_raw_fd(&inherit.fd);
    let Inherit { die_with_thread, .. } = inherit;
    let hook = move || {
        // SAFETY: the descriptor is open: `inherit` borrows it until `spawn` has returned, which
        // is after this hook ran in the child, and a fork copies the descriptor table.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl_setfd(fd, FdFlags::empty())?;
        if die_with_thread {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above: then nobody would tell us.
            if getppid() != Some(parent) {
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
    use std::os::fd::AsFd;
    use std::process::Stdio;

    use super::*;

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
        let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
        let script = format!("echo $(($(cut -d' ' -f5 /proc/$$/stat) == $$)) >/proc/self/fd/{fd}");
        let inherit = Inherit { fd: writer.as_fd(), die_with_thread: false };
        let mut child = spawn(shell(&script), inherit).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(text, "1\n");
    }

    #[test]
    fn child_dies_with_the_thread_that_started_it() {
        let (mut reader, writer) = io::pipe().unwrap();
        let child = std::thread::spawn(move || {
            let mut command = shell("echo up; exec sleep 1000");
            command.stdout(Stdio::piped());
            let inherit = Inherit { fd: writer.as_fd(), die_with_thread: true };
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
        let inherit = Inherit { fd: writer.as_fd(), die_with_thread: true };
        let error = spawn(Command::new("/nonexistent/kiln-vmm"), inherit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
