//! Frames to the guest.

use std::time::{Duration, Instant};

use super::super::testing::*;
use super::super::*;

const NO_SEGMENTATION: u64 = (1 << features::VIRTIO_NET_F_GUEST_TSO4)
    | (1 << features::VIRTIO_NET_F_GUEST_TSO6)
    | (1 << features::VIRTIO_NET_F_GUEST_ECN)
    | (1 << features::VIRTIO_NET_F_GUEST_USO4)
    | (1 << features::VIRTIO_NET_F_GUEST_USO6);
const NO_MERGE: u64 = 1 << features::VIRTIO_NET_F_MRG_RXBUF;

fn deliver(rig: &mut Rig, header: NetHeader, len: usize) {
    rig.backend.state().inbox.push_back((header, frame(len)));
    rig.run();
}

/// Header and frame gathered from the used buffers, each of which starts at `base + stride * head`.
fn gathered(rig: &mut Rig, base: u64, stride: u64) -> (NetHeader, Vec<u8>) {
    let mut bytes = Vec::new();
    for (head, len) in rig.queues[0].take_used() {
        bytes.extend(rig.read(base + stride * u64::from(head), usize::try_from(len).unwrap()));
    }
    let (header, frame) = bytes.split_first_chunk().unwrap();
    (NetHeader::from_bytes(*header), frame.to_vec())
}

#[test]
fn small_frame_fills_one_buffer() {
    let mut rig = Rig::new(FakeBackend::new(1), NO_SEGMENTATION);
    for i in 0..4 {
        rig.queues[0].add(&[(0x8000 + 0x1000 * i, 1536, true)]);
    }
    deliver(&mut rig, NetHeader::default(), 60);
    let (header, bytes) = gathered(&mut rig, 0x8000, 0x1000);
    assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
    assert_eq!(bytes, frame(60));
    assert_eq!(rig.counter("rx_packets"), 1);
    assert_eq!(rig.counter("rx_bytes"), 60);
}

#[test]
fn long_frame_is_merged_over_buffers_and_published_at_once() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    for i in 0..64 {
        rig.queues[0].add(&[(0x8000 + 0x1000 * i, 1536, true)]);
    }
    let offloaded = NetHeader { flags: 1, gso_type: 1, gso_size: 1448, ..NetHeader::default() };
    deliver(&mut rig, offloaded, 65_000);
    let (header, bytes) = gathered(&mut rig, 0x8000, 0x1000);
    assert_eq!(header, NetHeader { num_buffers: 43, ..offloaded });
    assert_eq!(bytes, frame(65_000));
    assert_eq!(rig.queues[0].interrupts(), 1);
}

#[test]
fn small_frames_arrive_while_buffers_would_not_hold_the_longest() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[0].add(&[(0x8000, 1536, true)]);
    deliver(&mut rig, NetHeader::default(), 60);
    assert_eq!(gathered(&mut rig, 0x8000, 0).1, frame(60));
}

#[test]
fn frame_waits_until_there_are_enough_buffers() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[0].add(&[(0x8000, 1536, true)]);
    rig.run();
    assert!(rig.waits_on_backend(0));
    deliver(&mut rig, NetHeader::default(), 3000);
    assert_eq!(rig.queues[0].take_used(), []);
    assert!(!rig.waits_on_backend(0), "a readable tap must not spin the loop");
    assert_eq!(rig.workers[0].deadline(Instant::now()), None);
    rig.queues[0].add(&[(0x9000, 1536, true)]);
    rig.run();
    assert!(!rig.waits_on_backend(0));
    rig.queues[0].add(&[(0xa000, 1536, true)]);
    rig.run();
    assert_eq!(gathered(&mut rig, 0x8000, 0x1000).1, frame(3000));
    assert!(!rig.needs_reset());
}

#[test]
fn frame_that_can_never_fit_is_dropped() {
    let mut rig = Rig::with_size(FakeBackend::new(1), 0, 4);
    for i in 0..4 {
        rig.queues[0].add(&[(0x8000 + 0x1000 * i, 1536, true)]);
    }
    deliver(&mut rig, NetHeader::default(), 10_000);
    assert_eq!(rig.counter("rx_dropped"), 1);
    deliver(&mut rig, NetHeader::default(), 60);
    assert_eq!(gathered(&mut rig, 0x8000, 0x1000).1, frame(60));
}

#[test]
fn unmerged_frame_must_fit_its_chain() {
    let mut rig = Rig::new(FakeBackend::new(1), NO_MERGE | NO_SEGMENTATION);
    rig.queues[0].add(&[(0x8000, 12, true), (0x9000, 1000, true), (0xa000, 518, true)]);
    deliver(&mut rig, NetHeader::default(), 1519);
    assert_eq!(rig.counter("rx_dropped"), 1);
    assert_eq!(rig.queues[0].take_used(), []);
    deliver(&mut rig, NetHeader::default(), 1518);
    assert_eq!(rig.queues[0].take_used(), [(0, 1530)]);
    assert_eq!(rig.read(0x9000, 1000), frame(1518)[..1000]);
    assert_eq!(rig.read(0xa000, 518), frame(1518)[1000..]);
    assert_eq!(NetHeader::from_bytes(rig.read(0x8000, 12).try_into().unwrap()).num_buffers, 1);
}

#[test]
fn header_may_span_descriptors() {
    let mut rig = Rig::new(FakeBackend::new(1), NO_MERGE | NO_SEGMENTATION);
    rig.queues[0].add(&[(0x8000, 5, true), (0x8100, 3, true), (0x8200, 100, true)]);
    deliver(&mut rig, NetHeader::default(), 60);
    assert_eq!(rig.queues[0].take_used(), [(0, 72)]);
    assert_eq!(rig.read(0x8200, 4), [0, 0, 1, 0]);
    assert_eq!(rig.read(0x8204, 60), frame(60));
}

#[test]
fn backend_is_not_watched_without_buffers() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    assert!(!rig.waits_on_backend(0));
    rig.backend.state().inbox.push_back((NetHeader::default(), frame(60)));
    rig.run();
    assert_eq!(rig.backend.state().inbox.len(), 1);
    assert_eq!(rig.counter("rx_dropped"), 0);
    rig.queues[0].add(&[(0x8000, 2048, true)]);
    rig.run();
    assert_eq!(gathered(&mut rig, 0x8000, 0).1, frame(60));
    assert!(!rig.waits_on_backend(0));
}

#[test]
fn backend_that_went_away_is_not_watched() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[0].add(&[(0x8000, 2048, true)]);
    rig.run();
    assert!(rig.waits_on_backend(0));
    rig.backend.state().gone = true;
    rig.run();
    assert!(!rig.waits_on_backend(0));
}

#[test]
fn flood_is_taken_in_bounded_steps() {
    let mut rig = Rig::new(FakeBackend::new(1), NO_SEGMENTATION);
    for i in 0..256 {
        rig.queues[0].add(&[(0x8000 + 0x800 * i, 2048, true)]);
    }
    let frames = std::iter::repeat_with(|| (NetHeader::default(), frame(60))).take(300);
    rig.backend.state().inbox.extend(frames);
    rig.workers[0].wake(3, Instant::now());
    assert_eq!(rig.queues[0].take_used().len(), 256);
    assert_eq!(rig.workers[0].deadline(Instant::now()), Some(Duration::ZERO));
}

#[test]
fn unused_buffers_are_handed_back_when_stopped() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    for i in 0..10 {
        rig.queues[0].add(&[(0x8000 + 0x1000 * i, 2048, true)]);
    }
    deliver(&mut rig, NetHeader::default(), 5000);
    assert_eq!(rig.queues[0].take_used().len(), 3);
    let states = rig.workers.remove(0).drain();
    let (index, rx) = &states[0];
    assert_eq!((*index, rx.next_avail, rx.next_used), (0, 3, 3));
}
