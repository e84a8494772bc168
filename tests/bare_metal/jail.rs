//! The jail of a real VMM with a running guest, looked at from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use kiln_vmspec::{Command, Reply};

use crate::support::skip;
use crate::support::vm::{Guest, LARGEST_FILE, Setup};

/// A spinning guest with all devices. `None` where the whole jail cannot be closed, which is told.
fn spinning() -> Option<Guest> {
    if !rustix::process::geteuid().is_root() {
        skip("only root can close the whole jail");
        return None;
    }
    let mut guest = Setup { vcpus: 2, ..Setup::with_devices() }.boot("blk-rw,net-imds,spin")?;
    guest.wait_for("spinning");
    Some(guest)
}

fn proc(guest: &Guest) -> PathBuf {
    PathBuf::from(format!("/proc/{}", guest.pid()))
}

fn end(mut guest: Guest) {
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    guest.finish();
}

#[test]
fn every_thread_is_filtered_and_has_no_rights() {
    let Some(guest) = spinning() else { return };
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(proc(&guest).join("task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let fields: BTreeMap<_, _> =
            status.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
        assert_eq!((fields["Seccomp"], fields["Seccomp_filters"]), ("2", "1"), "{status}");
        assert_eq!(fields["NoNewPrivs"], "1", "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(fields[set], "0000000000000000", "{status}");
        }
        let uids: Vec<u32> = fields["Uid"].split_whitespace().map(|uid| uid.parse().unwrap()).collect();
        assert!(uids.iter().all(|uid| *uid >= 0x7000_0000) && fields["Gid"] == fields["Uid"], "{status}");
        assert_eq!(fields["Groups"], "", "{status}");
        threads.insert(fields["Name"].to_owned(), ());
        // Helpers of the kernel, which run no code of ours.
        threads.retain(|name, ()| !name.starts_with("iou-wrk") && !name.starts_with("kvm-nx"));
    }
    let names: Vec<_> = threads.keys().map(String::as_str).collect();
    assert_eq!(names, ["devices", "disk0", "kiln-vmm", "vcpu0", "vcpu1"]);
    end(guest);
}

#[test]
fn one_empty_read_only_mount_is_all_there_is_to_see() {
    let Some(guest) = spinning() else { return };
    let proc = proc(&guest);
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.contains(" / / ro,nosuid,nodev,noexec") && mounts.contains(" - tmpfs none ro"),
        "{mounts}"
    );
    assert_eq!(fs::read_dir(proc.join("root")).unwrap().count(), 0);
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), PathBuf::from("/"));
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let theirs = fs::read_link(proc.join("ns").join(namespace)).unwrap();
        let ours = fs::read_link(PathBuf::from("/proc/self/ns").join(namespace)).unwrap();
        assert_ne!(theirs, ours);
    }
    let links = fs::read_to_string(proc.join("net/dev")).unwrap();
    assert_eq!(
        links.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:")).count(),
        0,
        "{links}"
    );
    end(guest);
}

#[test]
fn no_descriptor_is_open_that_the_machine_does_not_need() {
    let Some(guest) = spinning() else { return };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut files = Vec::new();
    for fd in fs::read_dir(proc(&guest).join("fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned();
        if target.starts_with('/') && !target.starts_with("/dev/") {
            files.push(target);
        } else {
            // Of `socket:[4711]` the number says nothing.
            let kind = target.trim_end_matches(|c: char| c.is_ascii_digit() || "[]".contains(c));
            let kind = if target.starts_with("anon_inode:") { &target } else { kind };
            *counts.entry(kind.to_owned()).or_default() += 1;
        }
    }
    files.sort();
    // The disk, the log of this test, and the kernel, which a restart of the guest needs again. A test beside
    // this one may have put a new copy of that in place.
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(
        files.iter().any(|file| file.ends_with("/log"))
            && files.iter().any(|f| f.trim_end_matches(" (deleted)").ends_with("kiln-guest"))
    );
    let known = [
        ("/dev/kvm", 1),
        // Standard input, and where a VMM of these tests would print.
        ("/dev/null", 2),
        ("anon_inode:kvm-vm", 1),
        // The listener and its one client.
        ("socket:", 2),
        ("anon_inode:[io_uring]", 1),
        // One per loop: control, event loop, disk.
        ("anon_inode:[eventpoll]", 3),
        ("anon_inode:kvm-vcpu:0", 1),
        ("anon_inode:kvm-vcpu:1", 1),
    ];
    for (kind, count) in known {
        assert_eq!(counts.remove(kind), Some(count), "{kind} beside {counts:?}");
    }
    let events = counts.remove("anon_inode:[eventfd]").unwrap_or(0);
    assert!((1..=40).contains(&events), "{events}");
    assert_eq!(counts, BTreeMap::new());
    end(guest);
}

#[test]
fn limits_hold_before_the_kernel_is_asked_for_more() {
    let Some(guest) = spinning() else { return };
    let limits = fs::read_to_string(proc(&guest).join("limits")).unwrap();
    let soft_and_hard = |name: &str| -> Vec<String> {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect()
    };
    for (name, most) in [
        ("Max core file size", 0),
        ("Max file size", LARGEST_FILE),
        ("Max open files", 1024),
        ("Max processes", 512),
        ("Max address space", (64 << 20) + (1 << 30)),
        ("Max msgqueue size", 0),
    ] {
        assert_eq!(soft_and_hard(name), [most.to_string(), most.to_string()], "{name}");
    }
    end(guest);
}
