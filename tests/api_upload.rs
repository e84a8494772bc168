//! Snapshots by blocks: boto3 against `kilnd`, which is killed in the middle of an upload, and an image that came
//! that way on a real machine, on a host of the test's own.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use api_support::{Daemon, own_host};

/// Files that are left of volumes and snapshots.
fn left(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.state_dir().join("volumes")).unwrap().count()
}

#[test]
fn upload_goes_on_after_the_daemon_was_killed() {
    let mut daemon = Daemon::new();
    let pid = daemon.pid().to_string();
    if !daemon.python_with("upload.py", &[("KILN_TEST_PHASE", "before"), ("KILN_TEST_DAEMON", &pid)]) {
        return;
    }
    // As the script has done.
    daemon.kill();
    daemon.start();
    daemon.python_with("upload.py", &[("KILN_TEST_PHASE", "after")]);
    assert!(daemon.stop().success());
    assert_eq!(left(&daemon), 0, "files that nobody needs");
}

#[test]
fn uploaded_image_runs() {
    own_host::run_inside();
}

#[test]
#[ignore = "runs on a host of its own, made by uploaded_image_runs"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let (mut daemon, image) = own_host::daemon();
    daemon.python_with("upload_launch.py", &[("KILN_TEST_IMAGE", &image)]);
    assert!(daemon.stop().success());
    assert_eq!(left(&daemon), 0, "files that nobody needs");
}
