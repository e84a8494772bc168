//! What a daemon's instances may take, and how long things may last.

use std::time::Duration;

use kiln_model::{ByteSize, InstanceId};

use super::SupervisorError;
use crate::host::host_total_memory;
use crate::instances::{Instance, LaunchRequest, RequestError};

/// Memory that the host keeps for itself and for the VMMs' own needs: this part of it.
const RESERVED: u64 = 8;
/// vCPUs for each processor of the host: they are shared, memory is not.
const VCPUS_PER_PROCESSOR: u32 = 8;

/// How a supervisor behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a guest may take to power off before its machine is ended.
    pub stop_grace: Duration,
    /// How long it may take to power off for a reboot before it is reset.
    pub reboot_grace: Duration,
    /// For how long terminated instances are shown.
    pub show_terminated: Duration,
    /// After a start an instance's status is `initializing` for this long.
    pub initializing: Duration,
    /// Start the instances again that ran when the host went down.
    pub restart_after_boot: bool,
    /// What all instances together may have.
    pub capacity: Capacity,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            stop_grace: Duration::from_secs(180),
            reboot_grace: Duration::from_secs(240),
            show_terminated: Duration::from_secs(3600),
            initializing: Duration::from_secs(15),
            restart_after_boot: false,
            capacity: Capacity::of_host(),
        }
    }
}

/// What instances with a machine may have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Guest memory.
    pub memory: ByteSize,
    /// vCPUs.
    pub vcpus: u32,
}

impl Capacity {
    /// Seven eighths of this host's memory, and eight vCPUs for each of its processors.
    pub fn of_host() -> Self {
        let total = host_total_memory().as_bytes();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Capacity {
            memory: ByteSize::bytes(total - total / RESERVED),
            vcpus: u32::try_from(processors).unwrap_or(u32::MAX).saturating_mul(VCPUS_PER_PROCESSOR),
        }
    }

    /// What these instances have.
    pub(super) fn used<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Self {
        let mut used = Capacity { memory: ByteSize::bytes(0), vcpus: 0 };
        for instance in instances.into_iter().filter(|instance| instance.is_active()) {
            used.add(instance.vcpus, instance.memory);
        }
        used
    }

    fn add(&mut self, vcpus: u8, memory: ByteSize) {
        self.memory = ByteSize::bytes(self.memory.as_bytes().saturating_add(memory.as_bytes()));
        self.vcpus = self.vcpus.saturating_add(u32::from(vcpus));
    }

    /// How many of `wanted` fit beside what is used.
    pub(super) fn room(&self, used: Capacity, vcpus: u8, memory: ByteSize, wanted: u32) -> u32 {
        let memory_left = self.memory.as_bytes().saturating_sub(used.memory.as_bytes());
        let by_memory = memory_left.checked_div(memory.as_bytes()).unwrap_or(u64::MAX);
        let by_vcpus =
            self.vcpus.saturating_sub(used.vcpus).checked_div(u32::from(vcpus)).unwrap_or(u32::MAX);
        wanted.min(by_vcpus).min(u32::try_from(by_memory).unwrap_or(u32::MAX))
    }

    /// How many of `wanted` instances of a wish fit; at least `least` must.
    pub(super) fn admit(
        &self,
        used: Capacity,
        request: &LaunchRequest,
        (least, wanted): (u32, u32),
    ) -> Result<u32, SupervisorError> {
        let size =
            request.size(crate::instances::HostMemory::UNBOUNDED).map_err(RequestError::into_launch)?;
        let room = self.room(used, size.vcpus, size.memory, wanted);
        if room < least || room == 0 {
            return Err(SupervisorError::Capacity { instance_type: size.instance_type, wanted: least, room });
        }
        Ok(room)
    }

    /// Whether stopped instances fit.
    pub(super) fn admit_starts(
        &self,
        mut used: Capacity,
        stopped: &[&Instance],
    ) -> Result<(), SupervisorError> {
        for instance in stopped {
            if self.room(used, instance.vcpus, instance.memory, 1) == 0 {
                return Err(SupervisorError::Capacity {
                    instance_type: instance.instance_type.clone(),
                    wanted: u32::try_from(stopped.len()).unwrap_or(u32::MAX),
                    room: 0,
                });
            }
            used.add(instance.vcpus, instance.memory);
        }
        Ok(())
    }
}

/// What is counted since the supervisor began, and what there is now. For metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instances by state, in the order of [`kiln_model::InstanceState::ALL`].
    pub instances: [u64; 6],
    /// Memory of those with a machine, in bytes.
    pub memory_bytes: u64,
    /// Their vCPUs.
    pub vcpus: u64,
    /// Launches asked for.
    pub launches: u64,
    /// Starts of stopped instances asked for.
    pub starts: u64,
    /// Launches and starts that failed after they were accepted.
    pub failed_launches: u64,
    /// Launches and starts refused for want of room.
    pub refused_for_capacity: u64,
    /// Machines that could not go on.
    pub failed_machines: u64,
    /// Machines taken over from an earlier daemon.
    pub adopted: u64,
    /// Fetches of credentials that failed, of instances that run.
    pub credential_failures: u64,
    /// Rows read from the store.
    pub rows_read: u64,
}

/// Whether an instance works, as far as it can be told from outside (`DescribeInstanceStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It has not run for long.
    Initializing,
    /// Its machine runs.
    Ok,
    /// It has no machine.
    NotApplicable,
}

/// What a guest printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleOutput {
    /// Whose.
    pub instance: InstanceId,
    /// The last 64 KiB of it.
    pub bytes: Vec<u8>,
    /// When it last printed, Unix seconds.
    pub time: u64,
}
