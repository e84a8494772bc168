//! Tells a person why KVM cannot go on with a guest.

use std::fmt::Write;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Longest x86 instruction.
const INSTRUCTION: usize = 15;

/// One line for `KVM_EXIT_INTERNAL_ERROR`, with the place in the guest, and a register dump in the log.
pub fn internal_error(vcpu: &mut VcpuFd, id: u8, memory: &GuestMemoryMmap) -> String {
    let suberror = suberror(vcpu);
    let cause = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction of the guest could not be emulated",
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions met",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left the guest for an unknown reason",
        _ => "the reason is unknown",
    };
    log_registers(vcpu, id);
    format!(
        "the host's KVM gave up on vCPU {id}: {cause} (internal error {suberror}) at {}; a KVM without hardware \
         virtualization cannot run stock kernels: `kiln doctor` tells, and scripts/lab provides one that can",
        place(vcpu, memory)
    )
}

/// One line for `KVM_EXIT_FAIL_ENTRY`.
pub fn entry_failed(vcpu: &VcpuFd, id: u8, reason: u64, memory: &GuestMemoryMmap) -> String {
    log_registers(vcpu, id);
    format!(
        "the processor refused to run vCPU {id} (hardware entry failure {reason:#x}) at {}",
        place(vcpu, memory)
    )
}

/// For `KVM_EXIT_SHUTDOWN`: a fault while the guest's double fault handler was being entered. Kernels
/// do that on purpose when no other way to reset works; by accident it would look like a restart for
/// no reason, so the log tells. AMD's processors lose the registers when it happens.
pub fn shutdown(vcpu: &VcpuFd, id: u8, memory: &GuestMemoryMmap) {
    tracing::warn!(
        "vCPU {id} shut itself down (triple fault) at {}; the machine is reset",
        place(vcpu, memory)
    );
    log_registers(vcpu, id);
}

fn suberror(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    #[expect(unsafe_code, reason = "kvm_run is a union by exit reason")]
    // SAFETY: called for KVM_EXIT_INTERNAL_ERROR only, for which `internal` is the valid member;
    // every bit pattern is a valid u32.
    unsafe {
        run.__bindgen_anon_1.internal.suberror
    }
}

/// `rip 0x…, bytes …`, as far as they can be read.
fn place(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> String {
    let Ok(regs) = vcpu.get_regs() else { return "an unknown place".into() };
    let mut text = format!("rip {:#x}", regs.rip);
    let Ok(sregs) = vcpu.get_sregs() else { return text };
    let linear = sregs.cs.base.wrapping_add(regs.rip);
    let physical = vcpu.translate_gva(linear).ok().filter(|t| t.valid != 0).map(|t| t.physical_address);
    let mut bytes = [0u8; INSTRUCTION];
    let got = physical.and_then(|address| memory.read(&mut bytes, GuestAddress(address)).ok()).unwrap_or(0);
    if got > 0 {
        text.push_str(", bytes");
    }
    for byte in bytes.iter().take(got) {
        // Writing to a String cannot fail.
        let _ = write!(text, " {byte:02x}");
    }
    text
}

fn log_registers(vcpu: &VcpuFd, id: u8) {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => tracing::warn!("vCPU {id} registers: {regs:x?} {sregs:x?}"),
        _ => tracing::warn!("vCPU {id}: the registers cannot be read"),
    }
}
