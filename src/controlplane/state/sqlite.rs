//! The store in one SQLite file, shared by every `kiln` process of a host.
//!
//! Write-ahead log with `synchronous = FULL`: a commit that was told is there after a power cut, a
//! process killed at any point leaves the last commit. A person may look inside:
//! `sqlite3 kiln.db "select key, value from document"`.
//!
//! Guests write to the same file system and may fill it. What ends them has to be noted even then, so
//! the files of the database own more room than they use.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{
    Connection, ErrorCode, FileControl, OptionalExtension, Transaction, TransactionBehavior, params,
};
use rustix::fs::{FallocateFlags, fallocate};

use super::rows::RowCache;
use super::store::{Changes, Commit, Entry, Outcome, Store, StoreError};

/// How long to wait for other processes. Their transactions take milliseconds.
const BUSY: Duration = Duration::from_secs(20);
/// Between two tries of what SQLite does not wait for.
const SWITCH_PAUSE: Duration = Duration::from_millis(5);

/// Room that each file of the database has beyond its end. The log is written over from its start at
/// about half of this.
const ROOM: u64 = 8 << 20;

/// One step per schema version, oldest first. Never change a step that was released: add one.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE document (
        key      TEXT PRIMARY KEY,
        revision INTEGER NOT NULL,
        value    TEXT NOT NULL CHECK (json_valid(value))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE clock (
        only     INTEGER PRIMARY KEY CHECK (only = 1),
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO clock VALUES (1, 0);
",
    // What was removed is remembered for a while by everybody who removes: see `changes`.
    "
    CREATE INDEX document_by_revision ON document (revision);
    CREATE TABLE removed (
        key      TEXT PRIMARY KEY,
        revision INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX removed_by_revision ON removed (revision);
    CREATE TRIGGER document_removed AFTER DELETE ON document BEGIN
        INSERT INTO removed SELECT old.key, revision FROM clock WHERE true
            ON CONFLICT (key) DO UPDATE SET revision = excluded.revision;
        DELETE FROM removed WHERE revision < (SELECT revision FROM clock) - 10000;
    END;
",
];
/// Revisions for which removals are remembered, as the trigger has it.
pub(super) const REMEMBERED: u64 = 10_000;

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
    cache: RowCache,
    rows_read: AtomicU64,
}

fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { action, source }
}

impl SqliteStore {
    /// Opens or creates the database and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // User data and keys are inside: readable by the owner alone, which SQLite's own create
        // would leave to the umask. Its side files take over the mode.
        match OpenOptions::new().create_new(true).append(true).mode(0o600).open(path) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                let path = path.to_owned();
                return Err(StoreError::File { action: "create the state database", path, source });
            }
            _ => {}
        }
        let mut connection = Connection::open(path).map_err(database("open"))?;
        configure(&connection).map_err(database("set up"))?;
        migrate(&mut connection)?;
        for file in [path.to_owned(), write_ahead_log(path)] {
            keep_room(&file);
        }
        Ok(SqliteStore {
            connection: Mutex::new(connection),
            cache: RowCache::default(),
            rows_read: AtomicU64::new(0),
        })
    }

    fn count(&self, rows: usize) {
        self.rows_read.fetch_add(u64::try_from(rows).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere cannot leave a transaction open: `Transaction` rolls back on drop.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    keep_write_ahead_log(connection)?;
    // With the room that it has: the last to close would remove it.
    connection.file_control(None::<&str>, FileControl::PersistWal(&mut 1))?;
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF;")
}

/// The switch, which is only made in a new file, does not keep to the busy timeout: of two processes
/// that both have read the old mode one is refused at once, lest they wait for each other.
fn keep_write_ahead_log(connection: &Connection) -> rusqlite::Result<()> {
    let start = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && start.elapsed() < BUSY => {
                std::thread::sleep(SWITCH_PAUSE);
            }
            other => return other,
        }
    }
}

/// Where SQLite writes first.
fn write_ahead_log(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push("-wal");
    path.into()
}

/// Takes blocks for what will be written, as far as the file system and its room allow.
fn keep_room(path: &Path) {
    let take = || -> std::io::Result<()> {
        let file = File::options().write(true).open(path)?;
        let end = file.metadata()?.len();
        Ok(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, end.saturating_add(ROOM))?)
    };
    if let Err(e) = take() {
        tracing::debug!(path = %path.display(), "no room is kept for the state database: {e}");
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let version = |connection: &Connection| -> Result<u32, StoreError> {
        let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0));
        match found.map_err(database("read the schema of"))? {
            found if found > known => Err(StoreError::TooNew { found, known }),
            found => Ok(found),
        }
    };
    if version(connection)? == known {
        return Ok(());
    }
    let tx =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database("lock"))?;
    let found = version(&tx)?;
    for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        tx.execute_batch(step).map_err(database("upgrade"))?;
    }
    tx.pragma_update(None, "user_version", known).map_err(database("upgrade"))?;
    tx.commit().map_err(database("upgrade"))
}

/// The first text after all that start with `prefix`.
fn prefix_end(prefix: &str) -> String {
    // Prefixes end in '/', whose successor is '0'.
    let stem = prefix.strip_suffix('/').unwrap_or(prefix);
    format!("{stem}0")
}

fn revision_of(tx: &Transaction<'_>, key: &str) -> rusqlite::Result<u64> {
    let found = tx
        .prepare_cached("SELECT revision FROM document WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

fn apply(tx: &Transaction<'_>, commit: &Commit) -> rusqlite::Result<Outcome> {
    for check in &commit.checks {
        if revision_of(tx, &check.key)? != check.revision {
            return Ok(Outcome::Conflict);
        }
    }
    let revision: u64 =
        tx.query_row("UPDATE clock SET revision = revision + 1 RETURNING revision", [], |row| row.get(0))?;
    for write in &commit.writes {
        match &write.value {
            Some(value) => tx
                .prepare_cached(
                    "INSERT INTO document (key, revision, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE SET revision = ?2, value = ?3",
                )?
                .execute(params![write.key, revision, value])?,
            None => tx.prepare_cached("DELETE FROM document WHERE key = ?1")?.execute([&write.key])?,
        };
    }
    Ok(Outcome::Done(revision))
}

/// Revision of the last commit.
fn clock(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT revision FROM clock")?.query_row([], |row| row.get(0))
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)? })
}

fn list(connection: &Connection, prefix: &str) -> rusqlite::Result<Vec<Entry>> {
    connection
        .prepare_cached(
            "SELECT key, value, revision FROM document WHERE key >= ?1 AND key < ?2 ORDER BY key",
        )?
        .query_map([prefix, &prefix_end(prefix)], entry)?
        .collect()
}

fn changes(tx: &Transaction<'_>, prefix: &str, since: Option<u64>) -> rusqlite::Result<Changes> {
    let revision = clock(tx)?;
    let Some(since) = since.filter(|since| since.saturating_add(REMEMBERED) >= revision) else {
        return Ok(Changes { revision, whole: true, entries: list(tx, prefix)?, removed: Vec::new() });
    };
    if since == revision {
        return Ok(Changes { revision, ..Changes::default() });
    }
    // A `+` keeps SQLite from going by the key, over all that did not change.
    let entries = tx
        .prepare_cached(
            "SELECT key, value, revision FROM document WHERE revision > ?3 AND +key >= ?1 AND +key < ?2",
        )?
        .query_map(params![prefix, prefix_end(prefix), since], entry)?
        .collect::<rusqlite::Result<_>>()?;
    let removed = tx
        .prepare_cached("SELECT key FROM removed WHERE revision > ?3 AND +key >= ?1 AND +key < ?2")?
        .query_map(params![prefix, prefix_end(prefix), since], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Changes { revision, whole: false, entries, removed })
}

impl Store for SqliteStore {
    fn read(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("SELECT value, revision FROM document WHERE key = ?1")
            .map_err(database("read"))?;
        let found = statement
            .query_row([key], |row| {
                Ok(Entry { key: key.to_owned(), value: row.get(0)?, revision: row.get(1)? })
            })
            .optional()
            .map_err(database("read"))?;
        self.count(usize::from(found.is_some()));
        Ok(found)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let entries = list(&self.connection(), prefix).map_err(database("read"))?;
        self.count(entries.len());
        Ok(entries)
    }

    fn changes(&self, prefix: &str, since: Option<u64>) -> Result<Changes, StoreError> {
        let mut connection = self.connection();
        // Deferred: all that is read is of one moment.
        let tx = connection.transaction().map_err(database("read"))?;
        let changes = changes(&tx, prefix, since).map_err(database("read"))?;
        self.count(changes.entries.len());
        Ok(changes)
    }

    fn cache(&self) -> &RowCache {
        &self.cache
    }

    fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    fn revision(&self) -> Result<u64, StoreError> {
        clock(&self.connection()).map_err(database("read"))
    }

    fn commit(&self, commit: &Commit) -> Result<Outcome, StoreError> {
        let mut connection = self.connection();
        // Immediate: takes the write lock first, so that checks cannot go stale before the writes.
        let tx =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database("lock"))?;
        match apply(&tx, commit).map_err(database("write"))? {
            Outcome::Conflict => Ok(Outcome::Conflict),
            done @ Outcome::Done(_) => {
                tx.commit().map_err(database("write"))?;
                Ok(done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command, Stdio};

    use super::super::store::{Check, Write};
    use super::*;

    impl SqliteStore {
        /// As if so many commits had been made.
        pub(in crate::state) fn advance(&self, revisions: u64) {
            self.connection().execute("UPDATE clock SET revision = revision + ?1", [revisions]).unwrap();
        }

        /// Copies the log to the database when it has so many pages.
        pub(in crate::state) fn copy_log_after(&self, pages: u32) {
            self.connection().pragma_update(None, "wal_autocheckpoint", pages).unwrap();
        }

        /// A setting of the connection.
        pub(in crate::state) fn pragma(&self, name: &str) -> String {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            match self.connection().pragma_query_value(None, name, read).unwrap() {
                rusqlite::types::Value::Integer(n) => n.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            }
        }

        /// What SQLite finds wrong with the whole database; `ok` for nothing.
        pub(in crate::state) fn damage(&self) -> String {
            self.pragma("integrity_check")
        }

        /// Removals that are remembered.
        pub(in crate::state) fn removals(&self) -> u64 {
            self.connection().query_row("SELECT count(*) FROM removed", [], |row| row.get(0)).unwrap()
        }
    }

    const CHILD_DB: &str = "KILN_TEST_DB";

    fn write(key: &str, value: &str) -> Commit {
        Commit {
            checks: vec![Check { key: key.into(), revision: 0 }],
            writes: vec![Write { key: key.into(), value: Some(value.into()) }],
        }
    }

    /// Runs one `#[ignore]`d test below in a process of its own, on the given database.
    fn child(test: &str, db: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("state::sqlite::tests::{test}"), "--ignored", "--nocapture"])
            .env(CHILD_DB, db)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn child_store() -> Option<SqliteStore> {
        std::env::var_os(CHILD_DB).map(|db| SqliteStore::open(Path::new(&db)).unwrap())
    }

    #[test]
    fn a_new_database_can_be_opened_by_many_at_once() {
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("kiln.db");
            let start = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        start.wait();
                        SqliteStore::open(&path).unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn commits_survive_reopening_and_the_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.commit(&write("a/1", "{}")).unwrap(), Outcome::Done(1));
        assert_eq!(store.commit(&write("a/1", "{}")).unwrap(), Outcome::Conflict);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        let entry = Entry { key: "a/1".into(), value: "{}".into(), revision: 1 };
        assert_eq!(store.read("a/1").unwrap(), Some(entry.clone()));
        assert_eq!(store.commit(&write("a0", "1")).unwrap(), Outcome::Done(2));
        assert_eq!(store.list("a/").unwrap(), [entry]);
    }

    #[test]
    fn newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        drop(SqliteStore::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::TooNew { found: 99, known: 2 })));
    }

    #[test]
    fn file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        std::fs::write(&path, [7u8; 8192]).unwrap();
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::Database { .. })));
    }

    #[test]
    #[ignore = "runs inside writer_killed_at_any_point_leaves_whole_commits"]
    fn child_writes_pairs_for_ever() {
        let Some(store) = child_store() else { return };
        for n in 0u64.. {
            let half = |side| Write { key: format!("{side}/{n}"), value: Some(n.to_string()) };
            store.commit(&Commit { checks: vec![], writes: vec![half("left"), half("right")] }).unwrap();
            println!("told {n}");
        }
    }

    #[test]
    fn writer_killed_at_any_point_leaves_whole_commits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        for told_before_kill in [1, 5, 20] {
            let mut child = child("child_writes_pairs_for_ever", &path);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut told = None;
            let mut count = 0;
            while count < told_before_kill {
                let line = lines.next().unwrap().unwrap();
                // The harness prints its own text before the first line.
                if let Some((_, n)) = line.rsplit_once("told ") {
                    told = n.parse::<u64>().ok();
                    count += 1;
                }
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let store = SqliteStore::open(&path).unwrap();
            assert!(
                store.read(&format!("left/{}", told.unwrap())).unwrap().is_some(),
                "a told commit is lost"
            );
            let values =
                |side: &str| store.list(side).unwrap().into_iter().map(|e| e.value).collect::<Vec<_>>();
            assert_eq!(values("left/"), values("right/"), "half a commit is there");
        }
    }

    #[test]
    #[ignore = "runs inside processes_never_get_the_same_address"]
    fn child_reserves_twenty_addresses() {
        let Some(store) = child_store() else { return };
        let subnet = crate::network::ensure_default_subnet(&store, "172.31.0.0/16".parse().unwrap()).unwrap();
        for _ in 0..20 {
            let instance = kiln_model::InstanceId::from_bits(rand::random());
            let placement = crate::network::Placement::default();
            let (interface, _) = crate::state::transact(&store, |tx| {
                crate::network::Networks::place_all(tx, &subnet, instance, &placement, &[])
            })
            .unwrap();
            println!("got {}", interface.address);
        }
    }

    #[test]
    fn processes_never_get_the_same_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        let children: Vec<_> = (0..3).map(|_| child("child_reserves_twenty_addresses", &path)).collect();
        let mut addresses = BTreeSet::new();
        for mut child in children {
            for line in BufReader::new(child.stdout.take().unwrap()).lines() {
                if let Some((_, address)) = line.unwrap().rsplit_once("got ") {
                    assert!(addresses.insert(address.to_owned()), "{address} was given twice");
                }
            }
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(addresses.len(), 60);
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.list("subnet/").unwrap().len(), 1, "all share one default subnet");
    }
}
