//! Every device, through its registers and its rings, under a driver that means harm.

mod support;

use kiln_devices::virtio::rng::Rng;
use kiln_devices::virtio::testing::{hammer_registers, hammer_rings};
use proptest::prelude::*;
use support::{echo_net, scratch_disk};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn block_device_survives_any_accesses(data in bytes()) {
        hammer_registers(|mem| Box::new(scratch_disk(mem, 256, 2)), &data);
    }

    #[test]
    fn block_device_survives_any_rings(data in bytes()) {
        hammer_rings(|mem| Box::new(scratch_disk(mem, 256, 1)), &data);
    }

    #[test]
    fn network_device_survives_any_accesses(data in bytes()) {
        hammer_registers(|_| Box::new(echo_net(2)), &data);
    }

    #[test]
    fn network_device_survives_any_rings(data in bytes()) {
        hammer_rings(|_| Box::new(echo_net(2)), &data);
    }

    #[test]
    fn entropy_device_survives_any_accesses(data in bytes()) {
        hammer_registers(|_| Box::new(Rng::new("rng0")), &data);
    }
}
