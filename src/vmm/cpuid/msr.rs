//! Model-specific registers as firmware leaves them.

use kvm_bindings::kvm_msr_entry;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_SYSENTER_CS: u32 = 0x174;
const MSR_IA32_SYSENTER_ESP: u32 = 0x175;
const MSR_IA32_SYSENTER_EIP: u32 = 0x176;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_CR_PAT: u32 = 0x277;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Fast string instructions on.
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// MTRRs on, everything write-back. A guest that finds them off treats all memory as uncached.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
/// Value after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// For KVM_SET_MSRS on each vCPU, after KVM_SET_CPUID2.
///
/// KVM stops at the first register that it refuses and returns how many it set; those that a guest
/// misses least come last.
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    [
        // Writing the same value to all vCPUs lets KVM keep their counters in step.
        (MSR_IA32_TSC, 0),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
        (MSR_IA32_CR_PAT, PAT_RESET),
        (MSR_IA32_SYSENTER_CS, 0),
        (MSR_IA32_SYSENTER_ESP, 0),
        (MSR_IA32_SYSENTER_EIP, 0),
        (MSR_STAR, 0),
        (MSR_CSTAR, 0),
        (MSR_LSTAR, 0),
        (MSR_SYSCALL_MASK, 0),
        (MSR_KERNEL_GS_BASE, 0),
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ]
    .into_iter()
    .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
    .collect()
}
