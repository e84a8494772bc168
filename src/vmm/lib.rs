//! The virtual machine monitor: from a `VmSpec` to running vCPUs.

pub mod boot;
pub mod confined;
pub mod console;
pub mod control;
pub mod cpuid;
mod disks;
pub mod firmware;
pub mod host;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod nic;
mod nics;
pub mod process;
pub mod vcpu;
pub mod workers;
