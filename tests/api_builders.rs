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

/// They wait most of the time, so all of them do at once, each on a host of its own.
#[test]
fn packer_and_terraform_work_as_with_ec2() {
    let terraform = lacks("terraform", Some(PLUGINS));
    let all = [
        ("packer.py", lacks("packer", None)),
        ("terraform_storage.py", terraform),
        ("terraform_service.py", terraform),
        ("terraform_template.py", terraform),
    ];
    std::thread::scope(|scope| {
        for (script, _) in all.into_iter().filter(|(_, lacking)| !lacking) {
            scope.spawn(move || own_host::run_inside_with(&[(SCRIPT, script)]));
        }
    });
}

#[test]
#[ignore = "runs on a host of its own, made by packer_and_terraform_work_as_with_ec2"]
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
