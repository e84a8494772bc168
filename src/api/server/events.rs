//! What happens, a line of JSON each, for whoever follows.
//!
//! ```text
//!   notices ─ history ─┐
//!           ─ live ────┴▶ one stream per reader, pulled as its socket takes it ─▶ lines
//! ```
//! Nothing waits for a reader, and none makes a buffer grow: all share the bounded ring of the notices.
//! One that falls behind it is told how many it has missed, as its last line.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::Response;
use futures_util::stream;
use kiln_controlplane::instances::{Notice, Notices};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::http::answer;
use crate::query::parse;

/// Readers at one time.
const MAX_READERS: usize = 32;

/// Where readers come to.
#[derive(Clone)]
pub(super) struct Events {
    notices: Notices,
    stopped: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

impl Events {
    /// Tells `notices` until `stopped` says true.
    pub(super) fn new(notices: Notices, stopped: watch::Receiver<bool>) -> Self {
        Events { notices, stopped, places: Arc::new(Semaphore::new(MAX_READERS)) }
    }

    /// Lines after number `since`, or from now on.
    fn reader(&self, since: Option<u64>, place: OwnedSemaphorePermit) -> Reader {
        // Before looking at the past, so that nothing falls between the two.
        let live = self.notices.subscribe();
        let past: VecDeque<Notice> = since.map(|since| self.notices.since(since).into()).unwrap_or_default();
        let told = past.back().map_or(0, |notice| notice.sequence);
        Reader { past, told, live: Some(live), stopped: self.stopped.clone(), _place: place }
    }
}

/// One who follows.
struct Reader {
    past: VecDeque<Notice>,
    /// Number of the last notice of the past.
    told: u64,
    /// `None` after the last line.
    live: Option<Receiver<Notice>>,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    /// The next line with its end; `None`: that was all.
    async fn next(&mut self) -> Option<String> {
        if let Some(notice) = self.past.pop_front() {
            return line(&notice);
        }
        let live = self.live.as_mut()?;
        loop {
            let received = tokio::select! {
                received = live.recv() => received,
                // An error means that the server has gone, which is an end too.
                _ = self.stopped.wait_for(|stopped| *stopped) => return None,
            };
            match received {
                Ok(notice) if notice.sequence <= self.told => {}
                Ok(notice) => return line(&notice),
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(missed)) => {
                    self.live = None;
                    return Some(format!("{{\"event\":\"missed\",\"count\":{missed}}}\n"));
                }
            }
        }
    }
}

fn line(notice: &Notice) -> Option<String> {
    // Plain data: it can be written.
    serde_json::to_string(notice).ok().map(|text| text + "\n")
}

/// `GET /events?since=N`.
pub(super) async fn follow(State(events): State<Events>, RawQuery(query): RawQuery) -> Response<Body> {
    let parameters = parse(&query.unwrap_or_default()).unwrap_or_default();
    let since = parameters.iter().find(|(name, _)| name == "since").map(|(_, value)| value.parse());
    let Ok(since) = since.transpose() else {
        return answer(400, "text/plain", "since is the number of an event\n".to_owned());
    };
    let Ok(place) = Arc::clone(&events.places).try_acquire_owned() else {
        return answer(503, "text/plain", format!("{MAX_READERS} follow already\n"));
    };
    let lines = stream::unfold(events.reader(since, place), |mut reader| async {
        let line = reader.next().await?;
        Some((Ok::<_, Infallible>(line), reader))
    });
    let mut response = answer(200, "application/jsonl", String::new());
    *response.body_mut() = Body::from_stream(lines);
    response
}

#[cfg(test)]
mod tests {
    use kiln_controlplane::instances::NoticeEvent;
    use kiln_model::InstanceId;

    use super::*;

    fn events() -> (Events, watch::Sender<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Events::new(Notices::default(), stopped), stop)
    }

    fn tell(events: &Events, count: u64) {
        for n in 0..count {
            events.notices.tell(n, NoticeEvent::InstanceAdopted { instance: InstanceId::from_bits(n) });
        }
    }

    fn reader(events: &Events, since: Option<u64>) -> Reader {
        events.reader(since, Arc::clone(&events.places).try_acquire_owned().unwrap())
    }

    fn number(line: Option<String>) -> Option<u64> {
        let value: serde_json::Value = serde_json::from_str(&line?).unwrap();
        value["sequence"].as_u64()
    }

    #[tokio::test]
    async fn past_and_present_join_without_gap_or_repetition() {
        let (events, stop) = events();
        tell(&events, 3);
        let mut reader = reader(&events, Some(1));
        tell(&events, 2);
        for expected in [2, 3, 4, 5] {
            assert_eq!(number(reader.next().await), Some(expected));
        }
        stop.send(true).unwrap();
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn reader_that_falls_behind_is_told_and_dropped() {
        let (events, _stop) = events();
        let mut slow = reader(&events, None);
        tell(&events, 3000);
        let last = slow.next().await.unwrap();
        let value: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&value["event"], &value["count"]), (&"missed".into(), &(3000 - 1024).into()));
        assert_eq!(slow.next().await, None);
    }

    #[tokio::test]
    async fn only_so_many_may_follow() {
        let (events, _stop) = events();
        let all: Vec<_> = (0..MAX_READERS).map(|_| reader(&events, None)).collect();
        let refused = follow(State(events.clone()), RawQuery(None)).await;
        assert_eq!(refused.status(), 503);
        drop(all);
        assert_eq!(follow(State(events.clone()), RawQuery(Some("since=0".into()))).await.status(), 200);
        assert_eq!(follow(State(events), RawQuery(Some("since=x".into()))).await.status(), 400);
    }
}
