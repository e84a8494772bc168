//! A state directory for tests.

use super::{SqliteStore, StateDir};

/// A state directory of its own with an open store. It goes with this value.
pub(crate) struct Place {
    pub dir: StateDir,
    pub store: SqliteStore,
    _temp: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(temp.path()).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        Place { dir, store, _temp: temp }
    }
}
