//! Volumes and network interfaces of a booted guest: a stock kernel finds them, lets go of them, and sees volumes
//! grow.
//!
//! Needs the lab: see `support`. The guest is `tiny`, run in the foreground and without a daemon.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::net::Ipv4Addr;

use support::run::{Desk, Run};

const BOOT: u64 = 180;

/// `kiln volume …`; what it printed.
fn volume(desk: &Desk, args: &[&str]) -> Result<String, String> {
    kiln(desk, "volume", args)
}

/// `kiln interface …`; what it printed.
fn interface(desk: &Desk, args: &[&str]) -> Result<String, String> {
    kiln(desk, "interface", args)
}

fn kiln(desk: &Desk, what: &str, args: &[&str]) -> Result<String, String> {
    let output = desk.kiln().arg(what).args(args).output().unwrap();
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

/// The row of an interface.
fn interface_row(desk: &Desk, id: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&interface(desk, &["ls", "--json"]).unwrap()).unwrap();
    all.as_array().unwrap().iter().find(|row| row["interface"]["id"] == id).unwrap().clone()
}

/// Waits until `done`, which is looked at again and again.
fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = support::Deadline::after(120);
    while !done() {
        deadline.left(what);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Waits until nobody has the volume.
fn until_free(desk: &Desk, id: &str) {
    wait("the volume to be free", || row(desk, id)["instance"].is_null());
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

/// Configures `eth1` by DHCP, with its address and no routes, so that the way of these commands stays `eth0`.
/// Prints its address and the router that it was told of.
const LEASE: &str = "printf '#!/bin/sh\\n[ $1 = bound ] || exit 0\\nip addr add $ip/32 dev $interface\\n\
    echo $ip $router >/run/lease\\n' >/run/lease.sh && chmod +x /run/lease.sh && ip link set eth1 up && \
    udhcpc -i eth1 -t 20 -T 1 -n -q -s /run/lease.sh >/dev/null 2>&1 && cat /run/lease";

#[test]
fn interface_comes_to_a_running_guest_works_and_goes_and_comes_again() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let mut run = desk.run(&image, &["--vcpus", "2"]);
    run.expect("tiny: ready at", BOOT);
    let instance = desk.instance();
    let address: Ipv4Addr = instance["private_ip"].as_str().unwrap().parse().unwrap();
    let instance = instance["id"].as_str().unwrap().to_owned();
    let id = interface(&desk, &["create"]).unwrap();
    let made = interface_row(&desk, &id)["interface"].clone();
    let (mac, second) = (made["mac"].as_str().unwrap(), made["address"].as_str().unwrap());
    let macs = || kiln(&desk, "metadata", &[&instance, "meta-data/network/interfaces/macs/"]).unwrap();

    for how in ["politely", "by force", "over a restart"] {
        interface(&desk, &["attach", &id, &instance]).unwrap();
        until(&mut run, address, "[ -e /sys/class/net/eth1 ]");
        assert_eq!(run.ssh("root", address, "cat /sys/class/net/eth1/address").trim(), mac, "{how}");
        wait("metadata of the interface", || macs().contains(mac));
        if how == "over a restart" {
            run.ssh("root", address, "(sleep 1; reboot) >/dev/null 2>&1 &");
            run.expect_times("tiny: ready at", 2, BOOT);
        }
        let lease = run.ssh("root", address, LEASE);
        let (ip, router) = lease.trim().split_once(' ').unwrap();
        assert_eq!(ip, second, "{how}");
        assert!(router.parse::<Ipv4Addr>().is_ok(), "{how}: {router}");
        // Through its own tap, the router and this host, and back.
        let told = run.ssh("root", address, "ping -I eth1 -c 3 -W 20 ${SSH_CLIENT%% *}");
        assert!(told.contains("3 packets received"), "{how}: {told}");
        assert_eq!(run.ssh("root", address, "cat /sys/class/net/eth1/carrier").trim(), "1");

        let force: &[&str] = if how == "by force" { &["--force"] } else { &[] };
        interface(&desk, &[&["detach", id.as_str()], force].concat()).unwrap();
        until(&mut run, address, "[ ! -e /sys/class/net/eth1 ]");
        wait("the interface to be free", || interface_row(&desk, &id)["instance"].is_null());
        wait("metadata without the interface", || !macs().contains(mac));
    }

    // The one that it lives on stays, and so does what is still attached when it ends.
    let primary = desk.instance()["interface_id"].as_str().unwrap().to_owned();
    assert!(interface(&desk, &["detach", &primary, "--force"]).unwrap_err().contains("primary"));
    interface(&desk, &["attach", &id, &instance, "--device-index", "3"]).unwrap();
    until(&mut run, address, "[ -e /sys/class/net/eth1 ]");
    assert!(interface(&desk, &["rm", &id]).unwrap_err().contains("attached"));
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
    assert!(interface_row(&desk, &id)["instance"].is_null());
    interface(&desk, &["rm", &id]).unwrap();
}
