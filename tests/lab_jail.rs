//! The limits around a VMM on a host with control groups of version 2, and a Linux guest inside them.
//!
//! Needs the lab: see `support`.

mod support;

use std::fs;
use std::path::Path;

use support::run::Desk;

/// Boots take seconds; this tells a hang from a slow machine.
const BOOT: u64 = 180;

#[test]
fn guest_runs_in_a_group_with_the_limits_of_its_size_which_goes_with_it() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let mut run = desk.run(&image, &["--vcpus", "1", "--memory", "512M"]);
    run.expect("tiny: ready at", BOOT);
    let instance = desk.instance();
    let group = Path::new("/sys/fs/cgroup/kiln").join(instance["id"].as_str().unwrap());
    let value = |file: &str| fs::read_to_string(group.join(file)).unwrap().trim().to_owned();
    // Guest, page tables for it, and the VMM's own.
    assert_eq!(value("memory.max"), ((512 + 2 + 192) << 20).to_string());
    assert_eq!(value("cpu.max"), "200000 100000");
    assert_eq!(value("cpu.weight"), "100");
    assert_eq!(value("pids.max"), "129");
    // Four times what a t3.micro may ask of its volumes.
    let limits = value("io.max");
    let (_disk, limits) = limits.split_once(' ').unwrap();
    assert_eq!(limits, "rbps=1042500000 wbps=1042500000 riops=47200 wiops=47200");
    let pid = instance["pid"].to_string();
    // Beside it there may be a thread that the kernel runs for KVM.
    assert!(value("cgroup.procs").lines().any(|line| line == pid), "{}", value("cgroup.procs"));
    let used: u64 = value("memory.current").parse().unwrap();
    assert!(used > 64 << 20, "{used}: guest memory is counted");

    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("NSpid:\t{pid}\t1\n")), "{status}");
    assert!(status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"), "{status}");
    // What it cannot see: itself from outside.
    let inside = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(inside.contains("/kiln/i-"), "{inside}");

    let address = instance["private_ip"].as_str().unwrap().parse().unwrap();
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
    assert!(!group.exists());
}

#[test]
fn host_offers_every_part_of_the_jail() {
    if std::env::var_os("KILN_LAB").is_none() {
        return support::skip("needs the lab: scripts/test lab");
    }
    let output = Desk::new().kiln().args(["doctor", "--json"]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for part in ["jail", "seccomp", "Landlock", "cgroup"] {
        let found = findings.as_array().unwrap().iter().find(|finding| finding["subject"] == part).unwrap();
        assert_eq!(found["verdict"], "good", "{found}");
    }
}
