//! Drivers that break the rules.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::*;
use super::super::*;

/// The device must declare itself broken, stop waiting, and stay quiet.
fn assert_needs_reset(rig: &mut Rig) {
    rig.run();
    assert!(rig.needs_reset());
    assert!(rig.workers[0].wake_sources().is_empty());
    assert_eq!(rig.workers[0].deadline(std::time::Instant::now()), None);
    assert!(rig.fault.config_interrupt.read().is_ok());
}

fn rig() -> Rig {
    Rig::new(FakeBackend::new(1), 0)
}

#[test]
fn chain_that_loops_needs_reset() {
    let mut rig = rig();
    let queue = &mut rig.queues[1];
    queue.write_desc(queue.base, 0, (0x1000, 100, VIRTQ_DESC_F_NEXT, 1));
    queue.write_desc(queue.base, 1, (0x1000, 100, VIRTQ_DESC_F_NEXT, 0));
    queue.push_head(0);
    assert_needs_reset(&mut rig);
}

#[test]
fn link_outside_the_table_needs_reset() {
    let mut rig = rig();
    let queue = &mut rig.queues[1];
    queue.write_desc(queue.base, 0, (0x1000, 100, VIRTQ_DESC_F_NEXT, 256));
    queue.push_head(0);
    assert_needs_reset(&mut rig);
}

#[test]
fn head_outside_the_table_needs_reset() {
    let mut rig = rig();
    rig.queues[1].push_head(256);
    assert_needs_reset(&mut rig);
}

#[test]
fn available_index_beyond_the_queue_needs_reset() {
    let mut rig = rig();
    rig.mem.write_obj(300u16, GuestAddress(rig.queues[1].avail() + 2)).unwrap();
    assert_needs_reset(&mut rig);
}

#[test]
fn buffer_outside_memory_needs_reset() {
    for (addr, len) in [(0xffff_ffff_ffff_fff0, 0x100), (MEM_SIZE as u64, 1), (MEM_SIZE as u64 - 1, 2)] {
        let mut rig = rig();
        rig.queues[1].add(&[(addr, len, false)]);
        assert_needs_reset(&mut rig);
        let mut rig = self::rig();
        rig.queues[0].add(&[(addr, len, true)]);
        assert_needs_reset(&mut rig);
    }
}

#[test]
fn wrong_direction_needs_reset() {
    let mut rig = rig();
    rig.queues[1].add(&[(0x1000, 100, false), (0x2000, 100, true)]);
    assert_needs_reset(&mut rig);
    let mut rig = self::rig();
    rig.queues[0].add(&[(0x1000, 2000, false)]);
    assert_needs_reset(&mut rig);
}

#[test]
fn receive_buffer_without_room_for_the_header_needs_reset() {
    for len in [0, 11] {
        let mut rig = rig();
        rig.queues[0].add(&[(0x1000, len, true)]);
        assert_needs_reset(&mut rig);
    }
}

#[test]
fn indirect_table_longer_than_the_queue_needs_reset() {
    let mut rig = rig();
    let queue = &mut rig.queues[1];
    for slot in 0..257 {
        queue.write_desc(0x10_0000, slot, (0x1000, 1, VIRTQ_DESC_F_NEXT, slot + 1));
    }
    queue.write_desc(queue.base, 0, (0x10_0000, 16 * 400, VIRTQ_DESC_F_INDIRECT, 0));
    queue.push_head(0);
    assert_needs_reset(&mut rig);
}

#[test]
fn indirect_table_inside_an_indirect_table_needs_reset() {
    let mut rig = rig();
    let queue = &mut rig.queues[1];
    queue.write_desc(0x10_0000, 0, (0x10_0000, 16, VIRTQ_DESC_F_INDIRECT, 0));
    queue.write_desc(queue.base, 0, (0x10_0000, 16, VIRTQ_DESC_F_INDIRECT, 0));
    queue.push_head(0);
    assert_needs_reset(&mut rig);
}

#[test]
fn receive_buffers_of_one_byte_pieces_are_bounded() {
    let mut rig = rig();
    // Each of 256 chains has an indirect table of 256 buffers of one byte: 65536 in all.
    for slot in 0..256 {
        rig.queues[0].write_desc(0x10_0000, slot, (0x1000, 1, 3, slot + 1));
    }
    rig.queues[0].write_desc(0x10_0000, 255, (0x1000, 1, 2, 0));
    for slot in 0..256 {
        let base = rig.queues[0].base;
        rig.queues[0].write_desc(base, slot, (0x10_0000, 16 * 256, VIRTQ_DESC_F_INDIRECT, 0));
        rig.queues[0].push_head(slot);
    }
    rig.backend.state().inbox.push_back((NetHeader::default(), frame(900)));
    rig.backend.state().inbox.push_back((NetHeader::default(), frame(3000)));
    rig.run();
    assert_eq!(rig.counter("rx_packets"), 1);
    assert_eq!(rig.counter("rx_dropped"), 1);
    assert!(!rig.needs_reset());
}

#[test]
fn control_command_after_its_answer_needs_reset() {
    let mut rig = Rig::new(FakeBackend::new(2), 0);
    rig.queues[4].add(&[(0x1000, 1, true), (0x1000, 4, false)]);
    assert_needs_reset(&mut rig);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn transmit_survives_any_chain(input in proptest::collection::vec(any::<u8>(), 0..1000)) {
        fuzz_transmit(&input);
    }

    #[test]
    fn receive_survives_any_buffers(input in proptest::collection::vec(any::<u8>(), 0..1000)) {
        fuzz_receive(&input);
    }

    #[test]
    fn scattered_frames_arrive_whole(
        len in 14usize..9000,
        cuts in proptest::collection::vec(1usize..3000, 1..40),
        extra in 0u16..60,
    ) {
        let mut rig = rig();
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend(frame(len));
        rig.mem.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let mut buffers = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain(std::iter::once(bytes.len())) {
            let n = cut.min(bytes.len() - at);
            buffers.push((0x1000 + u64::try_from(at).unwrap(), u32::try_from(n).unwrap(), false));
            at += n;
        }
        rig.queues[1].add(&buffers);
        for i in 0..u64::from(extra) {
            rig.queues[0].add(&[(0x10_0000 + 0x1000 * i, 200, true)]);
        }
        rig.backend.state().inbox.push_back((NetHeader::default(), frame(len)));
        rig.run();
        prop_assert_eq!(&rig.backend.state().sent[0].2, &frame(len));
        let used: u32 = rig.queues[0].take_used().iter().map(|(_, len)| len).sum();
        let fits = usize::from(extra) * 200 >= len + HEADER_LEN;
        let expected = if fits { u32::try_from(len + HEADER_LEN).unwrap() } else { 0 };
        prop_assert_eq!(used, expected);
        prop_assert!(!rig.needs_reset());
    }
}
