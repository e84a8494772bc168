//! The host's disk is full: who asked for too much is refused, and nobody else feels it.
//!
//! The state directory lies on a small file system of the test's own. One guest fills it, while a second
//! one is running.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;
#[path = "support/mod.rs"]
mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use cli_support::{Bench, disk, have_kvm, refusal, stderr};
use serde_json::Value;
use support::skip;

const INSIDE: &str = "KILN_FULL_DISK";
/// Holds the images, the store and some of what the guest writes; not its whole volume.
const SIZE: &str = "size=64m";

#[test]
fn guest_that_fills_the_disk_is_refused_and_all_else_goes_on() {
    if !have_kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let host = format!("mount -t tmpfs -o {SIZE} none \"$TMPDIR\"");
    let variables = [(INSIDE, OsStr::new("1")), ("TMPDIR", dir.path().as_os_str())];
    support::run_apart("inside", &["--mount"], &host, &variables);
}

/// A `kiln run` whose console is read.
struct Run {
    child: Child,
    console: BufReader<ChildStdout>,
}

fn run(bench: &Bench, image: &str, kernel: &str, tests: &str) -> Command {
    let cmdline = format!("test={tests}");
    let args = ["run", image, "--no-network", "--kernel", kernel, "--cmdline", &cmdline, "--vcpus", "1"];
    let mut command = bench.kiln(&args);
    command.args(["--memory", "64M", "--volume-size", "1G"]).stdin(Stdio::null());
    command.env("KILN_ALLOW_SOFTWARE_KVM", "1").env("KILN_VMM", support::binary("kiln-vmm"));
    command
}

impl Run {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let console = BufReader::new(child.stdout.take().unwrap());
        Run { child, console }
    }

    fn expect(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            if self.console.read_line(&mut line).unwrap() == 0 {
                panic!("{} before {wanted:?}", self.child.wait().unwrap());
            }
            print!("{line}");
        }
    }

    fn end(mut self) -> ExitStatus {
        std::io::copy(&mut self.console, &mut std::io::sink()).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Run {
    /// A test that failed leaves no machine.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "runs on a file system of its own, made by guest_that_fills_the_disk_is_refused_and_all_else_goes_on"]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let bench = Bench::new();
    let kernel = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh")).output().unwrap();
    let kernel = String::from_utf8(kernel.stdout).unwrap().trim().to_owned();
    let image = bench.file("disk.raw", &disk(7));

    let run = |tests| run(&bench, &image, &kernel, tests);
    let mut neighbour = Run::new(run("blk-rw,power-button"));
    neighbour.expect("waiting for the power button");
    let ids = |bench: &Bench| -> Vec<String> {
        let all: Vec<Value> = serde_json::from_str(&bench.succeed(&["ps", "--json"])).unwrap();
        all.iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
    };
    let neighbour_id = ids(&bench).remove(0);
    let mut glutton = Run::new(run("blk-fill,spin"));
    glutton.expect("no room from sector");
    glutton.expect("spinning");

    // Not a byte is left for anybody.
    let mut rest = File::create(bench.path("rest")).unwrap();
    let error = loop {
        if let Err(e) = rest.write_all(&[0; 512]) {
            break e;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);

    let listed = ids(&bench);
    assert_eq!(listed.len(), 2, "{listed:?}");
    let refused = run("blk-rw").output().unwrap();
    assert!(refusal(&refused).contains("No space left on device"), "{}", stderr(&refused));
    assert_eq!(ids(&bench), listed, "nothing came of it");

    // Whoever runs can be ended, which makes room.
    bench.succeed(&["stop", &neighbour_id]);
    assert_eq!(neighbour.end().to_string(), "exit status: 0");
    let glutton_id = listed.iter().find(|id| **id != neighbour_id).unwrap();
    bench.succeed(&["terminate", glutton_id]);
    assert_eq!(glutton.end().to_string(), "exit status: 1");

    let mut next = Run::new(run("blk-rw"));
    next.expect("PASS blk-rw");
    assert_eq!(next.end().to_string(), "exit status: 0");
    bench.assert_no_instance();
}
