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

/// What bash offers after these words, by the script that `kiln completion` prints.
fn offered(bench: &Bench, words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
        source <(kiln completion bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
        _clap_complete_kiln kiln "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_kiln")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", ASK, "ask"]).args(words).env("PATH", path).env("KILN_STATE_DIR", bench.state_dir());
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn shells_complete_commands_options_and_what_there_is() {
    let bench = Bench::new();
    assert!(
        offered(&bench, &["kiln", "ssh", ""]).iter().all(|word| word.starts_with("--")),
        "nothing is there"
    );
    assert!(!bench.state_dir().exists(), "and asking makes nothing");
    assert_eq!(offered(&bench, &["kiln", "term"]), ["terminate"]);
    assert_eq!(offered(&bench, &["kiln", "run", "--instance-t"]), ["--instance-type"]);
    let types = offered(&bench, &["kiln", "run", "--instance-type", "t3.s"]);
    assert!(types.contains(&"t3.small".to_owned()) && types.iter().all(|name| name.starts_with("t3.s")));
    let image = bench.file("guest.raw", &cli_support::disk(1));
    bench.succeed(&["image", "import", &image, "--name", "golden"]);
    bench.succeed(&["sg", "create", "web"]);
    bench.succeed(&["role", "create", "app"]);
    assert_eq!(offered(&bench, &["kiln", "run", "gol"]), ["golden"]);
    assert!(offered(&bench, &["kiln", "run", bench.path("gue").to_str().unwrap()]).contains(&image));
    assert_eq!(offered(&bench, &["kiln", "run", "golden", "--role", ""]), ["app"]);
    assert_eq!(offered(&bench, &["kiln", "sg", "show", "w"]), ["web"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(bench.succeed(&["completion", shell]).contains("COMPLETE"), "{shell}");
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
