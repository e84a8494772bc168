//! The virtual machine monitor: from a `VmSpec` to running vCPUs.

pub mod layout;
