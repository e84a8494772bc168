//! Control groups: what one VMM may take of the host, enforced from outside of it.
//!
//! ```text
//!  version 2   /sys/fs/cgroup/kiln/<name>                   all controllers
//!  version 1   /sys/fs/cgroup/{memory,cpu,pids}/kiln/<name> one hierarchy each
//! ```
//!
//! Groups are named after instances, so a sweep can find what a killed process left. A controller that
//! the host does not offer is reported as a [`Gap`]; the others hold.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::jail::Gap;

/// Where control groups are mounted, by convention of every distribution.
const MOUNT: &str = "/sys/fs/cgroup";
/// Our part of each hierarchy.
const OURS: &str = "kiln";
/// Length of an accounting period in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;

/// Limits of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory, page cache and kernel memory included.
    pub memory_bytes: u64,
    /// Processor time per second of wall clock, in thousandths of one processor.
    pub cpu_thousandths: u64,
    /// Share against other groups when processors are short; 100 is the kernel's default.
    pub cpu_weight: u64,
    /// Threads.
    pub threads: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One setting: the controller, its file by version, and the value.
struct Setting {
    controller: &'static str,
    file: [&'static str; 2],
    value: [String; 2],
}

impl Limits {
    fn settings(&self) -> Vec<Setting> {
        let quota = self.cpu_thousandths.saturating_mul(PERIOD) / 1000;
        let both = |value: u64| [value.to_string(), value.to_string()];
        let setting = |controller, one, two, value| Setting { controller, file: [one, two], value };
        vec![
            setting("memory", "memory.limit_in_bytes", "memory.max", both(self.memory_bytes)),
            setting("pids", "pids.max", "pids.max", both(self.threads)),
            setting("cpu", "cpu.cfs_quota_us", "cpu.max", [quota.to_string(), format!("{quota} {PERIOD}")]),
            setting(
                "cpu",
                "cpu.shares",
                "cpu.weight",
                // 1024 shares are what 100 of weight are.
                [
                    (self.cpu_weight.saturating_mul(1024) / 100).max(2).to_string(),
                    self.cpu_weight.clamp(1, 10_000).to_string(),
                ],
            ),
        ]
    }
}

/// The host's hierarchies.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    mount: PathBuf,
    version: Version,
}

/// A group that a process is to join.
#[derive(Debug)]
pub struct Cgroup {
    /// For [`crate::spawn::Inherit::cgroups`].
    pub procs: Vec<OwnedFd>,
    /// Limits that do not hold here.
    pub gaps: Vec<Gap>,
}

impl Hierarchies {
    /// Those of this host.
    pub fn host() -> Self {
        Self::at(Path::new(MOUNT))
    }

    fn at(mount: &Path) -> Self {
        let version = if mount.join("cgroup.controllers").exists() { Version::Two } else { Version::One };
        Hierarchies { mount: mount.to_owned(), version }
    }

    /// The directory of a controller's groups of ours.
    fn ours(&self, controller: &str) -> PathBuf {
        match self.version {
            Version::One => self.mount.join(controller).join(OURS),
            Version::Two => self.mount.join(OURS),
        }
    }

    /// Makes the group `name` with `limits`. `name` is a single path component.
    pub fn create(&self, name: &str, limits: &Limits) -> Cgroup {
        let mut group = Cgroup { procs: Vec::new(), gaps: Vec::new() };
        let mut prepared: Vec<(&str, bool)> = Vec::new();
        for setting in limits.settings() {
            let controller = setting.controller;
            let dir = self.ours(controller).join(name);
            let ready = match prepared.iter().find(|(name, _)| *name == controller) {
                Some((_, ready)) => *ready,
                None => {
                    let made = self.prepare(controller, &dir);
                    let ready = made.is_ok();
                    match made {
                        Ok(Some(procs)) => group.procs.push(procs),
                        Ok(None) => {}
                        Err(e) => group.gaps.push(gap(controller, &e)),
                    }
                    prepared.push((controller, ready));
                    ready
                }
            };
            let which = usize::from(self.version == Version::Two);
            let (Some(file), Some(value)) = (setting.file.get(which), setting.value.get(which)) else {
                continue;
            };
            if ready && let Err(e) = fs::write(dir.join(file), value) {
                group.gaps.push(gap(controller, &e));
            }
        }
        group
    }

    /// Makes the group's directory in the hierarchy of `controller`; answers its list of processes the
    /// first time that this hierarchy is asked for.
    fn prepare(&self, controller: &str, dir: &Path) -> io::Result<Option<OwnedFd>> {
        let parent = self.ours(controller);
        match self.version {
            Version::One => {
                // Without the hierarchy this would make a directory in the tmpfs above it.
                if !self.mount.join(controller).join("cgroup.procs").exists() {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no such hierarchy"));
                }
            }
            Version::Two => {
                fs::create_dir_all(&parent)?;
                for above in [&self.mount, &parent] {
                    fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"))?;
                }
            }
        }
        let fresh = self.version == Version::One || !dir.exists();
        fs::create_dir_all(dir)?;
        if !fresh {
            return Ok(None);
        }
        Ok(Some(File::options().write(true).open(dir.join("cgroup.procs"))?.into()))
    }

    /// Removes the group `name` everywhere. Its processes must have ended.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut dirs: Vec<PathBuf> =
            ["memory", "pids", "cpu"].iter().map(|controller| self.ours(controller).join(name)).collect();
        dirs.dedup();
        for dir in dirs {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => {
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The controllers that limit instances here, and those that do not with the reason.
    pub fn examine(&self) -> (Vec<&'static str>, Vec<Gap>) {
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for controller in ["cpu", "memory", "pids"] {
            match self.offered(controller) {
                Ok(()) => there.push(controller),
                Err(e) => missing.push(gap(controller, &e)),
            }
        }
        (there, missing)
    }

    fn offered(&self, controller: &str) -> io::Result<()> {
        let (file, found) = match self.version {
            Version::One => {
                let dir = self.mount.join(controller);
                let found = dir.join("cgroup.procs").exists();
                (dir, found)
            }
            Version::Two => {
                let list = fs::read_to_string(self.mount.join("cgroup.controllers"))?;
                (self.mount.clone(), list.split_whitespace().any(|name| name == controller))
            }
        };
        if !found {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(rustix::fs::access(&file, rustix::fs::Access::WRITE_OK)?)
    }
}

fn gap(controller: &'static str, error: &io::Error) -> Gap {
    let part = match controller {
        "memory" => "cgroup limit on memory",
        "pids" => "cgroup limit on threads",
        _ => "cgroup limit on processor time",
    };
    Gap { part, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::spawn::{Inherit, spawn};

    const LIMITS: Limits =
        Limits { memory_bytes: 64 << 20, cpu_thousandths: 1500, cpu_weight: 100, threads: 8 };

    #[test]
    fn host_without_hierarchies_gives_a_gap_per_controller_and_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let group = Hierarchies::at(dir.path()).create("i-0", &LIMITS);
        assert!(group.procs.is_empty());
        assert_eq!(group.gaps.len(), 3, "{:?}", group.gaps);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Hierarchies::at(dir.path()).remove("i-0").unwrap();
    }

    #[test]
    fn process_in_a_group_gets_no_more_memory_than_its_limit() {
        let host = Hierarchies::host();
        let name = format!("test-{}", std::process::id());
        if !host.examine().1.is_empty() {
            println!("SKIPPED: needs root and the cgroup controllers cpu, memory and pids");
            return;
        }
        let group = host.create(&name, &LIMITS);
        assert_eq!(group.gaps, []);
        let (_reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "head -c 200m /dev/zero | tail -n 1 >/dev/null"]);
        let inherit = Inherit {
            fd: writer.as_fd(),
            die_with_thread: true,
            new_pid_namespace: false,
            cgroups: &group.procs,
        };
        let status = spawn(command, inherit).unwrap().wait().unwrap();
        assert!(!status.success(), "the kernel ends what takes more");
        host.remove(&name).unwrap();
        host.remove(&name).unwrap();
        assert!(!host.ours("memory").join(&name).exists());
    }
}
