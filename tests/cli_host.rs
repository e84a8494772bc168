//! `kiln doctor`, `types` and `completion`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use cli_support::{Bench, exists, stderr};
use serde_json::Value;

#[test]
fn doctor_says_how_things_are_and_its_exit_status_agrees() {
    let bench = Bench::new();
    let output = bench.output(&["doctor", "--json"]);
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let of = |subject: &str| findings.iter().find(|f| f["subject"] == subject).unwrap();
    for subject in [
        "kvm",
        "tun",
        "nftables",
        "jail",
        "seccomp",
        "Landlock",
        "cgroup",
        "SMT",
        "io_uring",
        "userfaultfd",
        "hugepages",
        "memory",
        "state",
    ] {
        assert!(!of(subject)["detail"].as_str().unwrap().is_empty(), "{subject}");
    }
    let bad = findings.iter().any(|f| f["verdict"] == "bad");
    assert_eq!(output.status.success(), !bad, "{}", stderr(&output));
    assert!(findings.iter().filter(|f| f["verdict"] == "bad").all(|f| f["remedy"].is_string()));
    assert!(!exists(&bench.state_dir()), "a diagnosis changes nothing");
    if of("kvm")["verdict"] == "bad" {
        assert!(of("kvm").to_string().contains("scripts/lab"), "{}", of("kvm"));
    }

    let text = String::from_utf8(bench.output(&["doctor"]).stdout).unwrap();
    assert!(text.lines().all(|line| line.len() < 200) && text.contains("kvm"), "{text}");
}

#[test]
fn types_are_listed() {
    let bench = Bench::new();
    let table = bench.succeed(&["types"]);
    assert!(
        table.lines().any(|l| l.split_whitespace().eq(["t3.micro", "2", "1", "GiB", "x86-64-v3"])),
        "{table}"
    );
    let rows: Value = serde_json::from_str(&bench.succeed(&["types", "--json"])).unwrap();
    assert!(rows.as_array().unwrap().iter().any(|r| r["name"] == "m5.large" && r["vcpus"] == 2));
}

#[test]
fn completion_scripts_name_the_commands() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = bench.succeed(&["completion", shell]);
        assert!(script.contains("terminate") && script.contains("instance-type"), "{shell}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let bench = Bench::new();
    assert!(bench.succeed(&["--version"]).starts_with("kiln "));
    let help = bench.succeed(&["run", "--help"]);
    for option in
        ["--user-data", "--ssh-key", "--volume-size", "--volume", "--keep", "--console-log", "--no-network"]
    {
        assert!(help.contains(option), "{option} is not in {help}");
    }
}
