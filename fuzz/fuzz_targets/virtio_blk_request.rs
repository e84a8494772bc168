//! A descriptor chain of any shape and content as a block request.
#![no_main]

use kiln_devices::virtio::blk::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::request(data));
