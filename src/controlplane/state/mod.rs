//! Everything the control plane remembers: rows in a store, files in a directory.
//!
//! ```text
//!   <state dir>/kiln.db                 rows (this module), shared by several processes
//!               sealing.key             opens the rows that hold secrets
//!               images/                 base images, content-addressed, never written
//!               volumes/                volumes, each a layer of its own, and layers of snapshots
//!               instances/<id>/         console log, control socket, what is left of a run
//!               run/<id>.lock           held by the process that runs the instance
//!               run/daemon.lock         held by the daemon
//! ```
//!
//! Rows say what shall be; every name outside (directory, tap, lock) derives from an id, so that a
//! sweep finds what a killed process left behind.

pub mod dir;
#[cfg(test)]
mod power_cut;
mod rows;
pub mod sealed;
pub mod sqlite;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use dir::StateDir;
pub use rows::{RowCache, Rows, rows};
pub use sealed::{SealError, Vault};
pub use sqlite::SqliteStore;
pub use store::{
    Changes, Check, Commit, Entry, Outcome, Row, Store, StoreError, Transaction, Write, transact,
};
