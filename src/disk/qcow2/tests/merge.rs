//! One layer of several says what they said, to us and to QEMU.

use super::oracle::qemu_reads;
use super::*;
use crate::{merge_overlays, rebase_overlay};

const SIZE: u64 = 3 << 20;

fn over(size: u64, below: &NamedTempFile, format: Format) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    create_overlay(file.reopen().unwrap(), size, Some(&backing(below, format))).unwrap();
    file
}

fn backing(below: &NamedTempFile, format: Format) -> Backing {
    Backing { path: below.path().to_str().unwrap().to_owned(), format }
}

fn chain(layers: &[&NamedTempFile], base: Option<&NamedTempFile>, read_only: bool) -> Arc<dyn Disk> {
    let layers = layers.iter().map(|file| layer(file, Format::Qcow2));
    open(layers.chain(base.map(|base| layer(base, Format::Raw))).collect(), read_only).unwrap()
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    disk.get(usize::try_from(disk.size()).unwrap(), 0)
}

/// Layers over a base of 1 MiB, the lowest first; each writes, zeroes and is as large as the last or larger.
fn layers(base: Option<&NamedTempFile>) -> Vec<NamedTempFile> {
    let mut made: Vec<NamedTempFile> = Vec::new();
    for (n, size) in [(1u8, 1 << 20), (2, 2 << 20), (3, 2 << 20), (4, SIZE)] {
        let file = match (made.last(), base) {
            (Some(below), _) => over(size, below, Format::Qcow2),
            (None, Some(base)) => over(size, base, Format::Raw),
            (None, None) => overlay(size, None),
        };
        let mut all: Vec<&NamedTempFile> = made.iter().collect();
        all.push(&file);
        all.reverse();
        let disk = chain(&all, base, false);
        let step = u64::from(n) * 50_000;
        disk.put(&vec![n; 70_001], step).unwrap();
        disk.write_zeroes(step + 30_000, 140_000, n % 2 == 0).unwrap();
        disk.put(&vec![n; 4096], size - 4096).unwrap();
        disk.flush().unwrap();
        drop(disk);
        made.push(file);
    }
    made.reverse();
    made
}

#[test]
fn merged_layers_say_what_they_said() {
    for with_base in [true, false] {
        let (file, _) = raw_base(1 << 20);
        let base = with_base.then_some(&file);
        let made = layers(base);
        let all: Vec<&NamedTempFile> = made.iter().collect();
        let expected = contents(&*chain(&all, base, true));
        // All of them, and all but the lowest.
        for upper in [4, 3] {
            let below = made.get(upper);
            let backing = match (below, base) {
                (Some(below), _) => Some(backing(below, Format::Qcow2)),
                (None, base) => base.map(|base| backing(base, Format::Raw)),
            };
            let target = NamedTempFile::new().unwrap();
            let files = made[..upper].iter().map(|file| file.reopen().unwrap()).collect();
            let rest = made[upper..].iter().map(|file| layer(file, Format::Qcow2));
            let rest = rest.chain(base.map(|base| layer(base, Format::Raw))).collect();
            merge_overlays(files, rest, &target.reopen().unwrap(), backing.as_ref()).unwrap();
            let mut merged = vec![&target];
            merged.extend(&made[upper..]);
            assert!(contents(&*chain(&merged, base, true)) == expected, "{with_base} {upper}");
            check(target.path(), false);
            if let Some(bytes) = qemu_reads(target.path()) {
                assert!(bytes == expected, "QEMU, {with_base} {upper}");
            }
        }
    }
}

#[test]
fn merging_takes_room_for_what_is_said_and_not_for_the_disk() {
    let (lower, upper) = (overlay(1 << 40, None), overlay(2 << 40, None));
    chain(&[&lower], None, false).put(b"low", 1 << 39).unwrap();
    chain(&[&upper, &lower], None, false).write_zeroes(1 << 30, 1 << 38, true).unwrap();
    let target = NamedTempFile::new().unwrap();
    let files = vec![upper.reopen().unwrap(), lower.reopen().unwrap()];
    merge_overlays(files, Vec::new(), &target.reopen().unwrap(), None).unwrap();
    let disk = chain(&[&target], None, true);
    assert_eq!(disk.get(3, 1 << 39), b"low");
    drop(disk);
    assert!(target.as_file().metadata().unwrap().len() < 4 << 20);
}

#[test]
fn overlay_lies_over_the_merged_layer_instead() {
    let (base, _) = raw_base(1 << 20);
    let made = layers(Some(&base));
    let all: Vec<&NamedTempFile> = made.iter().collect();
    let expected = contents(&*chain(&all, Some(&base), true));
    let merged = NamedTempFile::new().unwrap();
    let files = made[1..].iter().map(|file| file.reopen().unwrap()).collect();
    let over = backing(&base, Format::Raw);
    merge_overlays(files, vec![layer(&base, Format::Raw)], &merged.reopen().unwrap(), Some(&over)).unwrap();
    let backing = backing(&merged, Format::Qcow2);
    let top = made[0].reopen().unwrap();
    rebase_overlay(&top, &backing).unwrap();
    assert!(contents(&*chain(&[&made[0], &merged], Some(&base), true)) == expected);
    check(made[0].path(), false);
    if let Some(bytes) = qemu_reads(made[0].path()) {
        assert!(bytes == expected);
    }
    let long = Backing { path: "x".repeat(1024), format: Format::Raw };
    rebase_overlay(&top, &long).unwrap_err();
    rebase_overlay(base.as_file(), &backing).unwrap_err();
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let (base, _) = raw_base(1 << 20);
    let made = layers(Some(&base));
    let target = NamedTempFile::new().unwrap().reopen().unwrap();
    let below = || vec![layer(&base, Format::Raw)];
    merge_overlays(Vec::new(), below(), &target, None).unwrap_err();
    // A raw file among them.
    let mixed = vec![made[0].reopen().unwrap(), base.reopen().unwrap()];
    merge_overlays(mixed, below(), &target, None).unwrap_err();
}
