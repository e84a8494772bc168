//! Ansible, Packer and Terraform against `kilnd` with real machines: what they make, change and take away again.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use api_support::{Daemon, own_host};

/// Plugins of Terraform, and the folder of Ansible's programs.
const PLUGINS: &str = "KILN_TEST_TERRAFORM_PLUGINS";
const ANSIBLE: &str = "KILN_TEST_ANSIBLE";
/// What `inside` runs: a script, or Ansible.
const WHAT: &str = "KILN_TEST_TOOL";
const PLAYBOOK: &str = "playbook.yml";

/// Whether the programs and what they need are there; says why not.
fn lacks(program: Option<&str>, variable: Option<&str>) -> bool {
    let missing = |program: &&str| Command::new(program).arg("version").output().is_err();
    if let Some(program) = program.filter(missing) {
        println!("SKIPPED: needs the program {program}");
        return true;
    }
    match variable.filter(|name| std::env::var_os(name).is_none()) {
        Some(name) => {
            println!("SKIPPED: no tool or plugins of it ({name})");
            true
        }
        None => false,
    }
}

/// They wait most of the time, so all of them do at once, each on a host of its own.
#[test]
fn ansible_packer_and_terraform_work_as_with_ec2() {
    let terraform = lacks(Some("terraform"), Some(PLUGINS));
    let all = [
        (PLAYBOOK, lacks(None, Some(ANSIBLE))),
        ("packer.py", lacks(Some("packer"), None)),
        ("terraform_storage.py", terraform),
        ("terraform_service.py", terraform),
        ("terraform_template.py", terraform),
        ("terraform_network.py", terraform),
        ("terraform_identity.py", terraform),
        ("terraform_machines.py", terraform),
    ];
    std::thread::scope(|scope| {
        for (what, _) in all.into_iter().filter(|(_, lacking)| !lacking) {
            scope.spawn(move || own_host::run_inside_with(&[(WHAT, what)]));
        }
    });
}

#[test]
#[ignore = "runs on a host of its own, made by ansible_packer_and_terraform_work_as_with_ec2"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let what = std::env::var(WHAT).unwrap();
    let (mut daemon, image) = own_host::daemon();
    let home = daemon.path("home");
    std::fs::create_dir(&home).unwrap();
    if what == PLAYBOOK {
        playbook_and_inventory(&daemon, &image, &home);
    } else {
        daemon.python_with(&what, &[("KILN_TEST_IMAGE", image.as_str()), ("HOME", home.to_str().unwrap())]);
    }
    assert!(daemon.stop().success());
}

/// Modules of Ansible's `amazon.aws`, their waiters, and its dynamic inventory.
fn playbook_and_inventory(daemon: &Daemon, image: &str, home: &Path) {
    let imported = daemon.kiln(&["image", "import", image]);
    let image = String::from_utf8(imported.stdout).unwrap().trim().to_owned();
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api_support/ansible");
    let programs = PathBuf::from(std::env::var_os(ANSIBLE).unwrap());
    let output = Command::new(programs.join("ansible-playbook"))
        .args(["-i", &format!("{files}/aws_ec2.yml"), &format!("{files}/{PLAYBOOK}")])
        .envs(daemon.environment())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("KILN_TEST_IMAGE", image)
        .env("HOME", home)
        .env("ANSIBLE_INVENTORY_UNPARSED_WARNING", "false")
        .env("ANSIBLE_NOCOLOR", "true")
        .env("ANSIBLE_PIPELINING", "true")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("failed=0"), "{text}");
}
