//! Limits the rate of requests and bytes.
//!
//! Each limit keeps one instant, the *debt horizon*: when everything admitted so far would have
//! been due at the sustained rate. A request is admitted while the horizon is less than the burst
//! ahead of now, and moves it by the request's own share. So a request larger than the burst passes
//! once the debt is paid, and the next ones wait for it; nothing is ever refused for good.
//!
//! No clock and no sleeping here: time is an argument, waiting is the caller's.

use std::time::{Duration, Instant};

/// A sustained rate with a burst on top. A zero rate means one unit per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units per second.
    pub per_second: u64,
    /// Units that may pass at once after idleness.
    pub burst: u64,
}

/// Limits on requests and bytes. Absent limits do not limit.
#[derive(Debug)]
pub struct Throttle {
    ops: Option<Bucket>,
    bytes: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    per_second: u64,
    burst: Duration,
    horizon: Option<Instant>,
}

impl Throttle {
    /// A throttle with full bursts.
    pub fn new(ops: Option<Rate>, bytes: Option<Rate>) -> Self {
        Self { ops: ops.map(Bucket::new), bytes: bytes.map(Bucket::new) }
    }

    /// Admits a request of `bytes` bytes and returns `None`, or says how long to wait before asking
    /// again. Only an admitted request is charged.
    pub fn admit(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().and_then(|bucket| bucket.wait(now));
        if let Some(wait) = wait(&self.ops).max(wait(&self.bytes)) {
            return Some(wait);
        }
        if let Some(ops) = &mut self.ops {
            ops.charge(1, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes, now);
        }
        None
    }
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let per_second = rate.per_second.max(1);
        Self { per_second, burst: share(rate.burst, per_second), horizon: None }
    }

    fn wait(&self, now: Instant) -> Option<Duration> {
        let ahead = self.horizon?.saturating_duration_since(now);
        // An exact balance is still in credit, so that a burst of one unit admits one.
        (ahead > self.burst || (ahead == self.burst && !ahead.is_zero()))
            .then(|| (ahead - self.burst).max(Duration::from_nanos(1)))
    }

    fn charge(&mut self, units: u64, now: Instant) {
        let from = self.horizon.map_or(now, |horizon| horizon.max(now));
        self.horizon = from.checked_add(share(units, self.per_second)).or(self.horizon);
    }
}

/// Time that `units` take at the sustained rate, at most about 584 years.
fn share(units: u64, per_second: u64) -> Duration {
    let nanos = u128::from(units) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(per_second: u64, burst: u64) -> Throttle {
        Throttle::new(Some(Rate { per_second, burst }), None)
    }

    #[test]
    fn a_burst_passes_and_the_next_waits_one_interval() {
        let now = Instant::now();
        let mut throttle = ops(100, 5);
        for _ in 0..5 {
            assert_eq!(throttle.admit(0, now), None);
        }
        let wait = throttle.admit(0, now).unwrap();
        assert!(wait <= Duration::from_millis(10), "{wait:?}");
        assert_eq!(throttle.admit(0, now + wait + Duration::from_nanos(1)), None);
    }

    #[test]
    fn the_sustained_rate_holds_over_time() {
        let start = Instant::now();
        let mut now = start;
        let mut throttle = ops(1000, 10);
        for _ in 0..2010 {
            while let Some(wait) = throttle.admit(0, now) {
                now += wait;
            }
        }
        let took = now - start;
        assert!(took >= Duration::from_millis(1990) && took <= Duration::from_millis(2010), "{took:?}");
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_later() {
        let now = Instant::now();
        let mut throttle = Throttle::new(None, Some(Rate { per_second: 1 << 20, burst: 4096 }));
        assert_eq!(throttle.admit(8 << 20, now), None);
        let wait = throttle.admit(512, now).unwrap();
        assert!(wait > Duration::from_millis(7900), "{wait:?}");
        assert_eq!(throttle.admit(512, now + Duration::from_secs(9)), None);
    }

    #[test]
    fn what_one_limit_refuses_is_not_charged_to_the_other() {
        let now = Instant::now();
        let rate = |per_second| Some(Rate { per_second, burst: 1 });
        let mut throttle = Throttle::new(rate(1), rate(1000));
        assert_eq!(throttle.admit(0, now), None);
        for _ in 0..100 {
            assert!(throttle.admit(1_000_000, now).is_some());
        }
        assert_eq!(throttle.admit(1_000_000, now + Duration::from_millis(1001)), None);
    }

    #[test]
    fn extreme_rates_neither_panic_nor_block_for_ever() {
        let now = Instant::now();
        for (per_second, burst) in [(0, 0), (u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 0)] {
            let mut throttle =
                Throttle::new(Some(Rate { per_second, burst }), Some(Rate { per_second, burst }));
            let _ = throttle.admit(u64::MAX, now);
            let _ = throttle.admit(u64::MAX, now);
        }
    }
}
