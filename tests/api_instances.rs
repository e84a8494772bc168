//! Instances by the API: boto3 against `kilnd` with real machines, on a host of the test's own.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::process::Command;
use std::time::{Duration, Instant};

use api_support::{Daemon, own_host};
use serde_json::Value;

#[test]
fn instances_live_as_boto3_expects() {
    own_host::run_inside();
}

#[test]
#[ignore = "runs on a host of its own, made by instances_live_as_boto3_expects"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let (mut daemon, image) = own_host::daemon();
    daemon.python_with("instances.py", &[("KILN_TEST_IMAGE", &image)]);
    daemon.python_with("interfaces.py", &[("KILN_TEST_IMAGE", &image)]);
    daemon.python_with("templates.py", &[("KILN_TEST_IMAGE", &image)]);
    killed_while_an_interface_comes_and_goes(&mut daemon, &image);
    assert!(daemon.stop().success());
}

/// What `kiln` printed, which succeeded.
fn kiln(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.kiln(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Waits until `found` finds something.
fn until<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The daemon dies at ever later moments of attaching and detaching. The next one concludes it: the instance has
/// the interface or it has not, and so has the host.
fn killed_while_an_interface_comes_and_goes(daemon: &mut Daemon, image: &str) {
    const MOMENT: Duration = Duration::from_millis(12);
    kiln(daemon, &["run", "--detach", image, "--name", "crash", "--instance-type", "t3.nano"]);
    until("the instance to run", || kiln(daemon, &["ps"]).contains("running").then_some(()));
    let id = kiln(daemon, &["interface", "create"]);
    let row = |daemon: &Daemon| -> Value {
        let all: Vec<Value> = serde_json::from_str(&kiln(daemon, &["interface", "ls", "--json"])).unwrap();
        all.into_iter().find(|row| row["interface"]["id"] == id.as_str()).unwrap()
    };
    let vpc = row(daemon)["interface"]["subnet"]["vpc"].as_str().unwrap().to_owned();
    let namespace = format!("kiln-{}", &vpc[vpc.len() - 12..]);
    let tap = || {
        let links = Command::new("ip").args(["-n", &namespace, "-o", "link"]).output().unwrap();
        assert!(links.status.success(), "{}", String::from_utf8_lossy(&links.stderr));
        String::from_utf8_lossy(&links.stdout).contains(&format!("kt{}", &id[id.len() - 12..]))
    };
    let mut attached = false;
    let mut seen = [0, 0];
    for n in 0..16 {
        let order: &[&str] = if attached { &["detach", &id] } else { &["attach", &id, "crash"] };
        let mut asks = daemon.kiln_command(&[&["interface"], order].concat()).spawn().unwrap();
        std::thread::sleep(MOMENT * n);
        daemon.kill();
        asks.wait().unwrap();
        daemon.start();
        let before = attached;
        attached = until("an end of it", || {
            let row = row(daemon);
            (row["instance"].is_null() || row["state"] == "attached").then(|| !row["instance"].is_null())
        });
        assert_eq!(tap(), attached, "tap after kill {n}");
        seen[usize::from(before != attached)] += 1;
    }
    println!("{} orders were lost with their daemon, {} were carried out", seen[0], seen[1]);
    assert!(seen[1] > 0, "no order was carried out");
    if !attached {
        kiln(daemon, &["interface", "attach", &id, "crash"]);
    }
    kiln(daemon, &["interface", "detach", &id, "--force"]);
    kiln(daemon, &["interface", "rm", &id]);
    kiln(daemon, &["terminate", "crash"]);
}
