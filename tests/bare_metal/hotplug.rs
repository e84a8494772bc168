//! Disks and network interfaces come to a running guest and go; disks grow under it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command as Shell;

use kiln_vmspec::{Command, Reply};

use crate::support::skip;
use crate::support::vm::{Disk, Guest, Setup, disk, mac};

/// A machine with its root disk and room for `spare_disks` more.
fn boot(tests: &str, spare_disks: u8) -> Option<Guest> {
    Setup { spare_disks, vcpus: 2, ..Setup::with_devices() }.boot(tests)
}

fn serial(serial: &str) -> String {
    serial.to_owned()
}

fn refusal(reply: Reply) -> String {
    match reply {
        Reply::Error { message } => message,
        other => panic!("{other:?}"),
    }
}

/// An overlay of 8 MiB, and another handle on it.
fn overlay() -> (Disk, File) {
    let overlay = Disk::overlaid(disk(8));
    let top = overlay.layers[0].0.try_clone().unwrap();
    (overlay, top)
}

#[test]
fn disk_comes_grows_and_goes() {
    let Some(mut guest) = boot("disk-hotplug,blk-rw,hello", 2) else { return };
    guest.wait_for("waiting for a disk");
    assert_eq!(guest.disks(), (vec![serial("vol0")], 2));
    let (overlay, top) = overlay();
    assert_eq!(guest.attach("vol1", overlay), Reply::Ok);
    guest.wait_for("waiting for growth");
    let resize = |serial: &str, size| Command::ResizeDisk { serial: serial.into(), size };
    for (name, size, word) in
        [("vol9", 1 << 30, "no disk"), ("vol1", 1 << 20, "grow"), ("vol0", 1 << 30, "grow")]
    {
        let message = refusal(guest.control(resize(name, size)));
        assert!(message.contains(word), "{message}");
    }
    // Far beyond what one table maps.
    assert_eq!(guest.control(resize("vol1", 20 << 30)), Reply::Ok);
    assert_eq!(guest.control(resize("vol1", 20 << 30)), Reply::Ok);
    guest.wait_for("waiting for the end of it");
    let detach = |serial: &str| Command::DetachDisk { serial: serial.into(), force: false };
    assert!(refusal(guest.control(detach("vol0"))).contains("first"));
    assert_eq!(guest.control(detach("vol1")), Reply::Ok);
    guest.wait_for_detached("vol1");
    assert_eq!(guest.disks(), (vec![serial("vol0")], 2));
    guest.finish().assert_passed("disk-hotplug,blk-rw,hello");
    // Closed, unlocked, whole, and with what the guest has written.
    let layer = |file: File, format| kiln_disk::Layer { file, format };
    let layers = vec![layer(top, kiln_disk::Format::Qcow2), layer(disk(8), kiln_disk::Format::Raw)];
    let left = kiln_disk::open(layers, true).unwrap();
    let sector = |n| {
        let mut bytes = [0; 512];
        left.read_exact_at(&mut bytes, n * 512).unwrap();
        bytes
    };
    assert_eq!(left.size(), 20 << 30);
    assert_eq!((sector(1), sector(left.size() / 512 - 1)), ([0x5a; 512], [0x5a; 512]));
    assert_eq!(sector(3)[..8], 3u64.to_le_bytes());
}

#[test]
fn disks_that_come_and_go_leave_nothing_and_find_the_same_room_each_time() {
    let tests = ["disk-hotplug"; 12].join(",");
    let Some(mut guest) = boot(&tests, 1) else { return };
    let fds = format!("/proc/{}/fd", guest.pid());
    let mut open = None;
    for round in 0..12 {
        guest.wait_for("waiting for a disk");
        guest.forget_console();
        let now = std::fs::read_dir(&fds).unwrap().count();
        assert_eq!(*open.get_or_insert(now), now, "descriptors in round {round}");
        let name = format!("vol{}", round + 1);
        assert_eq!(guest.attach(&name, overlay().0), Reply::Ok);
        let message = refusal(guest.attach(&name, Disk::raw(disk(1))));
        assert!(message.contains("already"), "{message}");
        let message = refusal(guest.attach("other", Disk::raw(disk(1))));
        assert!(message.contains("no room"), "{message}");
        guest.wait_for("waiting for growth");
        assert_eq!(guest.control(Command::ResizeDisk { serial: name.clone(), size: 1 << 30 }), Reply::Ok);
        guest.wait_for("waiting for the end of it");
        assert_eq!(guest.control(Command::DetachDisk { serial: name.clone(), force: false }), Reply::Ok);
        guest.wait_for_detached(&name);
    }
    guest.finish().assert_passed("disk-hotplug");
}

#[test]
fn disk_is_taken_from_a_guest_that_does_not_let_go() {
    let Some(mut guest) = boot("disk-surprise,spin", 1) else { return };
    guest.wait_for("waiting for a disk");
    assert_eq!(guest.attach("vol1", overlay().0), Reply::Ok);
    guest.wait_for("waiting for a surprise");
    assert_eq!(guest.control(Command::DetachDisk { serial: "vol1".into(), force: true }), Reply::Ok);
    guest.wait_for_detached("vol1");
    guest.wait_for("it is gone");
    guest.wait_for("spinning");
    // This one never lets go of anything.
    let (second, top) = overlay();
    assert_eq!(guest.attach("vol2", second), Reply::Ok);
    for _ in 0..2 {
        assert_eq!(guest.control(Command::DetachDisk { serial: "vol2".into(), force: false }), Reply::Ok);
    }
    assert_eq!(guest.disks(), (vec![serial("vol0"), serial("vol2")], 0));
    assert_eq!(guest.control(Command::DetachDisk { serial: "vol2".into(), force: true }), Reply::Ok);
    guest.wait_for_detached("vol2");
    // What its device stands on is free when the guest has let go of that too, or restarts.
    assert_eq!(guest.disks(), (vec![serial("vol0")], 0));
    let mut magic = [0; 4];
    top.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
    assert_eq!(guest.control(Command::Reset), Reply::Ok);
    guest.forget_console();
    guest.wait_for("waiting for a disk");
    assert_eq!(guest.disks(), (vec![serial("vol0")], 1));
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    guest.finish();
}

/// A machine with a disk, an interface and room for `spare_nics` more.
fn boot_nics(tests: &str, spare_nics: u8) -> Option<Guest> {
    Setup { spare_nics, vcpus: 2, ..Setup::with_devices() }.boot(tests)
}

fn detach_nic(guest: &mut Guest, last: u8, force: bool) -> Reply {
    guest.control(Command::DetachNic { mac: mac(last), force })
}

#[test]
fn interfaces_come_are_served_and_go_and_leave_nothing() {
    let tests = ["nic-hotplug"; 3].join(",") + ",net-imds";
    let Some(mut guest) = boot_nics(&tests, 1) else { return };
    let fds = format!("/proc/{}/fd", guest.pid());
    let mut open = None;
    for round in 0..3 {
        guest.wait_for("waiting for an interface");
        guest.forget_console();
        let now = std::fs::read_dir(&fds).unwrap().count();
        assert_eq!(*open.get_or_insert(now), now, "descriptors in round {round}");
        assert_eq!(guest.nics(), (vec![mac(1)], 1));
        assert_eq!(guest.attach_nic(2), Reply::Ok);
        assert_eq!(guest.nics(), (vec![mac(1), mac(2)], 0));
        assert!(refusal(guest.attach_nic(2)).contains("already"));
        assert!(refusal(guest.attach_nic(3)).contains("no room"));
        guest.wait_for("waiting for the end of it");
        let Reply::Stats(stats) = guest.control(Command::Stats) else { panic!("no counters") };
        assert!(stats.counters["net1.local_frames_in"] > 5, "{stats:?}");
        assert!(refusal(detach_nic(&mut guest, 1, true)).contains("first"));
        assert!(refusal(detach_nic(&mut guest, 9, false)).contains("no network interface"));
        assert_eq!(detach_nic(&mut guest, 2, false), Reply::Ok);
        guest.wait_for_nic_detached(2);
    }
    assert_eq!(guest.nics(), (vec![mac(1)], 1));
    guest.finish().assert_passed("nic-hotplug,net-imds");
}

fn sh(line: &str) -> bool {
    Shell::new("sh").args(["-c", line]).output().is_ok_and(|output| output.status.success())
}

/// A tap in a network of this thread's own, with somebody at 10.0.1.200. `None` where there can be none, which
/// is told.
#[expect(unsafe_code, reason = "a tap must be made before it can be handed over")]
fn tap() -> Option<File> {
    let open = || File::options().read(true).write(true).open("/dev/net/tun").ok();
    // SAFETY: takes no pointers; only this thread changes its namespace.
    let alone = open().is_some() && unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    // A tap is in the network in which its device was opened.
    let Some(tun) = open().filter(|_| alone) else {
        skip("needs /dev/net/tun and the right to make a network namespace");
        return None;
    };
    let mut request = [0u8; 40];
    request[..3].copy_from_slice(b"kt0");
    // A tap without packet information, with virtio-net headers.
    request[16..18].copy_from_slice(&0x5002u16.to_ne_bytes());
    // SAFETY: TUNSETIFF reads 40 bytes, and `request` has them.
    assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), 0x4004_54ca, request.as_ptr()) }, 0);
    let header: libc::c_int = 12;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), 0x4004_54d8, &raw const header) }, 0);
    assert!(sh("ip addr add 10.0.1.200/24 dev kt0 && ip link set kt0 up"));
    Some(tun)
}

#[test]
fn interface_with_a_tap_carries_frames_until_the_guest_lets_go_and_the_tap_is_gone_then() {
    let on_its_own_network = || {
        let Some(tap) = tap() else { return };
        let Some(mut guest) = boot_nics("nic-wire,hello", 1) else { return };
        guest.wait_for("waiting for an interface");
        // Whatever is no tap is refused by a machine that goes on.
        assert!(refusal(guest.attach_nic_with(2, vec![disk(1)])).contains("not a queue of a tap"));
        assert_eq!(guest.nics(), (vec![mac(1)], 1));
        assert_eq!(guest.attach_nic_with(2, vec![tap]), Reply::Ok);
        guest.wait_for("waiting for the end of it");
        assert!(sh("ip link show kt0"));
        assert_eq!(detach_nic(&mut guest, 2, false), Reply::Ok);
        guest.wait_for_nic_detached(2);
        assert!(!sh("ip link show kt0"), "the machine has closed it");
        guest.finish().assert_passed("nic-wire,hello");
    };
    std::thread::scope(|scope| scope.spawn(on_its_own_network).join()).unwrap();
}

#[test]
fn interface_is_cut_off_from_a_guest_that_does_not_let_go() {
    let Some(mut guest) = boot_nics("nic-cut,spin", 1) else { return };
    guest.wait_for("waiting for an interface");
    assert_eq!(guest.attach_nic(2), Reply::Ok);
    guest.wait_for("waiting for a surprise");
    assert_eq!(detach_nic(&mut guest, 2, true), Reply::Ok);
    guest.wait_for_nic_detached(2);
    guest.wait_for("it is gone");
    guest.wait_for("spinning");
    // This one never lets go of anything, and stands still while it is asked.
    assert_eq!(guest.attach_nic(3), Reply::Ok);
    assert_eq!(detach_nic(&mut guest, 3, false), Reply::Ok);
    assert_eq!(guest.control(Command::Pause), Reply::Ok);
    assert_eq!(detach_nic(&mut guest, 3, true), Reply::Ok);
    guest.wait_for_nic_detached(3);
    assert_eq!(guest.control(Command::Resume), Reply::Ok);
    // Its device takes up the room until the guest has let go of that too, or restarts.
    assert_eq!(guest.nics(), (vec![mac(1)], 0));
    assert!(refusal(detach_nic(&mut guest, 3, true)).contains("no network interface"));
    guest.forget_console();
    assert_eq!(guest.control(Command::Reset), Reply::Ok);
    guest.wait_for("waiting for an interface");
    assert_eq!(guest.nics(), (vec![mac(1)], 1));
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    guest.finish();
}

#[test]
fn interfaces_stay_over_a_restart_where_they_were_and_those_that_were_to_go_are_gone() {
    let Some(mut guest) = boot_nics("pci-list,net-imds,spin", 2) else { return };
    guest.wait_for("spinning");
    let before = functions(guest.console());
    for last in [2, 3] {
        assert_eq!(guest.attach_nic(last), Reply::Ok);
    }
    assert_eq!(detach_nic(&mut guest, 2, false), Reply::Ok);
    guest.forget_console();
    assert_eq!(guest.control(Command::Reset), Reply::Ok);
    guest.wait_for_nic_detached(2);
    guest.wait_for("spinning");
    assert_eq!(guest.nics(), (vec![mac(1), mac(3)], 1));
    let after = functions(guest.console());
    assert_eq!(after[..before.len()], before, "the others are where they were");
    assert_eq!(after.len(), before.len() + 1);
    assert!(after.last().unwrap().contains("1af4:1041"), "{after:?}");
    assert!(guest.console().contains("PASS net-imds"));
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    guest.finish();
}

/// What `pci-list` has printed.
fn functions(console: &str) -> Vec<String> {
    let lines = console.lines().filter(|line| line.contains(" class "));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn disks_stay_over_a_restart_where_they_were_and_those_that_were_to_go_are_gone() {
    let Some(mut guest) = boot("pci-list,spin", 2) else { return };
    guest.wait_for("spinning");
    let before = functions(guest.console());
    for name in ["vol1", "vol2"] {
        assert_eq!(guest.attach(name, overlay().0), Reply::Ok);
    }
    assert_eq!(guest.control(Command::DetachDisk { serial: "vol1".into(), force: false }), Reply::Ok);
    assert_eq!(guest.control(Command::Reset), Reply::Ok);
    guest.wait_for_detached("vol1");
    guest.forget_console();
    guest.wait_for("spinning");
    assert_eq!(guest.disks(), (vec![serial("vol0"), serial("vol2")], 1));
    let after = functions(guest.console());
    assert_eq!(after[..before.len()], before, "the others are where they were");
    assert_eq!(after.len(), before.len() + 1);
    assert!(after.last().unwrap().contains("1af4:1042"), "{after:?}");
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    guest.finish();
}

#[test]
fn room_for_disks_to_come_costs_little() {
    let private = |spare_disks| {
        let mut guest = boot("spin", spare_disks)?;
        guest.wait_for("spinning");
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", guest.pid())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        assert_eq!(guest.control(Command::Kill), Reply::Ok);
        guest.finish();
        Some(kib)
    };
    let (Some(without), Some(with)) = (private(0), private(8)) else { return };
    println!("{without} KiB without, {with} KiB with room for eight");
    assert!(with < without + 1024, "{without} KiB without, {with} KiB with room for eight");
}
