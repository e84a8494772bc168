//! Drivers that break the rules: the device asks for a reset or answers with an error; it never
//! panics, hangs or touches memory that is not the guest's.

use super::driver::{DATA, Driver, INDIRECT, INDIRECT_TABLE, MEM_SIZE, NEXT, SIZE, WRITE};
use super::*;

/// Builds with `build`, offers descriptor 0, and expects NEEDS_RESET.
fn breaks(build: impl FnOnce(&Driver)) {
    let mut driver = driver();
    driver.put_header(0, VIRTIO_BLK_T_IN, 0);
    build(&driver);
    driver.offer(0);
    driver.notify();
    driver.run();
    assert!(driver.broken());
    assert_eq!(driver.used(), []);
    assert_eq!(driver.counter("malformed"), 1);

    // From now on the queue is dead, but quiet.
    driver.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used(), []);
    driver.drain();
}

fn header(driver: &Driver) -> u64 {
    driver.status_addr(0) - 0x3ff
}

#[test]
fn a_chain_that_loops() {
    breaks(|driver| {
        driver.put_descriptor(0, header(driver), 16, NEXT, 1);
        driver.put_descriptor(1, DATA, 512, NEXT | WRITE, 1);
    });
}

#[test]
fn a_link_out_of_the_table() {
    breaks(|driver| driver.put_descriptor(0, header(driver), 16, NEXT, SIZE));
}

#[test]
fn a_chain_longer_than_its_bytes_may_be() {
    breaks(|driver| {
        driver.put_descriptor(0, header(driver), 16, NEXT, 1);
        driver.put_descriptor(1, DATA, u32::MAX, NEXT | WRITE, 2);
        driver.put_descriptor(2, driver.status_addr(0), 1, WRITE, 0);
    });
}

#[test]
fn readable_after_writable() {
    breaks(|driver| {
        driver.put_descriptor(0, DATA, 512, NEXT | WRITE, 1);
        driver.put_descriptor(1, header(driver), 16, 0, 0);
    });
}

#[test]
fn an_indirect_table_inside_an_indirect_table() {
    breaks(|driver| {
        driver.put_descriptor_at(INDIRECT, 0, INDIRECT, 32, INDIRECT_TABLE, 0);
        driver.put_descriptor(0, INDIRECT, 32, INDIRECT_TABLE, 0);
    });
}

#[test]
fn an_indirect_table_of_odd_length_or_none_or_elsewhere() {
    breaks(|driver| driver.put_descriptor(0, INDIRECT, 17, INDIRECT_TABLE, 0));
    breaks(|driver| driver.put_descriptor(0, INDIRECT, 0, INDIRECT_TABLE, 0));
    breaks(|driver| driver.put_descriptor(0, MEM_SIZE, 64, INDIRECT_TABLE, 0));
}

#[test]
fn an_indirect_table_longer_than_any_queue() {
    breaks(|driver| {
        for i in 0..=SIZE {
            driver.put_descriptor_at(INDIRECT, i, DATA, 1, NEXT | WRITE, i + 1);
        }
        driver.put_descriptor_at(INDIRECT, SIZE + 1, DATA, 1, WRITE, 0);
        driver.put_descriptor(0, INDIRECT, 16 * (u32::from(SIZE) + 2), INDIRECT_TABLE, 0);
    });
}

#[test]
fn a_head_outside_the_table() {
    let mut driver = driver();
    driver.offer(SIZE);
    driver.notify();
    driver.run();
    assert!(driver.broken());
}

#[test]
fn an_available_index_that_jumps() {
    let mut driver = driver();
    driver.set_available_index(SIZE + 1);
    driver.notify();
    driver.run_until(Driver::broken);
    assert!(driver.broken());
}

#[test]
fn a_chain_without_room_for_a_status_is_given_back_empty() {
    let mut driver = driver();
    let header = driver.put_header(0, VIRTIO_BLK_T_FLUSH, 0);
    driver.put_descriptor(0, header, 16, 0, 0);
    driver.offer(0);
    driver.notify();
    driver.run();
    let used = driver.used();
    assert_eq!((used[0].head, used[0].len), (0, 0));
    assert!(!driver.broken());
    assert_eq!(driver.counter("malformed"), 1);
}

#[test]
fn a_status_outside_guest_memory_is_given_back_empty() {
    let mut driver = driver();
    let header = driver.put_header(0, VIRTIO_BLK_T_FLUSH, 0);
    driver.put_descriptor(0, header, 16, NEXT, 1);
    driver.put_descriptor(1, MEM_SIZE, 1, WRITE, 0);
    driver.offer(0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used()[0].len, 0);
    assert!(!driver.broken());
}

#[test]
fn a_short_header_is_an_error() {
    let mut driver = driver();
    let header = driver.put_header(0, VIRTIO_BLK_T_FLUSH, 0);
    driver.put_descriptor(0, header, 15, NEXT, 1);
    driver.put_descriptor(1, driver.status_addr(0), 1, WRITE, 0);
    driver.offer(0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used(), [Used { head: 0, len: 1, status: IOERR }]);
}

#[test]
fn one_head_offered_many_times_is_served_each_time() {
    let mut driver = driver();
    driver.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)], 0);
    for _ in 1..SIZE {
        driver.offer(0);
    }
    driver.notify();
    driver.run();
    assert_eq!(driver.used().len(), usize::from(SIZE));
}

#[test]
fn a_full_ring_is_served_without_starving_the_rest() {
    let mut driver = driver();
    driver.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
    for _ in 1..SIZE {
        driver.offer(0);
    }
    driver.notify();
    driver.run_until(|_| false);
    assert_eq!(driver.used().len(), usize::from(SIZE));
}
