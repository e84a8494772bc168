//! Rings and descriptors of any content for a running device; the first byte says which.
#![no_main]

use kiln_devices::virtio::rng::Rng;
use kiln_devices::virtio::testing::{Loopback, hammer_rings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((first, rest)) if first % 2 == 0 => hammer_rings(|_| Box::new(Rng::new("rng")), rest),
    Some((_, rest)) => hammer_rings(|_| Box::new(Loopback::new("victim", &[8, 16])), rest),
    None => {}
});
