//! Doorbells: guest writes that become event descriptors inside the kernel.

use std::io;
use std::sync::Arc;

use kiln_devices::interrupt::DoorbellRegistry;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Doorbells on KVM's ioeventfd, any access length, any value.
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
}

impl KvmDoorbells {
    /// Doorbells of this VM.
    pub fn new(vm: Arc<VmFd>) -> Self {
        KvmDoorbells { vm }
    }
}

impl DoorbellRegistry for KvmDoorbells {
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.vm.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io::Error::from)
    }

    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io::Error::from)
    }
}
