//! The unit with which systemd runs `kilnd`.

use std::process::Command;

const UNIT: &str = include_str!("../scripts/systemd/kilnd.service");

#[test]
fn unit_is_valid_and_leaves_machines_running() {
    assert!(UNIT.lines().any(|line| line == "KillMode=process"), "a restart would end all machines");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: needs the program systemd-analyze");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("kilnd.service");
    // It looks whether the program is there.
    let unit = UNIT.replace("/usr/local/bin/kilnd", env!("CARGO_BIN_EXE_kilnd"));
    std::fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = complaints.lines().filter(|line| line.contains("kilnd.service")).collect();
    assert!(output.status.success() && ours.is_empty(), "{complaints}");
}
