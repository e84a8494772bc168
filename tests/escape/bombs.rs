//! Taking more than its share, with calls that the lists allow.

use std::os::fd::AsRawFd;

use kiln_sandbox::cgroup::Hierarchies;
use kiln_sandbox::seccomp::ThreadKind;

use super::attempts::Tools;
use super::prison::{self, ADDRESS_SPACE, DESCRIPTORS, Filter, LARGEST_FILE, MEMORY, Prison};

/// Inside the jail: takes what the name says until something gives.
pub fn explode(name: &str, tools: &Tools) {
    match name {
        "memory" => {
            let mut taken = Vec::new();
            loop {
                // The cgroup ends this one, as its pages are touched.
                taken.push(std::hint::black_box(vec![1u8; 1 << 20]));
                assert!(taken.len() < 4 * (MEMORY >> 20) as usize, "it got {} MiB", taken.len());
            }
        }
        "address space" => {
            let mut taken = Vec::<Vec<u8>>::new();
            let error = loop {
                let mut piece = Vec::new();
                if let Err(e) = piece.try_reserve_exact(1 << 26) {
                    break e;
                }
                taken.push(piece);
                assert!(taken.len() as u64 * (1 << 26) <= ADDRESS_SPACE, "no end");
            };
            println!("CONTAINED after {} pieces: {error}", taken.len());
        }
        "descriptors" => {
            let mut taken = Vec::new();
            let error = loop {
                match tools.file.try_clone() {
                    Ok(fd) => taken.push(fd),
                    Err(e) => break e,
                }
                assert!(taken.len() as u64 <= DESCRIPTORS, "no end");
            };
            println!("CONTAINED after {} descriptors: {error}", taken.len());
            std::mem::forget(taken);
        }
        "disk" => {
            let file = tools.file.as_raw_fd();
            for offset in [LARGEST_FILE - 1, LARGEST_FILE, i64::MAX as u64 - 1] {
                // SAFETY: reads two bytes of a literal.
                let wrote = unsafe { libc::pwrite64(file, b"xx".as_ptr().cast(), 2, offset as i64) };
                // SAFETY: takes numbers only.
                let grew = unsafe { libc::fallocate64(file, 0, offset as i64, 1 << 20) };
                // One byte of the first still fits.
                assert!(wrote < 2 && grew < 0, "{offset}: {wrote} {grew}");
            }
            println!("CONTAINED");
        }
        other => panic!("no bomb {other}"),
    }
}

#[test]
fn memory_bomb_ends_its_own_process() {
    if !prison::possible() {
        return;
    }
    if !Hierarchies::host().examine().1.is_empty() {
        println!("SKIPPED: needs the cgroup controllers cpu, memory and pids");
        return;
    }
    let outcome = Prison::new().try_out(ThreadKind::Disk, "memory", Filter::Installed);
    assert_eq!(outcome.signal, Some(9), "{outcome:?}");
}

#[test]
fn address_space_is_bounded_without_a_cgroup_too() {
    contained(ThreadKind::Devices, "address space");
}

#[test]
fn descriptors_run_out() {
    contained(ThreadKind::Vcpu, "descriptors");
}

#[test]
fn no_file_grows_beyond_its_volume() {
    contained(ThreadKind::Disk, "disk");
}

fn contained(kind: ThreadKind, name: &str) {
    if !prison::possible() {
        return;
    }
    let outcome = Prison::new().try_out(kind, name, Filter::Installed);
    assert!(outcome.status == Some(0) && outcome.printed.contains("CONTAINED"), "{outcome:?}");
}
