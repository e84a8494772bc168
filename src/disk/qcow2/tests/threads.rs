//! Several queues on one image.

use std::os::unix::fs::FileExt;

use super::*;

/// Each thread owns every fourth block of 512 bytes, so that all of them work in the same units,
/// clusters and tables all the time.
#[test]
fn four_threads_in_the_same_clusters() {
    const BLOCKS: u64 = 4 * 700;
    let (base, data) = raw_base(BLOCKS * 512);
    let top = overlay(BLOCKS * 512, Some(&base));
    let disk = open_over(&top, Some(&base));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                for n in 0..BLOCKS / 4 {
                    let block = (n * 37 % (BLOCKS / 4)) * 4 + thread;
                    disk.put(&[thread as u8 + 0xf0; 512], block * 512).unwrap();
                    if n % 50 == 7 {
                        disk.flush().unwrap();
                    }
                    assert_eq!(disk.get(512, block * 512), [thread as u8 + 0xf0; 512]);
                }
            });
        }
    });
    let expected: Vec<u8> = (0..data.len()).map(|i| 0xf0 + (i / 512 % 4) as u8).collect();
    assert!(disk.get(data.len(), 0) == expected);
    drop(disk);
    check(top.path(), false);
    assert!(open_over(&top, Some(&base)).get(expected.len(), 0) == expected);
}

/// Prepared, in-place and claimed writes and zeroing, each in its own blocks of shared clusters.
#[test]
fn all_kinds_of_changes_at_once() {
    const UNITS: u64 = 4 * 400;
    let size = UNITS * 4096;
    let top = overlay(size, None);
    let disk = open_over(&top, None);
    std::thread::scope(|scope| {
        let each = |thread: u64, change: fn(&dyn Disk, &File, u64)| {
            let (disk, file) = (&disk, top.reopen().unwrap());
            scope.spawn(move || {
                for n in 0..UNITS / 4 {
                    change(&**disk, &file, ((n * 101 % (UNITS / 4)) * 4 + thread) * 4096);
                    if n % 64 == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        };
        each(0, |disk, file, at| {
            // Whoever cannot prepare takes the other way, as an engine does.
            match disk.prepare_write(at, 4096) {
                Some(write) => {
                    file.write_all_at(&[1; 4096], write.extent.offset).unwrap();
                    disk.finish_write(write, true);
                }
                None => disk.put(&[1; 4096], at).unwrap(),
            }
        });
        each(1, |disk, _, at| {
            disk.put(&[2; 1000], at + 100).unwrap();
            disk.put(&[2; 4096], at).unwrap();
        });
        each(2, |disk, file, at| {
            disk.put(&[9; 4096], at).unwrap();
            let extent = disk.extent(at, 4096, true).unwrap();
            file.write_all_at(&[3; 4096], extent.offset).unwrap();
        });
        each(3, |disk, _, at| {
            disk.put(&[9; 4096], at).unwrap();
            disk.write_zeroes(at, 4096, true).unwrap();
            disk.put(&[4; 512], at).unwrap();
        });
    });
    let unit = |thread: usize| match thread {
        0 => vec![1; 4096],
        1 => vec![2; 4096],
        2 => vec![3; 4096],
        _ => [vec![4; 512], vec![0; 3584]].concat(),
    };
    let expected: Vec<u8> = (0..UNITS as usize).flat_map(|n| unit(n % 4)).collect();
    assert!(disk.get(size as usize, 0) == expected);
    drop(disk);
    check(top.path(), false);
    assert!(open_over(&top, None).get(size as usize, 0) == expected);
}

#[test]
fn disk_grows_under_its_writers_and_loses_nothing() {
    let base = raw_base(1 << 20);
    let top = overlay(2 << 20, Some(&base.0));
    let disk = open_over(&top, Some(&base.0));
    let gib = 1u64 << 30;
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let disk = &disk;
            scope.spawn(move || {
                for n in 0..64 {
                    disk.put(&[thread as u8 + 1; 4096], (n * 3 + thread) * 8192).unwrap();
                    if n % 8 == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        }
        // Beyond what one L2 table maps, and again, and to the same size.
        for size in [3 * gib, 5 * gib, 5 * gib] {
            disk.grow(size).unwrap();
            assert_eq!(disk.size(), size);
            disk.put(&[9; 512], size - 512).unwrap();
        }
    });
    for refused in [4 * gib, 5 * gib + 1, 1 << 60] {
        assert!(disk.grow(refused).is_err(), "{refused}");
    }
    disk.flush().unwrap();
    let looks_right = |disk: &dyn Disk| {
        assert_eq!(disk.size(), 5 * gib);
        for n in 0..192u64 {
            assert_eq!(disk.get(4096, n * 8192), vec![(n % 3) as u8 + 1; 4096], "{n}");
        }
        assert_eq!(disk.get(512, 3 * gib - 512), vec![9; 512]);
        assert_eq!(disk.get(512, 5 * gib - 512), vec![9; 512]);
        assert_eq!(disk.get(512, 4 * gib), vec![0; 512]);
    };
    looks_right(&*disk);
    drop(disk);
    check(top.path(), false);
    looks_right(&*open_over(&top, Some(&base.0)));
}
