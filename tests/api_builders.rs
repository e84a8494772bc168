//! Packer and Terraform against `kilnd` with real machines: what they make, change and take away again.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::process::Command;

use api_support::own_host;

/// Whether the programs and the provider are there; says why not.
fn lacks(program: &str, variable: Option<&str>) -> bool {
    if Command::new(program).arg("version").output().is_err() {
        println!("SKIPPED: needs the program {program}");
        return true;
    }
    match variable.filter(|name| std::env::var_os(name).is_none()) {
        Some(name) => {
            println!("SKIPPED: no plugins for {program} ({name})");
            true
        }
        None => false,
    }
}

const PLUGINS: &str = "KILN_TEST_TERRAFORM_PLUGINS";
/// Which script `inside` runs.
const SCRIPT: &str = "KILN_TEST_SCRIPT";

/// Each on a host of its own, so that they need not wait for each other.
fn run(script: &str) {
    own_host::run_inside_with(&[(SCRIPT, script)]);
}

#[test]
fn packer_makes_images() {
    if !lacks("packer", None) {
        run("packer.py");
    }
}

#[test]
fn terraform_makes_volumes_snapshots_and_images() {
    if !lacks("terraform", Some(PLUGINS)) {
        run("terraform_storage.py");
    }
}

#[test]
fn terraform_makes_changes_and_removes_a_service() {
    if !lacks("terraform", Some(PLUGINS)) {
        run("terraform_service.py");
    }
}

#[test]
fn terraform_launches_from_a_template_and_its_next_version() {
    if !lacks("terraform", Some(PLUGINS)) {
        run("terraform_template.py");
    }
}

#[test]
#[ignore = "runs on a host of its own, made by the others"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let script = std::env::var(SCRIPT).unwrap();
    let (mut daemon, image) = own_host::daemon();
    let home = daemon.path("home");
    std::fs::create_dir(&home).unwrap();
    daemon.python_with(&script, &[("KILN_TEST_IMAGE", image.as_str()), ("HOME", home.to_str().unwrap())]);
    assert!(daemon.stop().success());
}
