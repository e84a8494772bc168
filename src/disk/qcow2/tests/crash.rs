//! What is left behind when a process dies.

use std::process::{Command, Stdio};

use super::*;

const SIZE: u64 = 4 << 30;

/// Writes that touch fresh tables, fresh clusters and old ones, with a flush now and then.
fn workload(step: u64) -> (u64, u8) {
    let spread = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    (spread % (SIZE / 4096) * 4096 + (step % 3) * 512, (step % 250) as u8 + 1)
}

#[test]
fn a_copy_taken_after_any_write_is_consistent() {
    let (base, _) = raw_base(1 << 20);
    let top = overlay(SIZE, Some(&base));
    let disk = open_over(&top, Some(&base));
    for step in 0..60 {
        let (offset, byte) = workload(step);
        disk.put(&[byte; 2048], offset).unwrap();
        if step % 7 == 6 {
            disk.flush().unwrap();
        }
        if step % 5 == 0 {
            disk.discard(offset, 4096).unwrap();
        }
        // The file as a kill would leave it: a write that has returned is in the page cache.
        let left = copy(&top);
        check(left.path(), true);
        open_over(&left, Some(&base)).put(&[1; 512], 0).unwrap();
        check(left.path(), true);
    }
}

#[test]
fn flushed_data_are_there_after_a_crash() {
    let top = overlay(SIZE, None);
    let disk = open_over(&top, None);
    for step in 0..40 {
        let (offset, byte) = workload(step);
        disk.put(&[byte; 512], offset).unwrap();
    }
    disk.flush().unwrap();
    let left = copy(&top);
    disk.put(&[0xff; 4096], 0).unwrap();
    let found = open_over(&left, None);
    for step in 0..40 {
        let (offset, byte) = workload(step);
        assert_eq!(found.get(512, offset), [byte; 512]);
    }
}

/// Not a test of its own: what the test below runs in another process and kills.
#[test]
fn child_that_writes_until_killed() {
    let Ok(path) = std::env::var("KILN_TEST_OVERLAY") else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let disk = open(vec![Layer { file, format: Format::Qcow2 }], false).unwrap();
    for step in 0u64.. {
        let (offset, byte) = workload(step);
        disk.put(&[byte; 512], offset).unwrap();
        if step % 8 == 7 {
            disk.flush().unwrap();
            println!("flushed {step}");
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_flushed() {
    use std::io::{BufRead, BufReader};
    for rounds in [1usize, 3, 9, 20] {
        let top = overlay(SIZE, None);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "qcow2::tests::crash::child_that_writes_until_killed", "--nocapture"])
            .env("KILN_TEST_OVERLAY", top.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let flushed = lines
            .map(Result::unwrap)
            .filter_map(|line| line.strip_prefix("flushed ")?.parse::<u64>().ok())
            .nth(rounds)
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();

        check(top.path(), true);
        let disk = open_over(&top, None);
        for step in 0..=flushed {
            let (offset, byte) = workload(step);
            assert_eq!(disk.get(512, offset), [byte; 512], "step {step} of {flushed}");
        }
        for step in 0..200 {
            let (offset, _) = workload(step + 1_000_000);
            disk.put(&[9; 4096], offset / 4096 * 4096).unwrap();
        }
        drop(disk);
        check(top.path(), true);
    }
}
