//! What happens, for whoever wants to follow it: a bounded history and live subscribers.
//!
//! Nothing here waits for a subscriber. One that is slow loses the oldest notices and is told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_model::{ImageId, InstanceId, InstanceState, SnapshotId, VolumeId};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::volumes::{Progress, VolumeState};

/// Notices kept.
const KEPT: usize = 1024;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Counts from 1 since this process began.
    pub sequence: u64,
    /// Unix seconds.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub event: NoticeEvent,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum NoticeEvent {
    /// An instance came into a state.
    InstanceState {
        /// Which.
        instance: InstanceId,
        /// The state.
        state: InstanceState,
        /// Code of the reason, where there is one.
        reason: Option<String>,
    },
    /// A running machine was taken over from an earlier daemon.
    InstanceAdopted {
        /// Whose.
        instance: InstanceId,
    },
    /// A snapshot is there, or failed.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
        /// How far it is.
        progress: Progress,
    },
    /// A volume came into a state.
    Volume {
        /// Which.
        volume: VolumeId,
        /// The state.
        state: VolumeState,
        /// Who has it.
        instance: Option<InstanceId>,
    },
    /// An image is there, or failed.
    Image {
        /// Which.
        image: ImageId,
        /// How far it is.
        progress: Progress,
    },
    /// A role's source gave new credentials.
    Credentials {
        /// For which instance.
        instance: InstanceId,
        /// Name of the role.
        role: String,
        /// Until when they serve, Unix seconds.
        expiration: u64,
    },
    /// A role's source gave no credentials.
    CredentialFailure {
        /// For which instance.
        instance: InstanceId,
        /// Name of the role.
        role: String,
        /// Code that the guest reads.
        code: String,
    },
}

struct Inner {
    next: u64,
    kept: VecDeque<Notice>,
}

/// History and subscribers. Cheap to clone.
#[derive(Clone)]
pub struct Notices {
    inner: Arc<Mutex<Inner>>,
    live: broadcast::Sender<Notice>,
}

impl Default for Notices {
    fn default() -> Self {
        let inner = Inner { next: 1, kept: VecDeque::new() };
        Notices { inner: Arc::new(Mutex::new(inner)), live: broadcast::channel(KEPT).0 }
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").field("next", &self.lock().next).finish_non_exhaustive()
    }
}

impl Notices {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody. `time`: Unix seconds.
    pub fn tell(&self, time: u64, event: NoticeEvent) {
        let mut inner = self.lock();
        let notice = Notice { sequence: inner.next, time, event };
        inner.next += 1;
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(notice.clone());
        // Under the lock, so that subscribers get them in order. Nobody need be there.
        let _ = self.live.send(notice);
    }

    /// What is kept of the notices after number `sequence`, oldest first; 0 for all.
    pub fn since(&self, sequence: u64) -> Vec<Notice> {
        self.lock().kept.iter().filter(|notice| notice.sequence > sequence).cloned().collect()
    }

    /// Notices from now on. A receiver that lags is told how many it has missed.
    pub fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.live.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_bounded_and_subscribers_see_what_comes() {
        let notices = Notices::default();
        let event = |n| NoticeEvent::InstanceAdopted { instance: InstanceId::from_bits(n) };
        let mut live = notices.subscribe();
        for n in 0..2000 {
            notices.tell(n, event(n));
        }
        let kept = notices.since(0);
        assert_eq!((kept.len(), kept[0].sequence, kept[1023].event.clone()), (1024, 977, event(1999)));
        assert_eq!(notices.since(1999).len(), 1);
        assert_eq!(live.try_recv().unwrap_err(), broadcast::error::TryRecvError::Lagged(976));
        assert_eq!(live.try_recv().unwrap().sequence, 977);
    }

    #[test]
    fn notices_are_flat_in_json() {
        let instance = InstanceId::from_bits(1);
        let event = NoticeEvent::InstanceState { instance, state: InstanceState::Running, reason: None };
        let json = serde_json::to_value(Notice { sequence: 1, time: 2, event }).unwrap();
        assert_eq!(json["event"], "instance-state");
        assert_eq!(json["state"], "running");
    }
}
