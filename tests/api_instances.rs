//! Instances by the API: boto3 against `kilnd` with real machines, on a host of the test's own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod api_support;
mod cli_support;
#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use api_support::Daemon;
use cli_support::have_kvm;
use support::skip;

const INSIDE: &str = "KILN_API_INSTANCES";

#[test]
fn instances_live_as_boto3_expects() {
    if !have_kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    for program in ["nft", "ip", "unshare", "mkfs.vfat", "mcopy"] {
        if Command::new(program).arg("--help").output().is_err() {
            return skip(&format!("needs the program {program}"));
        }
    }
    let host = "mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", host, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    print!("{}", text.lines().filter(|line| line.starts_with("SKIPPED")).collect::<String>());
    assert!(output.status.success(), "{text}");
}

#[test]
#[ignore = "runs on a host of its own, made by instances_live_as_boto3_expects"]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let mut daemon = Daemon::new_with(&[
        ("KILN_ALLOW_SOFTWARE_KVM", "1"),
        ("KILN_VMM", support::binary("kiln-vmm").to_str().unwrap()),
    ]);
    let image = image(&daemon.path("guest.raw"));
    daemon.python_with("instances.py", &[("KILN_TEST_IMAGE", &image)]);
    assert!(daemon.stop().success());
}

/// A disk whose boot entry is a guest that waits for its power button; its path.
fn image(path: &Path) -> String {
    let kernel = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh")).output().unwrap();
    let kernel = String::from_utf8(kernel.stdout).unwrap().trim().to_owned();
    let entry = path.with_extension("conf");
    std::fs::write(&entry, "title guest\nlinux /kernel\noptions test=hello,power-button\n").unwrap();
    let (image, entry) = (path.to_str().unwrap().to_owned(), entry.to_str().unwrap().to_owned());
    let script = format!(
        "truncate -s 16M {image} && mkfs.vfat {image} && mmd -i {image} ::loader ::loader/entries &&
         mcopy -i {image} {kernel} ::kernel && mcopy -i {image} {entry} ::loader/entries/guest.conf"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}
