//! The virtual machine monitor: from a `VmSpec` to running vCPUs.

pub mod boot;
pub mod firmware;
pub mod layout;
