//! How machines start, stop, restart and end.

use std::io::Write;

use kiln_vmspec::{Command, ExitReason, Reply};

use crate::support::vm::Setup;

#[test]
fn guest_turns_itself_off() {
    let Some(guest) = Setup::default().boot("hello") else { return };
    let finished = guest.finish();
    finished.assert_passed("hello");
    assert_eq!(finished.reboots, 0);
    assert!(finished.console.contains("DONE 1 passed, 0 failed"), "{}", finished.console);
}

#[test]
fn reset_register_restarts_the_machine_with_its_disk() {
    let Some(guest) = Setup::with_devices().boot("hello,reset,pci-list,blk-rw,net-imds") else { return };
    let finished = guest.finish();
    finished.assert_passed("reset,pci-list,blk-rw,net-imds");
    assert_eq!((finished.reboots, finished.console.matches("PASS hello").count()), (1, 2));
}

#[test]
fn triple_fault_restarts_the_machine() {
    let Some(guest) = Setup::with_devices().boot("triple-fault,rng") else { return };
    let finished = guest.finish();
    finished.assert_passed("triple-fault,rng");
    assert_eq!(finished.reboots, 1);
}

#[test]
fn power_button_reaches_the_guest() {
    let Some(mut guest) = Setup::default().boot("power-button") else { return };
    guest.wait_for("waiting for the power button");
    assert_eq!(guest.control(Command::PowerButton), Reply::Ok);
    guest.finish().assert_passed("power-button");
}

#[test]
fn reset_from_outside_restarts_a_guest_that_hangs() {
    let Some(mut guest) = Setup::default().boot("spin") else { return };
    guest.wait_for("spinning");
    assert_eq!(guest.control(Command::Reset), Reply::Ok);
    guest.forget_console();
    guest.wait_for("spinning");
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    let finished = guest.finish();
    assert_eq!((finished.reason, finished.reboots), (ExitReason::Killed, 1));
}

#[test]
fn paused_guest_stands_still_and_goes_on() {
    let Some(mut guest) = Setup::with_devices().boot("hello,power-button,blk-rw,rng") else { return };
    guest.wait_for("waiting for the power button");
    assert_eq!(guest.control(Command::Pause), Reply::Ok);
    assert_eq!(guest.control(Command::PowerButton), Reply::Ok);
    assert!(matches!(guest.control(Command::Stats), Reply::Stats(_)));
    assert_eq!(guest.control(Command::Resume), Reply::Ok);
    guest.finish().assert_passed("hello,power-button,blk-rw,rng");
}

#[test]
fn killed_machine_ends_at_once() {
    let Some(mut guest) = Setup { vcpus: 4, ..Setup::with_devices() }.boot("spin") else { return };
    guest.wait_for("spinning");
    assert_eq!(guest.control(Command::Kill), Reply::Ok);
    assert_eq!(guest.finish().reason, ExitReason::Killed);
}

#[test]
fn kernel_that_is_none_is_named_in_one_line() {
    for (bytes, word) in
        [(&b"#!/bin/sh\nexit\n"[..], "unknown kind"), (b"\x1f\x8b\x08\0", "compressed"), (b"", "empty")]
    {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(bytes).unwrap();
        let Some(guest) = (Setup { kernel: Some(kernel), ..Setup::default() }).boot("hello") else { return };
        let ExitReason::Failed { message } = guest.finish().reason else { panic!("it ran") };
        assert!(message.contains(word) && !message.contains('\n'), "{message}");
    }
}
