//! The terminal of `kiln run`: raw while it runs, as it was afterwards, whatever ends it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use cli_support::{Bench, disk, fake_vmm, have_kvm};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

#[test]
#[ignore = "is the VMM program of the other tests"]
fn fake_vmm() {
    fake_vmm::play();
}

/// `kiln run` on a terminal of its own.
struct OnTerminal {
    child: Child,
    master: File,
    /// Keeps the terminal open, to look at its mode.
    terminal: OwnedFd,
    seen: String,
}

impl OnTerminal {
    fn run(bench: &Bench, part: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap()
        };
        let terminal = open();
        let image = bench.file("disk.raw", &disk(1));
        let kiln = bench.kiln(&[]);
        // A session of its own, whose terminal is this one.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(kiln.get_program()).args(["run", &image, "--no-network"]);
        command.env("KILN_STATE_DIR", bench.state_dir());
        command.env("KILN_VMM", fake_vmm::program(bench, part)).env("KILN_ALLOW_SOFTWARE_KVM", "1");
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        OnTerminal { child, master: File::from(master), terminal, seen: String::new() }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn expect(&mut self, wanted: &str) {
        let mut buf = [0; 1024];
        while !self.seen.contains(wanted) {
            let n = self.master.read(&mut buf).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        self.seen = self.seen.split_off(self.seen.find(wanted).unwrap() + wanted.len());
    }

    fn keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn end(mut self) -> Option<i32> {
        let code = self.child.wait().unwrap().code();
        assert!(!self.is_raw(), "the terminal stays raw");
        code
    }
}

#[test]
fn keys_go_to_the_guest_and_ours_do_not() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut run = OnTerminal::run(&bench, "serve");
    run.expect("Ctrl-] then q ends the machine");
    run.expect("guest is up");
    assert!(run.is_raw());
    // Ctrl-C is the guest's.
    run.keys(b"a\x03");
    run.expect("typed \"a\\u{3}\"");
    run.keys(b"\x1d?");
    run.expect("press the power button");
    run.keys(b"\x1ds");
    run.expect("blk0.read_bytes 4096");
    run.keys(b"\x1dp");
    run.expect("going down");
    assert_eq!(run.end(), Some(0));
    bench.assert_no_instance();
}

#[test]
fn terminal_is_restored_however_the_run_ends() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut run = OnTerminal::run(&bench, "deaf");
    run.expect("guest is up");
    run.keys(b"\x1dq");
    run.expect("kiln: the machine was ended before its guest powered off");
    assert_eq!(run.end(), Some(1));

    for part in ["poweroff", "refuse", "crash"] {
        let code = OnTerminal::run(&bench, part).end();
        assert_eq!(code, Some(i32::from(part != "poweroff")), "{part}");
    }
    bench.assert_no_instance();
}

#[test]
fn signal_from_outside_presses_the_button() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut run = OnTerminal::run(&bench, "serve");
    run.expect("guest is up");
    let rows: serde_json::Value = serde_json::from_str(&bench.succeed(&["ps", "--json"])).unwrap();
    let vmm = rows[0]["pid"].as_u64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{vmm}/stat")).unwrap();
    // The VMM's parent is kiln itself.
    let parent: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(parent).unwrap(), Signal::HUP).unwrap();
    run.expect("going down");
    assert_eq!(run.end(), Some(0));
    bench.assert_no_instance();
}
