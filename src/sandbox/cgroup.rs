//! Control groups: what one VMM may take of the host, enforced from outside of it.
//!
//! ```text
//!  version 2   /sys/fs/cgroup/kiln/<name>                   all controllers
//!  version 1   /sys/fs/cgroup/{memory,cpu,pids,blkio}/kiln/<name> one hierarchy each
//! ```
//!
//! Groups are named after instances, so a sweep can find what a killed process left. A controller that
//! the host does not offer is reported as a [`Gap`]; the others hold.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::block_device::BlockDevice;
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
    /// Of the disk that files are on.
    pub disk: Option<DiskLimit>,
}

/// Limits of what goes to or comes from one disk of the host, each direction by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimit {
    /// Which.
    pub device: BlockDevice,
    /// Bytes per second.
    pub bytes: u64,
    /// Requests per second.
    pub operations: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A controller, by the name of version 2.
type Controller = &'static str;
const CONTROLLERS: [Controller; 4] = ["cpu", "memory", "pids", "io"];

/// One setting: the controller, its file, and the value.
struct Setting {
    controller: Controller,
    file: &'static str,
    value: String,
}

impl Limits {
    fn settings(&self, version: Version) -> Vec<Setting> {
        let setting = |controller, file, value| Setting { controller, file, value };
        let quota = self.cpu_thousandths.saturating_mul(PERIOD) / 1000;
        let mut all = vec![setting("pids", "pids.max", self.threads.to_string())];
        match version {
            Version::One => {
                // 1024 shares are what 100 of weight are.
                let shares = (self.cpu_weight.saturating_mul(1024) / 100).max(2);
                all.extend([
                    setting("memory", "memory.limit_in_bytes", self.memory_bytes.to_string()),
                    setting("cpu", "cpu.cfs_quota_us", quota.to_string()),
                    setting("cpu", "cpu.shares", shares.to_string()),
                ]);
                if let Some(DiskLimit { device, bytes, operations }) = self.disk {
                    all.extend([
                        setting("io", "blkio.throttle.read_bps_device", format!("{device} {bytes}")),
                        setting("io", "blkio.throttle.write_bps_device", format!("{device} {bytes}")),
                        setting("io", "blkio.throttle.read_iops_device", format!("{device} {operations}")),
                        setting("io", "blkio.throttle.write_iops_device", format!("{device} {operations}")),
                    ]);
                }
            }
            Version::Two => {
                let weight = self.cpu_weight.clamp(1, 10_000);
                all.extend([
                    setting("memory", "memory.max", self.memory_bytes.to_string()),
                    setting("cpu", "cpu.max", format!("{quota} {PERIOD}")),
                    setting("cpu", "cpu.weight", weight.to_string()),
                ]);
                all.extend(self.disk.map(|DiskLimit { device, bytes, operations }| {
                    let each = format!("rbps={bytes} wbps={bytes} riops={operations} wiops={operations}");
                    setting("io", "io.max", format!("{device} {each}"))
                }));
            }
        }
        all
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

    /// The hierarchy in which a controller is.
    fn hierarchy(&self, controller: Controller) -> PathBuf {
        match (self.version, controller) {
            (Version::One, "io") => self.mount.join("blkio"),
            (Version::One, _) => self.mount.join(controller),
            (Version::Two, _) => self.mount.clone(),
        }
    }

    /// The directory of a controller's groups of ours.
    fn ours(&self, controller: Controller) -> PathBuf {
        self.hierarchy(controller).join(OURS)
    }

    /// Makes the group `name` with `limits`. `name` is a single path component.
    pub fn create(&self, name: &str, limits: &Limits) -> Cgroup {
        let mut group = Cgroup { procs: Vec::new(), gaps: Vec::new() };
        let mut prepared: Vec<(&str, bool)> = Vec::new();
        for setting in limits.settings(self.version) {
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
            if ready && let Err(e) = fs::write(dir.join(setting.file), setting.value) {
                group.gaps.push(gap(controller, &e));
            }
        }
        group
    }

    /// Makes the group's directory in the hierarchy of `controller`; answers its list of processes the
    /// first time that this hierarchy is asked for.
    fn prepare(&self, controller: Controller, dir: &Path) -> io::Result<Option<OwnedFd>> {
        let parent = self.ours(controller);
        match self.version {
            Version::One => {
                // Without the hierarchy this would make a directory in the tmpfs above it.
                if !self.hierarchy(controller).join("cgroup.procs").exists() {
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
            CONTROLLERS.iter().map(|controller| self.ours(controller).join(name)).collect();
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
    pub fn examine(&self) -> (Vec<Controller>, Vec<Gap>) {
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for controller in CONTROLLERS {
            match self.offered(controller) {
                Ok(()) => there.push(controller),
                Err(e) => missing.push(gap(controller, &e)),
            }
        }
        (there, missing)
    }

    fn offered(&self, controller: Controller) -> io::Result<()> {
        let (file, found) = match self.version {
            Version::One => {
                let dir = self.hierarchy(controller);
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

fn gap(controller: Controller, error: &io::Error) -> Gap {
    let part = match controller {
        "memory" => "cgroup limit on memory",
        "pids" => "cgroup limit on threads",
        "io" => "cgroup limit on disk traffic",
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

    const LIMITS: Limits = Limits {
        memory_bytes: 64 << 20,
        cpu_thousandths: 1500,
        cpu_weight: 100,
        threads: 8,
        disk: Some(DiskLimit { device: BlockDevice { major: 8, minor: 0 }, bytes: 1 << 20, operations: 50 }),
    };

    fn written(version: Version) -> Vec<String> {
        let line = |s: Setting| format!("{} {} {}", s.controller, s.file, s.value);
        LIMITS.settings(version).into_iter().map(line).collect()
    }

    #[test]
    fn each_version_is_told_in_its_own_words() {
        assert_eq!(
            written(Version::Two),
            [
                "pids pids.max 8",
                "memory memory.max 67108864",
                "cpu cpu.max 150000 100000",
                "cpu cpu.weight 100",
                "io io.max 8:0 rbps=1048576 wbps=1048576 riops=50 wiops=50",
            ]
        );
        assert_eq!(
            written(Version::One),
            [
                "pids pids.max 8",
                "memory memory.limit_in_bytes 67108864",
                "cpu cpu.cfs_quota_us 150000",
                "cpu cpu.shares 1024",
                "io blkio.throttle.read_bps_device 8:0 1048576",
                "io blkio.throttle.write_bps_device 8:0 1048576",
                "io blkio.throttle.read_iops_device 8:0 50",
                "io blkio.throttle.write_iops_device 8:0 50",
            ]
        );
    }

    #[test]
    fn host_without_hierarchies_gives_a_gap_per_controller_and_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let group = Hierarchies::at(dir.path()).create("i-0", &LIMITS);
        assert!(group.procs.is_empty());
        assert_eq!(group.gaps.len(), 4, "{:?}", group.gaps);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Hierarchies::at(dir.path()).remove("i-0").unwrap();
    }

    #[test]
    fn process_in_a_group_gets_no_more_memory_than_its_limit() {
        let host = Hierarchies::host();
        let name = format!("test-{}", std::process::id());
        if !host.examine().1.is_empty() {
            println!("SKIPPED: needs root and the cgroup controllers cpu, memory, pids and io");
            return;
        }
        let disk = BlockDevice::under(&std::env::current_exe().unwrap()).unwrap();
        let disk = Some(DiskLimit { device: disk, bytes: 1 << 30, operations: 1_000_000 });
        let group = host.create(&name, &Limits { disk, ..LIMITS });
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
