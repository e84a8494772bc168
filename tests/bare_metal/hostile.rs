//! The guest does what no driver may do. Each device ends as the specification says, the others go on,
//! and so does the VMM.

use kiln_vmspec::{Command, Reply};

use crate::support::vm::Setup;

/// Runs `tests` against a machine with a disk and a network interface.
fn run(tests: &str) {
    if let Some(guest) = Setup::with_devices().boot(tests) {
        guest.finish().assert_passed(tests);
    }
}

#[test]
fn registers_out_of_order_and_out_of_shape() {
    run("hostile-status,hostile-features,hostile-registers");
}

#[test]
fn registers_are_frozen_while_the_device_runs() {
    run("hostile-frozen");
}

#[test]
fn queues_and_rings_that_make_no_sense() {
    run("hostile-queues,hostile-rings,hostile-doorbells");
}

#[test]
fn chains_that_lead_nowhere_or_in_circles() {
    run("hostile-chains,hostile-indirect");
}

#[test]
fn requests_and_frames_that_are_none() {
    run("hostile-blk,hostile-net");
}

#[test]
fn flood_of_the_metadata_service_holds_up_nothing_else() {
    run("hostile-imds,net-imds");
}

#[test]
fn bars_that_move_under_a_running_device() {
    run("hostile-bars");
}

#[test]
fn random_accesses_break_nothing() {
    run("hostile-hammer");
}

#[test]
fn offences_are_counted() {
    let Some(mut guest) = Setup::with_devices().boot("hostile-rings,spin") else { return };
    guest.wait_for("spinning");
    let Reply::Stats(stats) = guest.control(Command::Stats) else { panic!("no stats") };
    let offences: u64 = stats
        .counters
        .iter()
        .filter(|(name, _)| {
            name.starts_with("blk0.") && (name.ends_with("malformed") || name.ends_with("faults"))
        })
        .map(|(_, count)| count)
        .sum();
    assert!(offences > 0, "{:?}", stats.counters);
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
}
