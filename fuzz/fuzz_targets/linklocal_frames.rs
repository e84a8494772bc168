//! A guest that does anything to its link-local services.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kiln_linklocal::fuzzing::frames(data));
