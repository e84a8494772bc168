//! The partition table of a disk.
#![no_main]

use kiln_disk::bootable::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::partition_table(bytes));
