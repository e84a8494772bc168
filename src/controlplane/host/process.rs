//! Processes named so that a recycled number is not mistaken for one of ours.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, pidfd_open, pidfd_send_signal, prlimit,
};
use serde::{Deserialize, Serialize};

/// A process id with the moment the process started, in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl ProcessIdentity {
    /// The process with this id, if there is one.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(ProcessIdentity { pid, started: start_time(&stat)? })
    }

    /// This process.
    pub fn current() -> Option<Self> {
        Self::of(u32::try_from(getpid().as_raw_nonzero().get()).ok()?)
    }

    /// Whether exactly this process is there, be it as a zombie.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills exactly this process and waits up to `patience` for its end. Success too when it is gone
    /// already.
    pub fn kill(self, patience: Duration) -> std::io::Result<()> {
        let Some(handle) = self.open() else { return Ok(()) };
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
        if ended(&handle, patience)? { Ok(()) } else { Err(std::io::ErrorKind::TimedOut.into()) }
    }

    /// Waits up to `patience` for the end of exactly this process; whether it has ended. One that nobody
    /// has waited for yet has.
    pub fn wait(self, patience: Duration) -> bool {
        self.open().is_none_or(|handle| ended(&handle, patience).unwrap_or(false))
    }

    /// Lets exactly this process grow files to `bytes`, if it may not already. Takes the right to raise limits.
    pub fn allow_file_size(self, bytes: u64) -> std::io::Result<()> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.pid))?;
        // As long as there is a handle, its number is nobody else's.
        let Some(_handle) = self.open() else { return Err(std::io::ErrorKind::NotFound.into()) };
        if file_size_limit(&limits).is_none_or(|limit| limit >= bytes) {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        prlimit(pid, Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
        Ok(())
    }

    /// A handle on exactly this process, if it is there.
    fn open(self) -> Option<OwnedFd> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The handle is of whichever process has the number now; it stays of that one. So a look at
        // the start time after opening it is proof.
        self.is_alive().then_some(handle)
    }
}

fn ended(process: &OwnedFd, patience: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now().checked_add(patience);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(process, PollFlags::IN)], limit.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Number of the host's present boot: processes of another one are gone.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The hard limit on the size of files out of `/proc/<pid>/limits`; `None` if there is none.
fn file_size_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Field 22 of a line of `/proc/<pid>/stat`. The second field is the program's name in brackets and
/// may hold anything, brackets and blanks included, so fields count from the last bracket.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn start_time_is_found_behind_any_program_name() {
        let tail = (3..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["sh", "a) b (c", ") 1 2 3"] {
            assert_eq!(start_time(&format!("17 ({name}) {tail}")), Some(22));
        }
        for text in ["", "17 (sh", "17 (sh) S 1"] {
            assert_eq!(start_time(text), None);
        }
    }

    #[test]
    fn kill_ends_the_process_and_only_that_one() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        let other = ProcessIdentity { started: identity.started + 1, ..identity };
        other.kill(Duration::from_secs(10)).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a process of another start time was killed");
        assert!(other.wait(Duration::MAX) && !identity.wait(Duration::ZERO));
        identity.kill(Duration::from_secs(10)).unwrap();
        assert!(identity.wait(Duration::MAX), "a zombie has ended");
        assert!(!child.wait().unwrap().success());
        identity.kill(Duration::from_secs(10)).unwrap();
        assert!(!identity.is_alive());
    }

    #[test]
    fn file_size_limit_is_raised_and_never_lowered() {
        let mut child = Command::new("sh").args(["-c", "ulimit -f 2048; exec sleep 1000"]).spawn().unwrap();
        let limit = || {
            let text = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
            file_size_limit(&text)
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while limit().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let (before, identity) = (limit().unwrap(), ProcessIdentity::of(child.id()).unwrap());
        identity.allow_file_size(before - 1).unwrap();
        assert_eq!(limit(), Some(before));
        match identity.allow_file_size(1 << 40) {
            Ok(()) => assert_eq!(limit(), Some(1 << 40)),
            Err(e) => println!("SKIPPED: not allowed to raise limits: {e}"),
        }
        let other = ProcessIdentity { started: identity.started + 1, ..identity };
        assert!(other.allow_file_size(1 << 41).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn current_process_is_alive() {
        assert!(ProcessIdentity::current().unwrap().is_alive());
    }
}
