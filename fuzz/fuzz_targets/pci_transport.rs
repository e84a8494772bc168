//! Accesses of any kind to a virtio device's configuration space, BAR and doorbells.
#![no_main]

use kiln_devices::virtio::testing::{Loopback, hammer_registers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| hammer_registers(|_| Box::new(Loopback::new("victim", &[8, 4, 256])), data));
