//! The packet allowance of one interface: a token bucket.
//!
//! EC2 lets 1024 packets per second through to all link-local services together, drops the rest
//! without an answer and counts it as `linklocal_allowance_exceeded`.

use std::time::Duration;

/// Packets per second.
const RATE: u64 = 1024;

/// Packets that may come at once after a quiet time. One cloud-init crawl is 72 requests of 8 to 10
/// packets within half a second.
const BURST: u64 = 2048;

/// Credit is counted in nanoseconds of accrual: one packet costs this much.
const COST: u64 = 1_000_000_000 / RATE;

#[derive(Debug)]
pub(crate) struct Allowance {
    credit: u64,
    at: Duration,
}

impl Allowance {
    pub(crate) fn new(now: Duration) -> Self {
        Allowance { credit: BURST * COST, at: now }
    }

    /// Takes `packets` out of the bucket; false when it does not hold that many.
    pub(crate) fn take(&mut self, now: Duration, packets: u64) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let gained = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        self.credit = self.credit.saturating_add(gained).min(BURST * COST);
        match self.credit.checked_sub(packets.saturating_mul(COST)) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(bucket: &mut Allowance, now: Duration, offered: u64) -> u64 {
        (0..offered).filter(|_| bucket.take(now, 1)).count() as u64
    }

    #[test]
    fn burst_passes_then_the_rate_holds() {
        let mut bucket = Allowance::new(Duration::from_secs(7));
        assert_eq!(passing(&mut bucket, Duration::from_secs(7), 5000), BURST);
        assert_eq!(passing(&mut bucket, Duration::from_secs(8), 5000), RATE);
        assert_eq!(passing(&mut bucket, Duration::from_millis(8500), 5000), RATE / 2);
    }

    #[test]
    fn quiet_time_fills_to_the_burst_and_no_further() {
        let mut bucket = Allowance::new(Duration::ZERO);
        assert_eq!(passing(&mut bucket, Duration::from_secs(u64::MAX / 2), 5000), BURST);
    }

    #[test]
    fn time_going_back_gives_nothing() {
        let mut bucket = Allowance::new(Duration::from_secs(100));
        assert_eq!(passing(&mut bucket, Duration::from_secs(100), 5000), BURST);
        assert_eq!(passing(&mut bucket, Duration::from_secs(1), 10), 0);
        assert_eq!(passing(&mut bucket, Duration::from_secs(100), 10), 0);
    }
}
