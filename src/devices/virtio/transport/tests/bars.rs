//! BAR moves, doorbells, and access through the configuration space.

use super::*;
use crate::virtio::testing::{Loopback, common, status};

fn move_bar(machine: &TestMachine, slot: u8, bar: u32) {
    machine.config_write(slot, 0x10, &bar.to_le_bytes());
}

/// The driver as if it had found the BAR at `bar`.
fn moved(driver: &GuestDriver, bar: u64) -> GuestDriver {
    let shift = |address: u64| address - driver.bar + bar;
    let mut there = driver.clone();
    there.bar = bar;
    for address in [
        &mut there.common,
        &mut there.notify,
        &mut there.isr,
        &mut there.device,
        &mut there.table,
        &mut there.pba,
    ] {
        *address = shift(*address);
    }
    there
}

#[test]
fn doorbells_exist_only_while_queues_run_and_the_bar_decodes() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8, 8]));
    driver.negotiate(&machine, 0);
    assert!(machine.doorbells.addresses().is_empty());
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    let here = [driver.notify, driver.notify + 4];
    assert_eq!(machine.doorbells.addresses(), here);
    machine.config_write(1, 4, &[0, 0]);
    assert!(machine.doorbells.addresses().is_empty());
    machine.config_write(1, 4, &[6, 0]);
    assert_eq!(machine.doorbells.addresses(), here);

    move_bar(&machine, 1, 0xc800_0000);
    let driver = moved(&driver, 0xc800_0000);
    assert_eq!(machine.doorbells.addresses(), [driver.notify, driver.notify + 4]);
    echo(&machine, &driver, &mut queues[1], "moved");
    // Sizing with decoding on.
    move_bar(&machine, 1, 0xffff_ffff);
    assert!(machine.doorbells.addresses().is_empty());
    move_bar(&machine, 1, 0xc800_0000);
    echo(&machine, &driver, &mut queues[0], "sized");
    assert_eq!(counter(&machine, "notify_exits"), 0);
}

#[test]
fn move_that_cannot_bind_is_rolled_back() {
    let devices: Vec<Box<dyn crate::virtio::VirtioDevice>> =
        vec![Box::new(Loopback::new("a", &[8])), Box::new(Loopback::new("b", &[8, 8]))];
    let machine = TestMachine::new(devices);
    let (a, b) = (GuestDriver::probe(&machine, 1), GuestDriver::probe(&machine, 2));
    let (_, mut a_queues) = a.start(&machine, 0, QUEUES);
    let (_, mut b_queues) = b.start(&machine, 0, 2 * QUEUES);
    let before = machine.doorbells.addresses();
    // B onto A: its doorbells collide, it stays where it was.
    move_bar(&machine, 2, a.bar as u32);
    assert_eq!(u64::from(machine.config_read(2, 0x10)), b.bar);
    assert_eq!(machine.doorbells.addresses(), before);
    echo(&machine, &b, &mut b_queues[1], "b");
    echo(&machine, &a, &mut a_queues[0], "a");
    // The same when decoding is turned on there.
    machine.config_write(2, 4, &[0, 0]);
    move_bar(&machine, 2, a.bar as u32);
    machine.config_write(2, 4, &[6, 0]);
    assert_eq!(machine.config_read(2, 4) & 2, 0, "decoding stays off");
    assert_eq!(machine.doorbells.addresses(), [a.notify]);
    echo(&machine, &a, &mut a_queues[0], "a");
    move_bar(&machine, 2, b.bar as u32);
    machine.config_write(2, 4, &[6, 0]);
    echo(&machine, &b, &mut b_queues[0], "b");
}

#[test]
fn notifications_without_doorbells_still_arrive() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8, 8]));
    machine.doorbells.refuse(true);
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    assert_eq!(driver.status(&machine), 0xf);
    echo(&machine, &driver, &mut queues[1], "slow path");
    assert_eq!(counter(&machine, "notify_exits"), 1);
    // Beside a slot, and of a queue that is not there.
    machine.mmio_write(driver.notify + 6, &[1, 0]);
    machine.mmio_write(driver.notify + 8, &[2, 0]);
    assert_eq!(counter(&machine, "notify_exits"), 1);
    // Once doorbells work again, any move brings them.
    machine.doorbells.refuse(false);
    machine.config_write(1, 4, &[6, 0]);
    assert_eq!(machine.doorbells.addresses().len(), 2);
}

#[test]
fn configuration_space_reaches_the_bar() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let cap = driver.pci_cfg_cap;
    let aim = |bar: u8, offset: u32, length: u32| {
        machine.config_write(1, cap + 4, &[bar]);
        machine.config_write(1, cap + 8, &offset.to_le_bytes());
        machine.config_write(1, cap + 12, &length.to_le_bytes());
    };
    let data = cap + 16;
    aim(0, common::DEVICE_STATUS as u32, 1);
    machine.config_write(1, data, &[status::ACKNOWLEDGE]);
    assert_eq!(driver.status(&machine), status::ACKNOWLEDGE);
    assert_eq!(machine.config_read(1, data), u32::from(status::ACKNOWLEDGE));
    aim(0, common::NUM_QUEUES as u32, 2);
    assert_eq!(machine.config_read(1, data), 1);
    aim(0, 0x2000, 4);
    machine.config_write(1, data, &[1, 2, 3, 4]);
    let mut there = [0; 4];
    machine.mmio_read(driver.device, &mut there);
    assert_eq!(there, [1, 2, 3, 4]);

    // Notification.
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    let head = queues[0].add(&[Buffer::writable(TARGET, 4)]);
    aim(0, (driver.notify - driver.bar) as u32, 2);
    machine.config_write(1, data, &[0, 0]);
    machine.run();
    assert_eq!(queues[0].poll_used(), Some((head.into(), 0)));

    // Nothing answers where nothing may.
    for (bar, offset, length) in
        [(1, 0, 4), (0, 1, 2), (0, 0, 3), (0, 0, 0), (0, 0, 8), (0, 0xffff_fffc, 4), (0xff, 0, 4)]
    {
        aim(bar, offset, length);
        machine.config_write(1, data, &[0xff; 4]);
        let value = machine.config_read(1, data);
        assert!(value == 0 || value == 0xffff_ffff, "{bar} {offset:#x} {length}: {value:#x}");
    }
    assert_eq!(driver.status(&machine), 0xf);
}

#[test]
fn msix_control_can_be_written_as_word_and_as_double_word() {
    let (machine, driver) = TestMachine::with_device(Loopback::new("loop", &[8]));
    let (_, mut queues) = driver.start(&machine, 0, QUEUES);
    assert_eq!(machine.msi.connected().len(), 2);
    machine.config_write(1, driver.msix_cap, &0xc000_0000u32.to_le_bytes());
    assert!(machine.msi.connected().is_empty());
    echo(&machine, &driver, &mut queues[0], "masked");
    let mut pending = [0; 8];
    machine.mmio_read(driver.pba, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
    machine.mmio_write(TestMachine::ecam(1, u16::from(driver.msix_cap) + 3), &[0x80]);
    assert_eq!(driver.interrupts(&machine), [0x41]);
}
