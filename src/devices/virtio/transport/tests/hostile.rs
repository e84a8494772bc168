//! Drivers that mean harm.

use proptest::prelude::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{
    INDIRECT, Loopback, NEXT, RawDescriptor, WRITE, hammer_registers, hammer_rings,
    status::DEVICE_NEEDS_RESET,
};

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor { addr, len, flags, next }
}

/// What a chain of these descriptors, made available from descriptor 0, comes back with.
fn used_len(descriptors: &[RawDescriptor], indirect: &[RawDescriptor]) -> Option<(u32, u32)> {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUES);
    machine.mem.write_slice(&[7; 64], GuestAddress(SOURCE)).unwrap();
    (0..).zip(descriptors).for_each(|(i, d)| queues[0].set_descriptor(i, *d));
    (0..).zip(indirect).for_each(|(i, d)| queues[0].set_descriptor_at(0x4000 + 16 * i, *d));
    queues[0].publish(0);
    driver.kick(&machine, 0);
    machine.run();
    let used = queues[0].poll_used();
    assert_eq!(used.is_none(), driver.status(&machine) & DEVICE_NEEDS_RESET != 0);
    // Whatever it was, the next driver is served.
    let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUES);
    echo(&machine, &driver, &mut queues[0], "next");
    used
}

#[test]
fn malformed_chains_come_back_and_never_more_than_they_hold() {
    let read = descriptor(SOURCE, 16, NEXT, 1);
    let far = 0xffff_ffff_ffff_0000;
    for (what, chain, indirect, len) in [
        ("good", vec![read, descriptor(TARGET, 16, WRITE, 0)], vec![], 16),
        ("self loop", vec![descriptor(SOURCE, 4, NEXT, 0)], vec![], 0),
        ("loop", vec![read, descriptor(TARGET, 4, NEXT | WRITE, 0)], vec![], 16),
        ("next out of range", vec![descriptor(SOURCE, 16, NEXT, 8)], vec![], 0),
        ("write outside", vec![read, descriptor(far, 16, WRITE, 0)], vec![], 0),
        ("read outside", vec![descriptor(far, 16, NEXT, 1), descriptor(TARGET, 16, WRITE, 0)], vec![], 0),
        (
            "huge",
            vec![descriptor(SOURCE, u32::MAX, NEXT, 1), descriptor(TARGET, u32::MAX, WRITE, 0)],
            vec![],
            0,
        ),
        ("wrapping", vec![read, descriptor(u64::MAX, 16, WRITE, 0)], vec![], 0),
        ("empty", vec![descriptor(0, 0, 0, 0)], vec![], 0),
        (
            "indirect",
            vec![descriptor(0x4000, 32, INDIRECT, 0)],
            vec![read, descriptor(TARGET, 16, WRITE, 0)],
            16,
        ),
        ("indirect of odd length", vec![descriptor(0x4000, 33, INDIRECT, 0)], vec![read], 0),
        ("indirect outside", vec![descriptor(far, 32, INDIRECT, 0)], vec![], 0),
        ("indirect of all memory", vec![descriptor(0x4000, 0xffff_fff0, INDIRECT, 0)], vec![read], 0),
        (
            "indirect in indirect",
            vec![descriptor(0x4000, 32, INDIRECT, 0)],
            vec![descriptor(0x4000, 32, INDIRECT, 0)],
            0,
        ),
    ] {
        assert_eq!(used_len(&chain, &indirect), Some((0, len)), "{what}");
    }
}

#[test]
fn head_out_of_range_and_jumping_index_break_the_device() {
    for head in [8, 9, 0x7fff, 0xffff] {
        let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
        let (_, mut queues) = driver.start(&machine, 0, QUEUES);
        queues[0].publish(head);
        driver.kick(&machine, 0);
        machine.run();
        assert_ne!(driver.status(&machine) & DEVICE_NEEDS_RESET, 0, "{head}");
        assert_eq!(queues[0].used_idx(), 0);
    }
    for idx in [9, 0x8000, 0xffff] {
        let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
        let (_, mut queues) = driver.start(&machine, 0, QUEUES);
        queues[0].set_avail_idx(idx);
        driver.kick(&machine, 0);
        machine.run();
        assert_ne!(driver.status(&machine) & DEVICE_NEEDS_RESET, 0, "{idx}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_accesses_leave_frozen_registers_and_neighbours_alone(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        hammer_registers(|_| Box::new(Loopback::new("victim", &[8, 4, 256])), &data);
    }

    #[test]
    fn any_rings_are_survived(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        hammer_rings(|_| Box::new(Loopback::new("victim", &[8, 16])), &data);
    }

    #[test]
    fn any_rings_are_survived_by_the_entropy_device(data in prop::collection::vec(any::<u8>(), 0..1024)) {
        hammer_rings(|_| Box::new(Rng::new("victim")), &data);
    }
}
