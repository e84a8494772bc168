//! Volumes of a booted guest: a stock kernel finds them, lets go of them, and sees them grow.
//!
//! Needs the lab: see `support`. The guest is `tiny`, run in the foreground and without a daemon.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::net::Ipv4Addr;

use support::run::{Desk, Run};

const BOOT: u64 = 180;

/// `kiln volume …`; what it printed.
fn volume(desk: &Desk, args: &[&str]) -> Result<String, String> {
    let output = desk.kiln().arg("volume").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The row of a volume.
fn row(desk: &Desk, id: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&volume(desk, &["ls", "--json"]).unwrap()).unwrap();
    all.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone()
}

/// Waits in the guest until `condition` of the shell holds.
fn until(run: &mut Run, address: Ipv4Addr, condition: &str) {
    let script =
        format!("for n in $(seq 600); do {condition} && echo yes && exit; sleep 0.1; done; dmesg | tail -30");
    let answer = run.ssh("root", address, &script);
    assert_eq!(answer.trim(), "yes", "{condition}");
}

/// Waits until nobody has the volume.
fn until_free(desk: &Desk, id: &str) {
    let deadline = support::Deadline::after(120);
    while !row(desk, id)["instance"].is_null() {
        deadline.left("the volume to be free");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn volume_comes_to_a_running_guest_grows_and_goes_and_comes_again() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let mut run = desk.run(&image, &[]);
    run.expect("tiny: ready at", BOOT);
    let instance = desk.instance();
    let address: Ipv4Addr = instance["private_ip"].as_str().unwrap().parse().unwrap();
    let instance = instance["id"].as_str().unwrap().to_owned();
    let id = volume(&desk, &["create", "--size", "1"]).unwrap();
    let serial = id.replace('-', "");

    volume(&desk, &["attach", &id, &instance]).unwrap();
    until(&mut run, address, "[ -b /dev/vdb ]");
    let seen = run.ssh("root", address, "echo $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size)");
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), [serial.as_str(), "2097152"]);
    // The root bus has slots of its own, so it was ACPI that found it.
    let slot = run.ssh("root", address, "ls /sys/bus/pci/slots | wc -l");
    assert_eq!(slot.trim(), "31");
    run.ssh(
        "root",
        address,
        "echo written before > /run/a; dd if=/run/a of=/dev/vdb bs=512 seek=7 conv=sync,fsync",
    );

    volume(&desk, &["resize", &id, "3"]).unwrap();
    until(&mut run, address, "[ $(cat /sys/block/vdb/size) = 6291456 ]");
    run.ssh("root", address, "dd if=/run/a of=/dev/vdb bs=512 seek=6291455 conv=sync,fsync");

    let read = "dd if=/dev/vdb bs=512 skip=7 count=1; dd if=/dev/vdb bs=512 skip=6291455 count=1";
    for how in ["politely", "again", "by force"] {
        let force: &[&str] = if how == "by force" { &["--force"] } else { &[] };
        volume(&desk, &[&["detach", id.as_str()], force].concat()).unwrap();
        until_free(&desk, &id);
        until(&mut run, address, "[ ! -e /sys/block/vdb ]");
        volume(&desk, &["attach", &id, &instance, "--device", "/dev/sdg"]).unwrap();
        until(&mut run, address, "[ -b /dev/vdb ]");
        let found = run.ssh("root", address, read);
        assert_eq!(found.matches("written before").count(), 2, "{how}: {found:?}");
    }

    // It is there after a restart of the guest, and the network where it was.
    run.ssh("root", address, "(sleep 1; reboot) >/dev/null 2>&1 &");
    run.expect_times("tiny: ready at", 2, BOOT);
    assert_eq!(
        run.ssh("root", address, &format!("grep -l {serial} /sys/block/*/serial | wc -l")).trim(),
        "1"
    );
    assert!(volume(&desk, &["rm", &id]).unwrap_err().contains("attached"));
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
    until_free(&desk, &id);
    volume(&desk, &["rm", &id]).unwrap();
}
