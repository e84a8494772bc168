//! The guest finds a machine that is complete and keeps to its specifications.

use kiln_vmspec::{Command, Rate, RateLimits, Reply};

use crate::support::vm::{INSTANCE_ID, Setup, disk};

/// Runs `tests` on a machine with a disk and a network interface; returns what was printed.
fn run(tests: &str) -> Option<String> {
    let finished = Setup::with_devices().boot(tests)?.finish();
    finished.assert_passed(tests);
    Some(finished.console)
}

#[test]
fn ports_and_memory_of_nobody_read_as_ones() {
    run("unclaimed-ports,unclaimed-memory,serial-odd,rtc");
}

#[test]
fn firmware_tables_are_found_and_sound() {
    let Some(console) = run("memory,acpi,smbios,generation-id") else { return };
    assert!(console.contains("uuid ec2e1916"), "{console}");
}

#[test]
fn pci_answers_accesses_of_every_shape() {
    run("pci-list,pci-odd,pci-ecam,pci-capabilities,pci-bars,msix-odd");
}

#[test]
fn block_device_keeps_what_is_written() {
    run("blk-rw,blk-errors,blk-depth,blk-indirect,blk-reset");
}

#[test]
fn each_disk_has_its_own_serial_number() {
    let Some(console) = run("blk-id") else { return };
    assert!(console.contains("id Ok(\"vol0\")"), "{console}");
}

#[test]
fn entropy_device_gives_bytes() {
    run("rng");
}

#[test]
fn link_local_services_answer() {
    let Some(console) = run("net-dhcp,net-arp,net-imds") else { return };
    assert!(console.contains("address [10, 0, 1, 10]"), "{console}");
    assert!(console.contains(&format!("instance-id {INSTANCE_ID}")), "{console}");
}

#[test]
fn smallest_and_larger_machines_boot() {
    for (memory_mib, vcpus) in [(64, 1), (2048, 2), (5120, 32)] {
        let setup = Setup { memory_mib, vcpus, ..Setup::with_devices() };
        let Some(guest) = setup.boot("memory,acpi,rng") else { return };
        let finished = guest.finish();
        finished.assert_passed("memory,acpi,rng");
        let past_4_gib = finished.console.contains("0x100000000..");
        assert_eq!(past_4_gib, memory_mib > 3072, "{}", finished.console);
    }
}

#[test]
fn initrd_is_handed_over() {
    let setup = Setup { initrd: Some(disk(1)), ..Setup::default() };
    let Some(guest) = setup.boot("memory") else { return };
    let finished = guest.finish();
    finished.assert_passed("memory");
    assert!(finished.console.contains("initrd 0x3f00000, 1048576 bytes"), "{}", finished.console);
}

#[test]
fn disk_limit_makes_requests_wait_and_loses_none() {
    let limits = RateLimits { operations: Some(Rate { per_second: 200, burst: 1 }), bytes: None };
    let setup = Setup { disk_limits: limits, ..Setup::with_devices() };
    let Some(mut guest) = setup.boot("blk-rw,blk-depth,spin") else { return };
    guest.wait_for("spinning");
    let Reply::Stats(stats) = guest.control(Command::Stats) else { panic!("no stats") };
    assert!(stats.counters["blk0.throttled"] > 0, "{:?}", stats.counters);
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    let finished = guest.finish();
    for name in ["blk-rw", "blk-depth"] {
        assert!(finished.console.contains(&format!("PASS {name}")), "{}", finished.console);
    }
}
