//! The leaves that speak of threads, cores, sockets and caches.
//!
//! ```text
//!  leaf        vendor  field                                    this machine
//!  1           all     EBX[23:16] logical processors, HTT       count, more than one
//!  1           all     EBX[31:24] initial APIC id               vCPU
//!  4           Intel   EAX[31:26] cores, EAX[25:14] sharers     all; L3 all, else one
//!  0xB, 0x1F   all     level 0 threads, level 1 cores; EDX id   1, count; vCPU on every subleaf
//!  80000001    AMD     ECX[1] CmpLegacy, ECX[22] TopoExt
//!  80000008    AMD     ECX[7:0] cores - 1, ECX[15:12] id bits
//!  8000001D    AMD     EAX[25:14] sharers                       as leaf 4
//!  8000001E    AMD     EAX APIC id, EBX core id, ECX node       vCPU, vCPU, 0
//! ```

use super::{Leaves, Vendor};
use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

const EXTENDED_TOPOLOGY: u32 = 0xb;
const V2_EXTENDED_TOPOLOGY: u32 = 0x1f;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// AMD's other topology leaf, which KVM does not fill.
const AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

/// Bits of the APIC id that tell cores apart: the least with 2^bits ≥ `vcpus`.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

/// Sets what is the same on every vCPU.
pub(super) fn shared(leaves: &mut Leaves, vendor: Vendor, vcpus: u8) {
    const LEAF1_EDX_HTT: u32 = 1 << 28;
    let count = u32::from(vcpus);
    let ids = 1 << id_bits(vcpus);

    // Intel counts ids, AMD processors.
    let logical = if vendor == Vendor::Amd { count } else { ids };
    let leaf1 = leaves.get_or_insert(1, 0);
    leaf1.ebx = leaf1.ebx & 0xff00_ffff | logical << 16;
    leaf1.edx = if count > 1 { leaf1.edx | LEAF1_EDX_HTT } else { leaf1.edx & !LEAF1_EDX_HTT };

    caches(leaves, 4, ids);
    for cache in leaves.entries.iter_mut().filter(|e| e.function == 4 && e.eax & 0x1f != 0) {
        cache.eax = cache.eax & 0x03ff_ffff | (ids - 1) << 26;
    }
    if leaves.max_basic() >= EXTENDED_TOPOLOGY {
        extended_topology(leaves, EXTENDED_TOPOLOGY, vcpus);
    }
    if leaves.get(V2_EXTENDED_TOPOLOGY, 0).is_some() {
        extended_topology(leaves, V2_EXTENDED_TOPOLOGY, vcpus);
    }
    if vendor == Vendor::Amd {
        amd(leaves, vcpus, ids);
    }
}

fn amd(leaves: &mut Leaves, vcpus: u8, ids: u32) {
    const CMP_LEGACY: u32 = 1 << 1;
    const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
    let count = u32::from(vcpus);
    let has_topology_leaf = leaves.max_extended() >= AMD_TOPOLOGY;
    let mut extensions = false;
    if let Some(ext1) = leaves.get_mut(0x8000_0001, 0) {
        ext1.ecx = if count > 1 { ext1.ecx | CMP_LEGACY } else { ext1.ecx & !CMP_LEGACY };
        if !has_topology_leaf {
            ext1.ecx &= !TOPOLOGY_EXTENSIONS;
        }
        extensions = ext1.ecx & TOPOLOGY_EXTENSIONS != 0;
    }
    if let Some(ext8) = leaves.get_mut(0x8000_0008, 0) {
        ext8.ecx = ext8.ecx & 0xffff_0f00 | id_bits(vcpus) << 12 | (count - 1);
    }
    leaves.remove(AMD_EXTENDED_TOPOLOGY);
    if extensions {
        caches(leaves, AMD_CACHES, ids);
        // KVM lists it as zeroes or not at all.
        let leaf = leaves.get_or_insert(AMD_TOPOLOGY, 0);
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
    } else {
        leaves.remove(AMD_CACHES);
        leaves.remove(AMD_TOPOLOGY);
    }
}

/// Cache leaves: the third level belongs to all, the others to one core.
fn caches(leaves: &mut Leaves, function: u32, ids: u32) {
    for cache in leaves.entries.iter_mut().filter(|e| e.function == function && e.eax & 0x1f != 0) {
        let level = cache.eax >> 5 & 7;
        let sharers = if level >= 3 { ids } else { 1 };
        cache.eax = cache.eax & 0xfc00_3fff | (sharers - 1) << 14;
    }
}

/// Leaf 0xB or 0x1F: one thread per core, all cores in a socket, end.
fn extended_topology(leaves: &mut Leaves, function: u32, vcpus: u8) {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    leaves.remove(function);
    for (index, eax, ebx, level) in
        [(0, 0, 1, THREAD), (1, id_bits(vcpus), u32::from(vcpus), CORE), (2, 0, 0, 0)]
    {
        let leaf = leaves.get_or_insert(function, index);
        leaf.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        (leaf.eax, leaf.ebx, leaf.ecx) = (eax, ebx, level | index);
    }
}

/// Sets what tells vCPU `apic_id` from the others.
pub(super) fn own(leaves: &mut Leaves, apic_id: u32) {
    for leaf in &mut leaves.entries {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24,
            EXTENDED_TOPOLOGY | V2_EXTENDED_TOPOLOGY => leaf.edx = apic_id,
            AMD_TOPOLOGY => (leaf.eax, leaf.ebx) = (apic_id, apic_id),
            _ => {}
        }
    }
}
