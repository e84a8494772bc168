//! Filter of one tap, before all others: kinds of frames, and how much.
//!
//! It is in a chain of its own on the tap, the first thing that a frame meets in the host. What
//! floods costs least here, and what is neither IPv4 nor ARP (IPv6 where the interface has none, VLAN
//! tags, anything else) ends here, counted. The VMM has limits of its own; these hold for one that a guest has taken over.

use kiln_model::InterfaceId;

use crate::names::{self, TABLE};

/// Most packets per second that an interface sends: what the largest instances of EC2 do.
const PACKETS_PER_SECOND: u32 = 1_000_000;
/// Most megabytes per second: 12.5 Gbit/s.
const MEGABYTES_PER_SECOND: u32 = 1_562;
/// How much may come at once after a quiet time.
const BURST_PACKETS: u32 = 200_000;
/// As above, in megabytes.
const BURST_MEGABYTES: u32 = 256;

/// Most packets per second, or what takes its place in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Packets per second.
    pub packets: u32,
    /// As many may come at once after a quiet time.
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Rate { packets: PACKETS_PER_SECOND, burst: BURST_PACKETS }
    }
}

/// Counter of frames of other kinds.
pub(crate) fn kind_counter(interface: InterfaceId) -> String {
    format!("kind_{}", interface.short())
}

/// Counter of frames beyond the rate.
pub(crate) fn rate_counter(interface: InterfaceId) -> String {
    format!("rate_{}", interface.short())
}

fn chain(interface: InterfaceId) -> String {
    format!("tap_{}", interface.short())
}

/// Makes the filter. The tap must be there.
pub(crate) fn make(interface: InterfaceId, ipv6: bool, rate: Rate) -> String {
    let (kind, over) = (kind_counter(interface), rate_counter(interface));
    let (chain, tap, Rate { packets, burst }) = (chain(interface), names::tap(interface), rate);
    let kinds = if ipv6 { "ip, ip6, arp" } else { "ip, arp" };
    format!(
        "add table netdev {TABLE}
add counter netdev {TABLE} {kind}
add counter netdev {TABLE} {over}
add chain netdev {TABLE} {chain} {{ type filter hook ingress device \"{tap}\" priority -500; policy accept; }}
flush chain netdev {TABLE} {chain}
add rule netdev {TABLE} {chain} ether type != {{ {kinds} }} counter name \"{kind}\" drop
add rule netdev {TABLE} {chain} limit rate over {packets}/second burst {burst} packets counter name \"{over}\" drop
add rule netdev {TABLE} {chain} limit rate over {MEGABYTES_PER_SECOND} mbytes/second burst {BURST_MEGABYTES} mbytes counter name \"{over}\" drop
"
    )
}

/// Removes the chain. Fails where it is not there: older kernels remove it with its tap.
pub(crate) fn remove_chain(interface: InterfaceId) -> String {
    format!("delete chain netdev {TABLE} {}\n", chain(interface))
}

/// Removes the counters, whether or not they are there.
pub(crate) fn remove_counters(interface: InterfaceId) -> String {
    let mut script = format!("add table netdev {TABLE}\n");
    for counter in [kind_counter(interface), rate_counter(interface)] {
        script += &format!("add counter netdev {TABLE} {counter}\ndelete counter netdev {TABLE} {counter}\n");
    }
    script
}
