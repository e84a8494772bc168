//! A boot loader entry of type #1.
#![no_main]

use kiln_disk::bootable::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::bls_entry(bytes));
