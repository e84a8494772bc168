//! A kernel out of a tenant's disk.
#![no_main]

use kiln_vmm::boot::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::kernel(bytes);
});
