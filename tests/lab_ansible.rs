//! Configuration management: Ansible launches a stock Debian by `kilnd`, finds it by its tags, sets it up over SSH.
//!
//! Needs the lab, and there what `scripts/test` brings along.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ansible's modules, playbooks and inventory.
const FILES: &str = "/lab/ansible";

#[test]
fn server_is_launched_found_configured_and_serves() {
    let image = lab_image!("debian-12");
    if !Path::new(FILES).exists() {
        return support::skip("needs Ansible in the lab: scripts/test lab");
    }
    let directory = support::scratch();
    let state = directory.path().join("state");
    let mut daemon = start_daemon(&state);
    let kiln = |args: &[&str]| {
        let output =
            Command::new(support::binary("kiln")).args(args).env("KILN_STATE_DIR", &state).output().unwrap();
        assert!(output.status.success(), "kiln {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let image = kiln(&["image", "import", image.to_str().unwrap()]);
    let environment = kiln(&["env"]);
    let environment: Vec<(&str, &str)> = environment
        .lines()
        .filter_map(|line| line.strip_prefix("export ").and_then(|line| line.split_once('=')))
        .collect();
    let key = directory.path().join("key.pem");
    let play = |name: &str, more: &[&str]| {
        let mut child = Command::new("python3")
            .args(["-m", "ansible", "playbook", "-i"])
            .args([format!("{FILES}/inventory/aws_ec2.yml"), format!("{FILES}/playbooks/{name}.yml")])
            .args(["-e", &format!("image={}", image.trim()), "-e", &format!("key_file={}", key.display())])
            .args(["--private-key".as_ref(), key.as_os_str()])
            .args(more)
            .envs(environment.iter().copied())
            .env("PYTHONPATH", format!("{FILES}/modules"))
            .env("HOME", directory.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("ANSIBLE_HOST_KEY_CHECKING", "false")
            .env("ANSIBLE_INVENTORY_UNPARSED_WARNING", "false")
            .env("ANSIBLE_NOCOLOR", "true")
            .env("ANSIBLE_PIPELINING", "true")
            .env("ANSIBLE_TIMEOUT", "120")
            .env("LC_ALL", "C.UTF-8")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            println!("{line}");
            text.push_str(&(line + "\n"));
        }
        assert!(child.wait().unwrap().success(), "{name}: {}", kiln(&["logs", "web"]));
        text
    };
    let changed = |text: &str, host: &str| {
        let line = text.lines().rfind(|line| line.starts_with(host)).unwrap().to_owned();
        !line.contains("changed=0 ")
    };

    let first = play("playbook", &[]);
    assert!(changed(&first, "localhost") && changed(&first, "web"));
    // Of what is said to the service, tests/api_tools.rs shows the same.
    let again = play("playbook", &["--limit", "servers"]);
    assert!(!changed(&again, "web"), "said again it changes nothing");
    play("end", &[]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let left = Command::new("sh").args(["-c", "pgrep -a kiln; ip netns; nft list tables"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// `kilnd`, which serves when this returns.
fn start_daemon(state: &Path) -> Child {
    let mut daemon = Command::new(support::binary("kilnd"))
        .env("KILN_STATE_DIR", state)
        .env("KILN_LISTEN", "127.0.0.1:0")
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let serves = lines.by_ref().map_while(Result::ok).any(|line| line.contains("serving"));
    assert!(serves, "kilnd ended");
    // Read on, or it would wait for us.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    daemon
}
