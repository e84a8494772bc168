//! Rate limits.

use std::time::{Duration, Instant};

use kiln_disk::throttle::{Rate, Throttle};

use super::super::testing::*;
use super::super::*;
use crate::virtio::DEADLINE;

/// A clock never stands exactly at a deadline.
const TICK: Duration = Duration::from_micros(1);

fn five_at_once() -> Option<Throttle> {
    Some(Throttle::new(Some(Rate { per_second: 100, burst: 5 }), None))
}

fn rig(tx: Option<Throttle>, rx: Option<Throttle>) -> Rig {
    let backend = FakeBackend::new(1);
    let net = device(backend.clone()).with_limits(tx, rx);
    Rig::around(net, backend, 0, 256)
}

#[test]
fn frames_from_the_guest_wait_in_its_ring() {
    let mut rig = rig(five_at_once(), None);
    for _ in 0..8 {
        rig.send(0x1000, NetHeader::default(), &frame(60));
    }
    let mut now = Instant::now();
    rig.workers[0].wake(1, now);
    assert_eq!(rig.queues[1].take_used().len(), 5);
    for _ in 0..3 {
        let wait = rig.workers[0].deadline(now).unwrap();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(11), "{wait:?}");
        rig.workers[0].wake(1, now);
        assert_eq!(rig.queues[1].take_used().len(), 0, "a notification does not help");
        now += wait + TICK;
        rig.workers[0].wake(DEADLINE, now);
        assert_eq!(rig.queues[1].take_used().len(), 1);
    }
    assert_eq!(rig.workers[0].deadline(now), None);
    assert_eq!(rig.backend.state().sent.len(), 8);
}

#[test]
fn frames_to_the_guest_wait_with_the_backend() {
    let mut rig = rig(None, five_at_once());
    for i in 0..64 {
        rig.queues[0].add(&[(0x8000 + 0x1000 * i, 2048, true)]);
    }
    let frames = std::iter::repeat_with(|| (NetHeader::default(), frame(60))).take(10);
    rig.backend.state().inbox.extend(frames);
    let mut now = Instant::now();
    rig.workers[0].wake(3, now);
    let first = rig.queues[0].take_used().len();
    assert_eq!(first, 6, "a frame is charged after it has passed");
    assert!(!rig.waits_on_backend(0), "a readable tap must not spin the loop");
    for _ in first..10 {
        now += rig.workers[0].deadline(now).unwrap() + TICK;
        rig.workers[0].wake(DEADLINE, now);
        assert_eq!(rig.queues[0].take_used().len(), 1);
    }
    now += Duration::from_secs(1);
    rig.workers[0].wake(DEADLINE, now);
    assert!(rig.waits_on_backend(0));
    assert_eq!(rig.counter("rx_dropped"), 0);
}
