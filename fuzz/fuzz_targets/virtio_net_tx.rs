//! Chains and headers of any content on the transmit queue of a network device.
#![no_main]

use kiln_devices::virtio::net::testing::fuzz_transmit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_transmit(data));
