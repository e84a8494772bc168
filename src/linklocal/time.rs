//! Time as an argument.

use std::time::Duration;

/// The two clocks that the services look at, read by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Since any fixed point; never goes back (`CLOCK_BOOTTIME`). Timers and token expiry follow it.
    pub uptime: Duration,
    /// Since the Unix epoch. Only told to the guest, never compared.
    pub wall: Duration,
}

impl Time {
    pub(crate) fn instant(self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(i64::try_from(self.uptime.as_micros()).unwrap_or(i64::MAX))
    }
}
