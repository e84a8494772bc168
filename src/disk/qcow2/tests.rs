//! Against a model, against QEMU's tools, against crashes, and against hostile files.

mod chain;
mod crash;
mod hostile;
mod merge;
mod model;
mod oracle;
mod threads;

use std::fs::File;
use std::sync::Arc;

use tempfile::NamedTempFile;
use vm_memory::VolatileSlice;

use super::{Backing, create_overlay};
use crate::{Disk, DiskError, Format, Layer, open};

/// Reads and writes of plain bytes.
trait Bytes {
    fn put(&self, data: &[u8], offset: u64) -> Result<(), DiskError>;
    fn get(&self, len: usize, offset: u64) -> Vec<u8>;
}

impl<D: Disk + ?Sized> Bytes for D {
    fn put(&self, data: &[u8], offset: u64) -> Result<(), DiskError> {
        self.write_at(&[VolatileSlice::from(&mut data.to_vec()[..])], offset)
    }

    fn get(&self, len: usize, offset: u64) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        self.read_exact_at(&mut data, offset).unwrap();
        data
    }
}

fn layer(file: &NamedTempFile, format: Format) -> Layer {
    Layer { file: file.reopen().unwrap(), format }
}

/// A base of `size` bytes that are nowhere zero.
fn raw_base(size: u64) -> (NamedTempFile, Vec<u8>) {
    let data: Vec<u8> = (0..size).map(|i| (i / 512 % 251 + 1) as u8).collect();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    (file, data)
}

fn overlay(size: u64, base: Option<&NamedTempFile>) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let backing =
        base.map(|base| Backing { path: base.path().to_str().unwrap().to_owned(), format: Format::Raw });
    create_overlay(file.reopen().unwrap(), size, backing.as_ref()).unwrap();
    file
}

fn open_over(top: &NamedTempFile, base: Option<&NamedTempFile>) -> Arc<dyn Disk> {
    let layers = std::iter::once(layer(top, Format::Qcow2));
    open(layers.chain(base.map(|base| layer(base, Format::Raw))).collect(), false).unwrap()
}

#[test]
fn a_fresh_overlay_shows_its_base_and_zeroes_behind_it() {
    let (base, data) = raw_base(1 << 20);
    let top = overlay(3 << 20, Some(&base));
    let disk = open_over(&top, Some(&base));
    assert_eq!(disk.size(), 3 << 20);
    assert_eq!(disk.get(1 << 20, 0), data);
    assert_eq!(disk.get(2 << 20, 1 << 20), vec![0; 2 << 20]);
    assert_eq!(disk.get(1024, (1 << 20) - 512), [vec![data[(1 << 20) - 1]; 512], vec![0; 512]].concat());
}

#[test]
fn writes_of_any_alignment_leave_their_neighbours_alone() {
    let (base, mut expected) = raw_base(1 << 20);
    let top = overlay(1 << 20, Some(&base));
    let disk = open_over(&top, Some(&base));
    for (offset, len) in
        [(0, 512), (4096, 4096), (9000, 1), (131_071, 2), (200_000, 300_000), (1_048_000, 576), (4095, 2)]
    {
        disk.put(&vec![0xee; len], offset).unwrap();
        expected[offset as usize..offset as usize + len].fill(0xee);
    }
    assert!(disk.get(1 << 20, 0) == expected);
    drop(disk);
    assert!(open_over(&top, Some(&base)).get(1 << 20, 0) == expected);
}

#[test]
fn zeroed_ranges_hide_the_base() {
    let (base, mut expected) = raw_base(1 << 20);
    let top = overlay(1 << 20, Some(&base));
    let disk = open_over(&top, Some(&base));
    for (offset, len, unmap) in [(0, 131_072, true), (140_000, 100, false), (300_000, 500_000, true)] {
        disk.write_zeroes(offset, len, unmap).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    disk.put(&[1; 512], 512).unwrap();
    expected[512..1024].fill(1);
    assert!(disk.get(1 << 20, 0) == expected);
    drop(disk);
    assert!(open_over(&top, Some(&base)).get(1 << 20, 0) == expected);
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let top = overlay(64 << 20, None);
    let disk = open_over(&top, None);
    disk.put(&vec![7; 32 << 20], 0).unwrap();
    disk.flush().unwrap();
    let blocks = || top.as_file().metadata().unwrap().blocks();
    let full = blocks();
    assert!(full >= 32 << 11);
    disk.discard(0, 32 << 20).unwrap();
    disk.flush().unwrap();
    assert!(blocks() < full / 8, "{} of {full} blocks are left", blocks());
    assert!(disk.get(32 << 20, 0).iter().all(|&b| b == 0));
}

#[test]
fn a_chain_of_overlays_reads_through() {
    let (base, data) = raw_base(1 << 20);
    let middle = overlay(1 << 20, Some(&base));
    open_over(&middle, Some(&base)).put(&[0x11; 8192], 8192).unwrap();
    let top = overlay(2 << 20, Some(&middle));
    let layers =
        || vec![layer(&top, Format::Qcow2), layer(&middle, Format::Qcow2), layer(&base, Format::Raw)];
    let disk = open(layers(), false).unwrap();
    disk.put(&[0x22; 100], 8200).unwrap();
    drop(disk);
    let disk = open(layers(), true).unwrap();
    let mut expected = data;
    expected[8192..16384].fill(0x11);
    expected[8200..8300].fill(0x22);
    expected.resize(2 << 20, 0);
    assert!(disk.get(2 << 20, 0) == expected);
    assert!(matches!(disk.put(&[0], 0), Err(DiskError::ReadOnly)));
    assert_eq!(disk.extent(0, 512, true), None);
    disk.flush().unwrap();
}

#[test]
fn nothing_below_the_top_is_offered_for_writing() {
    let (base, _) = raw_base(1 << 20);
    let middle = overlay(1 << 20, Some(&base));
    open_over(&middle, Some(&base)).put(&[0x11; 65536], 65536).unwrap();
    let before = std::fs::read(middle.path()).unwrap();
    let top = overlay(1 << 20, Some(&middle));
    let layers = vec![layer(&top, Format::Qcow2), layer(&middle, Format::Qcow2), layer(&base, Format::Raw)];
    let disk = open(layers, false).unwrap();
    assert!(disk.extent(65536, 4096, false).is_some(), "read in place");
    assert_eq!(disk.extent(65536, 4096, true), None);
    disk.put(&[0x22; 4096], 65536).unwrap();
    assert!(disk.extent(65536, 4096, true).is_some(), "the top's own now");
    drop(disk);
    assert!(std::fs::read(middle.path()).unwrap() == before);
}

#[test]
fn more_tables_than_memory_holds_are_swapped() {
    // A write in each slice of 32 MiB of a disk of 64 GiB.
    let top = overlay(64 << 30, None);
    let disk = open_over(&top, None);
    for i in 0..2048u64 {
        disk.put(&i.to_le_bytes(), i * (32 << 20)).unwrap();
    }
    for i in 0..2048u64 {
        assert_eq!(disk.get(8, i * (32 << 20)), i.to_le_bytes());
    }
    drop(disk);
    let disk = open_over(&top, None);
    for i in (0..2048u64).rev() {
        assert_eq!(disk.get(8, i * (32 << 20)), i.to_le_bytes());
    }
}

#[test]
fn an_extent_names_the_place_of_the_data() {
    use std::os::unix::fs::FileExt;
    let (base, data) = raw_base(1 << 20);
    let top = overlay(1 << 20, Some(&base));
    let disk = open_over(&top, Some(&base));
    let extent = disk.extent(10_000, 5000, false).unwrap();
    assert_eq!((extent.offset, extent.len), (10_000, 5000));
    assert_eq!(disk.extent(10_000, 5000, true), None);
    disk.put(&[0x55; 4096], 8192).unwrap();
    let extent = disk.extent(10_000, 5000, true).unwrap();
    assert_eq!(extent.len, 12288 - 10_000);
    let mut byte = [0];
    top.as_file().read_exact_at(&mut byte, extent.offset).unwrap();
    assert_eq!(byte, [0x55]);
    assert_eq!(disk.extent(8000, 512, false).unwrap().len, 192, "up to the border of the layers");
    assert_eq!(disk.get(1, 7999), data[7999..8000]);
    assert_eq!(disk.extent(1 << 20, 1, false), None);
    assert_eq!(disk.extent(0, 0, false), None);
}

#[test]
fn a_prepared_write_shows_when_it_is_finished() {
    let (base, data) = raw_base(1 << 20);
    let top = overlay(1 << 20, Some(&base));
    let disk = open_over(&top, Some(&base));
    let fill = |write: &crate::PreparedWrite, byte| {
        use std::os::unix::fs::FileExt;
        let bytes = vec![byte; write.extent.len as usize];
        top.as_file().write_all_at(&bytes, write.extent.offset).unwrap();
    };
    // Two in one cluster at once, one that fails, one across the cluster's end.
    let a = disk.prepare_write(0, 4096).unwrap();
    let b = disk.prepare_write(8192, 4096).unwrap();
    let c = disk.prepare_write(16384, 4096).unwrap();
    assert_eq!(b.extent.offset - a.extent.offset, 8192);
    let d = disk.prepare_write(131_072 - 4096, 12288).unwrap();
    assert_eq!(d.extent.len, 4096);
    for (write, byte) in [(&a, 0xa0), (&b, 0xb0), (&c, 0xc0), (&d, 0xd0)] {
        fill(write, byte);
    }
    assert!(disk.get(1 << 20, 0) == data);
    disk.finish_write(b, true);
    disk.finish_write(c, false);
    disk.finish_write(a, true);
    disk.finish_write(d, true);
    let mut expected = data;
    expected[..4096].fill(0xa0);
    expected[8192..12288].fill(0xb0);
    expected[131_072 - 4096..131_072].fill(0xd0);
    assert!(disk.get(1 << 20, 0) == expected);
    // Parts of units, and places that the disk does not have, go another way.
    assert_eq!(disk.prepare_write(20480, 512), None);
    assert_eq!(disk.prepare_write(1 << 20, 4096), None);
    assert_eq!(disk.prepare_write(0, 0), None);
    drop(disk);
    assert!(open_over(&top, Some(&base)).get(1 << 20, 0) == expected);
}

#[test]
fn an_image_in_use_is_refused() {
    let top = overlay(1 << 20, None);
    let disk = open_over(&top, None);
    let again = open(vec![layer(&top, Format::Qcow2)], false).map(|_| ());
    assert!(matches!(again, Err(DiskError::InUse)));
    drop(disk);
    open_over(&top, None);
}

#[test]
fn sizes_that_an_overlay_cannot_have_are_refused() {
    let file = tempfile::tempfile().unwrap();
    for size in [0, 511, 513, (64 << 40) + 512, u64::MAX - 511] {
        assert!(create_overlay(file.try_clone().unwrap(), size, None).is_err(), "{size}");
    }
    for path in ["", &"x".repeat(1024)] {
        let backing = Backing { path: path.to_owned(), format: Format::Raw };
        assert!(create_overlay(file.try_clone().unwrap(), 512, Some(&backing)).is_err());
    }
    create_overlay(file, 64 << 40, None).unwrap();
    let top = NamedTempFile::new().unwrap();
    create_overlay(top.reopen().unwrap(), 64 << 40, None).unwrap();
    let disk = open_over(&top, None);
    disk.put(&[1; 512], (64 << 40) - 512).unwrap();
    assert_eq!(disk.get(512, (64 << 40) - 512), [1; 512]);
}

/// Runs `qemu-img`, if there is one.
fn qemu_img(arguments: &[&str]) -> Option<std::process::Output> {
    match std::process::Command::new("qemu-img").args(arguments).output() {
        Ok(output) => Some(output),
        Err(_) => {
            println!("SKIPPED: qemu-img is not installed");
            None
        }
    }
}

/// `qemu-img check`: nothing wrong, or at most leaked clusters.
#[track_caller]
fn check(path: &std::path::Path, leaks: bool) {
    let Some(output) = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]) else { return };
    let good = output.status.success() || (leaks && output.status.code() == Some(3));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(good, "{text}");
}

fn copy(file: &NamedTempFile) -> NamedTempFile {
    let copy = NamedTempFile::new().unwrap();
    std::io::copy(&mut file.reopen().unwrap(), &mut File::create(copy.path()).unwrap()).unwrap();
    copy
}
