use proptest::prelude::*;

use super::*;

const SPEC: CpuidSpec = CpuidSpec {
    vcpus: 4,
    template: CpuTemplate::Host,
    tsc_khz: Some(2_450_000),
    tsc_deadline_timer: true,
    pmu: false,
    nested: false,
};

pub(super) fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn host(vendor: &[u8; 12], rest: &[kvm_cpuid_entry2]) -> CpuId {
    let word = |n: usize| u32::from_le_bytes(vendor[n..n + 4].try_into().unwrap());
    let mut entries =
        vec![leaf(0, 0, [0x1f, word(0), word(8), word(4)]), leaf(0x8000_0000, 0, [0x8000_0021, 0, 0, 0])];
    entries.extend_from_slice(rest);
    CpuId::from_entries(&entries).unwrap()
}

/// As KVM describes a recent AMD processor: everything of importance, and what must go.
fn amd() -> CpuId {
    host(
        b"AuthenticAMD",
        &[
            leaf(1, 0, [0x00a1_0f11, 0x0702_0800, 0x8120_2068, 0x178b_fbff]),
            leaf(7, 0, [1, 0x0180_0006, 0x4000_0124, 0x2000_0000]),
            leaf(0xb, 0, [1, 2, 0x100, 7]),
            leaf(0x1f, 0, [0, 0, 0, 0]),
            leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, 0, [0x0100_fefb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0x00a1_0f11, 0, 0x01c0_0395, 0x23d3_fbff]),
            leaf(0x8000_0002, 0, [0x2044_4d41, 0x4359_5045, 0, 0]),
            leaf(0x8000_0003, 0, [0; 4]),
            leaf(0x8000_0004, 0, [0; 4]),
            leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
            leaf(0x8000_0008, 0, [0x3030, 0x0500_2000, 0x0002_703f, 0]),
            leaf(0x8000_000a, 0, [1, 8, 0, 0xff]),
            leaf(0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
            leaf(0x8000_001d, 3, [0x3_c163, 0x03c0_003f, 0x7fff, 1]),
            leaf(0x8000_001e, 0, [9, 0x0109, 0x0300, 0]),
            leaf(0x8000_0026, 0, [1, 2, 0x100, 7]),
        ],
    )
}

fn intel() -> CpuId {
    host(
        b"GenuineIntel",
        &[
            leaf(1, 0, [0x0005_0657, 0x0510_0800, 0xfffa_320b | 1 << 5, 0x0f8b_fbff]),
            leaf(4, 0, [0x1c00_4121, 0x01c0_003f, 0x3f, 0]),
            leaf(4, 3, [0x1c03_c163, 0x0280_003f, 0x7fff, 0]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(7, 0, [0, 0xd19f_4fbf, 0x20, 0x2c00_0000]),
            leaf(0xa, 0, [0x0730_0802, 0, 0, 0x603]),
            leaf(0x15, 0, [0; 4]),
            leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
            leaf(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ],
    )
}

fn vcpu(host: &CpuId, spec: &CpuidSpec, index: u8) -> Leaves {
    Leaves::of(&Cpuid::new(host, spec).unwrap().for_vcpu(index).unwrap())
}

/// `[eax, ebx, ecx, edx]`, all zero where the leaf is missing.
fn regs(leaves: &Leaves, function: u32, index: u32) -> [u32; 4] {
    let leaf = leaves.get(function, index).copied().unwrap_or_default();
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

#[test]
fn every_leaf_agrees_on_the_apic_id() {
    for host in [amd(), intel()] {
        for index in 0..4 {
            let leaves = vcpu(&host, &SPEC, index);
            let id = u32::from(index);
            assert_eq!(regs(&leaves, 1, 0)[1] >> 24, id);
            for subleaf in 0..3 {
                assert_eq!(regs(&leaves, 0xb, subleaf)[3], id, "0xB.{subleaf}");
            }
        }
    }
    let leaves = vcpu(&amd(), &SPEC, 3);
    assert_eq!(regs(&leaves, 0x1f, 1)[3], 3);
    assert_eq!(regs(&leaves, 0x8000_001e, 0), [3, 3, 0, 0]);
}

#[test]
fn extended_topology_counts_single_threaded_cores() {
    // vCPUs, bits of the id
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)] {
        let leaves = vcpu(&intel(), &CpuidSpec { vcpus, ..SPEC }, 0);
        assert_eq!(regs(&leaves, 0xb, 0)[..3], [0, 1, 0x100]);
        assert_eq!(regs(&leaves, 0xb, 1)[..3], [bits, u32::from(vcpus), 0x201]);
        assert_eq!(regs(&leaves, 0xb, 2)[..3], [0, 0, 2]);
        assert!(leaves.get(0xb, 3).is_none());
    }
}

#[test]
fn caches_are_shared_from_the_third_level_on() {
    let amd = vcpu(&amd(), &SPEC, 0);
    let intel = vcpu(&intel(), &SPEC, 0);
    let sharers = |regs: [u32; 4]| (regs[0] >> 14 & 0xfff) + 1;
    assert_eq!(sharers(regs(&amd, 0x8000_001d, 0)), 1);
    assert_eq!(sharers(regs(&amd, 0x8000_001d, 3)), 4);
    assert_eq!(sharers(regs(&intel, 4, 0)), 1);
    assert_eq!(sharers(regs(&intel, 4, 3)), 4);
    assert_eq!(regs(&intel, 4, 3)[0] >> 26, 3, "cores in the package less one");
    assert_eq!(regs(&intel, 4, 4)[0], 0, "the end stays the end");
}

#[test]
fn amd_core_count_is_told_three_ways() {
    let leaves = vcpu(&amd(), &SPEC, 0);
    assert_eq!(regs(&leaves, 1, 0)[1] >> 16 & 0xff, 4);
    assert_eq!(regs(&leaves, 0x8000_0008, 0)[2], 0x0002_2003);
    assert_ne!(regs(&leaves, 0x8000_0001, 0)[2] & 2, 0, "CmpLegacy");
    assert!(leaves.get(0x8000_0026, 0).is_none());
    let alone = vcpu(&amd(), &CpuidSpec { vcpus: 1, ..SPEC }, 0);
    assert_eq!(regs(&alone, 1, 0)[3] & 1 << 28, 0, "HTT");
    assert_eq!(regs(&alone, 0x8000_0001, 0)[2] & 2, 0, "CmpLegacy");
}

#[test]
fn topology_extensions_go_when_their_leaf_is_out_of_reach() {
    let mut entries = amd().as_slice().to_vec();
    entries.iter_mut().find(|e| e.function == 0x8000_0000).unwrap().eax = 0x8000_001d;
    let leaves = vcpu(&CpuId::from_entries(&entries).unwrap(), &SPEC, 1);
    assert_eq!(regs(&leaves, 0x8000_0001, 0)[2] & 1 << 22, 0);
    assert!(leaves.get(0x8000_001e, 0).is_none() && leaves.get(0x8000_001d, 0).is_none());
}

#[test]
fn features_that_cannot_work_are_off_and_ours_are_on() {
    let leaves = vcpu(&amd(), &SPEC, 0);
    let [_, _, ecx, _] = regs(&leaves, 1, 0);
    for (name, bit, on) in [
        ("MONITOR", 3, false),
        ("VMX", 5, false),
        ("SMX", 6, false),
        ("PDCM", 15, false),
        ("x2APIC", 21, true),
        ("TSC deadline", 24, true),
        ("hypervisor", 31, true),
    ] {
        assert_eq!(ecx >> bit & 1 == 1, on, "{name}");
    }
    assert_eq!(regs(&leaves, 7, 0), [1, 0x0180_0002, 0x104, 0], "SGX, WAITPKG, ARCH_CAPABILITIES");
    assert_eq!(regs(&leaves, 0x8000_0001, 0)[2], 0x0040_0393, "SVM, counters");
    assert_eq!(regs(&leaves, 0x8000_000a, 0), [0; 4]);
    assert_eq!(regs(&vcpu(&intel(), &SPEC, 0), 0xa, 0), [0; 4]);
    assert_ne!(regs(&vcpu(&intel(), &SPEC, 0), 7, 0)[3] & 1 << 29, 0, "ARCH_CAPABILITIES on Intel");
}

#[test]
fn nested_virtualisation_and_counters_come_on_request() {
    let spec = CpuidSpec { pmu: true, nested: true, ..SPEC };
    let amd = vcpu(&amd(), &spec, 0);
    assert_eq!(regs(&amd, 0x8000_0001, 0)[2], 0x01c0_0397);
    assert_eq!(regs(&amd, 0x8000_000a, 0)[1], 8);
    let intel = vcpu(&intel(), &spec, 0);
    assert_ne!(regs(&intel, 1, 0)[2] & 1 << 5, 0);
    assert_ne!(regs(&intel, 0xa, 0)[0], 0);
}

#[test]
fn hypervisor_leaves_are_those_of_kvm() {
    let leaves = vcpu(&amd(), &SPEC, 0);
    let [max, ebx, ecx, edx] = regs(&leaves, 0x4000_0000, 0);
    let signature = [ebx, ecx, edx].map(u32::to_le_bytes).concat();
    assert_eq!((max, signature.as_slice()), (0x4000_0010, b"KVMKVMKVM\0\0\0".as_slice()));
    assert_eq!(regs(&leaves, 0x4000_0001, 0)[0], 0x0100_7efb, "all but MSI_EXT_DEST_ID");
    assert_eq!(regs(&leaves, 0x4000_0010, 0), [2_450_000, 1_000_000, 0, 0]);
    let unknown = vcpu(&amd(), &CpuidSpec { tsc_khz: None, ..SPEC }, 0);
    assert_eq!(regs(&unknown, 0x4000_0000, 0)[0], 0x4000_0001);
}

#[test]
fn tsc_leaf_gives_the_exact_frequency_on_intel_only() {
    let [eax, ebx, ecx, _] = regs(&vcpu(&intel(), &SPEC, 0), 0x15, 0);
    assert_eq!(u64::from(ecx) * u64::from(ebx) / u64::from(eax), 2_450_000_000);
    assert!(vcpu(&amd(), &SPEC, 0).get(0x15, 0).is_none());
}

#[test]
fn brand_is_what_kvm_says_or_the_hosts_or_a_generic_one() {
    assert_eq!(Cpuid::new(&amd(), &SPEC).unwrap().processor_info().brand, "AMD EPYC");
    let nameless = || {
        let mut leaves = Leaves::of(&amd());
        BRAND_LEAVES.for_each(|leaf| leaves.zero(leaf));
        leaves
    };
    let mut host = [0; BRAND_LEN];
    host[..9].copy_from_slice(b"Some CPU\0");
    for (host, wanted) in [(host, "Some CPU"), ([0; BRAND_LEN], GENERIC_BRAND)] {
        let mut leaves = nameless();
        brand(&mut leaves, host);
        let info = Cpuid { leaves, vcpus: 4 }.processor_info();
        assert_eq!((info.brand.as_str(), info.vendor.as_str(), info.cores), (wanted, "AuthenticAMD", 4));
    }
}

#[test]
fn host_without_basic_leaves_is_an_error() {
    let empty = CpuId::from_entries(&[]).unwrap();
    assert!(matches!(Cpuid::new(&empty, &SPEC), Err(CpuidError::MissingLeaf(0))));
    for vcpus in [0, 33, 255] {
        let spec = CpuidSpec { vcpus, ..SPEC };
        assert!(matches!(Cpuid::new(&amd(), &spec), Err(CpuidError::BadVcpuCount(_))));
    }
}

fn any_leaf() -> impl Strategy<Value = kvm_cpuid_entry2> {
    let function =
        prop_oneof![0u32..0x30, 0x4000_0000u32..0x4000_0020, 0x8000_0000u32..0x8000_0030, any::<u32>()];
    (function, prop_oneof![0u32..5, any::<u32>()], any::<[u32; 4]>())
        .prop_map(|(function, index, regs)| leaf(function, index, regs))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_host_gives_consistent_leaves_or_an_error(
        rest in prop_oneof![prop::collection::vec(any_leaf(), 0..60), prop::collection::vec(any_leaf(), 250)],
        vcpus in 1u8..=32,
        vendor in prop_oneof![Just(*b"AuthenticAMD"), Just(*b"GenuineIntel"), any::<[u8; 12]>()],
        tsc_khz in any::<Option<u32>>(),
        flags in any::<[bool; 3]>(),
        template in prop_oneof![Just(CpuTemplate::Host), Just(CpuTemplate::X86_64V3)],
    ) {
        let [tsc_deadline_timer, pmu, nested] = flags;
        let spec = CpuidSpec { vcpus, template, tsc_khz, tsc_deadline_timer, pmu, nested };
        let Ok(cpuid) = Cpuid::new(&host(&vendor, &rest), &spec) else { return Ok(()) };
        cpuid.processor_info();
        let Ok(own) = cpuid.for_vcpu(vcpus - 1) else { return Ok(()) };
        let leaves = Leaves::of(&own);
        prop_assert_eq!(leaves.entries.len(), own.as_slice().len(), "no duplicates");
        prop_assert_eq!(regs(&leaves, 1, 0)[1] >> 24, u32::from(vcpus) - 1);
        for entry in own.as_slice().iter().filter(|e| [0xb, 0x1f].contains(&e.function)) {
            prop_assert_eq!(entry.edx, u32::from(vcpus) - 1);
        }
    }
}

/// Lets this host's KVM judge what we make of its own list.
#[test]
fn kvm_takes_leaves_and_msrs_of_every_vcpu() {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        println!("SKIPPED: /dev/kvm is absent or not accessible");
        return;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let template = CpuTemplate::X86_64V3;
    let cpuid = Cpuid::new(&supported, &CpuidSpec { vcpus: 2, template, ..SPEC }).unwrap();
    for index in 0..2 {
        let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
        vcpu.set_cpuid2(&cpuid.for_vcpu(index).unwrap()).unwrap();
        let msrs = msr::boot_msrs();
        let set = vcpu.set_msrs(&kvm_bindings::Msrs::from_entries(&msrs).unwrap()).unwrap();
        assert_eq!(set, msrs.len(), "MSR {:#x} is refused", msrs[set.min(msrs.len() - 1)].index);
    }
}
