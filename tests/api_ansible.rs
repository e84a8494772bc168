//! Ansible's `amazon.aws` against `kilnd` with real machines: modules, waiters and the dynamic inventory.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::path::PathBuf;
use std::process::Command;

use api_support::own_host;

/// Where `ansible-playbook` is; says why not.
fn ansible() -> Option<PathBuf> {
    let found = std::env::var_os("KILN_TEST_ANSIBLE").map(PathBuf::from);
    if found.is_none() {
        println!("SKIPPED: no Ansible with amazon.aws (KILN_TEST_ANSIBLE)");
    }
    found
}

#[test]
fn playbook_and_inventory_work_as_with_ec2() {
    if ansible().is_some() {
        own_host::run_inside();
    }
}

#[test]
#[ignore = "runs on a host of its own, made by playbook_and_inventory_work_as_with_ec2"]
fn inside() {
    let Some(directory) = ansible().filter(|_| own_host::is_inside()) else { return };
    let (mut daemon, image) = own_host::daemon();
    let imported = daemon.kiln(&["image", "import", &image]);
    let image = String::from_utf8(imported.stdout).unwrap().trim().to_owned();
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api_support/ansible");
    let home = daemon.path("home");
    std::fs::create_dir(&home).unwrap();
    let output = Command::new(directory.join("ansible-playbook"))
        .args(["-i", &format!("{files}/aws_ec2.yml"), &format!("{files}/playbook.yml")])
        .envs(daemon.environment())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("KILN_TEST_IMAGE", image)
        .env("HOME", &home)
        .env("ANSIBLE_INVENTORY_UNPARSED_WARNING", "false")
        .env("ANSIBLE_NOCOLOR", "true")
        .env("ANSIBLE_PIPELINING", "true")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("failed=0"), "{text}");
    assert!(daemon.stop().success());
}
