//! Whatever is killed, whenever: nothing of it stays.
//!
//! Rounds of `kiln run` with a guest in which `kiln` or its VMM is killed at some moment of launch, run or
//! end, on a host of the test's own (network and mount namespaces). After each round one command must
//! find and clear away whatever was left.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use cli_support::{Bench, disk, have_kvm, stderr};
use rustix::process::{Pid, Signal, kill_process};
use support::{Deadline, skip};

/// Rounds, if not said otherwise in `KILN_ROUNDS`.
const ROUNDS: u32 = 200;
/// The latest moment in milliseconds at which something is killed: the guest runs by then.
const LATEST: u64 = 700;
const INSIDE: &str = "KILN_ACCIDENTS";

#[test]
fn nothing_stays_of_what_was_killed() {
    if !have_kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    for program in ["nft", "ip", "unshare"] {
        if Command::new(program).arg("-V").output().is_err() {
            return skip(&format!("needs the program {program}"));
        }
    }
    // The directory of named namespaces is a mount point wherever one was ever made, by `ip netns` too.
    let host = "mount -t tmpfs none /run && mkdir /run/netns && mount --bind /run/netns /run/netns && \
                ip link set lo up";
    support::run_apart("rounds", &["--net", "--mount"], host, &[(INSIDE, OsStr::new("1"))]);
}

#[test]
#[ignore = "runs on a host of its own, made by nothing_stays_of_what_was_killed"]
fn rounds() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let rounds = std::env::var("KILN_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let bench = Bench::new();
    let kernel = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh")).output().unwrap();
    let kernel = String::from_utf8(kernel.stdout).unwrap().trim().to_owned();
    let image = bench.file("disk.raw", &disk(7));
    // The first run makes what stays for good: the store, and the lock of the host's network.
    bench.succeed(&["ps"]);
    let before = traces();
    let mut dice = Dice(u64::from(std::process::id()));
    let mut ends = [0u32; 3];
    for round in 0..rounds {
        let args = [
            "run",
            &image,
            "--kernel",
            &kernel,
            "--cmdline",
            "test=hello,spin",
            "--memory",
            "64M",
            "--vcpus",
            "1",
        ];
        let mut command = bench.kiln(&args);
        command.env("KILN_ALLOW_SOFTWARE_KVM", "1").env("KILN_VMM", support::binary("kiln-vmm"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        pause(dice.below(LATEST));
        let end = accident(child, dice.below(3));
        ends[end] += 1;
        // Any command sweeps first.
        let output = bench.output(&["ps", "--json"]);
        assert!(output.status.success(), "round {round}: {}", stderr(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]", "round {round}");
        assert_eq!(traces(), before, "round {round}");
    }
    println!("{rounds} rounds: kiln killed {}, its VMM killed {}, told to end {}", ends[0], ends[1], ends[2]);
    bench.assert_no_instance();
    assert_eq!(fs::read(Path::new(&image)).unwrap(), disk(7), "the image is as it was");
}

/// Does one of three things to a running `kiln` and waits for its end; answers what it came to.
fn accident(mut child: Child, which: u64) -> usize {
    let pid = Pid::from_child(&child);
    let vmm = vmm_of(child.id());
    let end = match (which, vmm) {
        (1, Some(vmm)) => {
            // It may have ended since.
            let _ = kill_process(vmm, Signal::KILL);
            1
        }
        (2, _) => {
            let _ = kill_process(pid, Signal::TERM);
            2
        }
        _ => {
            let _ = kill_process(pid, Signal::KILL);
            0
        }
    };
    let deadline = Deadline::after(60);
    while child.try_wait().unwrap().is_none() {
        deadline
            .left(["the end of kiln", "the end of kiln without its VMM", "the end that was asked for"][end]);
        pause(5);
        if end == 2 {
            // The first presses the power button. Two at once are one.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    if let Some(vmm) = vmm {
        // It goes with its parent, and its memory takes a moment.
        while alive(vmm) {
            deadline.left("the end of kiln-vmm");
            pause(5);
        }
    }
    end
}

/// Whether it runs. One that has ended stays as a zombie where nobody waits for orphans.
fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// The VMM among the children of a process.
fn vmm_of(parent: u32) -> Option<Pid> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let children = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    let is_vmm =
        |pid: &&i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "kiln-vmm\n");
    pids.iter().find(is_vmm).copied().and_then(Pid::from_raw)
}

/// What a run could leave on the host.
fn traces() -> BTreeSet<String> {
    let list = "ip -o link | cut -d: -f2; ip netns; nft list tables; cut -d' ' -f2 /proc/mounts; \
                find /sys/fs/cgroup -path '*/kiln/i-*' -type d";
    let output = Command::new("sh").arg("-c").arg(list).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Lets some time go by: the moment of an accident, or until the next look.
fn pause(milliseconds: u64) {
    let (_keep, never) = channel::<()>();
    let _ = never.recv_timeout(Duration::from_millis(milliseconds));
}

/// xorshift64: the moments are arbitrary, and the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
