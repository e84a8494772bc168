//! What CPUID tells the guest: what KVM supports, made consistent for this machine's vCPUs.
//!
//! ```text
//!  KVM_GET_SUPPORTED_CPUID ──▶ Cpuid::new: features on and off, template, caches, hypervisor leaves
//!                                   │ for_vcpu(n): APIC id into leaves 1, 0xB, 0x1F, 0x8000001E
//!                                   ▼
//!                              KVM_SET_CPUID2, then MSRs (`msr`): KVM looks at CPUID when it
//!                              judges an MSR
//! ```
//!
//! All vCPUs are single-threaded cores of one socket, with APIC ids from 0 up. Every leaf that
//! speaks of topology says so: a guest that finds two answers may hang or leave processors unused.
//!
//! Invariants: no leaf is listed twice; whatever KVM does not support stays off, save what the
//! in-kernel local APIC provides (x2APIC, TSC deadline) and the hypervisor bit.

pub mod msr;
mod template;
mod topology;

use std::arch::x86_64::__cpuid;
use std::ops::Range;

use kiln_model::CpuTemplate;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::firmware::smbios::ProcessorInfo;

/// Frequency of KVM's local APIC timer: one cycle is one nanosecond.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// For processors without a name.
const GENERIC_BRAND: &str = "Virtual x86-64 processor";
/// Leaves with the processor's name, 16 bytes each.
const BRAND_LEAVES: Range<u32> = 0x8000_0002..0x8000_0005;
const BRAND_LEN: usize = 48;

/// Choices of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidSpec {
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// What they offer, at most.
    pub template: CpuTemplate,
    /// TSC frequency of the vCPUs (KVM_GET_TSC_KHZ), if known.
    pub tsc_khz: Option<u32>,
    /// KVM_CAP_TSC_DEADLINE_TIMER: KVM does not list the feature by itself.
    pub tsc_deadline_timer: bool,
    /// Offer performance counters.
    pub pmu: bool,
    /// Offer VMX or SVM, for virtual machines inside.
    pub nested: bool,
}

/// Why there is no CPUID for the guest.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// The host told nothing of leaf 0 or 1.
    #[error("KVM lists no CPUID leaf {0:#x}")]
    MissingLeaf(u32),
    /// More leaves than KVM takes.
    #[error("{0} CPUID leaves are more than KVM takes")]
    TooManyLeaves(usize),
    /// Out of range.
    #[error("{0} vCPUs are not in 1 to 32")]
    BadVcpuCount(u8),
}

/// CPUID of a machine, but for what differs between its vCPUs.
#[derive(Debug, Clone)]
pub struct Cpuid {
    leaves: Leaves,
    vcpus: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD and Hygon.
    Amd,
    Other,
}

impl Cpuid {
    /// Starts from `supported`, as KVM_GET_SUPPORTED_CPUID returned it.
    pub fn new(supported: &CpuId, spec: &CpuidSpec) -> Result<Self, CpuidError> {
        if spec.vcpus == 0 || spec.vcpus > 32 {
            return Err(CpuidError::BadVcpuCount(spec.vcpus));
        }
        let mut leaves = Leaves::of(supported);
        for needed in [0, 1] {
            leaves.get(needed, 0).ok_or(CpuidError::MissingLeaf(needed))?;
        }
        let vendor = leaves.vendor();
        features(&mut leaves, vendor, spec);
        template::apply(&mut leaves, spec.template);
        topology::shared(&mut leaves, vendor, spec.vcpus);
        hypervisor(&mut leaves, spec);
        tsc_frequency(&mut leaves, vendor, spec);
        brand(&mut leaves, host_brand());
        Ok(Cpuid { leaves, vcpus: spec.vcpus })
    }

    /// For KVM_SET_CPUID2 of vCPU `index`, whose APIC id is the same number.
    pub fn for_vcpu(&self, index: u8) -> Result<CpuId, CpuidError> {
        debug_assert!(index < self.vcpus);
        let mut leaves = self.leaves.clone();
        topology::own(&mut leaves, u32::from(index));
        let count = leaves.entries.len();
        CpuId::from_entries(&leaves.entries).map_err(|_| CpuidError::TooManyLeaves(count))
    }

    /// The same facts for SMBIOS.
    pub fn processor_info(&self) -> ProcessorInfo {
        let leaf1 = self.leaves.get(1, 0).copied().unwrap_or_default();
        ProcessorInfo {
            vendor: text(&self.leaves.vendor_bytes()),
            brand: text(&self.leaves.brand_bytes()),
            signature: leaf1.eax,
            features: leaf1.edx,
            cores: self.vcpus,
        }
    }
}

/// Switches features on and off.
fn features(leaves: &mut Leaves, vendor: Vendor, spec: &CpuidSpec) {
    /// MONITOR: KVM makes MWAIT a no-op, on which an idle guest would spin. SMX: no such thing.
    const LEAF1_ECX_MONITOR: u32 = 1 << 3;
    const LEAF1_ECX_VMX: u32 = 1 << 5;
    const LEAF1_ECX_SMX: u32 = 1 << 6;
    /// PERF_CAPABILITIES is a way to counters beyond those of leaf 0xA.
    const LEAF1_ECX_PDCM: u32 = 1 << 15;
    const LEAF1_ECX_X2APIC: u32 = 1 << 21;
    const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
    const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
    let leaf1 = leaves.get_or_insert(1, 0);
    leaf1.ecx &= !(LEAF1_ECX_MONITOR | LEAF1_ECX_SMX | LEAF1_ECX_PDCM | LEAF1_ECX_TSC_DEADLINE);
    leaf1.ecx |= LEAF1_ECX_X2APIC | LEAF1_ECX_HYPERVISOR;
    if spec.tsc_deadline_timer {
        leaf1.ecx |= LEAF1_ECX_TSC_DEADLINE;
    }
    if !spec.nested {
        leaf1.ecx &= !LEAF1_ECX_VMX;
    }
    leaves.zero(5); // MONITOR's sizes

    const LEAF7_EBX_SGX: u32 = 1 << 2;
    /// UMWAIT can hold a processor without an exit.
    const LEAF7_ECX_WAITPKG: u32 = 1 << 5;
    const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
    /// KVM emulates the MSR everywhere; on AMD it confuses guests, Windows above all.
    const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
    if let Some(leaf7) = leaves.get_mut(7, 0) {
        leaf7.ebx &= !LEAF7_EBX_SGX;
        leaf7.ecx &= !(LEAF7_ECX_WAITPKG | LEAF7_ECX_SGX_LC);
        if vendor != Vendor::Intel {
            leaf7.edx &= !LEAF7_EDX_ARCH_CAPABILITIES;
        }
    }
    leaves.zero(0x12); // SGX
    leaves.zero(0x8000_001f); // memory encryption

    const EXT1_ECX_SVM: u32 = 1 << 2;
    const EXT1_ECX_SKINIT: u32 = 1 << 12;
    const EXT1_ECX_PERFCTR_CORE: u32 = 1 << 23;
    const EXT1_ECX_PERFCTR_NB: u32 = 1 << 24;
    const EXT1_ECX_PERFCTR_LLC: u32 = 1 << 28;
    if let Some(ext1) = leaves.get_mut(0x8000_0001, 0) {
        if !spec.nested {
            ext1.ecx &= !(EXT1_ECX_SVM | EXT1_ECX_SKINIT);
        }
        if !spec.pmu && vendor == Vendor::Amd {
            ext1.ecx &= !(EXT1_ECX_PERFCTR_CORE | EXT1_ECX_PERFCTR_NB | EXT1_ECX_PERFCTR_LLC);
        }
    }
    if !spec.nested {
        leaves.zero(0x8000_000a);
    }
    if !spec.pmu {
        for leaf in [0xa, 0x23, 0x8000_0022] {
            leaves.zero(leaf);
        }
    }
}

/// KVM's own leaves. Guests, and EC2's agents, look for the signature.
fn hypervisor(leaves: &mut Leaves, spec: &CpuidSpec) {
    const BASE: u32 = 0x4000_0000;
    const FEATURES: u32 = BASE + 1;
    /// By a convention of several hypervisors: frequencies of TSC and local APIC timer in kHz.
    const FREQUENCIES: u32 = BASE + 0x10;
    const SIGNATURE: [u32; 3] =
        [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];
    /// Only for APIC ids past 254, which need help from the interrupt routing.
    const MSI_EXT_DEST_ID: u32 = 1 << 15;

    let features = leaves.get(FEATURES, 0).copied().unwrap_or_default();
    // Other leaves in this range describe other hypervisors.
    leaves.entries.retain(|e| !(BASE..BASE + 0x1_0000).contains(&e.function));
    let base = leaves.get_or_insert(BASE, 0);
    base.eax = if spec.tsc_khz.is_some() { FREQUENCIES } else { FEATURES };
    [base.ebx, base.ecx, base.edx] = SIGNATURE;
    let own = leaves.get_or_insert(FEATURES, 0);
    own.eax = features.eax & !MSI_EXT_DEST_ID;
    own.edx = features.edx;
    if let Some(tsc_khz) = spec.tsc_khz {
        let frequencies = leaves.get_or_insert(FREQUENCIES, 0);
        (frequencies.eax, frequencies.ebx) = (tsc_khz, APIC_BUS_KHZ);
    }
}

/// Leaf 0x15: TSC = crystal × EBX / EAX. The "crystal" is KVM's APIC clock, as Intel defines that
/// the APIC timer runs at the crystal's frequency. Spares a guest without kvm-clock calibration.
fn tsc_frequency(leaves: &mut Leaves, vendor: Vendor, spec: &CpuidSpec) {
    const LEAF: u32 = 0x15;
    match spec.tsc_khz {
        Some(tsc_khz) if vendor == Vendor::Intel && leaves.max_basic() >= LEAF => {
            let leaf = leaves.get_or_insert(LEAF, 0);
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (APIC_BUS_KHZ, tsc_khz, APIC_BUS_KHZ * 1000, 0);
        }
        _ => {}
    }
}

/// Gives the processor its name: KVM lists these leaves as zeroes.
fn brand(leaves: &mut Leaves, host: [u8; BRAND_LEN]) {
    if leaves.max_extended() < BRAND_LEAVES.end - 1 || leaves.brand_bytes().iter().any(|b| *b != 0) {
        return;
    }
    let mut name = host;
    if name.iter().all(|b| *b == 0) {
        name[..GENERIC_BRAND.len()].copy_from_slice(GENERIC_BRAND.as_bytes());
    }
    for (function, bytes) in BRAND_LEAVES.zip(name.as_chunks::<16>().0) {
        let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let leaf = leaves.get_or_insert(function, 0);
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (word(0), word(4), word(8), word(12));
    }
}

/// The name of the processor that this runs on.
fn host_brand() -> [u8; BRAND_LEN] {
    let mut name = [0; BRAND_LEN];
    if __cpuid(0x8000_0000).eax >= BRAND_LEAVES.end - 1 {
        let words = BRAND_LEAVES.map(__cpuid).flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        for (to, word) in name.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
    }
    name
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

/// A list of leaves, each `(function, index)` once.
#[derive(Debug, Clone)]
struct Leaves {
    entries: Vec<kvm_cpuid_entry2>,
}

impl Leaves {
    /// Of duplicates the first counts, as it does for KVM.
    fn of(supported: &CpuId) -> Self {
        let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(supported.as_slice().len() + 8);
        for entry in supported.as_slice() {
            if !entries.iter().any(|e| e.function == entry.function && e.index == entry.index) {
                entries.push(*entry);
            }
        }
        Leaves { entries }
    }

    fn get(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.iter().find(|e| e.function == function && e.index == index)
    }

    fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.entries.iter_mut().find(|e| e.function == function && e.index == index)
    }

    /// Finds the leaf or adds it as all zeroes.
    fn get_or_insert(&mut self, function: u32, index: u32) -> &mut kvm_cpuid_entry2 {
        let position = self.entries.iter().position(|e| e.function == function && e.index == index);
        let position = position.unwrap_or_else(|| {
            let flags = if index > 0 { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            self.entries.push(kvm_cpuid_entry2 { function, index, flags, ..Default::default() });
            self.entries.len() - 1
        });
        &mut self.entries[position]
    }

    fn remove(&mut self, function: u32) {
        self.entries.retain(|e| e.function != function);
    }

    /// Zeroes all subleaves. They stay listed: for a leaf that is not, a processor of Intel's
    /// answers with its highest leaf.
    fn zero(&mut self, function: u32) {
        for entry in self.entries.iter_mut().filter(|e| e.function == function) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
    }

    fn max_basic(&self) -> u32 {
        self.get(0, 0).map_or(0, |leaf| leaf.eax)
    }

    fn max_extended(&self) -> u32 {
        self.get(0x8000_0000, 0).map_or(0, |leaf| leaf.eax)
    }

    fn vendor_bytes(&self) -> [u8; 12] {
        let leaf = self.get(0, 0).copied().unwrap_or_default();
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&leaf.ebx.to_le_bytes());
        bytes[4..8].copy_from_slice(&leaf.edx.to_le_bytes());
        bytes[8..].copy_from_slice(&leaf.ecx.to_le_bytes());
        bytes
    }

    fn vendor(&self) -> Vendor {
        match &self.vendor_bytes() {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }

    fn brand_bytes(&self) -> Vec<u8> {
        BRAND_LEAVES
            .filter_map(|function| self.get(function, 0))
            .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .flat_map(u32::to_le_bytes)
            .collect()
    }
}

#[cfg(test)]
mod tests;
