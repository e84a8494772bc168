//! The [`Store`] seam and typed transactions over it.
//!
//! A store is an ordered map from keys (`instance/i-…`) to JSON documents, each with the revision
//! of the store at its last change. It offers one write operation: a [`Commit`] of checks and
//! writes that happens as a whole or not at all. That is what SQLite and etcd both give, so the
//! typed layer above runs on either.
//!
//! ```text
//!   transact(store, |tx| { tx.get …; tx.put … })
//!      reads remember revisions ──▶ commit(checks, writes) ──▶ conflict? run the closure again
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rows::{RowCache, Rows, rows};

/// How often a transaction is tried before giving up. Each round lets at least one competitor
/// through, so this many fail only when this many others went first.
const MAX_ATTEMPTS: usize = 100;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Such as `instance/i-…`.
    pub key: String,
    /// JSON.
    pub value: String,
    /// Revision of the store at the last change of this document.
    pub revision: u64,
}

/// What became of some documents since a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Revision of the store at which this was so.
    pub revision: u64,
    /// Whether `entries` are all that there are, and not only what changed.
    pub whole: bool,
    /// Documents that were made or changed.
    pub entries: Vec<Entry>,
    /// Keys of documents that were removed. One of `entries` came back.
    pub removed: Vec<String>,
}

/// A condition of a [`Commit`]: the document is still as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which document.
    pub key: String,
    /// Its revision; 0 means that it must not exist.
    pub revision: u64,
}

/// A change of a [`Commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Which document.
    pub key: String,
    /// Its new contents; `None` removes it.
    pub value: Option<String>,
}

/// All or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Must all hold.
    pub checks: Vec<Check>,
    /// Are all made.
    pub writes: Vec<Write>,
}

/// What became of a [`Commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable. The store is now at this revision.
    Done(u64),
    /// A check did not hold; nothing was changed.
    Conflict,
}

/// Why the store could not serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory or the database cannot be used.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The state directory cannot be made or entered.
    #[error("cannot use the state directory {path} (run as root, or choose another one with --state-dir)")]
    Dir {
        /// Where.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The database failed.
    #[error("cannot {action} the state database")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// Written by a newer release.
    #[error(
        "the state database has schema {found}, this release knows up to {known} (use the newer kiln, \
         or another --state-dir)"
    )]
    TooNew {
        /// Schema found.
        found: u32,
        /// Newest schema known here.
        known: u32,
    },
    /// A row does not hold what its kind says.
    #[error("the row {key} in the state database is damaged")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A row that must be there is not.
    #[error("the row {0} is missing from the state database (another process removed it)")]
    Missing(String),
    /// Too many conflicts in a row.
    #[error("the state database is too busy (another process keeps changing it; try again)")]
    Contended,
}

/// Durable, shared by processes, with atomic commits. Methods may block on the disk and on other
/// processes; call them outside of async tasks.
pub trait Store: Send + Sync {
    /// One document.
    fn read(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All documents whose key starts with `prefix`, which ends in `/`, in order of keys. They are
    /// of one moment.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, StoreError>;

    /// Revision of the last commit: a cheap way to see that anything changed.
    fn revision(&self) -> Result<u64, StoreError>;

    /// What became of the documents whose key starts with `prefix`, which ends in `/`, after revision
    /// `since`; all there are, where that is not known or too long ago.
    fn changes(&self, prefix: &str, since: Option<u64>) -> Result<Changes, StoreError>;

    /// What was decoded of it; see [`rows`].
    fn cache(&self) -> &RowCache;

    /// Documents that were read from it by this process so far.
    fn rows_read(&self) -> u64;

    /// Makes all writes if all checks hold. Durable when it returns.
    fn commit(&self, commit: &Commit) -> Result<Outcome, StoreError>;
}

/// A kind of document.
pub trait Row: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// First part of its keys, without slash.
    const KIND: &'static str;
    /// Second part of its keys.
    type Key: Display;

    /// Its own key.
    fn key(&self) -> Self::Key;

    /// Who has it, where somebody asks for that: see [`Rows::held_by`](super::Rows::held_by).
    fn holder(&self) -> Option<String> {
        None
    }
}

fn full_key<R: Row>(key: &R::Key) -> String {
    format!("{}/{key}", R::KIND)
}

pub(super) fn decode<R: Row>(entry: &Entry) -> Result<R, StoreError> {
    serde_json::from_str(&entry.value)
        .map_err(|source| StoreError::Damaged { key: entry.key.clone(), source })
}

/// Reads and buffered writes of one attempt. See [`transact`].
pub struct Transaction<'a> {
    store: &'a dyn Store,
    seen: BTreeMap<String, u64>,
    writes: BTreeMap<String, Option<String>>,
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Transaction<'_> {
    /// The row as this transaction sees it. Commits only if nobody changes it meanwhile.
    pub fn get<R: Row>(&mut self, key: &R::Key) -> Result<Option<R>, StoreError> {
        let key = full_key::<R>(key);
        if let Some(buffered) = self.writes.get(&key) {
            return buffered
                .as_ref()
                .map(|value| decode(&Entry { key: key.clone(), value: value.clone(), revision: 0 }))
                .transpose();
        }
        let entry = self.store.read(&key)?;
        // A second read of a changed row keeps the first revision, so the commit conflicts.
        self.seen.entry(key).or_insert_with(|| entry.as_ref().map_or(0, |e| e.revision));
        entry.as_ref().map(decode).transpose()
    }

    /// Rows of one kind as of now, without this transaction's own writes. Sets no condition: rows
    /// may come and go before the commit. To build a rule on what is *not* there, let both sides
    /// write one common row.
    pub fn list<R: Row + Clone>(&self) -> Result<Vec<R>, StoreError> {
        Ok(self.rows::<R>()?.iter().map(|row| R::clone(row)).collect())
    }

    /// As [`Transaction::list`], without a copy.
    pub fn rows<R: Row>(&self) -> Result<Arc<Rows<R>>, StoreError> {
        rows(self.store)
    }

    /// Writes a row whatever is there. After [`Transaction::get`] it replaces only what was seen.
    pub fn put<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        let key = full_key::<R>(&row.key());
        let value =
            serde_json::to_string(row).map_err(|source| StoreError::Damaged { key: key.clone(), source })?;
        self.writes.insert(key, Some(value));
        Ok(())
    }

    /// Writes a row that does not exist yet; `false` if it does.
    pub fn insert<R: Row>(&mut self, row: &R) -> Result<bool, StoreError> {
        if self.get::<R>(&row.key())?.is_some() {
            return Ok(false);
        }
        self.put(row)?;
        Ok(true)
    }

    /// Removes a row, if it is there.
    pub fn remove<R: Row>(&mut self, key: &R::Key) {
        self.writes.insert(full_key::<R>(key), None);
    }
}

/// Runs `body` until its reads and writes commit as one. It may run several times, so it must have
/// no effect but on the transaction. An error of `body` ends it with nothing written.
pub fn transact<T, E: From<StoreError>>(
    store: &dyn Store,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    for _ in 0..MAX_ATTEMPTS {
        let mut tx = Transaction { store, seen: BTreeMap::new(), writes: BTreeMap::new() };
        let value = body(&mut tx)?;
        let commit = Commit {
            checks: tx.seen.into_iter().map(|(key, revision)| Check { key, revision }).collect(),
            writes: tx.writes.into_iter().map(|(key, value)| Write { key, value }).collect(),
        };
        if commit.writes.is_empty() || matches!(store.commit(&commit)?, Outcome::Done(_)) {
            return Ok(value);
        }
    }
    Err(StoreError::Contended.into())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::state::SqliteStore;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Counter {
        name: String,
        value: u64,
    }

    impl Row for Counter {
        const KIND: &'static str = "counter";
        type Key = String;

        fn key(&self) -> String {
            self.name.clone()
        }
    }

    fn counter(name: &str, value: u64) -> Counter {
        Counter { name: name.to_owned(), value }
    }

    fn store() -> (tempfile::TempDir, SqliteStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        (dir, store)
    }

    fn all(store: &dyn Store) -> Vec<Counter> {
        transact(store, |tx| tx.list::<Counter>()).unwrap()
    }

    #[test]
    fn transaction_sees_its_own_writes_and_commits_them_together() {
        let (_dir, store) = store();
        transact(&store, |tx| {
            assert!(tx.insert(&counter("a", 1))?);
            assert!(!tx.insert(&counter("a", 2))?);
            assert_eq!(tx.get::<Counter>(&"a".into())?, Some(counter("a", 1)));
            tx.put(&counter("b", 3))?;
            assert!(tx.list::<Counter>()?.is_empty(), "a list is what is committed");
            Ok::<_, StoreError>(())
        })
        .unwrap();
        assert_eq!(all(&store), [counter("a", 1), counter("b", 3)]);
        transact(&store, |tx| {
            tx.remove::<Counter>(&"a".into());
            assert_eq!(tx.get::<Counter>(&"a".into())?, None);
            Ok::<_, StoreError>(())
        })
        .unwrap();
        assert_eq!(all(&store), [counter("b", 3)]);
    }

    #[test]
    fn error_in_the_body_leaves_the_store_unchanged() {
        let (_dir, store) = store();
        let result: Result<(), StoreError> = transact(&store, |tx| {
            tx.put(&counter("a", 1))?;
            Err(StoreError::Contended)
        });
        assert!(result.is_err());
        assert!(all(&store).is_empty());
    }

    #[test]
    fn change_between_read_and_commit_runs_the_body_again() {
        let (_dir, store) = store();
        transact(&store, |tx| tx.put(&counter("a", 1))).unwrap();
        let mut attempts = 0;
        transact(&store, |tx| {
            attempts += 1;
            let mut row = tx.get::<Counter>(&"a".into())?.unwrap();
            if attempts == 1 {
                transact(&store, |other| other.put(&counter("a", 10)))?;
            }
            row.value += 1;
            tx.put(&row)
        })
        .unwrap();
        assert_eq!((attempts, all(&store)), (2, vec![counter("a", 11)]));
    }

    #[test]
    fn removal_and_recreation_of_a_row_is_a_conflict() {
        let (_dir, store) = store();
        transact(&store, |tx| tx.put(&counter("a", 1))).unwrap();
        let mut attempts = 0;
        transact(&store, |tx| {
            attempts += 1;
            let row = tx.get::<Counter>(&"a".into())?.unwrap();
            if attempts == 1 {
                transact(&store, |other| {
                    other.remove::<Counter>(&"a".into());
                    Ok::<_, StoreError>(())
                })?;
                transact(&store, |other| other.put(&row))?;
            }
            tx.put(&row)
        })
        .unwrap();
        assert_eq!(attempts, 2);
    }

    #[test]
    fn threads_counting_in_one_row_lose_nothing() {
        let (_dir, store) = store();
        transact(&store, |tx| tx.put(&counter("a", 0))).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        transact(&store, |tx| {
                            let mut row = tx.get::<Counter>(&"a".into())?.unwrap();
                            row.value += 1;
                            tx.put(&row)
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(all(&store), [counter("a", 40)]);
    }

    #[test]
    fn row_of_another_shape_is_reported_with_its_key() {
        let (_dir, store) = store();
        let write = Write { key: "counter/x".into(), value: Some("{}".into()) };
        store.commit(&Commit { checks: vec![], writes: vec![write] }).unwrap();
        let error = transact(&store, |tx| tx.get::<Counter>(&"x".into())).unwrap_err();
        assert_eq!(error.to_string(), "the row counter/x in the state database is damaged");
    }
}
