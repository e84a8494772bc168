//! Frames from the guest.

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::*;
use super::super::*;

#[test]
fn frame_in_one_buffer_arrives_whole() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    for len in [14, 60, FRAME_HEAD, FRAME_HEAD + 1, 1514] {
        let head = rig.send(0x1000, NetHeader::default(), &frame(len));
        rig.run();
        assert_eq!(rig.queues[1].take_used(), [(u32::from(head), 0)]);
        assert_eq!(rig.backend.state().sent.pop().unwrap(), (0, NetHeader::default(), frame(len)));
    }
    assert_eq!(rig.counter("tx_packets"), 5);
    assert_eq!(rig.counter("tx_bytes"), 14 + 60 + 138 + 139 + 1514);
}

#[test]
fn frame_scattered_over_odd_buffers_arrives_whole() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    let mut bytes = NetHeader::default().to_bytes().to_vec();
    bytes.extend(frame(3000));
    let mut buffers = Vec::new();
    let mut at = 0;
    for len in [5usize, 1, 6, 0, 3, 130, 7, 2000, 860] {
        let addr = 0x1000 + 0x1000 * u64::try_from(buffers.len()).unwrap();
        rig.mem.write_slice(&bytes[at..at + len], GuestAddress(addr)).unwrap();
        buffers.push((addr, u32::try_from(len).unwrap(), false));
        at += len;
    }
    assert_eq!(at, bytes.len());
    rig.queues[1].add(&buffers);
    rig.run();
    assert_eq!(rig.backend.state().sent[0].2, frame(3000));
}

#[test]
fn frame_in_an_indirect_table_arrives_whole() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.mem.write_slice(&[0; 12], GuestAddress(0x1000)).unwrap();
    rig.mem.write_slice(&frame(500), GuestAddress(0x2000)).unwrap();
    let queue = &mut rig.queues[1];
    queue.write_desc(0x9000, 0, (0x1000, 12, VIRTQ_DESC_F_NEXT, 1));
    queue.write_desc(0x9000, 1, (0x2000, 500, 0, 0));
    queue.write_desc(queue.base, 0, (0x9000, 32, VIRTQ_DESC_F_INDIRECT, 0));
    queue.push_head(0);
    rig.run();
    assert_eq!(rig.backend.state().sent[0].2, frame(500));
}

#[test]
fn guest_that_rewrites_headers_after_the_copy_is_not_followed() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.backend.state().rewrite = Some((rig.mem.clone(), 0x1000));
    rig.send(0x1000, NetHeader::default(), &frame(100));
    rig.run();
    assert_eq!(rig.backend.state().sent[0].2, frame(100));
}

#[test]
fn bad_headers_are_counted_and_the_buffer_returned() {
    let mut rig = Rig::new(FakeBackend::new(1), 1 << features::VIRTIO_NET_F_HOST_TSO4);
    let tso = NetHeader {
        flags: 1,
        gso_type: 1,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    rig.send(0x1000, tso, &frame(3000));
    rig.send(0x3000, NetHeader { flags: 1, csum_start: 60, ..NetHeader::default() }, &frame(60));
    rig.send(0x4000, NetHeader::default(), &frame(13));
    rig.queues[1].add(&[(0x5000, 11, false)]);
    rig.run();
    assert_eq!(rig.queues[1].take_used().len(), 4);
    assert_eq!(rig.counter("tx_malformed"), 4);
    assert_eq!(rig.counter("tx_packets"), 0);
    assert!(!rig.needs_reset());
}

#[test]
fn frame_longer_than_any_packet_is_dropped() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[1].add(&[(0x1000, u32::try_from(HEADER_LEN + MAX_FRAME + 1).unwrap(), false)]);
    rig.queues[1].add(&[(0x1000, u32::try_from(HEADER_LEN + MAX_FRAME).unwrap(), false)]);
    rig.run();
    assert_eq!(rig.counter("tx_malformed"), 1);
    assert_eq!(rig.backend.state().sent.len(), 1);
}

#[test]
fn frame_that_the_host_refuses_is_lost_and_counted() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.backend.state().drop_all = true;
    rig.send(0x1000, NetHeader::default(), &frame(60));
    rig.run();
    assert_eq!(rig.queues[1].take_used().len(), 1);
    assert_eq!(rig.counter("tx_dropped"), 1);
    assert_eq!(rig.counter("tx_packets"), 0);
}

#[test]
fn reply_of_a_service_comes_back_on_the_same_pair_at_once() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.backend.state().echo = true;
    rig.queues[0].add(&[(0x8000, 2048, true)]);
    rig.send(0x1000, NetHeader::default(), &frame(60));
    rig.workers[0].wake(1, std::time::Instant::now());
    assert_eq!(rig.queues[0].take_used(), [(0, 72)]);
    assert_eq!(rig.read(0x8000 + 12, 60), frame(60));
    assert_eq!((rig.counter("tx_local"), rig.counter("rx_local")), (1, 1));
}

#[test]
fn batch_raises_one_interrupt() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[1].interrupts();
    for i in 0..100 {
        rig.send(0x1000 + 0x100 * i, NetHeader::default(), &frame(60));
    }
    rig.workers[0].wake(1, std::time::Instant::now());
    assert_eq!(rig.queues[1].take_used().len(), 100);
    assert_eq!(rig.queues[1].interrupts(), 1);
}

#[test]
fn interrupt_waits_for_the_event_index() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.queues[1].set_used_event(2);
    for expected in [0, 0, 1, 0] {
        rig.send(0x1000, NetHeader::default(), &frame(60));
        rig.run();
        assert_eq!(rig.queues[1].interrupts(), expected);
    }
}

#[test]
fn without_event_index_the_no_interrupt_flag_is_honoured() {
    let mut rig = Rig::new(FakeBackend::new(1), EVENT_IDX);
    rig.mem.write_obj(1u16, GuestAddress(rig.queues[1].avail())).unwrap();
    rig.send(0x1000, NetHeader::default(), &frame(60));
    rig.run();
    assert_eq!(rig.queues[1].interrupts(), 0);
    rig.mem.write_obj(0u16, GuestAddress(rig.queues[1].avail())).unwrap();
    rig.send(0x1000, NetHeader::default(), &frame(60));
    rig.run();
    assert_eq!(rig.queues[1].interrupts(), 1);
}

#[test]
fn device_asks_for_notification_from_where_it_stopped() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    for n in 1..4 {
        rig.send(0x1000, NetHeader::default(), &frame(60));
        rig.run();
        assert_eq!(rig.queues[1].avail_event(), n);
    }
}

#[test]
fn full_ring_is_drained_in_bounded_steps() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    for _ in 0..256 {
        rig.send(0x1000, NetHeader::default(), &frame(60));
    }
    rig.workers[0].wake(1, std::time::Instant::now());
    assert_eq!(rig.queues[1].take_used().len(), 256);
    assert_eq!(rig.workers[0].deadline(std::time::Instant::now()), Some(std::time::Duration::ZERO));
    rig.run();
    assert_eq!(rig.workers[0].deadline(std::time::Instant::now()), None);
}
