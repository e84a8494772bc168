//! Instances by the API: boto3 against `kilnd` with real machines, on a host of the test's own.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::path::Path;

use api_support::{Daemon, own_host};

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
    let vmm = Path::new(env!("CARGO_BIN_EXE_kiln-vmm"));
    let mut daemon = Daemon::new_with(&own_host::variables(vmm));
    let image = own_host::guest_image(&daemon.path("guest.raw"));
    daemon.python_with("instances.py", &[("KILN_TEST_IMAGE", &image)]);
    daemon.python_with("interfaces.py", &[("KILN_TEST_IMAGE", &image)]);
    assert!(daemon.stop().success());
}
