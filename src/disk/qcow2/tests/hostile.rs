//! Files that lie.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::qcow2::fuzzing;

/// Opens `file` alone as qcow2 and reads and writes a little; nothing may panic or hang.
fn probe(file: &NamedTempFile) {
    for read_only in [true, false] {
        if let Ok(disk) = open(vec![layer(file, Format::Qcow2)], read_only) {
            fuzzing::exercise(&*disk);
        }
    }
}

fn refused(change: impl FnOnce(&File)) -> String {
    let top = overlay(1 << 20, None);
    change(top.as_file());
    match open(vec![layer(&top, Format::Qcow2)], true) {
        Err(error @ DiskError::Format { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("opened"),
    }
}

fn put32(file: &File, offset: u64, value: u32) {
    file.write_all_at(&value.to_be_bytes(), offset).unwrap();
}

fn put64(file: &File, offset: u64, value: u64) {
    file.write_all_at(&value.to_be_bytes(), offset).unwrap();
}

#[test]
fn a_backing_name_inside_the_file_is_never_followed() {
    let top = NamedTempFile::new().unwrap();
    let backing = Backing { path: "/etc/passwd".to_owned(), format: Format::Raw };
    create_overlay(top.reopen().unwrap(), 1 << 20, Some(&backing)).unwrap();

    // Without a base it is refused, with one it is that base which shows.
    let error = open(vec![layer(&top, Format::Qcow2)], true).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("was not handed in"), "{error}");
    let (base, data) = raw_base(1 << 20);
    assert!(open_over(&top, Some(&base)).get(1 << 20, 0) == data);
}

#[test]
fn an_external_data_file_is_refused() {
    let error = refused(|file| put64(file, 72, 1 << 2));
    assert!(error.contains("data in another file"), "{error}");
}

#[test]
fn features_and_fields_that_we_cannot_honour_are_refused() {
    refused(|file| put32(file, 0, 0x1234_5678));
    refused(|file| put32(file, 4, 4));
    refused(|file| put32(file, 32, 1)); // encrypted
    refused(|file| put64(file, 72, 1 << 40)); // unknown feature
    refused(|file| put64(file, 72, 1 << 3)); // zstd
    refused(|file| put64(file, 72, 1)); // dirty
    refused(|file| put64(file, 72, 2)); // corrupt
    refused(|file| put32(file, 20, 8)); // clusters of 256 bytes
    refused(|file| put32(file, 20, 63));
    refused(|file| put32(file, 20, 13)); // too small for extended entries
    refused(|file| put64(file, 24, 1000)); // size
    refused(|file| put64(file, 24, u64::MAX - 511)); // needs a larger L1 table
    refused(|file| put32(file, 36, 0)); // L1 entries
    refused(|file| put64(file, 40, 12345)); // unaligned L1 table
    refused(|file| put64(file, 40, 1 << 50)); // L1 table behind the end
    refused(|file| put64(file, 3 << 17, 1 << 20 | 2)); // reserved bit in L1
    refused(|file| put32(file, 96, 7)); // refcount order
    refused(|file| file.set_len(50).unwrap());
}

#[test]
fn a_raw_image_declared_as_qcow2_is_refused_and_the_reverse_is_not_probed() {
    let (base, _) = raw_base(1 << 20);
    assert!(matches!(
        open(vec![layer(&base, Format::Qcow2)], false).map(|_| ()),
        Err(DiskError::Format { format: "qcow2", .. })
    ));
    // A guest may well write a qcow2 header into its raw disk.
    let top = overlay(1 << 20, None);
    let disk = open(vec![layer(&top, Format::Raw)], false).unwrap();
    assert_eq!(&disk.get(4, 0), b"QFI\xfb");
}

#[test]
fn chains_that_make_no_sense_are_refused() {
    let (base, _) = raw_base(1 << 20);
    let raw = || layer(&base, Format::Raw);
    let top = overlay(1 << 20, None);
    let qcow2 = || layer(&top, Format::Qcow2);
    assert!(open(vec![], true).is_err());
    assert!(open(vec![raw(), raw()], true).is_err());
    assert!(open(vec![qcow2(), raw(), raw()], true).is_err());
    assert!(open((0..17).map(|_| qcow2()).collect(), true).is_err());
}

#[test]
fn a_table_that_points_at_itself_or_at_nothing_is_survived() {
    for entry in [3 << 17, 1 << 17, 1 << 40, 0x00ff_ffff_fffe_0000] {
        let top = overlay(1 << 20, None);
        put64(top.as_file(), 3 << 17, 1 << 63 | entry);
        probe(&top);
        // The L2 entry of the first cluster points at its own table.
        let top = overlay(1 << 20, None);
        open_over(&top, None).put(&[1; 4096], 0).unwrap();
        let table = top.as_file().metadata().unwrap().len() / (1 << 17) * (1 << 17);
        for at in [table, table.saturating_sub(1 << 17)] {
            put64(top.as_file(), at, 1 << 63 | entry);
            put64(top.as_file(), at + 8, u64::from(u32::MAX));
        }
        probe(&top);
    }
}

#[test]
fn refcounts_that_are_all_taken_end_in_an_error() {
    let top = overlay(1 << 30, None);
    top.as_file().write_all_at(&vec![0xff; 1 << 17], 2 << 17).unwrap();
    let disk = open_over(&top, None);
    assert!(matches!(disk.put(&[1; 4096], 0), Err(DiskError::Io { .. })));
    assert_eq!(disk.get(4096, 0), vec![0; 4096]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_and_damaged_images_are_survived(mut data in prop::collection::vec(any::<u8>(), 1..200), damaged: bool) {
        data[0] = data[0] & !1 | u8::from(damaged);
        fuzzing::qcow2_open(&data);
    }
}
