//! How much an instance gets of the host's disks and network, by its type.
//!
//! A burst is what passes in one second of the sustained rate: enough that a guest which pauses is not
//! held to its average in every tick.

use kiln_model::{InstanceType, Performance};
use kiln_vmspec::{Rate, RateLimits};

use super::Instance;

/// Frames that a guest may send per megabit of its bandwidth and second. Full frames come nowhere near it; a
/// flood of the smallest stops at a quarter of the wire's own limit.
const FRAMES_PER_MEGABIT: u64 = 400;

/// Its type, which was found at launch; one that a later version dropped limits nothing.
pub(super) fn kind(instance: &Instance) -> Option<InstanceType> {
    InstanceType::find(&instance.instance_type).ok()
}

fn performance(instance: &Instance) -> Option<Performance> {
    kind(instance).map(|kind| kind.performance())
}

fn rate(per_second: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: per_second })
}

/// For each of its volumes.
pub(super) fn disk(instance: &Instance) -> RateLimits {
    performance(instance).map_or_else(RateLimits::default, |p| RateLimits {
        operations: rate(p.disk_operations),
        bytes: rate(p.disk_bytes),
    })
}

/// For each direction of its interfaces.
pub(super) fn network(instance: &Instance) -> RateLimits {
    performance(instance).map_or_else(RateLimits::default, |p| RateLimits {
        operations: rate((p.network_bits / 1_000_000).saturating_mul(FRAMES_PER_MEGABIT)),
        bytes: rate(p.network_bits / 8),
    })
}
