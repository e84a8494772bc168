//! Registers of a vCPU before its first entry.

use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::VcpuFd;

use crate::boot::{self, BootCpu};
use crate::cpuid::msr::boot_msrs;
use crate::kvm::KvmError;

/// Sets CPUID, MSRs, FPU and local interrupts; the first vCPU also gets its entry state (`boot`),
/// the others wait for the guest to start them.
///
/// CPUID comes before MSRs: KVM judges an MSR by what CPUID offers.
pub fn set_up(vcpu: &VcpuFd, cpuid: &CpuId, boot: Option<&BootCpu>) -> Result<(), KvmError> {
    vcpu.set_cpuid2(cpuid).map_err(KvmError::ioctl("setting CPUID"))?;
    set_msrs(vcpu)?;
    vcpu.set_fpu(&boot::boot_fpu()).map_err(KvmError::ioctl("setting the FPU"))?;
    let mut lapic = vcpu.get_lapic().map_err(KvmError::ioctl("reading the local APIC"))?;
    boot::set_local_interrupts(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(KvmError::ioctl("setting the local APIC"))?;
    if let Some(cpu) = boot {
        vcpu.set_regs(&cpu.regs()).map_err(KvmError::ioctl("setting registers"))?;
        let mut sregs = vcpu.get_sregs().map_err(KvmError::ioctl("reading system registers"))?;
        cpu.apply(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(KvmError::ioctl("setting system registers"))?;
    }
    Ok(())
}

/// Sets what KVM takes. All values are what a processor has after reset or what KVM guesses anyway,
/// so one that a host refuses is worth a line in the log and no more.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut entries = boot_msrs();
    while !entries.is_empty() {
        let Ok(msrs) = Msrs::from_entries(&entries) else { return Ok(()) };
        let taken = vcpu.set_msrs(&msrs).map_err(KvmError::ioctl("setting model-specific registers"))?;
        if let Some(refused) = entries.get(taken) {
            tracing::debug!("the host's KVM refuses MSR {:#x}", refused.index);
        }
        entries.drain(..entries.len().min(taken.saturating_add(1)));
    }
    Ok(())
}
