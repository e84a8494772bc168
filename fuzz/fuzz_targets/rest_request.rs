//! A request by paths, to its checked parameters.
#![no_main]

use kiln_api::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::rest(bytes));
