//! Counts what a guest does wrong without letting it fill the host's log.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first this many faults are logged one by one; later ones when their number is a power of two.
const LOGGED_ONE_BY_ONE: u64 = 8;

/// A counter of one kind of guest fault. Shared freely; never reset.
#[derive(Debug, Default)]
pub struct GuestFaults(AtomicU64);

impl GuestFaults {
    /// Starts at zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one fault and tells whether to log it. A guest that repeats it for ever gets at most
    /// 72 lines out of one counter.
    #[must_use]
    pub fn record(&self) -> bool {
        let count = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count <= LOGGED_ONE_BY_ONE || count.is_power_of_two()
    }

    /// Faults so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_repetition_logs_little_and_counts_all() {
        let faults = GuestFaults::new();
        let logged = (0..1_000_000).filter(|_| faults.record()).count();
        assert_eq!(faults.count(), 1_000_000);
        assert!(logged < 30, "{logged}");
    }
}
