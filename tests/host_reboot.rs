//! The host goes down with its instances: nothing of them is left but the state directory. When it is back,
//! those that ran are started again where that is asked for, and are stopped otherwise.
//!
//! The host is one of the test's own. For a reboot its processes are killed, its interfaces, rules and `/run`
//! taken away, and it gets another boot id.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod api_support;
mod cli_support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use api_support::wire::Endpoint;
use api_support::{Daemon, own_host};
use cli_support::fake_vmm;
use kiln_controlplane::state::{SqliteStore, Store};
use serde_json::Value;

const SWITCH: &str = "KILN_RESTART_AFTER_BOOT";

#[test]
#[ignore = "the VMM of the other test"]
fn fake_vmm() {
    fake_vmm::play();
}

#[test]
fn what_ran_starts_again_where_that_is_asked_for() {
    own_host::run_inside();
}

#[test]
#[ignore = "runs on a host of its own, made by what_ran_starts_again_where_that_is_asked_for"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let vmms = cli_support::Bench::new();
    let vmm = fake_vmm::program(&vmms, "serve");
    let mut daemon = Daemon::new_with(&own_host::variables(&vmm));
    let image = daemon.path("disk.raw");
    std::fs::write(&image, cli_support::disk(7)).unwrap();
    let image = Endpoint::of(&daemon).register(&image);
    let launch = format!("Action=RunInstances&InstanceType=t2.nano&MinCount=2&MaxCount=2&ImageId={image}");
    let ids = Endpoint::of(&daemon).ask(&launch).all("instanceId");
    let [ran, rested] = [&ids[0], &ids[1]];
    until(&daemon, ran, "running");
    until(&daemon, rested, "running");
    Endpoint::of(&daemon).ask(&format!("Action=StopInstances&InstanceId.1={rested}"));
    until(&daemon, rested, "stopped");
    let before = row(&daemon, ran);

    // It is killed again just after it has noted what is to be done.
    reboot(&mut daemon, &before, 1);
    daemon.set(SWITCH, "true");
    daemon.start();
    daemon.kill();
    daemon.start();
    until(&daemon, ran, "running");
    let after = row(&daemon, ran);
    assert_ne!(before["vmm"], after["vmm"], "a machine of its own");
    assert_eq!(before["interface"], after["interface"], "the same address");
    assert_eq!(row(&daemon, rested)["state"], "stopped");

    reboot(&mut daemon, &after, 2);
    daemon.set(SWITCH, "false");
    daemon.start();
    until(&daemon, ran, "stopped");
    let shown = Endpoint::of(&daemon).ask(&format!("Action=DescribeInstances&InstanceId.1={ran}"));
    assert!(shown.body.contains("the host was restarted"), "{}", shown.body);
    assert_eq!(row(&daemon, rested)["state"], "stopped");
}

fn row(daemon: &Daemon, id: &str) -> Value {
    let store = SqliteStore::open(&daemon.state_dir().join("kiln.db")).unwrap();
    serde_json::from_str(&store.read(&format!("instance/{id}")).unwrap().unwrap().value).unwrap()
}

fn until(daemon: &Daemon, id: &str, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while row(daemon, id)["state"] != state {
        assert!(Instant::now() < deadline, "{id} is not {state}: {}", row(daemon, id));
        // Lets others work; nothing depends on how long.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Takes the power away and gives it back.
fn reboot(daemon: &mut Daemon, instance: &Value, number: u32) {
    daemon.kill();
    let pid = instance["vmm"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let id = daemon.path("boot-id");
    std::fs::write(&id, format!("00000000-0000-0000-0000-{number:012}\n")).unwrap();
    sh("nft flush ruleset; for ns in $(ls /run/netns); do ip netns del $ns; done; umount -l /run
        mount -t tmpfs none /run && mkdir /run/netns");
    sh(&format!("mount --bind {} /proc/sys/kernel/random/boot_id", Path::new(&id).display()));
}

fn sh(script: &str) {
    assert!(Command::new("sh").args(["-c", script]).status().unwrap().success(), "{script}");
}
