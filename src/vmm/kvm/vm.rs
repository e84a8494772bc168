//! A KVM virtual machine: memory slots, interrupt controllers, vCPU creation.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout;

/// A KVM call that failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The API is not the one every kernel since 2.6.22 has.
    #[error("/dev/kvm speaks API version {0}, not {KVM_API_VERSION}: is it really KVM?")]
    ApiVersion(i32),
    /// A capability that Kiln builds on is missing.
    #[error("the host's KVM lacks {0}; a newer kernel is needed (see `kiln doctor`)")]
    MissingCapability(&'static str),
    /// More vCPUs than the host allows.
    #[error("{wanted} vCPUs were asked for and the host's KVM allows {most}")]
    TooManyVcpus {
        /// Asked for.
        wanted: u8,
        /// `KVM_CAP_MAX_VCPUS`.
        most: usize,
    },
    /// An ioctl failed.
    #[error("KVM: {action} failed")]
    Ioctl {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl KvmError {
    /// For `map_err`.
    pub fn ioctl(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
        move |source| KvmError::Ioctl { action, source }
    }
}

/// An assembled but empty virtual machine.
pub struct Vm {
    kvm: Arc<Kvm>,
    fd: Arc<VmFd>,
}

/// What Kiln cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "in-kernel interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts from event descriptors (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "doorbells to event descriptors (KVM_CAP_IOEVENTFD)"),
    (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
    (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
    (Cap::SetTssAddr, "a task state segment (KVM_CAP_SET_TSS_ADDR)"),
    (Cap::ExtCpuid, "CPUID control (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
];

/// Takes over an open `/dev/kvm`.
pub fn adopt(device: OwnedFd) -> Result<Arc<Kvm>, KvmError> {
    #[expect(unsafe_code, reason = "the descriptor came over the control socket, not from open(2)")]
    // SAFETY: `device` is open and its ownership moves into `Kvm`; that it is a KVM device is
    // checked by the API version right below, before anything else is asked of it.
    let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
    match kvm.get_api_version() {
        version if u32::try_from(version) == Ok(KVM_API_VERSION) => {}
        version => return Err(KvmError::ApiVersion(version)),
    }
    for (capability, name) in NEEDED {
        if !kvm.check_extension(capability) {
            return Err(KvmError::MissingCapability(name));
        }
    }
    Ok(Arc::new(kvm))
}

impl Vm {
    /// Creates a VM with in-kernel local APICs and I/O APIC, room for `vcpus` vCPUs, and `memory`
    /// mapped at its guest addresses.
    pub fn new(kvm: &Arc<Kvm>, vcpus: u8, memory: &GuestMemoryMmap) -> Result<Self, KvmError> {
        let most = kvm.get_max_vcpus();
        if usize::from(vcpus) > most {
            return Err(KvmError::TooManyVcpus { wanted: vcpus, most });
        }
        let fd = create_vm(kvm)?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::ioctl("setting the identity map"))?;
        fd.set_tss_address(usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX))
            .map_err(KvmError::ioctl("setting the task state segment"))?;
        fd.create_irq_chip().map_err(KvmError::ioctl("creating the interrupt controllers"))?;
        for (slot, region) in (0u32..).zip(memory.iter()) {
            map_region(&fd, slot, region)?;
        }
        Ok(Vm { kvm: Arc::clone(kvm), fd: Arc::new(fd) })
    }

    /// The VM's descriptor, for interrupts and doorbells.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Everything this host can show a guest in CPUID.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::ioctl("reading the supported CPUID"))
    }

    /// Whether the local APIC timer has a TSC deadline mode, which KVM does not list in CPUID.
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// Creates vCPU `id`; ids count from 0 and are also the local APIC ids.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(KvmError::ioctl("creating a vCPU"))
    }
}

/// `KVM_CREATE_VM` may be interrupted by a signal while the kernel starts its helper thread.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Ok(fd) => return Ok(fd),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(KvmError::ioctl("creating a VM")(e)),
        }
    }
}

fn map_region(fd: &VmFd, slot: u32, region: &vm_memory::GuestRegionMmap) -> Result<(), KvmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    #[expect(unsafe_code, reason = "handing host memory to a guest is what a VMM is for")]
    // SAFETY: the region is mapped for `memory_size` bytes at `userspace_addr`, and guest memory is
    // never unmapped while the process lives (see `crate::memory`), so the slot cannot dangle.
    unsafe { fd.set_user_memory_region(slot) }.map_err(KvmError::ioctl("mapping guest memory"))
}
