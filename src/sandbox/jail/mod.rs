//! The jail around one VMM, closed by the process itself before it hears of any guest.
//!
//! ```text
//!  unshare: mount · network · IPC · UTS · cgroup     (the PID namespace is its parent's doing)
//!     ▼
//!  root: an empty tmpfs, read-only                   descriptors: standard streams and one more
//!     ▼
//!  limits: files, descriptors, threads, no core      no capabilities, own uid and gid,
//!     ▼                                              no_new_privs, not dumpable
//!  Landlock: no path, no TCP port, no abstract socket, no signal outside
//! ```
//!
//! Before all that the process gets processor cores that it shares with no other instance at a time.
//!
//! As root every step but that and Landlock must succeed. Without root the namespaces come from a user
//! namespace and the uid stays; what the host then refuses is reported as [`Gap`] and the rest holds.

mod core_scheduling;
#[expect(unsafe_code, reason = "close_range and prctl have no safe wrapper")]
mod descriptors;
mod identity;
mod landlock;
mod root;

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, parent_process_death_signal, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::set_no_new_privs;

pub use core_scheduling::CoreSharing;

/// First of the 2^28 user ids that instances get: a range that no distribution hands out.
const FIRST_UID: u32 = 0x7000_0000;

/// The user and group id of an instance, from the random bits of its id.
pub fn uid_of(instance_bits: u64) -> u32 {
    FIRST_UID | (u32::try_from(instance_bits & 0x0fff_ffff).unwrap_or(0))
}

/// What the jail of one VMM is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// User and group id to become. Its own when the process is not root.
    pub uid: u32,
    /// Size that no file may grow beyond, in bytes.
    pub largest_file: u64,
    /// Open descriptors at once.
    pub descriptors: u64,
    /// Threads at once, counted per user id: not used without root.
    pub threads: u64,
}

/// A part of the jail that this host does not offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Which part.
    pub part: &'static str,
    /// Why not.
    pub reason: String,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.part, self.reason)
    }
}

/// A step of the jail failed; the process must end.
#[derive(Debug, thiserror::Error)]
#[error("the jail cannot be closed: {step} failed (see `kiln doctor`)")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError { step, source: source.into() }
}

/// Closes the jail around this process. `keep` stays open besides the standard streams. Call while there
/// is one thread.
pub fn enter(plan: &Plan, keep: BorrowedFd<'_>) -> Result<Vec<Gap>, JailError> {
    let mut gaps = Vec::new();
    descriptors::close_all_but(keep).map_err(step("closing descriptors"))?;
    if let Err(reason) = core_scheduling::keep_cores_to_itself() {
        gaps.push(Gap { part: "core scheduling", reason });
    }
    let root = geteuid().is_root();
    if root {
        unshare(namespaces()).map_err(step("making namespaces"))?;
        root::empty().map_err(step("leaving the host's files"))?;
    } else if let Err(reason) = own_namespaces() {
        gaps.push(Gap { part: "namespaces", reason: reason.to_string() });
    }
    limit(plan, root).map_err(step("setting resource limits"))?;
    let follows = parent_process_death_signal().map_err(step("looking at the parent"))?;
    identity::give_up_rights((root && plan.uid != 0).then_some(plan.uid))
        .map_err(step("giving up rights"))?;
    if let Some(signal) = follows {
        // The kernel forgets it when the ids change.
        set_parent_process_death_signal(Some(signal)).map_err(step("following the parent"))?;
        parent_lives().map_err(step("following the parent"))?;
    }
    set_no_new_privs(true).map_err(step("refusing new privileges"))?;
    // After the change of ids, which would undo it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("hiding memory from core dumps"))?;
    if let Err(reason) = landlock::restrict() {
        gaps.push(Gap { part: "Landlock", reason });
    }
    Ok(gaps)
}

/// Whether the parent is there, for which there is only a sign: it reads what we print, if that goes
/// through a pipe. It may have died before the line above.
fn parent_lives() -> io::Result<()> {
    let errors = rustix::stdio::stderr();
    let mut ends = [PollFd::from_borrowed_fd(errors, PollFlags::empty())];
    poll(&mut ends, Some(&Timespec::default()))?;
    match ends.first() {
        Some(end) if end.revents().contains(PollFlags::ERR) => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Ok(()),
    }
}

/// All but PID, which a process cannot change for itself, and user, which root does not need.
fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
}

/// The same for a process without rights, where the host lets it make a user namespace.
fn own_namespaces() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | namespaces())?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    root::empty()
}

fn limit(plan: &Plan, own_uid: bool) -> io::Result<()> {
    let set = |resource, value| setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    set(Resource::Core, 0)?;
    set(Resource::Fsize, plan.largest_file)?;
    set(Resource::Nofile, plan.descriptors)?;
    set(Resource::Msgqueue, 0)?;
    if own_uid {
        // Counted per user: without a user of its own it would count the user's other processes.
        set(Resource::Nproc, plan.threads)?;
    }
    Ok(())
}

/// Bounds this process's address space. For a VMM that knows how much memory its guest has.
pub fn limit_address_space(bytes: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
}

/// Whether this kernel has Landlock, in words.
pub fn landlock_state() -> Result<String, String> {
    landlock::state()
}

/// How instances share processor cores on this host.
pub fn core_sharing() -> CoreSharing {
    core_scheduling::sharing()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;

    const PLAN: Plan = Plan { uid: FIRST_UID + 7, largest_file: 1 << 20, descriptors: 64, threads: 8 };

    #[test]
    fn uids_lie_in_their_own_range() {
        assert_eq!(uid_of(0), 0x7000_0000);
        assert_eq!(uid_of(u64::MAX), 0x7fff_ffff);
    }

    #[test]
    #[ignore = "runs inside jailed_process_has_nothing_left"]
    fn child() {
        let status = File::open("/proc/thread-self/status").unwrap();
        // Closed behind its owner's back, so the owner must not close it again.
        let mounts = std::mem::ManuallyDrop::new(File::open("/proc/thread-self/mounts").unwrap());
        let gaps = enter(&PLAN, status.as_fd()).unwrap();
        assert!(File::open("/etc/passwd").is_err() && File::create("/file").is_err());
        assert!(std::io::read_to_string(&*mounts).is_err(), "descriptors are closed");
        assert!(std::net::TcpStream::connect("127.0.0.1:1").is_err());
        let status = std::io::read_to_string(status).unwrap();
        println!("GAPS {gaps:?}");
        println!("{status}");
    }

    #[test]
    fn jailed_process_has_nothing_left() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root can close the whole jail");
            return;
        }
        // The harness has a second thread, which some steps do not reach: the test looks at its own.
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "jail::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(text.contains(&format!("{set}:\t0000000000000000")), "{text}");
        }
        assert!(text.contains(&format!("Uid:\t{0}\t{0}\t{0}\t{0}", PLAN.uid)), "{text}");
        assert!(text.contains(&format!("Gid:\t{0}\t{0}\t{0}\t{0}", PLAN.uid)), "{text}");
    }
}
