//! A qcow2 image of any content, opened, read and written.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kiln_disk::qcow2_fuzzing::qcow2_open(data));
