//! What a chain says of itself, to those who copy it.

use super::oracle::qemu_reads;
use super::*;
use crate::Chain;

const PIECE: u64 = 512 << 10;
const SIZE: u64 = 8 << 20;

fn chain(layers: Vec<Layer>, read_only: bool) -> Chain {
    Chain::open(layers, read_only).unwrap()
}

/// Pieces of the disk in any part of which the answer is yes.
fn pieces(size: u64, look: impl Fn(u64, u64) -> Result<(bool, u64), DiskError>) -> Vec<u64> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let (yes, run) = look(at, size - at).unwrap();
        assert!(run > 0 && run <= size - at);
        if yes {
            found.extend((at / PIECE)..(at + run).div_ceil(PIECE));
        }
        at += run;
    }
    found.dedup();
    found
}

#[test]
fn each_image_says_what_was_written_to_it_be_it_zeroes() {
    let base = NamedTempFile::new().unwrap();
    base.as_file().set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(base.as_file(), &[9; 4096], 3 * PIECE + 8192).unwrap();
    let lower = overlay(SIZE, Some(&base));
    let all = |top: Option<&NamedTempFile>| {
        let own = top.into_iter().chain([&lower]).map(|file| layer(file, Format::Qcow2));
        own.chain([layer(&base, Format::Raw)]).collect::<Vec<_>>()
    };
    let written = chain(all(None), false);
    written.write(&mut vec![1; PIECE as usize], PIECE).unwrap();
    // Over nothing, and over data.
    written.write_zeroes(10 * PIECE, PIECE).unwrap();
    written.write_zeroes(3 * PIECE, PIECE).unwrap();
    drop(written);
    let top = NamedTempFile::new().unwrap();
    let backing = Backing { path: lower.path().to_str().unwrap().to_owned(), format: Format::Qcow2 };
    create_overlay(top.reopen().unwrap(), SIZE, Some(&backing)).unwrap();
    let written = chain(all(Some(&top)), false);
    written.write(&mut vec![2; PIECE as usize], 15 * PIECE).unwrap();
    written.write_zeroes(PIECE, PIECE).unwrap();
    written.flush().unwrap();
    drop(written);
    check(top.path(), false);

    let read = chain(all(Some(&top)), true);
    assert_eq!(pieces(SIZE, |at, len| read.says(1, at, len)), [1, 15]);
    assert_eq!(pieces(SIZE, |at, len| read.says(2, at, len)), [1, 3, 10, 15]);
    assert_eq!(pieces(SIZE, |at, len| read.holds(at, len)), [15]);
    // What is zero takes no room.
    assert!(lower.as_file().metadata().unwrap().len() < 2 << 20);
    let mut last = vec![7; 2 * PIECE as usize];
    read.read(&mut last, 15 * PIECE).unwrap();
    assert!(last[..PIECE as usize].iter().all(|byte| *byte == 2) && last[PIECE as usize..] == [0; 512 << 10]);
    assert_eq!(read.says(1, SIZE, 5).unwrap(), (false, 5));
    assert_eq!(read.holds(u64::MAX, 5).unwrap(), (false, 5));
    if let Some(bytes) = qemu_reads(top.path()) {
        let mut expected = vec![0; SIZE as usize];
        expected[15 * PIECE as usize..].fill(2);
        assert!(bytes == expected);
    }
}

#[test]
fn holes_of_a_raw_base_hold_nothing() {
    let base = NamedTempFile::new().unwrap();
    base.as_file().set_len(SIZE).unwrap();
    std::os::unix::fs::FileExt::write_all_at(base.as_file(), &[9; 4096], 3 * PIECE + 8192).unwrap();
    let top = overlay(2 * SIZE, Some(&base));
    let read = chain(vec![layer(&top, Format::Qcow2), layer(&base, Format::Raw)], true);
    assert_eq!(pieces(2 * SIZE, |at, len| read.holds(at, len)), [3]);
    assert_eq!(pieces(2 * SIZE, |at, len| read.says(1, at, len)), [] as [u64; 0]);
}

#[test]
fn only_qcow2_can_be_at_the_top_and_a_reader_does_not_write() {
    let (base, _) = raw_base(1 << 20);
    Chain::open(vec![layer(&base, Format::Raw)], true).unwrap_err();
    Chain::open(Vec::new(), true).unwrap_err();
    let top = overlay(1 << 20, None);
    let read = chain(vec![layer(&top, Format::Qcow2)], true);
    assert!(matches!(read.write_zeroes(0, PIECE), Err(DiskError::ReadOnly)));
    assert!(matches!(read.write(&mut [1; 512], 0), Err(DiskError::ReadOnly)));
    drop(read);
    let written = chain(vec![layer(&top, Format::Qcow2)], false);
    assert!(matches!(written.write_zeroes(2 * PIECE, PIECE), Err(DiskError::OutOfRange { .. })));
    assert!(matches!(written.write_zeroes(u64::MAX, PIECE), Err(DiskError::OutOfRange { .. })));
}
