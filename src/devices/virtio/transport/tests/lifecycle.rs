//! From reset to running and back.

use std::sync::atomic::Ordering;

use super::*;
use crate::pci::PciFunction;
use crate::virtio::testing::{
    EVENT_IDX, INDIRECT_DESC, LOOPBACK_FEATURE, Loopback, VERSION_1, common,
    status::{DEVICE_NEEDS_RESET, DRIVER_OK},
};

#[test]
fn driver_brings_the_device_up_and_gets_its_interrupts() {
    let device = Loopback::new("loop", &[8, 16]);
    let log = device.log();
    let (machine, driver) = TestMachine::with_device(device);
    assert_eq!(driver.device_features(&machine), LOOPBACK_FEATURE | VERSION_1 | EVENT_IDX | INDIRECT_DESC);
    let (features, mut queues) = driver.start(&machine, LOOPBACK_FEATURE, QUEUES);
    assert_eq!(driver.status(&machine), 0xf);
    assert_eq!(log.features.load(Ordering::Relaxed), features);
    assert_eq!(*log.queues.lock().unwrap(), [0, 1]);
    assert_eq!(machine.workers.running(), 2);
    assert_eq!((queues[0].size, queues[1].size), (8, 16));

    echo(&machine, &driver, &mut queues[1], "hello");
    assert_eq!(driver.interrupts(&machine), [0x42]);
    echo(&machine, &driver, &mut queues[0], "again");
    assert_eq!(driver.interrupts(&machine), [0x41]);
    assert_eq!(counter(&machine, "notify_exits"), 0);
}

#[test]
fn every_queue_can_be_left_out_but_one() {
    let device = Loopback::new("loop", &[8, 8, 8]);
    let log = device.log();
    let (machine, driver) = TestMachine::with_device(device);
    driver.negotiate(&machine, 0);
    let queue = GuestQueue::new(&machine, 1, 4, QUEUES);
    driver.enable_queue(&machine, &queue);
    driver.driver_ok(&machine);
    assert_eq!(*log.queues.lock().unwrap(), [1]);
    assert_eq!(machine.doorbells.addresses(), [driver.notify + 4]);
}

#[test]
fn reset_stops_workers_and_forgets_everything_from_every_state() {
    for state in 0..6 {
        let device = Loopback::new("loop", &[8]);
        let log = device.log();
        let (machine, driver) = TestMachine::with_device(device);
        match state {
            0 => {}
            1 => driver.set_status(&machine, 1),
            2 => drop(driver.negotiate(&machine, u64::MAX)),
            3 => drop(driver.start(&machine, u64::MAX, QUEUES)),
            4 => {
                let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUES);
                queues[0].set_avail_idx(100);
                driver.kick(&machine, 0);
                machine.run();
                assert_ne!(driver.status(&machine) & DEVICE_NEEDS_RESET, 0);
            }
            _ => {
                driver.negotiate(&machine, 0);
                driver.driver_ok(&machine);
                assert_ne!(driver.status(&machine) & DEVICE_NEEDS_RESET, 0);
            }
        }
        let before = log.resets.load(Ordering::Relaxed);
        driver.set_status(&machine, 0);
        assert_eq!(driver.status(&machine), 0, "state {state}");
        assert_eq!(log.resets.load(Ordering::Relaxed), before + 1);
        assert_eq!(machine.workers.running(), 0);
        assert!(machine.doorbells.addresses().is_empty());
        assert!(machine.msi.connected().is_empty());
        for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
            assert_eq!(driver.read_common::<8>(&machine, field), 0);
        }
        assert_eq!(driver.read_common::<2>(&machine, common::QUEUE_ENABLE), 0);
        assert_eq!(driver.read_common::<2>(&machine, common::QUEUE_MSIX_VECTOR), 0xffff);
        assert_eq!(driver.read_common::<2>(&machine, common::CONFIG_MSIX_VECTOR), 0xffff);
        assert_eq!(driver.read_common::<4>(&machine, common::DRIVER_FEATURE), 0);

        // As after firmware or kexec: the next driver starts from nothing.
        let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUES);
        driver.interrupts(&machine);
        queues[0].set_used_event(0);
        echo(&machine, &driver, &mut queues[0], "second life");
        assert_eq!(driver.interrupts(&machine), [0x41]);
    }
}

#[test]
fn notification_before_reset_does_not_reach_the_next_life() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    driver.start(&machine, 0, QUEUES);
    driver.kick(&machine, 0);
    driver.set_status(&machine, 0);
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    queues[0].publish(0);
    machine.run();
    assert_eq!(queues[0].poll_used(), None, "nobody rang");
}

#[test]
fn unusable_queues_end_in_needs_reset() {
    type Spoil = fn(&mut GuestQueue);
    let spoils: [Spoil; 6] = [
        |queue| queue.desc += 8,
        |queue| queue.avail += 1,
        |queue| queue.used += 2,
        |queue| queue.desc = 0,
        |queue| queue.used = 0xffff_ffff_ffff_fffc,
        |queue| queue.avail = (16 << 20) - 2,
    ];
    for spoil in spoils {
        let device = Loopback::new("loop", &[8, 8]);
        let log = device.log();
        let (machine, driver) = TestMachine::with_device(device);
        driver.negotiate(&machine, 0);
        driver.enable_msix(&machine);
        let good = GuestQueue::new(&machine, 0, 8, QUEUES);
        driver.enable_queue(&machine, &good);
        let mut bad = GuestQueue::new(&machine, 1, 8, good.end);
        spoil(&mut bad);
        driver.enable_queue(&machine, &bad);
        driver.driver_ok(&machine);
        assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
        assert_eq!(driver.interrupts(&machine), [0x40], "configuration change interrupt");
        assert_eq!(log.activations.load(Ordering::Relaxed), 0);
        assert_eq!(machine.workers.running(), 0);
        assert!(machine.doorbells.addresses().is_empty());
    }
}

#[test]
fn host_that_cannot_start_ends_in_needs_reset_without_leftovers() {
    let device = Loopback::new("loop", &[8, 8]);
    let log = device.log();
    let (machine, driver) = TestMachine::with_device(device);
    machine.workers.refuse(true);
    driver.start(&machine, 0, QUEUES);
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
    machine.workers.refuse(false);
    log.refuse.store(true, Ordering::Relaxed);
    driver.start(&machine, 0, QUEUES);
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
    log.refuse.store(false, Ordering::Relaxed);
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    echo(&machine, &driver, &mut queues[0], "third time lucky");
}

#[test]
fn broken_rings_raise_needs_reset_and_stop_service() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    queues[0].set_avail_idx(9);
    driver.kick(&machine, 0);
    machine.run();
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
    assert_eq!(driver.interrupts(&machine), [0x40]);
    assert_eq!(counter(&machine, "needs_reset"), 1);
    queues[0].set_avail_idx(0);
    queues[0].publish(0);
    driver.kick(&machine, 0);
    machine.run();
    assert_eq!(queues[0].poll_used(), None);
    // What drivers write when they add a bit to what they read.
    driver.set_status(&machine, driver.status(&machine) | DRIVER_OK);
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
}

#[test]
fn pause_keeps_the_queues_and_resume_serves_what_came_in_between() {
    let device = Loopback::new("loop", &[4, 4]);
    let log = device.log();
    let (machine, driver) = TestMachine::with_device(device);
    let (_, mut queues) = driver.start(&machine, EVENT_IDX, QUEUES);
    for round in 0..7 {
        queues[0].set_used_event(2 * round);
        echo(&machine, &driver, &mut queues[0], "before");
        machine.devices[0].lock().unwrap().pause();
        assert_eq!(machine.workers.running(), 0);
        let head = queues[0].add(&[Buffer::readable(SOURCE, 3), Buffer::writable(TARGET, 3)]);
        driver.kick(&machine, 0);
        machine.run();
        assert_eq!(queues[0].poll_used(), None);
        machine.devices[0].lock().unwrap().resume().unwrap();
        machine.run();
        assert_eq!(queues[0].poll_used(), Some((head.into(), 3)));
        assert_eq!(driver.status(&machine), 0xf);
    }
    assert_eq!(log.resets.load(Ordering::Relaxed), 1, "only the driver's own at start");
    assert_eq!(machine.doorbells.addresses().len(), 2);
}

#[test]
fn pause_in_any_state_and_twice_is_harmless() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let device = &machine.devices[0];
    device.lock().unwrap().pause();
    device.lock().unwrap().resume().unwrap();
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    device.lock().unwrap().resume().unwrap();
    device.lock().unwrap().pause();
    device.lock().unwrap().pause();
    device.lock().unwrap().resume().unwrap();
    echo(&machine, &driver, &mut queues[0], "on");
    // A broken device stays broken.
    queues[0].set_avail_idx(1000);
    driver.kick(&machine, 0);
    machine.run();
    device.lock().unwrap().pause();
    device.lock().unwrap().resume().unwrap();
    assert_eq!(machine.workers.running(), 0);
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
    // A paused device can be reset.
    driver.start(&machine, 0, QUEUES);
    device.lock().unwrap().pause();
    driver.set_status(&machine, 0);
    device.lock().unwrap().resume().unwrap();
    assert_eq!(machine.workers.running(), 0);
}

#[test]
fn failed_resume_is_told_to_both_sides() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    driver.start(&machine, 0, QUEUES);
    machine.devices[0].lock().unwrap().pause();
    machine.workers.refuse(true);
    machine.devices[0].lock().unwrap().resume().unwrap_err();
    assert_eq!(driver.status(&machine), 0xf | DEVICE_NEEDS_RESET);
}

#[test]
fn configuration_change_counts_a_generation_and_interrupts_a_running_driver() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let device = &machine.devices[0];
    device.lock().unwrap().config_changed();
    let (_, _queues) = driver.start(&machine, 0, QUEUES);
    assert_eq!(driver.interrupts(&machine), [] as [u32; 0]);
    let generation = driver.read_common::<1>(&machine, common::CONFIG_GENERATION);
    device.lock().unwrap().config_changed();
    assert_eq!(driver.read_common::<1>(&machine, common::CONFIG_GENERATION), generation + 1);
    assert_eq!(driver.interrupts(&machine), [0x40]);
}

#[test]
fn driver_without_msix_polls_the_isr() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    driver.negotiate(&machine, 0);
    let mut queue = GuestQueue::new(&machine, 0, 8, QUEUES);
    driver.enable_queue(&machine, &queue);
    driver.driver_ok(&machine);
    let isr = || {
        let mut data = [0xff];
        machine.mmio_read(driver.isr, &mut data);
        data[0]
    };
    assert_eq!(isr(), 0);
    echo(&machine, &driver, &mut queue, "poll");
    assert_eq!((isr(), isr()), (1, 0));
    machine.devices[0].lock().unwrap().config_changed();
    assert_eq!((isr(), isr()), (2, 0));
    assert!(machine.msi.take_delivered().is_empty());
}

#[test]
fn vector_can_be_chosen_late_and_changed() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    driver.write_common::<2>(&machine, common::QUEUE_MSIX_VECTOR, 0);
    assert_eq!(driver.read_common::<2>(&machine, common::QUEUE_MSIX_VECTOR), 0);
    echo(&machine, &driver, &mut queues[0], "shared");
    assert_eq!(driver.interrupts(&machine), [0x40]);
    driver.write_common::<2>(&machine, common::QUEUE_MSIX_VECTOR, 2);
    assert_eq!(driver.read_common::<2>(&machine, common::QUEUE_MSIX_VECTOR), 0xffff, "there are two vectors");
    echo(&machine, &driver, &mut queues[0], "none");
    assert_eq!(driver.interrupts(&machine), [] as [u32; 0]);
}

#[test]
fn machine_reset_brings_the_function_back_to_its_start() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let fresh: Vec<u32> = (0..64).map(|i| machine.devices[0].lock().unwrap().config().dword(i * 4)).collect();
    driver.start(&machine, 0, QUEUES);
    machine.config_write(1, 0x10, &0xc100_0000u32.to_le_bytes());
    machine.root.reset();
    let after: Vec<u32> = (0..64).map(|i| machine.devices[0].lock().unwrap().config().dword(i * 4)).collect();
    assert_eq!(after[2..], fresh[2..]);
    assert_eq!(machine.config_read(1, 4) & 0xffff, 0);
    assert!(machine.msi.connected().is_empty() && machine.doorbells.addresses().is_empty());
    let driver = GuestDriver::probe(&machine, 1);
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    echo(&machine, &driver, &mut queues[0], "rebooted");
}

#[test]
fn device_configuration_reaches_the_device_and_zeroes_follow_it() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    machine.mmio_write(driver.device + 12, &[1, 2, 3, 4]);
    let mut data = [0xff; 8];
    machine.mmio_read(driver.device + 12, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
    machine.mmio_read(driver.device + 0xffc, &mut data[..4]);
    assert_eq!(data[..4], [0; 4]);
    machine.mmio_read(driver.device + 0xffc, &mut data);
    assert_eq!(data, [0xff; 8], "crosses the end of the region");
}

#[test]
fn sizes_that_are_none_are_refused_at_assembly() {
    for sizes in [&[0][..], &[3], &[8, 0x8001], &[8; 129]] {
        let machine = TestMachine::new(Vec::new());
        let services = crate::virtio::VirtioServices {
            mem: machine.mem.clone(),
            msi: machine.msi.clone(),
            doorbells: machine.doorbells.clone(),
            workers: machine.workers.clone(),
        };
        assert!(crate::virtio::VirtioPci::new(Box::new(Loopback::new("x", sizes)), services).is_err());
    }
}

#[test]
fn device_that_is_unplugged_leaves_nothing_behind() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8, 8]));
    let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUES);
    echo(&machine, &driver, &mut queues[0], "before");
    assert_eq!((machine.workers.running(), machine.msi.reserved()), (2, 3));
    machine.root.unplug(1);
    assert_eq!(machine.workers.running(), 0);
    assert!(machine.doorbells.addresses().is_empty() && machine.msi.connected().is_empty());
    assert_eq!(machine.config_read(1, 0), !0);
    // A driver that does not know yet finds all ones, and what it writes goes nowhere.
    assert_eq!(driver.status(&machine), 0xff);
    driver.set_status(&machine, 0xf);
    driver.kick(&machine, 0);
    machine.run();
    assert_eq!(machine.workers.running(), 0);
    let TestMachine { devices, msi, .. } = machine;
    drop(devices);
    assert_eq!(msi.reserved(), 0, "its interrupt lines are free");
}
