//! A whole disk: partition table, file systems, boot configurations.
#![no_main]

use kiln_disk::bootable::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::bootable_find(bytes));
