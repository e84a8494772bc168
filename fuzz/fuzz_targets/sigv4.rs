//! The signature of an API request.
#![no_main]

use kiln_api::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::sigv4(bytes));
