//! What the process of one instance may take of the host: derived from its size, enforced around it.

use std::path::Path;

use kiln_sandbox::block_device::BlockDevice;
use kiln_sandbox::cgroup::{DiskLimit, Limits};
use kiln_sandbox::jail;

use super::spec::{Opened, log_limit};
use super::{Instance, rates};
use crate::vmm_process::Bounds;

const MIB: u64 = 1 << 20;

/// Memory of a VMM besides its guest's: its own, what the kernel keeps for the machine, and page cache
/// for its images. The kernel takes cache back before it ends anybody.
const OVERHEAD: u64 = 192 * MIB;
/// Page tables for the guest's memory, on the host's side, take this part of it at most.
const PAGE_TABLES: u64 = 256;
/// Threads besides vCPUs: control, event loop, one for each disk queue, the kernel's for io_uring.
const OTHER_THREADS: u64 = 128;

/// What may pass between the VMM and the host's disk, in multiples of what its guest may ask for: the copies
/// on write, their tables, and the logs come on top. It is there for a VMM that no longer limits its guest.
const DISK_MARGIN: u64 = 4;

/// The largest that the own layer of a volume of `bytes` can become: one that is full, whose tables are a
/// small part of it and grow in whole clusters.
pub(super) fn largest_layer(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 512).saturating_add(64 * MIB)
}

/// The bounds of `instance`, whose volumes are in `dir`, with what is open for it.
pub(super) fn of(instance: &Instance, dir: &Path, opened: &Opened) -> Bounds {
    let vcpus = u64::from(instance.vcpus);
    let memory = instance.memory.as_bytes();
    // Pages of the hugetlb pool are not counted.
    let guest = if instance.hugepages { 0 } else { memory };
    let volume = opened.disks.iter().map(|disk| disk.volume.size.as_bytes()).max().unwrap_or(0);
    let layer = largest_layer(volume);
    let log = opened
        .console_log
        .metadata()
        .map_or(0, |metadata| metadata.len())
        .saturating_add(log_limit(instance));
    Bounds {
        uid: if rustix::process::geteuid().is_root() {
            jail::uid_of(instance.id.low_bits())
        } else {
            rustix::process::geteuid().as_raw()
        },
        largest_file: layer.max(log),
        cgroup: instance.id.to_string(),
        limits: Limits {
            memory_bytes: guest.saturating_add(memory / PAGE_TABLES).saturating_add(OVERHEAD),
            // One more than the guest has, for the devices.
            cpu_thousandths: vcpus.saturating_add(1).saturating_mul(1000),
            cpu_weight: vcpus.saturating_mul(100).min(10_000),
            threads: vcpus.saturating_add(OTHER_THREADS),
            disk: disk(instance, dir),
        },
    }
}

fn disk(instance: &Instance, dir: &Path) -> Option<DiskLimit> {
    let rates = rates::kind(instance)?.performance();
    Some(DiskLimit {
        device: BlockDevice::under(dir)?,
        bytes: rates.disk_bytes.saturating_mul(DISK_MARGIN),
        operations: rates.disk_operations.saturating_mul(DISK_MARGIN),
    })
}
