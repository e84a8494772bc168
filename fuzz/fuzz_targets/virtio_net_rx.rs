//! Receive buffers of any shape and frames of any length for a network device.
#![no_main]

use kiln_devices::virtio::net::testing::fuzz_receive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_receive(data));
