//! Volumes, snapshots and images by the API: boto3 against `kilnd` with real machines, on a host of the test's
//! own.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use api_support::{Daemon, own_host};

#[test]
fn volumes_and_images_behave_as_boto3_expects() {
    own_host::run_inside();
}

/// The daemon dies while it copies, or just after it; the next one goes on.
#[test]
fn image_that_a_killed_daemon_was_copying_is_there_after_the_next_has_started() {
    let mut daemon = Daemon::new();
    let file = daemon.path("large.raw");
    // Nowhere zero, so that all of it has to be copied.
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8 + 1).collect();
    std::fs::write(&file, block.repeat(192)).unwrap();
    let location = file.to_str().unwrap();
    let variables = |phase| [("KILN_TEST_IMAGE", location), ("KILN_TEST_PHASE", phase)];
    if !daemon.python_with("storage_crash.py", &variables("before")) {
        return;
    }
    daemon.kill();
    daemon.start();
    daemon.python_with("storage_crash.py", &variables("after"));
    let images = std::fs::read_dir(daemon.state_dir().join("images")).unwrap();
    let files: Vec<_> = images.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(std::fs::read(&files[0]).unwrap() == std::fs::read(&file).unwrap());
    assert!(daemon.stop().success());
}

#[test]
#[ignore = "runs on a host of its own, made by volumes_and_images_behave_as_boto3_expects"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let (mut daemon, image) = own_host::daemon();
    daemon.python_with("storage.py", &[("KILN_TEST_IMAGE", &image)]);
    assert!(daemon.stop().success());
    let left = |directory: &str| std::fs::read_dir(daemon.state_dir().join(directory)).unwrap().count();
    assert_eq!((left("volumes"), left("images")), (0, 0), "files that nobody needs");
}
