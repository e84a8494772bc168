//! CPU templates: what is left of the host's features.
//!
//! A template is a list of what may stay, so that a feature which nobody has thought of yet is off.
//! It never adds anything. Bits that report mitigations always stay: a guest that knows less than its
//! host would leave doors open, or close them twice.

use kiln_model::CpuTemplate;

use super::Leaves;

/// What may stay of one subleaf.
struct Allowed {
    function: u32,
    index: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

const ALL: u32 = u32::MAX;

/// One bit each.
const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut n) = (0, 0);
    while n < list.len() {
        mask |= 1 << list[n];
        n += 1;
    }
    mask
}

/// x87, SSE and AVX: what XSAVE keeps.
const XCR0: u32 = bits(&[0, 1, 2]);
/// Size of the XSAVE area for these, in the standard format (Intel SDM 13.4).
const XSAVE_SIZE: u32 = 512 + 64 + 256;
const XSAVE: u32 = 0xd;

const X86_64_V3: [Allowed; 7] = [
    Allowed {
        function: 1,
        index: 0,
        eax: ALL,
        ebx: ALL,
        // SSE3 PCLMULQDQ VMX SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES XSAVE
        // OSXSAVE AVX F16C RDRAND, hypervisor
        ecx: bits(&[0, 1, 5, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]),
        edx: ALL,
    },
    Allowed {
        function: 7,
        index: 0,
        eax: ALL,
        // FSGSBASE TSC_ADJUST BMI1 AVX2 SMEP BMI2 ERMS INVPCID, FPU's deprecated selectors, RDSEED ADX SMAP
        // CLFLUSHOPT
        ebx: bits(&[0, 1, 3, 5, 7, 8, 9, 10, 13, 18, 19, 20, 23]),
        // UMIP, which KVM also emulates
        ecx: bits(&[2]),
        // Mitigations alone: SRBDS_CTRL MD_CLEAR IBRS STIBP L1D_FLUSH ARCH_CAPABILITIES SSBD
        edx: bits(&[9, 10, 26, 27, 28, 29, 31]),
    },
    // Mitigations: PSFD IPRED RRSBA DDPD BHI MCDT_NO
    Allowed { function: 7, index: 2, eax: 0, ebx: 0, ecx: 0, edx: bits(&[0, 1, 2, 3, 4, 5]) },
    // XSAVEOPT XSAVEC XGETBV1 XSAVES, and no supervisor state
    Allowed { function: XSAVE, index: 1, eax: bits(&[0, 1, 2, 3]), ebx: ALL, ecx: 0, edx: 0 },
    Allowed {
        function: 0x8000_0001,
        index: 0,
        eax: ALL,
        ebx: ALL,
        // LAHF CmpLegacy SVM CR8 LZCNT SSE4A misaligned-SSE PREFETCHW OSVW SKINIT TopoExt, counters
        ecx: bits(&[0, 1, 2, 4, 5, 6, 7, 8, 9, 12, 22, 23, 24, 28]),
        edx: ALL,
    },
    Allowed {
        function: 0x8000_0008,
        index: 0,
        eax: ALL,
        // CLZERO XSAVEERPTR and mitigations: IBPB IBRS STIBP SSBD PSFD BTC_NO and their variants
        ebx: bits(&[0, 2, 12, 13, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29, 30]),
        ecx: ALL,
        edx: ALL,
    },
    // Serialising LFENCE, null selectors, mitigations: AutoIBRS SBPB IBPB_BRTYPE SRSO_NO
    Allowed {
        function: 0x8000_0021,
        index: 0,
        eax: bits(&[2, 6, 8, 27, 28, 29, 30, 31]),
        ebx: 0,
        ecx: 0,
        edx: 0,
    },
];

/// Leaves that the template's guests find empty: processor trace, key locker, AMX, AVX10.
const EMPTY: [u32; 5] = [0x14, 0x19, 0x1d, 0x1e, 0x24];

/// Leaves no more than the template's features.
pub(super) fn apply(leaves: &mut Leaves, template: CpuTemplate) {
    match template {
        CpuTemplate::Host => {}
        CpuTemplate::X86_64V3 => {
            // Of the leaves listed, subleaves that are not listed tell of later features.
            for entry in leaves.entries.iter_mut().filter(|e| e.function == 7) {
                if !X86_64_V3.iter().any(|a| (a.function, a.index) == (entry.function, entry.index)) {
                    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
                }
            }
            for allowed in &X86_64_V3 {
                if let Some(leaf) = leaves.get_mut(allowed.function, allowed.index) {
                    leaf.eax &= allowed.eax;
                    leaf.ebx &= allowed.ebx;
                    leaf.ecx &= allowed.ecx;
                    leaf.edx &= allowed.edx;
                }
            }
            for function in EMPTY {
                leaves.zero(function);
            }
            xsave(leaves);
        }
    }
}

/// Leaf 0xD: components, their sizes, and one subleaf for each beyond the first two.
fn xsave(leaves: &mut Leaves) {
    for entry in leaves.entries.iter_mut().filter(|e| e.function == XSAVE) {
        match entry.index {
            0 => {
                entry.eax &= XCR0;
                entry.edx = 0;
                // KVM computes EBX for what is enabled at the time, ECX is for all that there is.
                entry.ebx = entry.ebx.min(XSAVE_SIZE);
                entry.ecx = entry.ecx.min(XSAVE_SIZE);
            }
            1 | 2 => {}
            _ => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::leaf;
    use super::*;
    use proptest::prelude::*;

    fn masked(entries: Vec<kvm_bindings::kvm_cpuid_entry2>) -> Leaves {
        let mut leaves = Leaves { entries };
        apply(&mut leaves, CpuTemplate::X86_64V3);
        leaves
    }

    #[test]
    fn later_features_are_gone_and_mitigations_stay() {
        const AVX512F: u32 = 1 << 16;
        const PKU: u32 = 1 << 3;
        const AMX: u32 = 1 << 24;
        const SPEC_CTRL: u32 = 1 << 26;
        let leaves = masked(vec![
            leaf(7, 0, [2, AVX512F | 1 << 5, PKU | 1 << 2, AMX | SPEC_CTRL]),
            leaf(7, 1, [1 << 4, 0, 0, 0]),
            leaf(7, 2, [0, 0, 0, 0x11]),
            leaf(XSAVE, 0, [0x6_02e7, 0x2b00, 0x2b00, 0]),
            leaf(XSAVE, 1, [0x1f, 0x240, 0x1800, 0]),
            leaf(XSAVE, 2, [256, 576, 0, 0]),
            leaf(XSAVE, 5, [64, 1088, 0, 0]),
            leaf(0x1d, 1, [0x0400_2000, 0x0008_0040, 0x10, 0]),
        ]);
        let get = |function, index| {
            let leaf = leaves.get(function, index).unwrap();
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        };
        assert_eq!(get(7, 0), [2, 1 << 5, 1 << 2, SPEC_CTRL]);
        assert_eq!(get(7, 1), [0; 4]);
        assert_eq!(get(7, 2), [0, 0, 0, 0x11]);
        assert_eq!(get(XSAVE, 0), [7, 832, 832, 0]);
        assert_eq!(get(XSAVE, 1), [0xf, 0x240, 0, 0]);
        assert_eq!(get(XSAVE, 2), [256, 576, 0, 0]);
        assert_eq!(get(XSAVE, 5), [0; 4]);
        assert_eq!(get(0x1d, 1), [0; 4]);
    }

    proptest! {
        #[test]
        fn a_template_only_ever_takes_away(
            regs in any::<[u32; 4]>(),
            function in prop_oneof![Just(1u32), Just(7), Just(0xd), Just(0x14), Just(0x8000_0001), any::<u32>()],
            index in 0u32..20,
        ) {
            let host = leaf(function, index, regs);
            let entry = masked(vec![host]).entries[0];
            // Sizes are numbers, not bits.
            let sizes = function == XSAVE && index == 0;
            prop_assert_eq!(entry.eax & !host.eax, 0);
            prop_assert_eq!(entry.edx & !host.edx, 0);
            let shrunk = |now: u32, then: u32| if sizes { now <= then } else { now & !then == 0 };
            prop_assert!(shrunk(entry.ebx, host.ebx));
            prop_assert!(shrunk(entry.ecx, host.ecx));
            let mut same = Leaves { entries: vec![host] };
            apply(&mut same, CpuTemplate::Host);
            prop_assert_eq!(same.entries, vec![host]);
        }
    }
}
