//! When credentials are fetched, and what is served meanwhile. No I/O, no clock.
//!
//! ```text
//!   fetched           next fetch                         expiry
//!   ├──────────────────────┼──────────── lead ─────────────┤
//!                          │ failed: again after 5 s, 10 s, … 5 min
//!                          └ succeeded: the new set is served, the old one is good until its expiry
//! ```
//!
//! The lead is an hour, or half of a set's life where that is less, and up to a tenth more by chance,
//! so that a thousand instances do not ask at once. With the lifetimes that roles may have it is never
//! under half an hour: SDKs refresh 15 minutes before the end and later, and at least one of them
//! distrusts a set with less than 20 minutes left.

use kiln_model::Utc;
use kiln_vmspec::LeafValue;

use super::{Credentials, SourceError, failure_document};

/// Longest lead in seconds.
const LEAD: u64 = 3600;
/// First pause after a failure, in seconds.
const FIRST_PAUSE: u64 = 5;
/// Longest pause.
const LAST_PAUSE: u64 = 300;

/// The credentials of one role in one instance over time. All times are Unix seconds.
#[derive(Debug)]
pub struct Rotation {
    current: Option<(Credentials, u64)>,
    error: Option<(SourceError, u64)>,
    next: u64,
    failures: u32,
    rotations: u64,
    total_failures: u64,
}

impl Rotation {
    /// Nothing has been fetched; the first fetch is due.
    pub fn new(now: u64) -> Self {
        Rotation {
            current: None,
            error: Some((SourceError::Pending, now)),
            next: 0,
            failures: 0,
            rotations: 0,
            total_failures: 0,
        }
    }

    /// Whether to fetch.
    pub fn is_due(&self, now: u64) -> bool {
        self.next <= now
    }

    /// When to fetch next.
    pub fn next_fetch(&self) -> u64 {
        self.next
    }

    /// Takes what a fetch gave. `chance`: a number from 0 to 1, drawn anew for each call.
    pub fn fetched(&mut self, result: Result<Credentials, SourceError>, now: u64, chance: f64) {
        match result.and_then(|set| check(set, now)) {
            Ok(set) => {
                let left = set.expiration.saturating_sub(now);
                let lead = LEAD.min(left / 2);
                let lead = lead.saturating_add(share(lead / 10, chance));
                self.next = set.expiration.saturating_sub(lead);
                self.failures = 0;
                self.error = None;
                // A set that has not changed is still the one published then.
                if !self.current.as_ref().is_some_and(|(old, _)| old.is_same(&set)) {
                    self.rotations += 1;
                    self.current = Some((set, now));
                }
            }
            Err(error) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LAST_PAUSE);
                self.failures = self.failures.saturating_add(1);
                self.total_failures += 1;
                // Half to the whole of it.
                self.next = now.saturating_add(pause / 2).saturating_add(share(pause.div_ceil(2), chance));
                // "Since" is when the trouble began.
                let since = self.error.as_ref().map_or(now, |(_, since)| *since);
                self.error = Some((error, since));
            }
        }
    }

    /// The set that is good at `now`.
    pub fn current(&self, now: u64) -> Option<&Credentials> {
        self.current.as_ref().map(|(set, _)| set).filter(|set| set.expiration > now)
    }

    /// Why the last fetch failed, and since when fetches do.
    pub fn error(&self) -> Option<(&SourceError, u64)> {
        self.error.as_ref().map(|(error, since)| (error, *since))
    }

    /// Sets published so far.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// Fetches that failed so far.
    pub fn failures(&self) -> u64 {
        self.total_failures
    }

    /// The document that is served at `now`.
    pub fn document(&self, now: u64) -> LeafValue {
        match (&self.current, &self.error) {
            (Some((set, published)), _) if set.expiration > now => set.document(*published),
            (_, Some((error, since))) => failure_document(error, *since),
            (Some((set, _)), None) => failure_document(&expired(set.expiration, now), set.expiration),
            (None, None) => failure_document(&SourceError::Pending, now),
        }
    }
}

fn share(of: u64, chance: f64) -> u64 {
    // Of at most an hour: no loss in either direction.
    (of as f64 * chance.clamp(0.0, 1.0)) as u64
}

fn expired(expiration: u64, now: u64) -> SourceError {
    let text = |unix| Utc::from_unix(unix).rfc3339();
    SourceError::Expired { expiration: text(expiration), now: text(now) }
}

fn check(set: Credentials, now: u64) -> Result<Credentials, SourceError> {
    if set.expiration <= now { Err(expired(set.expiration, now)) } else { Ok(set) }
}

#[cfg(test)]
mod tests {
    use kiln_model::Secret;
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000;
    const HOUR: u64 = 3600;

    fn set(key: &str, expiration: u64) -> Credentials {
        Credentials {
            access_key_id: key.into(),
            secret_access_key: Secret::new("s".into()),
            session_token: Secret::new("t".into()),
            expiration,
        }
    }

    fn failure() -> SourceError {
        SourceError::Process { detail: "no".into() }
    }

    fn served(rotation: &Rotation, now: u64) -> serde_json::Value {
        serde_json::from_slice(rotation.document(now).as_bytes()).unwrap()
    }

    #[test]
    fn six_hour_set_is_replaced_an_hour_before_its_end() {
        let mut rotation = Rotation::new(NOW);
        assert!(rotation.is_due(NOW));
        assert_eq!(served(&rotation, NOW)["Code"], "CredentialsPending");
        rotation.fetched(Ok(set("A", NOW + 6 * HOUR)), NOW, 0.0);
        assert!(!rotation.is_due(NOW + 5 * HOUR - 1));
        assert!(rotation.is_due(NOW + 5 * HOUR));
        assert_eq!(served(&rotation, NOW + 5 * HOUR)["AccessKeyId"], "A");
        rotation.fetched(Ok(set("B", NOW + 11 * HOUR)), NOW + 5 * HOUR, 1.0);
        assert_eq!(served(&rotation, NOW + 5 * HOUR)["AccessKeyId"], "B");
        assert_eq!(served(&rotation, NOW + 5 * HOUR)["LastUpdated"], "2023-11-15T03:13:20Z");
        assert_eq!(rotation.next_fetch(), NOW + 10 * HOUR - 360, "six minutes earlier by chance");
        assert_eq!(rotation.rotations(), 2);
    }

    #[test]
    fn old_set_serves_through_failures_until_it_expires() {
        let mut rotation = Rotation::new(NOW);
        rotation.fetched(Ok(set("A", NOW + HOUR)), NOW, 0.0);
        let mut now = rotation.next_fetch();
        assert_eq!(now, NOW + HOUR / 2);
        while now < NOW + HOUR {
            assert_eq!(served(&rotation, now)["AccessKeyId"], "A");
            rotation.fetched(Err(failure()), now, 0.5);
            assert!(rotation.error().is_some(), "visible on the host at once");
            now = rotation.next_fetch();
        }
        assert!(rotation.current(now).is_none());
        assert_eq!(served(&rotation, now)["Code"], "CredentialSourceFailed");
        assert_eq!(served(&rotation, now).get("SecretAccessKey"), None);
        rotation.fetched(Ok(set("B", now + HOUR)), now, 0.0);
        assert_eq!(served(&rotation, now)["AccessKeyId"], "B");
        assert!(rotation.error().is_none());
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let mut rotation = Rotation::new(NOW);
        let mut pauses = Vec::new();
        let mut now = NOW;
        for _ in 0..9 {
            rotation.fetched(Err(failure()), now, 1.0);
            pauses.push(rotation.next_fetch() - now);
            now = rotation.next_fetch();
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(rotation.error().unwrap().1, NOW, "failing since the first");
        assert_eq!(rotation.failures(), 9);
    }

    #[test]
    fn expired_credentials_are_a_failure_that_names_both_clocks() {
        let mut rotation = Rotation::new(NOW);
        rotation.fetched(Ok(set("A", NOW)), NOW, 0.0);
        assert_eq!(served(&rotation, NOW)["Code"], "ExpiredCredentials");
        let text = rotation.error().unwrap().0.to_string();
        assert!(text.contains("expired at 2023-11-14T22:13:20Z, it is 2023-11-14T22:13:20Z"), "{text}");
    }

    #[test]
    fn set_that_did_not_change_keeps_its_date() {
        let mut rotation = Rotation::new(NOW);
        rotation.fetched(Ok(set("A", NOW + 6 * HOUR)), NOW, 0.0);
        rotation.fetched(Ok(set("A", NOW + 6 * HOUR)), NOW + HOUR, 0.0);
        assert_eq!(served(&rotation, NOW + HOUR)["LastUpdated"], "2023-11-14T22:13:20Z");
        assert_eq!(rotation.rotations(), 1);
    }

    proptest! {
        #[test]
        fn any_set_is_replaced_in_time(left in 1..100_000_u64, chance in 0.0..=1.0) {
            let mut rotation = Rotation::new(NOW);
            rotation.fetched(Ok(set("A", NOW + left)), NOW, chance);
            let next = rotation.next_fetch();
            prop_assert!(next <= NOW + left);
            // With what roles may ask for, twenty minutes are never touched.
            if left >= HOUR {
                prop_assert!(next + 1800 <= NOW + left);
                prop_assert!(next > NOW);
            }
        }

        #[test]
        fn any_history_serves_a_good_set_or_a_failure(steps in prop::collection::vec((0..20_000_u64, prop::option::of(0..30_000_u64), 0.0..=1.0), 1..20)) {
            let mut rotation = Rotation::new(NOW);
            let mut now = NOW;
            for (wait, result, chance) in steps {
                rotation.fetched(result.map(|left| set("A", now + left)).ok_or_else(failure), now, chance);
                now += wait;
                let document = served(&rotation, now);
                prop_assert_eq!(document["Code"] == "Success", rotation.current(now).is_some());
            }
        }
    }
}
