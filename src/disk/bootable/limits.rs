//! How much work an image may cause.
//!
//! File systems and boot configurations come from the image's owner. Loops, trees of empty nodes and
//! scripts that never end all cost something per step here, so that the search always ends. The
//! defaults are a hundred times what the images of the usual distributions need.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bounds for one search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest kernel in bytes.
    pub kernel: u64,
    /// Largest sum of all initrds in bytes; a caller lowers it to what the guest's memory holds.
    pub initrd: u64,
    /// Largest configuration file (`grub.cfg`, one loader entry, …) in bytes.
    pub config: u64,
    /// Bytes of file system metadata and configuration that may be read altogether.
    pub metadata: u64,
    /// Commands of boot scripts that may run altogether.
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { kernel: 256 << 20, initrd: 1 << 30, config: 256 << 10, metadata: 128 << 20, steps: 100_000 }
    }
}

/// The work that is left. Shared by all readers of one search.
#[derive(Debug)]
pub(crate) struct Budget {
    metadata: AtomicU64,
    steps: AtomicU64,
    exhausted: AtomicBool,
}

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            metadata: AtomicU64::new(limits.metadata),
            steps: AtomicU64::new(limits.steps),
            exhausted: AtomicBool::new(false),
        })
    }

    /// Pays for reading `bytes` of metadata. Each read costs something, however short it is.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), Exhausted> {
        const LEAST: u64 = 64;
        let price = bytes.max(LEAST);
        take(&self.metadata, price).inspect_err(|_| self.exhausted.store(true, Ordering::Relaxed))
    }

    /// Pays for commands of boot scripts.
    pub(crate) fn step(&self, steps: u64) -> Result<(), Exhausted> {
        take(&self.steps, steps)
    }

    /// Whether a reader was refused something.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }
}

fn take(left: &AtomicU64, price: u64) -> Result<(), Exhausted> {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(price));
    taken.map(drop).map_err(|_| Exhausted)
}
