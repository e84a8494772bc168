//! Decoded rows of a kind, kept between reads.
//!
//! ```text
//!   rows::<Instance>(store) ── revision as before? ──▶ the same rows again, nothing is read
//!                           └─ else ─▶ what changed since ─▶ decoded, put in, taken out
//! ```
//! What it costs to look at a kind of rows grows with what has changed since the last look, whichever
//! process changed it, and not with how many there are. Kept is at most what is in the store: no look
//! leaves anything behind.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::store::{Changes, Row, Store, StoreError, decode};

/// All rows of a kind as of one moment.
#[derive(Debug)]
pub struct Rows<R> {
    revision: u64,
    by_key: BTreeMap<String, Arc<R>>,
    /// Holders and what they hold; see [`Row::holder`].
    held: BTreeSet<(String, String)>,
}

// Derived, it would want rows that can be cloned themselves.
impl<R> Clone for Rows<R> {
    fn clone(&self) -> Self {
        Rows { revision: self.revision, by_key: self.by_key.clone(), held: self.held.clone() }
    }
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Rows { revision: 0, by_key: BTreeMap::new(), held: BTreeSet::new() }
    }
}

impl<R: Row> Rows<R> {
    /// The row of that key.
    pub fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.by_key.get(&key.to_string())
    }

    /// All of them in the order of their keys as text.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<R>> {
        self.by_key.values()
    }

    /// Those that `holder` has, in the order of their keys as text.
    pub fn held_by(&self, holder: &str) -> impl Iterator<Item = &Arc<R>> {
        let from = (holder.to_owned(), String::new());
        let own = self.held.range(from..).take_while(move |(other, _)| other == holder);
        own.filter_map(|(_, key)| self.by_key.get(key))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn apply(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let short = |key: &str| key.split_once('/').map_or(key, |(_, short)| short).to_owned();
        if changes.whole {
            *self = Self::default();
        }
        for key in &changes.removed {
            self.take(&short(key));
        }
        for entry in &changes.entries {
            let key = short(&entry.key);
            self.take(&key);
            let row: R = decode(entry)?;
            if let Some(holder) = row.holder() {
                self.held.insert((holder, key.clone()));
            }
            self.by_key.insert(key, Arc::new(row));
        }
        self.revision = changes.revision;
        Ok(())
    }

    fn take(&mut self, key: &str) {
        let holder = self.by_key.remove(key).and_then(|row| row.holder());
        if let Some(holder) = holder {
            self.held.remove(&(holder, key.to_owned()));
        }
    }
}

/// The rows that one store has decoded, by kind.
#[derive(Debug, Default)]
pub struct RowCache(Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>);

/// Those of one kind. Locked while they are brought up to date.
type Kept<R> = Mutex<Option<Arc<Rows<R>>>>;

impl RowCache {
    fn kept<R: Row>(&self) -> Option<Arc<Kept<R>>> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kinds.entry(TypeId::of::<R>()).or_insert_with(|| Arc::new(Kept::<R>::default()));
        Arc::clone(kept).downcast().ok()
    }
}

/// The rows of a kind as they are now.
pub fn rows<R: Row>(store: &dyn Store) -> Result<Arc<Rows<R>>, StoreError> {
    let prefix = format!("{}/", R::KIND);
    let kept = store.cache().kept::<R>().unwrap_or_default();
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let changes = store.changes(&prefix, kept.as_ref().map(|rows| rows.revision))?;
    let mut rows = kept.take().unwrap_or_default();
    if rows.revision != changes.revision || changes.whole {
        // Whoever looks at the old ones keeps them. After an error everything is read anew.
        Arc::make_mut(&mut rows).apply(&changes)?;
    }
    *kept = Some(Arc::clone(&rows));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::state::{SqliteStore, transact};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Thing {
        name: String,
        value: u64,
        of: Option<String>,
    }

    impl Row for Thing {
        const KIND: &'static str = "thing";
        type Key = String;

        fn key(&self) -> String {
            self.name.clone()
        }

        fn holder(&self) -> Option<String> {
            self.of.clone()
        }
    }

    fn thing(name: &str, value: u64) -> Thing {
        Thing { name: name.to_owned(), value, of: None }
    }

    fn put(store: &SqliteStore, thing: &Thing) {
        transact(store, |tx| tx.put(thing)).unwrap();
    }

    fn remove(store: &SqliteStore, name: &str) {
        transact(store, |tx| {
            tx.remove::<Thing>(&name.to_owned());
            Ok::<_, StoreError>(())
        })
        .unwrap();
    }

    fn all(store: &SqliteStore) -> Vec<Thing> {
        rows::<Thing>(store).unwrap().iter().map(|row| Thing::clone(row)).collect()
    }

    #[test]
    fn only_what_changed_is_read_again_whoever_changed_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        let (here, there) = (SqliteStore::open(&path).unwrap(), SqliteStore::open(&path).unwrap());
        for n in 0..100 {
            put(&here, &thing(&format!("{n:03}"), n));
        }
        let reads = |look: &dyn Fn()| {
            let before = here.rows_read();
            look();
            here.rows_read() - before
        };
        assert_eq!(reads(&|| assert_eq!(all(&here).len(), 100)), 100);
        assert_eq!(reads(&|| assert_eq!(all(&here).len(), 100)), 0);
        let old = rows::<Thing>(&here).unwrap();
        put(&there, &thing("007", 700));
        remove(&there, "099");
        put(&there, &thing("100", 1));
        remove(&there, "100");
        assert_eq!(reads(&|| assert_eq!(all(&here)[7], thing("007", 700))), 1);
        assert_eq!(all(&here).len(), 99);
        assert_eq!(old.get(&"007".to_owned()).unwrap().value, 7, "what was looked at stays");
        put(&there, &thing("100", 2));
        assert_eq!(all(&here).last(), Some(&thing("100", 2)));
        // Of another kind.
        let other = super::super::Write { key: "other/1".into(), value: Some("{}".into()) };
        there.commit(&super::super::Commit { checks: vec![], writes: vec![other] }).unwrap();
        assert_eq!(reads(&|| assert_eq!(all(&here).len(), 100)), 0);
        assert_eq!(all(&here), all(&there));
    }

    #[test]
    fn holders_know_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        let of = |name: &str, holder: Option<&str>| Thing { of: holder.map(str::to_owned), ..thing(name, 0) };
        let held = |holder: &str| -> Vec<String> {
            rows::<Thing>(&store).unwrap().held_by(holder).map(|row| row.name.clone()).collect()
        };
        for (name, holder) in [("a", Some("x")), ("b", Some("xy")), ("c", Some("x")), ("d", None)] {
            put(&store, &of(name, holder));
        }
        assert_eq!(
            (held("x"), held("xy"), held("")),
            (vec!["a".into(), "c".into()], vec!["b".into()], vec![])
        );
        put(&store, &of("a", Some("xy")));
        remove(&store, "c");
        assert_eq!((held("x"), held("xy")), (vec![], vec!["a".into(), "b".into()]));
    }

    #[test]
    fn removals_long_ago_are_forgotten_and_the_rest_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        let (here, there) = (SqliteStore::open(&path).unwrap(), SqliteStore::open(&path).unwrap());
        put(&here, &thing("a", 1));
        put(&here, &thing("b", 1));
        assert_eq!(all(&here).len(), 2);
        remove(&there, "a");
        there.advance(crate::state::sqlite::REMEMBERED + 1);
        put(&there, &thing("c", 1));
        remove(&there, "c");
        assert_eq!(there.removals(), 1, "the old one is forgotten");
        assert_eq!(all(&here), [thing("b", 1)]);
    }

    #[test]
    fn damaged_row_is_an_error_until_it_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        put(&store, &thing("a", 1));
        assert_eq!(all(&store).len(), 1);
        let bad = super::super::Write { key: "thing/b".into(), value: Some("{}".into()) };
        store.commit(&super::super::Commit { checks: vec![], writes: vec![bad] }).unwrap();
        for _ in 0..2 {
            assert!(matches!(rows::<Thing>(&store), Err(StoreError::Damaged { .. })));
        }
        remove(&store, "b");
        assert_eq!(all(&store), [thing("a", 1)]);
    }
}
