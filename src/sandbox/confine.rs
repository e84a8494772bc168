//! Giving up what a short-lived worker does not need, from inside, before it touches hostile data.
//!
//! This is what a process can do to itself without any preparation: no namespaces, no filters. The
//! worker keeps the descriptors it was given and can use them up to its limits.

use std::io;

use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// User and group of nobody, as everywhere on Linux.
const NOBODY: u32 = 65534;

/// Bounds for one worker.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Address space.
    pub memory_bytes: u64,
    /// Processor time; the kernel kills the worker beyond it.
    pub cpu_seconds: u64,
}

/// Makes this process nobody, unable to gain rights, write files or start processes, and bounds what it may
/// consume. Call while there is one thread.
pub fn confine(bounds: Bounds) -> io::Result<()> {
    let limit = |resource, value| setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    limit(Resource::As, bounds.memory_bytes)?;
    limit(Resource::Cpu, bounds.cpu_seconds)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Core, 0)?;
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    // Last: as root it would not count. Threads count as well, so none can be started either.
    limit(Resource::Nproc, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    #[test]
    #[ignore = "runs inside confined_process_has_nothing_left_but_its_descriptors"]
    fn child() {
        let before = File::open("/proc/thread-self/status").unwrap();
        confine(Bounds { memory_bytes: 1 << 30, cpu_seconds: 10 }).unwrap();
        assert!(File::open("/etc/shadow").is_err());
        assert!(Command::new("/bin/true").spawn().is_err());
        let status = std::io::read_to_string(before).unwrap();
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Uid:\t65534"), "{status}");
        // Ends the process.
        drop(std::hint::black_box(vec![1u8; 2 << 30]));
    }

    #[test]
    fn confined_process_has_nothing_left_but_its_descriptors() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root has rights to give up");
            return;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "confine::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        // The allocation beyond the bound ends the child; everything before it held.
        assert!(text.contains("memory allocation of 2147483648 bytes failed"), "{text}");
        assert!(!text.contains("assertion"), "{text}");
    }
}
