//! The device under a driver that follows the rules, and under one that does not.

mod driver;
mod hostile;
mod model;

use std::time::Instant;

use kiln_disk::throttle::Rate;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use driver::{DATA, Driver, INDIRECT, INDIRECT_TABLE, MEM_SIZE, NEXT, SIZE, Used, WRITE, temp_disk};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

const DISK_SIZE: u64 = 8 << 20;

fn driver() -> Driver {
    Driver::new(&temp_disk(DISK_SIZE, false))
}

#[test]
fn what_is_written_is_read_back() {
    let mut driver = driver();
    let pattern: Vec<u8> = (0..4096).map(|i| (i % 253) as u8).collect();
    driver.fill(DATA, &pattern);
    let used = driver.transact(VIRTIO_BLK_T_OUT, 8, &[(DATA, 4096)], 0);
    assert_eq!((used.len, used.status), (1, OK));
    let used = driver.transact(VIRTIO_BLK_T_IN, 8, &[(DATA + 0x10000, 1024), (DATA + 0x20000, 3072)], WRITE);
    assert_eq!((used.len, used.status), (4097, OK));
    let back = [driver.bytes(DATA + 0x10000, 1024), driver.bytes(DATA + 0x20000, 3072)].concat();
    assert_eq!(back, pattern);
    assert_eq!(driver.counter("read_ops"), 1);
    assert_eq!(driver.counter("read_bytes"), 4096);
    assert_eq!(driver.counter("write_ops"), 1);
    assert_eq!(driver.counter("write_bytes"), 4096);
    assert_eq!(driver.counter("errors"), 0);
}

#[test]
fn buffers_may_cross_a_border_between_memory_regions() {
    let mut driver = driver();
    let border = MEM_SIZE / 2;
    driver.fill(border - 1000, &[0x5a; 2048]);
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, 0, &[(border - 1000, 2048)], 0).status, OK);
    driver.fill(border - 1000, &[0; 2048]);
    assert_eq!(driver.transact(VIRTIO_BLK_T_IN, 0, &[(border - 1000, 2048)], WRITE).status, OK);
    assert_eq!(driver.bytes(border - 1000, 2048), vec![0x5a; 2048]);
}

#[test]
fn a_flush_succeeds_also_on_a_read_only_disk() {
    for read_only in [false, true] {
        let mut driver = Driver::new(&temp_disk(DISK_SIZE, read_only));
        let used = driver.transact(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        assert_eq!((used.len, used.status), (1, OK));
        assert_eq!(driver.counter("flush_ops"), 1);
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut driver = Driver::new(&temp_disk(DISK_SIZE, true));
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)], 0).status, IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(driver.transact(kind, 0, &[(DATA, 16)], 0).status, IOERR);
    }
    assert_eq!(driver.counter("errors"), 3);
}

#[test]
fn the_serial_number_is_told() {
    let mut driver = driver();
    let used = driver.transact(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
    assert_eq!((used.len, used.status), (21, OK));
    assert_eq!(driver.bytes(DATA, 20), b"vol-0123456789\0\0\0\0\0\0");
    let used = driver.transact(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 19)], WRITE);
    assert_eq!((used.len, used.status), (0, IOERR));
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeroes() {
    let mut driver = driver();
    driver.fill(DATA, &[0x77; 1 << 20]);
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, 0, &[(DATA, 1 << 20)], 0).status, OK);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    driver.fill(DATA, &[range(0, 128, 0), range(256, 128, 0)].concat());
    assert_eq!(driver.transact(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 32)], 0).status, OK);
    driver.fill(DATA, &range(512, 3, 1));
    assert_eq!(driver.transact(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)], 0).status, OK);
    driver.transact(VIRTIO_BLK_T_IN, 0, &[(DATA, 1 << 20)], WRITE);
    let zero =
        |from: u64, sectors: usize| driver.bytes(DATA + from * 512, sectors * 512).iter().all(|&b| b == 0);
    assert!(zero(0, 128) && zero(256, 128) && zero(512, 3));
    assert_eq!(driver.bytes(DATA + 128 * 512, 1), [0x77]);
    assert_eq!(driver.bytes(DATA + 515 * 512, 1), [0x77]);
    assert_eq!(driver.counter("discard_ops"), 2);
}

#[test]
fn an_unknown_request_type_is_unsupported() {
    let mut driver = driver();
    let used = driver.transact(0x1234, 0, &[], 0);
    assert_eq!((used.len, used.status), (1, UNSUPP));
    // SECURE_ERASE and zones are not offered.
    for kind in [14, 16, 18] {
        assert_eq!(driver.transact(kind, 0, &[(DATA, 512)], 0).status, UNSUPP);
    }
}

#[test]
fn a_batch_is_answered_with_one_interrupt() {
    for event_idx in [false, true] {
        let mut driver = Driver::with(&temp_disk(DISK_SIZE, false), None, event_idx, !0);
        for _ in 0..80 {
            driver.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
        }
        driver.notify();
        driver.run();
        assert_eq!(driver.used().len(), 80);
        assert_eq!(driver.interrupts(), 1);
    }
}

#[test]
fn no_interrupt_before_the_event_index() {
    let mut driver = driver();
    driver.set_used_event(2);
    for n in 1..=3 {
        driver.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
        driver.notify();
        driver.run();
        assert_eq!(driver.interrupts(), u64::from(n == 3));
    }
    assert_eq!(driver.used().len(), 3);
}

#[test]
fn a_driver_without_the_event_index_may_turn_interrupts_off() {
    let mut driver = Driver::with(&temp_disk(DISK_SIZE, false), None, false, !0);
    for off in [true, false, true] {
        driver.set_no_interrupt(off);
        driver.transact(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
        assert_eq!(driver.interrupts(), u64::from(!off));
    }
}

#[test]
fn requests_made_while_notifications_are_off_are_found() {
    let mut driver = driver();
    driver.transact(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    // Offered without a notification, then one late notification for both.
    driver.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    driver.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used().len(), 2);
}

#[test]
fn a_chain_that_appears_while_completions_are_told_breaks_nothing() {
    const ROUNDS: u16 = 5000;
    let mut driver = driver();
    let head = driver.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512)], WRITE);
    driver.notify();
    let guest = driver.refill(head, ROUNDS);
    driver.run_until(|driver| driver.broken() || driver.used_index() == ROUNDS);
    assert!(!driver.broken());
    assert_eq!(driver.used_index(), ROUNDS);
    guest.join().unwrap();
}

#[test]
fn the_header_may_be_split_over_descriptors_and_share_one_with_data() {
    let mut driver = driver();
    let header = driver.put_header(0, VIRTIO_BLK_T_OUT, 1);
    // 5 bytes | 11 bytes of header | data, in two readable descriptors.
    driver.fill(DATA + 5, &driver.bytes(header + 5, 11));
    driver.fill(DATA + 16, &[0x42; 512]);
    driver.put_descriptor(0, header, 5, NEXT, 1);
    driver.put_descriptor(1, DATA + 5, 11 + 512, NEXT, 2);
    driver.put_descriptor(2, driver.status_addr(0), 1, WRITE, 0);
    driver.offer(0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used(), [Used { head: 0, len: 1, status: OK }]);

    // Data to read and the status in one writable descriptor.
    let header = driver.put_header(1, VIRTIO_BLK_T_IN, 1);
    driver.put_descriptor(1, header, 16, NEXT, 2);
    driver.put_descriptor(2, driver.status_addr(1) - 512, 513, WRITE, 0);
    driver.offer(1);
    driver.notify();
    driver.run();
    assert_eq!(driver.used(), [Used { head: 1, len: 513, status: OK }]);
    assert_eq!(driver.bytes(driver.status_addr(1) - 512, 512), vec![0x42; 512]);
}

#[test]
fn an_indirect_table_works_like_a_chain() {
    let mut driver = driver();
    driver.fill(DATA, &[9; 254 * 512]);
    let header = driver.put_header(0, VIRTIO_BLK_T_OUT, 0);
    driver.put_descriptor_at(INDIRECT, 0, header, 16, NEXT, 1);
    for i in 0..254u16 {
        driver.put_descriptor_at(INDIRECT, i + 1, DATA + 512 * u64::from(i), 512, NEXT, i + 2);
    }
    driver.put_descriptor_at(INDIRECT, 255, driver.status_addr(0), 1, WRITE, 0);
    driver.put_descriptor(0, INDIRECT, 256 * 16, INDIRECT_TABLE, 0);
    driver.offer(0);
    driver.notify();
    driver.run();
    assert_eq!(driver.used(), [Used { head: 0, len: 1, status: OK }]);
    assert_eq!(driver.counter("write_bytes"), 254 * 512);
}

#[test]
fn ranges_past_the_end_and_odd_lengths_are_errors() {
    let mut driver = driver();
    let end = DISK_SIZE / 512;
    for (sector, len) in [(end, 512), (end - 1, 1024), (u64::MAX / 512 + 1, 512), (u64::MAX, 512), (0, 511)] {
        let used = driver.transact(VIRTIO_BLK_T_IN, sector, &[(DATA, len)], WRITE);
        assert_eq!((used.len, used.status), (0, IOERR), "sector {sector}");
        let used = driver.transact(VIRTIO_BLK_T_OUT, sector, &[(DATA, len)], 0);
        assert_eq!((used.len, used.status), (1, IOERR), "sector {sector}");
    }
    assert_eq!(driver.transact(VIRTIO_BLK_T_IN, end - 1, &[(DATA, 512)], WRITE).status, OK);
}

#[test]
fn data_outside_guest_memory_is_an_error() {
    let mut driver = driver();
    for addr in [MEM_SIZE, MEM_SIZE - 1, u64::MAX - 100] {
        assert_eq!(driver.transact(VIRTIO_BLK_T_IN, 0, &[(addr, 512)], WRITE).status, IOERR);
        assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, 0, &[(addr, 512)], 0).status, IOERR);
    }
    assert!(!driver.broken());
}

#[test]
fn a_stopped_queue_goes_on_where_it_stood_and_the_engine_is_used_again() {
    let mut driver = driver();
    driver.fill(DATA, &[3; 512]);
    driver.transact(VIRTIO_BLK_T_OUT, 4, &[(DATA, 512)], 0);
    let state = driver.drain();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    driver.activate(!0);
    driver.transact(VIRTIO_BLK_T_IN, 4, &[(DATA + 512, 512)], WRITE);
    assert_eq!(driver.bytes(DATA + 512, 512), [3; 512]);
}

#[test]
fn draining_answers_what_was_taken() {
    let mut driver = driver();
    for sector in 0..40 {
        driver.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512)], 0);
    }
    let now = Instant::now();
    driver.worker.as_mut().unwrap().wake(0, now);
    let state = driver.drain();
    assert_eq!(state.next_avail, state.next_used);
    assert_eq!(driver.used().len(), 40);
}

#[test]
fn the_throttle_delays_and_loses_nothing() {
    let rate = Rate { per_second: 100, burst: 2 };
    let throttle = Throttle::new(Some(rate), None);
    let mut driver = Driver::with(&temp_disk(DISK_SIZE, false), Some(throttle), true, !0);
    for _ in 0..6 {
        driver.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)], WRITE);
    }
    driver.notify();
    driver.run();
    let heads: Vec<u16> = driver.used().iter().map(|used| used.head).collect();
    assert_eq!(heads, [0, 3, 6, 9, 12, 15]);
}

#[test]
fn a_throttled_queue_gives_back_what_it_has_not_started() {
    let throttle = Throttle::new(Some(Rate { per_second: 1, burst: 1 }), None);
    let mut driver = Driver::with(&temp_disk(DISK_SIZE, false), Some(throttle), true, !0);
    for _ in 0..3 {
        driver.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    }
    driver.worker.as_mut().unwrap().wake(0, Instant::now());
    assert!(driver.worker.as_ref().unwrap().deadline(Instant::now()).is_some());
    let state = driver.drain();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
}

#[test]
fn several_queues_get_a_worker_each() {
    let disk = temp_disk(DISK_SIZE, false);
    let mem = GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
    for (asked, given) in [(0, 1), (1, 1), (4, 4), (100, 16)] {
        let config = BlkConfig { name: "b".to_owned(), serial: String::new(), throttle: None };
        let device = Blk::new(config, &*disk, Engines::new(&disk, &mem, asked).unwrap());
        assert_eq!(device.queue_max_sizes(), vec![SIZE; given]);
        let mut queues = [0; 2];
        device.read_config(34, &mut queues);
        assert_eq!(usize::from(u16::from_le_bytes(queues)), given);
    }
}

#[test]
fn disk_that_grows_tells_its_new_capacity_and_takes_requests_there() {
    let file = tempfile::tempfile().unwrap();
    kiln_disk::create_overlay(file.try_clone().unwrap(), DISK_SIZE, None).unwrap();
    let layer = kiln_disk::Layer { file, format: kiln_disk::Format::Qcow2 };
    let disk = kiln_disk::open(vec![layer], false).unwrap();
    let mut driver = Driver::new(&disk);
    let capacity = |driver: &Driver| {
        let mut halves = [[0; 4]; 2];
        for (half, at) in halves.iter_mut().zip([0, 4]) {
            driver.device.read_config(at, half);
        }
        u64::from_le_bytes(halves.concat().try_into().unwrap())
    };
    assert_eq!(capacity(&driver), DISK_SIZE / 512);
    let last = (8 << 40) / 512 - 1;
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, last, &[(DATA, 512)], 0).status, IOERR);
    disk.grow(8 << 40).unwrap();
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, last, &[(DATA, 512)], 0).status, IOERR, "not told yet");
    driver.device.capacity().set(disk.size());
    assert_eq!(capacity(&driver), last + 1);
    assert_eq!(driver.transact(VIRTIO_BLK_T_OUT, last, &[(DATA, 512)], 0).status, OK);
}
