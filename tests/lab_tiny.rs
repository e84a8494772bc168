//! The tiny image, booted by `kiln run`: what a user sees, and what must survive accidents.
//!
//! Needs the lab: see `support`.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use support::run::{Desk, Run};

/// Boots take seconds; this tells a hang from a slow machine.
const BOOT: u64 = 180;

const MARK: &str = "#!/bin/sh\necho user-data says hello\n";

fn boot(desk: &Desk, image: &Path, args: &[&str]) -> (Run, Ipv4Addr) {
    let mut run = desk.run(image, args);
    run.expect("tiny: ready at", BOOT);
    let address = desk.instance()["private_ip"].as_str().unwrap().parse().unwrap();
    (run, address)
}

/// Everything of an image's bytes in one number; the image may be a block device.
fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// What a run could leave behind: processes, links, namespaces, nft tables, mounts.
fn traces() -> String {
    let list = "pgrep -a kiln-vmm; ip -o link | grep -o ': [^:@]*' ; ip netns; nft list tables; \
                cut -d' ' -f2 /proc/mounts | sort | uniq -c";
    let output = Command::new("sh").arg("-c").arg(list).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn instance_comes_up_with_key_user_data_and_metadata_and_powers_off_cleanly() {
    let image = lab_image!("tiny");
    let before = (digest(&image), traces());
    let desk = Desk::new();
    let user_data = desk.write("user-data", MARK);
    let (mut run, address) = boot(&desk, &image, &["--user-data", &user_data]);
    assert!(run.console.contains("user-data says hello"));
    let id = desk.instance()["id"].as_str().unwrap().to_owned();
    assert!(run.console.contains(&format!("tiny: instance-id {id}")));
    assert_eq!(run.ssh("root", address, "id -un"), "root\n");
    // The other way round: the instance reaches its host, at the address that the host came from.
    run.ssh("root", address, "ping -c 1 -W 20 ${SSH_CLIENT%% *}");
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
    assert_eq!((digest(&image), traces()), before, "the image is unchanged and nothing is left behind");
}

#[test]
fn power_button_shuts_the_guest_down() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let (mut run, _) = boot(&desk, &image, &[]);
    // The first SIGTERM presses the button.
    Command::new("kill").arg(run.pid().to_string()).status().unwrap();
    run.expect("tiny: going down", 60);
    run.wait(60);
}

#[test]
fn all_vcpus_come_online() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let (mut run, address) = boot(&desk, &image, &["--vcpus", "4"]);
    assert_eq!(run.ssh("root", address, "nproc"), "4\n");
    // Each has its own APIC id, and they are cores of one socket.
    let topology = run.ssh(
        "root",
        address,
        "grep -c '^physical id.*: 0$' /proc/cpuinfo; grep '^apicid' /proc/cpuinfo | sort -u | wc -l",
    );
    assert_eq!(topology, "4\n4\n");
    assert_eq!(
        run.ssh("root", address, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
            .trim(),
        "kvm-clock"
    );
}

#[test]
fn memory_on_both_sides_of_the_pci_hole_is_seen_and_works() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let (mut run, address) = boot(&desk, &image, &["--memory", "5G"]);
    let total: u64 = run
        .ssh("root", address, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .trim()
        .parse()
        .unwrap();
    assert!(total > 4_900_000, "{total} kB");
}

#[test]
fn reboot_in_the_guest_starts_it_again() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let (mut run, address) = boot(&desk, &image, &[]);
    run.ssh("root", address, "echo kept > /root/kept; sync; (sleep 1; reboot) >/dev/null 2>&1 &");
    run.expect_times("tiny: ready at", 2, BOOT);
    assert_eq!(run.ssh("root", address, "cat /root/kept"), "kept\n");
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
}

#[test]
fn synced_data_survive_the_death_of_the_vmm() {
    let image = lab_image!("tiny");
    let before = digest(&image);
    let desk = Desk::new();
    let (mut run, address) = boot(&desk, &image, &["--keep", "--volume-size", "2G"]);
    let sum = run.ssh(
        "root",
        address,
        "dd if=/dev/urandom of=/root/data bs=64k count=200 2>/dev/null; sync; sha256sum /root/data; echo lost > /root/unsynced",
    );
    let instance = desk.instance();
    let pid = instance["pid"].as_u64().unwrap();
    Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    let status = run.wait(60);
    assert_ne!(status.code(), Some(0), "the death of the VMM is not a clean end");

    let id = instance["id"].as_str().unwrap();
    let volume = instance["volume_id"].as_str().unwrap();
    let overlay = desk.state.join("volumes").join(format!("{volume}.qcow2"));
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&overlay).output().unwrap();
    // 3: leaked clusters, which a crash may leave and which lose nothing.
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");

    let mut command = desk.kiln();
    command.args(["start", id]);
    let mut run = run.again(command);
    run.expect("tiny: ready at", BOOT);
    assert_eq!(run.ssh("root", address, "sha256sum /root/data"), sum);
    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
    let check = Command::new("qemu-img").args(["check"]).arg(&overlay).output().unwrap();
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    assert_eq!(digest(&image), before);
}

#[test]
fn twenty_boots_in_a_row() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let user_data = desk.write("user-data", "#!/bin/sh\n(sleep 1; poweroff) &\n");
    for boot in 1..=20 {
        let mut run = desk.run(&image, &["--user-data", &user_data]);
        run.expect("tiny: user-data exited with 0", BOOT);
        run.wait_power_off(60);
        println!("boot {boot} of 20 is over");
    }
}

/// A disk with the files of the image on Btrfs, made by Linux: compressed, in a subvolume as Arch and Ubuntu have it.
const TO_BTRFS: &str = "set -e
  cd \"$1\"
  modprobe -a loop btrfs
  mkdir old new
  loop=$(losetup --find --show --partscan --read-only \"$2\")
  trap 'umount new || true; umount old || true; losetup -d $loop' EXIT
  mount -o ro,noload ${loop}p1 old
  truncate -s 192M btrfs.raw
  mkfs.btrfs -q -L tiny btrfs.raw
  mount -o loop,compress-force=zstd btrfs.raw new
  btrfs subvolume create new/@
  cp -a old/. new/@/
  sync
  find new/@/boot -name 'vmlinuz*' -exec filefrag -v {} +";

#[test]
fn kernel_is_read_from_a_compressed_subvolume_of_btrfs() {
    let image = lab_image!("tiny");
    if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
        return support::skip("needs mkfs.btrfs");
    }
    let desk = Desk::new();
    let place = desk.path("btrfs.raw");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", TO_BTRFS, "sh"])
        .args([place.parent().unwrap(), &image])
        .output()
        .unwrap();
    let made = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{made}{}", String::from_utf8_lossy(&output.stderr));
    assert!(made.contains("encoded"), "the kernel is compressed: {made}");
    // Its initramfs knows ext4 alone, and says so: kernel and initramfs have come up by then.
    let mut run = desk.run(&place, &[]);
    run.expect("mounting /dev/vda on /root failed", BOOT);
}

#[test]
fn two_instances_share_a_host() {
    let image = lab_image!("tiny");
    let (one, two) = (Desk::new(), Desk::new());
    // Both in one state directory, as two terminals of one user.
    let mut first = one.run(&image, &["--name", "first"]);
    let mut second = two.run_in(&one, &image, &["--name", "second"]);
    first.expect("tiny: ready at", BOOT);
    second.expect("tiny: ready at", BOOT);
    let rows = one.instances();
    let address = |name: &str| -> Ipv4Addr {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        row["private_ip"].as_str().unwrap().parse().unwrap()
    };
    assert_ne!(address("first"), address("second"));
    assert_eq!(first.ssh("root", address("first"), "echo one"), "one\n");
    assert_eq!(second.ssh("root", address("second"), "echo two"), "two\n");
}

#[test]
fn console_log_has_what_the_guest_printed() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let log = desk.path("console.log");
    let (run, _) = boot(&desk, &image, &["--console-log", log.to_str().unwrap()]);
    drop(run);
    let mut text = String::new();
    File::open(log).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("tiny: ready at"), "{text}");
}
