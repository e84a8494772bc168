//! Requests of any content to the metadata service.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kiln_linklocal::fuzzing::imds_http(data));
