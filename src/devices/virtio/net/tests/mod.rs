//! The device against a driver over plain memory.

mod hostile;
mod limits;
mod receive;
mod transmit;

use std::time::Instant;

use super::testing::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;

#[test]
fn config_space_has_address_link_pairs_and_mtu() {
    let net = device(FakeBackend::new(4));
    let mut bytes = [0xaa; 16];
    net.read_config(0, &mut bytes);
    assert_eq!(bytes[..12], [2, 0, 10, 0, 0, 5, 1, 0, 4, 0, 0xdc, 5]);
    assert_eq!(bytes[12..], [0xaa; 4], "bytes past the end are not touched");
    let mut mtu = [0; 2];
    net.read_config(10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 1500);
    net.read_config(u64::MAX, &mut mtu);
}

#[test]
fn one_pair_has_two_queues_and_four_pairs_have_nine() {
    assert_eq!(device(FakeBackend::new(1)).queue_max_sizes(), [256, 256]);
    assert_eq!(device(FakeBackend::new(4)).queue_max_sizes().len(), 9);
    assert_eq!(device(FakeBackend::new(100)).queue_max_sizes().len(), 17);
}

#[test]
fn activation_tells_the_backend_what_the_guest_accepts() {
    let rig = Rig::new(FakeBackend::new(1), 0);
    assert_eq!(rig.backend.state().configured, Some(Offloads::all()));
    let rig = Rig::new(FakeBackend::new(1), 1 << features::VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(rig.backend.state().configured, Some(Offloads::empty()));
}

#[test]
fn activation_without_a_transmit_queue_fails() {
    let mem = memory();
    let mut net = device(FakeBackend::new(1));
    let rx = DriverQueue::new(&mem, 0, 256);
    let rig = Rig::new(FakeBackend::new(1), 0);
    let activation =
        Activation { mem, features: 0, queues: vec![rx.virtqueue(0, false)], fault: rig.fault.clone() };
    assert!(matches!(net.activate(activation), Err(ActivateError::MissingQueue(1))));
}

#[test]
fn device_starts_again_after_reset() {
    let mut rig = Rig::new(FakeBackend::new(1), 0);
    rig.send(0x1000, NetHeader::default(), &frame(60));
    rig.run();
    let features = rig.net.features();
    for worker in std::mem::take(&mut rig.workers) {
        worker.drain();
    }
    rig.net.reset();
    rig.new_rings();
    rig.activate(features);
    rig.send(0x1000, NetHeader::default(), &frame(61));
    rig.run();
    assert_eq!(rig.backend.state().sent.len(), 2);
}

mod multi_queue {
    use super::*;

    fn set_pairs(rig: &mut Rig, queue: usize, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        rig.mem.write_slice(&[4, 0, low, high, 0xff], GuestAddress(0x100)).unwrap();
        rig.queues[queue].add(&[(0x100, 2, false), (0x102, 2, false), (0x104, 1, true)]);
        rig.run();
        assert_eq!(rig.queues[queue].take_used().len(), 1);
        rig.read(0x104, 1)[0]
    }

    #[test]
    fn one_pair_is_in_use_until_the_driver_asks_for_more() {
        let mut rig = Rig::new(FakeBackend::new(3), 0);
        assert_eq!(rig.backend.state().active, Some(1));
        assert!(rig.waits_on_backend(0) || rig.workers[0].deadline(Instant::now()).is_none());
        rig.queues[2].add(&[(0x8000, 2048, true)]);
        rig.backend.state().inbox.push_back((NetHeader::default(), frame(60)));
        rig.workers[1].wake(0, Instant::now());
        assert_eq!(rig.queues[2].take_used(), []);

        assert_eq!(set_pairs(&mut rig, 6, 2), 0);
        assert_eq!(rig.backend.state().active, Some(2));
        rig.workers[1].wake(4, Instant::now());
        assert!(!rig.waits_on_backend(2));
        rig.send(0x1000, NetHeader::default(), &frame(60));
        rig.run();
    }

    #[test]
    fn pairs_in_use_outlive_a_pause_but_not_a_reset() {
        let mut rig = Rig::new(FakeBackend::new(3), 0);
        set_pairs(&mut rig, 6, 3);
        let features = rig.net.features() | EVENT_IDX;
        rig.workers.clear();
        rig.new_rings();
        rig.activate(features);
        assert_eq!(rig.backend.state().active, Some(3));
        rig.workers.clear();
        rig.net.reset();
        rig.activate(features);
        assert_eq!(rig.backend.state().active, Some(1));
    }

    #[test]
    fn pair_taken_out_of_use_amid_a_flood_comes_to_rest() {
        let mut rig = Rig::new(FakeBackend::new(2), 0);
        set_pairs(&mut rig, 4, 2);
        for i in 0..256 {
            rig.queues[2].add(&[(0x8000 + 0x800 * i, 2048, true)]);
        }
        let flood = std::iter::repeat_with(|| (NetHeader::default(), frame(60))).take(1000);
        rig.backend.state().inbox.extend(flood);
        rig.workers[1].wake(3, Instant::now());
        assert_eq!(rig.workers[1].deadline(Instant::now()), Some(std::time::Duration::ZERO));
        rig.backend.state().inbox.clear();
        set_pairs(&mut rig, 4, 1);
        assert_eq!(rig.workers[1].deadline(Instant::now()), None);
    }

    #[test]
    fn number_of_pairs_out_of_range_is_refused() {
        let mut rig = Rig::new(FakeBackend::new(3), 0);
        assert_eq!(set_pairs(&mut rig, 6, 0), 1);
        assert_eq!(set_pairs(&mut rig, 6, 4), 1);
        assert_eq!(set_pairs(&mut rig, 6, 3), 0);
        assert_eq!(rig.backend.state().active, Some(3));
    }

    #[test]
    fn control_queue_is_the_third_when_multi_queue_is_not_negotiated() {
        let mut rig = Rig::new(FakeBackend::new(3), 1 << features::VIRTIO_NET_F_MQ);
        assert_eq!(rig.workers.len(), 1);
        assert_eq!(set_pairs(&mut rig, 2, 1), 0);
        assert_eq!(set_pairs(&mut rig, 2, 2), 1);
    }

    #[test]
    fn unknown_commands_are_refused() {
        let mut rig = Rig::new(FakeBackend::new(2), 0);
        for (bytes, len) in [([0u8; 40], 2u32), ([9; 40], 4), ([4; 40], 40), ([0; 40], 1)] {
            rig.mem.write_slice(&bytes, GuestAddress(0x100)).unwrap();
            rig.mem.write_slice(&[0xff], GuestAddress(0x200)).unwrap();
            rig.queues[4].add(&[(0x100, len, false), (0x200, 1, true)]);
            rig.run();
            assert_eq!(rig.read(0x200, 1), [1]);
        }
        assert_eq!(rig.counter("control_commands"), 4);
        assert!(!rig.needs_reset());
    }

    #[test]
    fn frames_on_a_pair_out_of_use_are_dropped() {
        let mut rig = Rig::new(FakeBackend::new(2), 0);
        rig.mem.write_slice(&[0; 100], GuestAddress(0x1000)).unwrap();
        rig.queues[3].add(&[(0x1000, 72, false)]);
        rig.run();
        assert_eq!(rig.queues[3].take_used().len(), 1);
        assert_eq!(rig.counter("tx_dropped"), 1);
        assert!(rig.backend.state().sent.is_empty());
    }
}
