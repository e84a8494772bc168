//! Tables of the status machine and of what may be written when.

use super::*;

const OFFERED: u64 = VERSION_1 | EVENT_IDX | 1 << 5;
const READY: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

fn registers() -> Registers {
    Registers::new(OFFERED, &[256, 64])
}

fn write<const N: usize>(registers: &mut Registers, field: u64, value: u64) -> Effect {
    registers.write(field, &value.to_le_bytes()[..N], &GuestFaults::new())
}

fn read<const N: usize>(registers: &Registers, field: u64) -> u64 {
    let view = View { needs_reset: false, generation: 0, config_vector: 0xffff, queue_vector: 0xffff };
    let mut data = [0; 8];
    registers.read(&view, field, &mut data[..N]);
    u64::from_le_bytes(data)
}

fn set_status(registers: &mut Registers, value: u8) -> Effect {
    write::<1>(registers, common::DEVICE_STATUS, value.into())
}

fn offer(registers: &mut Registers, features: u64) {
    for word in 0..2 {
        let _ = write::<4>(registers, common::DRIVER_FEATURE_SELECT, word);
        let _ = write::<4>(registers, common::DRIVER_FEATURE, features >> (32 * word) & 0xffff_ffff);
    }
}

/// Registers after FEATURES_OK.
fn negotiated() -> Registers {
    let mut registers = registers();
    let _ = set_status(&mut registers, ACKNOWLEDGE);
    let _ = set_status(&mut registers, ACKNOWLEDGE | DRIVER);
    offer(&mut registers, VERSION_1);
    let _ = set_status(&mut registers, READY);
    assert_eq!(registers.status, READY);
    registers
}

#[test]
fn status_bits_are_set_in_order_only() {
    // From, written, status then, effect. VERSION_1 is accepted where features may be written.
    let running = READY | DRIVER_OK;
    for (from, value, expected, effect) in [
        (0, ACKNOWLEDGE, ACKNOWLEDGE, Effect::None),
        (0, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER, Effect::None),
        (0, DRIVER, 0, Effect::None),
        (0, DRIVER_OK, 0, Effect::None),
        (0, FEATURES_OK, 0, Effect::None),
        (ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK, ACKNOWLEDGE, Effect::None),
        (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER, Effect::None),
        (ACKNOWLEDGE | DRIVER, READY, READY, Effect::None),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK, ACKNOWLEDGE | DRIVER, Effect::None),
        (ACKNOWLEDGE | DRIVER, running, running, Effect::Activate),
        (READY, running, running, Effect::Activate),
        (READY, ACKNOWLEDGE, READY, Effect::None),
        (running, running, running, Effect::None),
        (running, running | DEVICE_NEEDS_RESET, running, Effect::None),
        (running, READY, running, Effect::None),
        (running, running | FAILED, running | FAILED, Effect::None),
        (READY, FAILED, READY | FAILED, Effect::None),
        (READY | FAILED, running | FAILED, READY | FAILED, Effect::None),
        (running, 0, running, Effect::Reset),
        (READY | FAILED, 0, READY | FAILED, Effect::Reset),
        (0, 0x30, 0, Effect::None),
    ] {
        let mut registers = registers();
        (registers.status, registers.driver_features) = (from, VERSION_1);
        assert_eq!(set_status(&mut registers, value), effect, "{from:#x} {value:#x}");
        assert_eq!(registers.status, expected, "{from:#x} {value:#x}");
    }
}

#[test]
fn features_without_version_1_or_not_on_offer_are_refused() {
    for (features, accepted) in [
        (VERSION_1, true),
        (OFFERED, true),
        (0, false),
        (EVENT_IDX, false),
        (VERSION_1 | 1 << 6, false),
        (VERSION_1 | 1 << 63, false),
    ] {
        let mut registers = registers();
        let _ = set_status(&mut registers, ACKNOWLEDGE | DRIVER);
        offer(&mut registers, features);
        assert_eq!(registers.features(), features);
        let _ = set_status(&mut registers, READY);
        assert_eq!(registers.status == READY, accepted, "{features:#x}");
    }
}

#[test]
fn features_are_writable_between_driver_and_features_ok_only() {
    for (status, writable) in [
        (0, false),
        (ACKNOWLEDGE, false),
        (ACKNOWLEDGE | DRIVER, true),
        (READY, false),
        (READY | DRIVER_OK, false),
        (ACKNOWLEDGE | DRIVER | FAILED, false),
    ] {
        let mut registers = registers();
        registers.status = status;
        offer(&mut registers, OFFERED);
        assert_eq!(registers.features() == OFFERED, writable, "{status:#x}");
    }
}

#[test]
fn feature_words_beyond_the_second_read_zero_and_take_nothing() {
    let mut registers = registers();
    let _ = set_status(&mut registers, ACKNOWLEDGE | DRIVER);
    for select in [2, 3, 0xffff_ffff] {
        let _ = write::<4>(&mut registers, common::DEVICE_FEATURE_SELECT, select);
        assert_eq!(read::<4>(&registers, common::DEVICE_FEATURE), 0);
        let _ = write::<4>(&mut registers, common::DRIVER_FEATURE_SELECT, select);
        let _ = write::<4>(&mut registers, common::DRIVER_FEATURE, 0xffff_ffff);
        assert_eq!(read::<4>(&registers, common::DRIVER_FEATURE), 0);
    }
    assert_eq!(registers.features(), 0);
}

#[test]
fn queue_registers_freeze_when_enabled_and_when_running() {
    let fill = |registers: &mut Registers, value: u64| {
        let _ = write::<2>(registers, common::QUEUE_SIZE, 32);
        let _ = write::<8>(registers, common::QUEUE_DESC, value);
        let _ = write::<4>(registers, common::QUEUE_DRIVER, value);
        let _ = write::<4>(registers, common::QUEUE_DEVICE + 4, value);
    };
    let mut registers = negotiated();
    fill(&mut registers, 0x1000);
    assert_eq!(read::<8>(&registers, common::QUEUE_DESC), 0x1000);
    assert_eq!(read::<8>(&registers, common::QUEUE_DEVICE), 0x1000_0000_0000);
    let _ = write::<2>(&mut registers, common::QUEUE_ENABLE, 1);
    let enabled = registers.queues[0].clone();
    fill(&mut registers, 0x2000);
    let _ = write::<2>(&mut registers, common::QUEUE_SIZE, 16);
    let _ = write::<2>(&mut registers, common::QUEUE_ENABLE, 0);
    assert_eq!(registers.queues[0], enabled);

    let _ = set_status(&mut registers, READY | DRIVER_OK);
    let _ = write::<2>(&mut registers, common::QUEUE_SELECT, 1);
    let idle = registers.queues[1].clone();
    fill(&mut registers, 0x3000);
    let _ = write::<2>(&mut registers, common::QUEUE_ENABLE, 1);
    assert_eq!(registers.queues[1], idle);
}

#[test]
fn queue_sizes_that_are_none_are_ignored() {
    let mut registers = registers();
    for size in [0, 3, 100, 512, 0x8000, 0xffff] {
        let _ = write::<2>(&mut registers, common::QUEUE_SIZE, size);
        assert_eq!(read::<2>(&registers, common::QUEUE_SIZE), 256, "{size}");
    }
    let _ = write::<2>(&mut registers, common::QUEUE_SIZE, 1);
    assert_eq!(read::<2>(&registers, common::QUEUE_SIZE), 1);
    for enable in [0, 2, 0xffff] {
        let _ = write::<2>(&mut registers, common::QUEUE_ENABLE, enable);
        assert_eq!(read::<2>(&registers, common::QUEUE_ENABLE), 0, "{enable}");
    }
}

#[test]
fn queues_that_do_not_exist_have_no_size_and_take_nothing() {
    let mut registers = negotiated();
    let before = registers.queues.clone();
    for select in [2, 3, 0x7fff, 0xffff] {
        let _ = write::<2>(&mut registers, common::QUEUE_SELECT, select);
        assert_eq!(read::<2>(&registers, common::QUEUE_SIZE), 0);
        let _ = write::<2>(&mut registers, common::QUEUE_SIZE, 8);
        let _ = write::<2>(&mut registers, common::QUEUE_ENABLE, 1);
        let _ = write::<8>(&mut registers, common::QUEUE_DESC, 0x1000);
        assert_eq!(write::<2>(&mut registers, common::QUEUE_MSIX_VECTOR, 0), Effect::None);
    }
    assert_eq!(registers.queues, before);
}

#[test]
fn accesses_of_the_wrong_width_change_nothing_and_are_counted() {
    let mut registers = negotiated();
    let before = format!("{registers:?}");
    let faults = GuestFaults::new();
    for (field, len) in [(0x16, 1), (0x16, 4), (0x18, 1), (0x18, 8), (0x20, 2), (0x22, 4), (0x14, 2), (0, 3)]
    {
        assert_eq!(registers.write(field, &[1; 8][..len], &faults), Effect::None);
    }
    assert_eq!(registers.write(0x14, &[], &faults), Effect::None);
    assert_eq!(registers.write(u64::MAX, &[1; 4], &faults), Effect::None);
    assert_eq!(format!("{registers:?}"), before);
    assert_eq!(faults.count(), 10);
}

#[test]
fn rings_are_checked_before_use() {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let good = QueueRegisters {
        max_size: 256,
        size: 256,
        enabled: true,
        desc: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    let queue = good.build(&mem, true).unwrap();
    assert_eq!((queue.size(), queue.desc_table(), queue.used_ring()), (256, 0x1000, 0x3000));
    assert!(queue.event_idx_enabled() && queue.ready());

    let table = "descriptor table";
    for (registers, expected) in [
        (QueueRegisters { desc: 0x1008, ..good.clone() }, QueueError::Unaligned(table)),
        (QueueRegisters { driver: 0x2001, ..good.clone() }, QueueError::Unaligned("available ring")),
        (QueueRegisters { device: 0x3002, ..good.clone() }, QueueError::Unaligned("used ring")),
        (QueueRegisters { desc: 0, ..good.clone() }, QueueError::OutsideMemory(table)),
        (QueueRegisters { desc: 0xf_f010, ..good.clone() }, QueueError::OutsideMemory(table)),
        (QueueRegisters { desc: !0xf, ..good.clone() }, QueueError::OutsideMemory(table)),
        (QueueRegisters { driver: 0xf_ff00, ..good.clone() }, QueueError::OutsideMemory("available ring")),
        (QueueRegisters { device: 0xf_ff00, ..good.clone() }, QueueError::OutsideMemory("used ring")),
        (QueueRegisters { device: !0x3, ..good.clone() }, QueueError::OutsideMemory("used ring")),
    ] {
        assert_eq!(registers.build(&mem, false).unwrap_err(), expected);
    }
}
