//! Counters of one block device, shared by its queues.

use std::sync::atomic::{AtomicU64, Ordering};

/// Only ever grow. A request counts when it succeeds, or as an error.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub read_ops: Counter,
    pub read_bytes: Counter,
    pub write_ops: Counter,
    pub write_bytes: Counter,
    pub flush_ops: Counter,
    /// Discards and write-zeroes.
    pub discard_ops: Counter,
    /// Requests answered with an error, whoever's fault.
    pub errors: Counter,
    /// Chains without room for a status, and rings that broke the rules.
    pub malformed: Counter,
    /// Times that a request had to wait for the throttle.
    pub throttled: Counter,
}

impl Counters {
    pub fn list(&self, out: &mut Vec<(&'static str, u64)>) {
        let Self { read_ops, read_bytes, write_ops, write_bytes, flush_ops, discard_ops, .. } = self;
        let Self { errors, malformed, throttled, .. } = self;
        out.extend([
            ("read_ops", read_ops.get()),
            ("read_bytes", read_bytes.get()),
            ("write_ops", write_ops.get()),
            ("write_bytes", write_bytes.get()),
            ("flush_ops", flush_ops.get()),
            ("discard_ops", discard_ops.get()),
            ("errors", errors.get()),
            ("malformed", malformed.get()),
            ("throttled", throttled.get()),
        ]);
    }
}

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n` and returns the new value.
    pub fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed).wrapping_add(n)
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
