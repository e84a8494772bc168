//! Rings and descriptors of any content for a running block device.
#![no_main]

use kiln_devices::virtio::blk::fuzzing;
use kiln_devices::virtio::testing::hammer_rings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| hammer_rings(|mem| fuzzing::victim(mem, 2), data));
