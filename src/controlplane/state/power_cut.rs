//! Power cuts: the files of the store as a disk may have kept them, between any two syncs.
//!
//! ```text
//!   commit n told ── log written ── log synced = commit n+1 told ── pages copied to the database ── synced
//!                   └─ any part of it ─┘                          └────── any part of it ──────┘
//! ```
//! A log that begins anew, over frames that have been copied, has its header synced before anything else is
//! written: what is behind it counts no longer.
//!
//! A disk keeps what was synced. Of what was written since it keeps any sectors in any order, torn ones
//! among them, and any length of the file. Whatever it is, the store opens and holds what it held after a
//! whole commit: the last one that was told, or the one that was on its way.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Commit, Entry, Outcome, SqliteStore, Store, Write};

const SECTOR: usize = 512;
/// Bytes of the header of a log.
const HEADER: usize = 32;
const COMMITS: u64 = 120;
/// Ways in which the power goes between two commits.
const CUTS: usize = 6;

/// What is in the files.
#[derive(Clone)]
struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

fn read(path: &Path) -> Files {
    let log = path.with_extension("db-wal");
    Files { database: std::fs::read(path).unwrap(), log: std::fs::read(log).unwrap_or_default() }
}

/// A file of which `old` was synced and `new` was written since.
fn kept(old: &[u8], new: &[u8], rng: &mut StdRng) -> Vec<u8> {
    if rng.random_ratio(1, 4) {
        // Just before the sync told that it was done.
        return new.to_vec();
    }
    let length = rng.random_range(old.len().min(new.len())..=old.len().max(new.len()));
    let share = rng.random_range(0..=100);
    let mut file = old.to_vec();
    // What a file has grown by without its contents reads as zeros.
    file.resize(length, 0);
    for (at, sector) in new.chunks(SECTOR).enumerate() {
        let from = at * SECTOR;
        let torn = rng.random_ratio(1, 20);
        let whole = sector.len().min(length.saturating_sub(from));
        let part = if torn { rng.random_range(0..=whole) } else { whole };
        if rng.random_range(0..100) < share && part > 0 {
            file[from..from + part].copy_from_slice(&sector[..part]);
        }
    }
    file
}

/// The log as a disk may have kept it.
fn kept_log(old: &[u8], new: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let anew = old.get(..HEADER) != new.get(..HEADER);
    let mut base = old.to_vec();
    if anew && !old.is_empty() {
        if rng.random_ratio(1, 3) {
            // The power goes before its header is synced.
            let part = rng.random_range(0..=HEADER);
            base[..part].copy_from_slice(&new[..part]);
            return base;
        }
        base[..HEADER].copy_from_slice(&new[..HEADER]);
    }
    kept(&base, new, rng)
}

fn contents(store: &SqliteStore) -> (u64, Vec<Entry>) {
    let all = ["left/", "right/"].map(|kind| store.list(kind).unwrap()).concat();
    (store.revision().unwrap(), all)
}

/// The store that finds these files.
fn open(dir: &Path, files: &Files) -> SqliteStore {
    let path = dir.join("kiln.db");
    let _ = std::fs::remove_file(path.with_extension("db-shm"));
    std::fs::write(&path, &files.database).unwrap();
    std::fs::write(path.with_extension("db-wal"), &files.log).unwrap();
    SqliteStore::open(&path).unwrap()
}

/// Two rows that belong together are written or removed, of some pages in size.
fn commit(store: &SqliteStore, n: u64, rng: &mut StdRng) {
    let value =
        (!rng.random_ratio(1, 4)).then(|| format!("\"{n}{}\"", "x".repeat(rng.random_range(0..9000))));
    let of = |side| Write { key: format!("{side}/{}", n % 7), value: value.clone() };
    let commit = Commit { checks: Vec::new(), writes: vec![of("left"), of("right")] };
    assert!(matches!(store.commit(&commit).unwrap(), Outcome::Done(_)));
}

#[test]
fn store_holds_whole_commits_whenever_the_power_goes() {
    let mut rng = StdRng::seed_from_u64(7);
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().join("kiln.db");
    let store = SqliteStore::open(&path).unwrap();
    // The log is copied to the database often, so that there is much to cut.
    store.copy_log_after(40);
    let (mut synced, mut told) = (read(&path), contents(&store));
    let (mut copies, mut lost, mut made) = (0, 0, 0);
    for n in 0..COMMITS {
        commit(&store, n, &mut rng);
        let (written, next) = (read(&path), contents(&store));
        let copied = written.database != synced.database;
        copies += u32::from(copied);
        for cut in 0..CUTS {
            let before = Files { log: kept_log(&synced.log, &written.log, &mut rng), ..synced.clone() };
            let reopened = open(after.path(), &before);
            let found = contents(&reopened);
            assert!(found == told || found == next, "commit {n}, cut {cut}: neither before it nor behind it");
            lost += u32::from(found == told);
            made += u32::from(found == next);
            // It goes on from there.
            commit(&reopened, n, &mut rng);
            assert_eq!(reopened.damage(), "ok");
            // Two may not have one file while it is replaced.
            drop(reopened);
            if copied {
                // The log is whole, the database is not.
                let database = kept(&synced.database, &written.database, &mut rng);
                let reopened = open(after.path(), &Files { database, log: written.log.clone() });
                assert_eq!(contents(&reopened), next, "commit {n}, cut {cut} while the log was copied");
                assert_eq!(reopened.damage(), "ok");
            }
        }
        (synced, told) = (written, next);
    }
    assert!(copies > 5 && lost > 100 && made > 20, "{copies} copies, {lost} lost, {made} made: too tame");
}

#[test]
fn log_is_synced_by_each_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
    // What the model above takes for granted: 2 is FULL.
    assert_eq!(store.pragma("synchronous"), "2");
    assert_eq!(store.pragma("journal_mode"), "wal");
}
