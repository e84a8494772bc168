//! Rate limits of one direction of a device, shared by its queue pairs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_disk::throttle::Throttle;

/// A throttle that several workers draw from.
pub(super) type SharedThrottle = Arc<Mutex<Throttle>>;

/// One queue's view of a limit.
#[derive(Debug, Default)]
pub(super) struct Limit {
    throttle: Option<SharedThrottle>,
    /// Nothing may pass before.
    until: Option<Instant>,
    /// Bytes that have passed and are not yet admitted.
    owed: Option<usize>,
}

impl Limit {
    /// Draws from `throttle`, or does not limit.
    pub fn new(throttle: Option<SharedThrottle>) -> Self {
        Limit { throttle, ..Limit::default() }
    }

    /// Admits a frame of `len` bytes, or says no until [`Limit::wait`] has passed.
    pub fn admit(&mut self, len: usize, now: Instant) -> bool {
        let Some(throttle) = &self.throttle else { return true };
        if self.wait(now).is_some() {
            return false;
        }
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let wait = throttle.lock().unwrap_or_else(PoisonError::into_inner).admit(len, now);
        self.until = wait.and_then(|wait| now.checked_add(wait));
        wait.is_none()
    }

    /// Admits a frame whose length is not known before it has passed: charges the one before.
    pub fn admit_next(&mut self, now: Instant) -> bool {
        let passes = self.owed.is_none_or(|len| self.admit(len, now));
        if passes {
            self.owed = None;
        }
        passes
    }

    /// The frame let through by [`Limit::admit_next`] had this length.
    pub fn passed(&mut self, len: usize) {
        self.owed = Some(len);
    }

    /// How long nothing may pass.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }
}
