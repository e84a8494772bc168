//! The tests by name.

mod basics;
mod bench;
mod blk;
mod firmware;
mod hostile;
mod hotplug;
mod imds;
mod net;
mod packet;
mod pci;
mod power;

use crate::memory;
use crate::report::{Outcome, fail, println};

type Test = fn() -> Outcome;

/// By subject; those that never return come last.
const TESTS: &[(&str, Test)] = &[
    ("hello", basics::hello),
    ("memory", basics::memory),
    ("unclaimed-ports", basics::unclaimed_ports),
    ("unclaimed-memory", basics::unclaimed_memory),
    ("serial-odd", basics::serial_odd),
    ("rtc", basics::rtc),
    ("rng", basics::rng),
    ("acpi", firmware::acpi),
    ("smbios", firmware::smbios),
    ("generation-id", firmware::generation_id),
    ("pci-list", pci::list),
    ("pci-odd", pci::odd_accesses),
    ("pci-ecam", pci::ecam),
    ("pci-bars", pci::bars),
    ("pci-capabilities", pci::capabilities),
    ("msix-odd", pci::msix_odd),
    ("blk-rw", blk::read_write),
    ("blk-errors", blk::errors),
    ("blk-id", blk::id),
    ("blk-depth", blk::depth),
    ("blk-indirect", blk::indirect),
    ("blk-reset", blk::reset_in_flight),
    ("blk-fill", blk::fill),
    ("net-arp", net::arp),
    ("net-dhcp", net::dhcp),
    ("net-imds", imds::imds),
    ("hostile-status", hostile::registers::status_order),
    ("hostile-features", hostile::registers::features),
    ("hostile-frozen", hostile::registers::frozen),
    ("hostile-registers", hostile::registers::odd_accesses),
    ("hostile-queues", hostile::rings::queue_setups),
    ("hostile-rings", hostile::rings::ring_contents),
    ("hostile-doorbells", hostile::rings::doorbells),
    ("hostile-chains", hostile::chains::blk_chains),
    ("hostile-indirect", hostile::chains::blk_indirect),
    ("hostile-blk", hostile::chains::blk_requests),
    ("hostile-net", hostile::chains::net_frames),
    ("hostile-imds", imds::flood),
    ("hostile-bars", hostile::hammer::moving_bars),
    ("hostile-hammer", hostile::hammer::hammer),
    ("bench-exit", bench::exit),
    ("bench-blk", bench::blk),
    ("bench-net", bench::net),
    ("disk-hotplug", hotplug::disk),
    ("disk-surprise", hotplug::surprise),
    ("nic-hotplug", hotplug::interface),
    ("nic-wire", hotplug::interface_on_a_wire),
    ("nic-cut", hotplug::interface_cut),
    ("power-button", power::button),
    ("reset", power::reset),
    ("triple-fault", power::triple_fault),
    ("reset-without-end", power::reset_without_end),
    ("chatter", power::chatter),
    ("spin", power::spin),
];

/// Runs one test, with all memory for buffers free.
pub fn run(name: &str) -> Outcome {
    memory::release_all();
    if name == "list" {
        TESTS.iter().for_each(|(name, _)| println!("  {name}"));
        return Ok(());
    }
    match TESTS.iter().find(|(known, _)| *known == name) {
        Some((_, test)) => test(),
        None => fail!("there is no such test"),
    }
}
