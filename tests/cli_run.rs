//! `kiln run` around a VMM without a machine: console, signals, exit status, what is left.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use cli_support::{Bench, disk, fake_vmm, have_kvm, stderr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
#[ignore = "is the VMM program of the other tests"]
fn fake_vmm() {
    fake_vmm::play();
}

fn command(bench: &Bench, part: &str, args: &[&str]) -> Command {
    let mut command = bench.kiln(args);
    command.env("KILN_VMM", fake_vmm::program(bench, part)).env("KILN_ALLOW_SOFTWARE_KVM", "1");
    command
}

/// `kiln run` of a fresh image to its end.
fn run(bench: &Bench, part: &str, more: &[&str]) -> Output {
    let image = bench.file("disk.raw", &disk(1));
    let mut args = vec!["run", &image, "--no-network"];
    args.extend(more);
    command(bench, part, &args).stdin(Stdio::null()).output().unwrap()
}

/// A run in the background.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { stdin: child.stdin.take(), stdout, child }
    }

    fn run(bench: &Bench, part: &str, more: &[&str]) -> Self {
        let image = bench.file("disk.raw", &disk(1));
        let mut args = vec!["run", &image, "--no-network"];
        args.extend(more);
        let mut running = Self::start(command(bench, part, &args));
        running.expect("guest is up");
        running
    }

    /// Reads the console up to this line.
    fn expect(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the console ended before {wanted:?}");
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), stderr(&output))
    }
}

fn instances(bench: &Bench) -> Value {
    serde_json::from_str(&bench.succeed(&["ps", "--json"])).unwrap()
}

fn alive(pid: &Value) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for the end of a process that is not our child.
fn wait_gone(pid: &Value) {
    while alive(pid) {
        std::thread::yield_now();
    }
}

#[test]
fn power_off_ends_the_run_with_success_and_nothing_left() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let output = run(&bench, "poweroff", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "guest is up\r\n");
    assert!(stderr(&output).contains("t3.micro (2 vCPU, 1 GiB), no network"), "{}", stderr(&output));
    bench.assert_no_instance();
}

#[test]
fn vmm_that_refuses_or_dies_ends_the_run_with_its_reason() {
    if !have_kvm() {
        return;
    }
    for (part, reason) in [
        ("refuse", "kiln: no kernel on the root volume (give --kernel)"),
        ("crash", "kiln: kiln-vmm ended with status 3: kiln-vmm: out of luck"),
    ] {
        let bench = Bench::new();
        let output = run(&bench, part, &["--keep"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr(&output).lines().last(), Some(reason));
        bench.assert_no_instance();
    }
}

/// As one that a guest has taken over may, to fill the host.
#[test]
fn vmm_that_floods_its_log_gets_a_mebibyte_and_is_not_held_up() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let running = Running::run(&bench, "flood", &["--keep"]);
    let id = instances(&bench)[0]["id"].as_str().unwrap().to_owned();
    bench.succeed(&["stop", &id]);
    assert_eq!(running.end().0, Some(0));
    let log = bench.state_dir().join("instances").join(&id).join("vmm.log");
    let kept = std::fs::metadata(log).unwrap().len();
    assert!((64 << 10..=1 << 20).contains(&kept), "{kept}");
    bench.succeed(&["terminate", &id]);
    bench.assert_no_instance();
}

#[test]
fn first_signal_presses_the_button_and_the_second_ends_the_machine() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut running = Running::run(&bench, "serve", &[]);
    running.signal(Signal::TERM);
    running.expect("going down");
    assert_eq!(running.end().0, Some(0));
    bench.assert_no_instance();

    let mut running = Running::run(&bench, "deaf", &[]);
    running.signal(Signal::INT);
    running.expect("what button?");
    running.signal(Signal::INT);
    let (code, stderr) = running.end();
    assert_eq!(code, Some(1));
    assert!(stderr.ends_with("kiln: the machine was ended before its guest powered off\n"), "{stderr}");
    bench.assert_no_instance();
}

#[test]
fn input_reaches_the_guest_only_when_it_is_wanted() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut running = Running::run(&bench, "serve", &["--console-input"]);
    running.stdin.as_mut().unwrap().write_all(b"ls\x1dq\n").unwrap();
    running.expect("typed \"ls\\u{1d}q\\n\"");
    // The end of the input is not the end of the run.
    drop(running.stdin.take());
    let id = instances(&bench)[0]["id"].as_str().unwrap().to_owned();
    bench.succeed(&["stop", &id]);
    assert_eq!(running.end().0, Some(0));

    let mut running = Running::run(&bench, "serve", &[]);
    running.stdin.as_mut().unwrap().write_all(b"ls\n").unwrap();
    running.signal(Signal::TERM);
    running.expect("going down");
    running.end();
}

#[test]
fn killed_run_takes_its_vmm_along_and_the_next_command_sweeps() {
    if !have_kvm() {
        return;
    }
    for part in ["serve", "hang"] {
        let bench = Bench::new();
        let running = if part == "hang" {
            let image = bench.file("disk.raw", &disk(1));
            Running::start(command(&bench, part, &["run", &image, "--no-network"]))
        } else {
            Running::run(&bench, part, &[])
        };
        let vmm = loop {
            let pid = instances(&bench)[0]["pid"].clone();
            if pid.is_u64() {
                break pid;
            }
        };
        assert!(alive(&vmm));
        running.signal(Signal::KILL);
        assert_eq!(running.end().0, None);
        wait_gone(&vmm);
        assert!(bench.state_dir().join("instances").read_dir().unwrap().count() == 1);
        bench.succeed(&["ps"]);
        bench.assert_no_instance();
    }
}

#[test]
fn kept_instance_stops_starts_and_terminates() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let output = run(&bench, "poweroff", &["--keep", "--name", "web"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let first = instances(&bench)[0].clone();
    let id = first["id"].as_str().unwrap();
    assert_eq!((&first["state"], &first["name"]), (&"stopped".into(), &"web".into()));
    assert!(stderr(&output).contains(&format!("kiln start {id}")), "{}", stderr(&output));
    let volume = first["volume_id"].as_str().unwrap();
    let overlay = bench.state_dir().join("volumes").join(format!("{volume}.qcow2"));
    assert!(overlay.exists());
    bench.succeed(&["stop", "web"]);
    assert!(bench.fail(&["console", "web"]).contains("stopped"));

    let output = command(&bench, "poweroff", &["start", "web"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let second = instances(&bench)[0].clone();
    for same in ["id", "mac", "volume_id", "state"] {
        assert_eq!(first[same], second[same]);
    }
    bench.succeed(&["terminate", "web"]);
    bench.assert_no_instance();
}

#[test]
fn other_processes_see_and_end_a_running_instance() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let mut one = Running::run(&bench, "serve", &["--name", "one"]);
    let two = Running::run(&bench, "serve", &["--name", "two", "--keep"]);
    let rows = instances(&bench);
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{rows}");
    assert!(rows.as_array().unwrap().iter().all(|i| i["state"] == "running" && alive(&i["pid"])), "{rows}");
    let table = bench.succeed(&["ps"]);
    assert!(table.contains("one") && table.contains("running"), "{table}");

    // A second console sees the same guest; leaving it leaves the guest.
    let mut console = Running::start(bench.kiln(&["console", "one"]));
    console.expect("guest is up");
    console.signal(Signal::TERM);
    assert_eq!(console.end().0, Some(0));

    bench.succeed(&["stop", "one"]);
    one.expect("going down");
    assert_eq!(one.end().0, Some(0));
    assert!(bench.fail(&["start", "two"]).contains("run by another process"));
    bench.succeed(&["terminate", "two"]);
    assert_eq!(two.end().0, Some(1));
    bench.assert_no_instance();
}

#[test]
fn image_of_a_running_instance_cannot_be_removed() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    bench.succeed(&["image", "import", &bench.file("base.raw", &disk(5))]);
    let mut running = Running::start(command(&bench, "serve", &["run", "base", "--no-network"]));
    running.expect("guest is up");
    let id = instances(&bench)[0]["id"].as_str().unwrap().to_owned();
    assert!(bench.fail(&["image", "rm", "base"]).contains(&format!("kiln terminate {id}")));
    bench.succeed(&["terminate", &id]);
    running.end();
    bench.succeed(&["image", "rm", "base"]);
}

#[test]
fn instance_that_does_not_stop_in_time_is_reported_and_stops_by_force() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let running = Running::run(&bench, "deaf", &["--name", "deaf"]);
    let line = bench.fail(&["stop", "deaf", "--timeout", "0"]);
    assert!(line.contains("did not power off") && line.contains("kiln stop --force"), "{line}");
    bench.succeed(&["stop", "--force", "deaf"]);
    running.end();
    bench.assert_no_instance();
}
