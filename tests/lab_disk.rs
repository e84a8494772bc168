//! Blocks of a booted guest: fio writes from every processor at once and checks each block that it
//! wrote, on a raw volume and on a qcow2 overlay.
//!
//! Needs the lab: see `support`. The guest is `tiny`, run by `kiln-vmm` alone; fio is the lab's own,
//! handed in on a volume with the libraries it needs.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_vmspec::{DiskFormat, ExitReason};
use support::vm::{Disk, Setup};

/// Volume under test. Small: a block costs several exits, each of which is slow under emulation, and
/// the more there are, the likelier the emulated processor loses the guest (scripts/lab.d/run-tests).
const MIB: u64 = 4;
/// A queue for each processor.
const QUEUES: u16 = 2;

/// Random writes of mixed sizes, four jobs on a quarter of the volume each, then everything read back
/// and compared; with flushes and discards in between.
const VERIFY: &str = "\
#!/bin/sh
say() { echo \"fio: $*\" >/dev/ttyS0; }
mkdir /run/fio && tar -xf /dev/vdc -C /run/fio || exit 1
say \"queues $(ls /sys/block/vdb/mq | wc -l)\"
run() {
  name=$1; shift
  /run/fio/ld.so --library-path /run/fio /run/fio/fio --name=$name --filename=/dev/vdb --size=1m --offset_increment=1m \\
    --numjobs=4 --thread --direct=1 --ioengine=libaio --iodepth=16 --group_reporting --minimal \\
    --verify=crc32c --do_verify=1 --verify_fatal=1 \"$@\" >/run/fio/$name.log 2>&1
  status=$?
  [ $status = 0 ] || cat /run/fio/$name.log >/dev/ttyS0
  say \"$name ended with $status\"
}
run small --rw=randwrite --bs=4k
run mixed --rw=randwrite --bssplit=512/10:4k/40:20k/20:64k/20:256k/10 --fsync=16
run trim --rw=randtrimwrite --bs=8k
say over
poweroff
";

/// `fio` of this system with its libraries and the loader that finds them, as a tar file.
fn fio(dir: &Path) -> PathBuf {
    let libraries = Command::new("ldd").arg("/usr/bin/fio").output().unwrap();
    let text = String::from_utf8(libraries.stdout).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
    let tar = dir.join("fio.tar");
    let status = Command::new("tar")
        .args(["--dereference", "--transform=s,.*/,,", "--transform=s,ld-linux.*,ld.so,", "-cf"])
        .arg(&tar)
        .arg("/usr/bin/fio")
        .args(paths)
        .status()
        .unwrap();
    assert!(status.success());
    tar
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An overlay over the raw image `base`, as an instance gets it.
fn overlay(path: &Path, base: &Path, mib: u64) -> File {
    let (at, base, size) = (path.to_str().unwrap(), base.to_str().unwrap(), format!("{mib}M"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, at, &size]);
    open(path)
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Boots `tiny` with `volume` as its second disk, and lets fio at it.
fn verify(image: &Path, dir: &Path, volume: Disk) {
    let root = overlay(&dir.join("root.qcow2"), image, 512);
    let root = vec![(root, DiskFormat::Qcow2), (File::open(image).unwrap(), DiskFormat::Raw)];
    let disks = vec![Disk { layers: root, queues: 1 }, volume, Disk::raw(open(&fio(dir)))];
    let setup = Setup { vcpus: 2, memory_mib: 512, disks, nic: true, ..Setup::default() };
    let Some(mut guest) = setup.boot_root_volume(VERIFY) else { return };
    guest.wait_for("fio: over");
    let finished = guest.finish();
    println!("{}", finished.console);
    for line in ["queues 2", "small ended with 0", "mixed ended with 0", "trim ended with 0"] {
        assert!(finished.console.contains(&format!("fio: {line}")), "{line}");
    }
    assert_eq!((finished.reason, finished.reboots), (ExitReason::PowerOff, 0), "{}", finished.log);
}

#[test]
fn every_block_comes_back_from_a_raw_volume() {
    let image = lab_image!("tiny");
    let dir = support::scratch();
    let path = dir.path().join("volume.raw");
    File::create(&path).unwrap().set_len(MIB << 20).unwrap();
    verify(&image, dir.path(), Disk { queues: QUEUES, ..Disk::raw(open(&path)) });
}

#[test]
fn every_block_comes_back_from_an_overlay_and_its_base_stays() {
    let image = lab_image!("tiny");
    let dir = support::scratch();
    let base = dir.path().join("base.raw");
    let content: Vec<u8> = (0..MIB << 20).map(|n| (n / 512 % 255) as u8).collect();
    std::fs::write(&base, &content).unwrap();
    let top = dir.path().join("volume.qcow2");
    let layers =
        vec![(overlay(&top, &base, MIB), DiskFormat::Qcow2), (File::open(&base).unwrap(), DiskFormat::Raw)];
    verify(&image, dir.path(), Disk { layers, queues: QUEUES });
    assert!(std::fs::read(&base).unwrap() == content, "the base has changed");
    assert!(qemu_img(&["check", top.to_str().unwrap()]).contains("No errors were found"));
}
