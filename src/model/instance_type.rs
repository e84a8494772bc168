//! Instance types: how many vCPUs and how much memory a name such as `t3.micro` stands for.

use crate::cpu_template::CpuTemplate;
use crate::size::{ByteSize, GIB, MIB};
use crate::suggest::nearest;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// Such as `t3.micro`.
    pub name: &'static str,
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory.
    pub memory: ByteSize,
}

/// What an instance of some type gets of the host's disks and network, as in EC2's tables of burst rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Performance {
    /// Network, each direction, in bits per second.
    pub network_bits: u64,
    /// All volumes together, in bytes per second.
    pub disk_bytes: u64,
    /// Requests to all volumes together, per second.
    pub disk_operations: u64,
}

/// By family; the sizes of one differ little at their peak.
const PERFORMANCE: [(&[&str], Performance); 4] = [
    (&["t2"], performance(1_000, 1_000, 3_000)),
    (&["t3", "t3a"], performance(5_000, 2_085, 11_800)),
    (&["c5", "m5", "r5"], performance(10_000, 4_750, 18_750)),
    (&["c6a", "c6i", "c7i", "m6a", "m6i", "m7i", "r6i", "r7i"], performance(12_500, 10_000, 40_000)),
];

/// Families whose guests get the features of their generation; those of later ones get their host's.
const FIFTH_GENERATION: &[&str] = &["t2", "t3", "t3a", "c5", "m5", "r5"];

const fn performance(network_mbit: u64, disk_mbit: u64, disk_operations: u64) -> Performance {
    Performance {
        network_bits: network_mbit * 1_000_000,
        disk_bytes: disk_mbit * 1_000_000 / 8,
        disk_operations,
    }
}

/// No such type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no instance type {name:?} ({})", hint(suggestions))]
pub struct UnknownInstanceType {
    /// As given.
    pub name: String,
    /// Names that look similar, best first.
    pub suggestions: Vec<&'static str>,
}

fn hint(suggestions: &[&str]) -> String {
    if suggestions.is_empty() {
        "see `kiln types`".to_owned()
    } else {
        format!("did you mean {}? See `kiln types`", suggestions.join(", "))
    }
}

const fn row(name: &'static str, vcpus: u8, mib: u64) -> InstanceType {
    InstanceType { name, vcpus, memory: ByteSize::bytes(mib * MIB) }
}

/// Rows of one family with a fixed ratio of memory to vCPUs, from `large` to `4xlarge`.
macro_rules! family {
    ($name:literal, $gib_per_vcpu:literal) => {
        [
            row(concat!($name, ".large"), 2, 2 * $gib_per_vcpu * (GIB / MIB)),
            row(concat!($name, ".xlarge"), 4, 4 * $gib_per_vcpu * (GIB / MIB)),
            row(concat!($name, ".2xlarge"), 8, 8 * $gib_per_vcpu * (GIB / MIB)),
            row(concat!($name, ".4xlarge"), 16, 16 * $gib_per_vcpu * (GIB / MIB)),
        ]
    };
}

/// Rows of a burstable family with two vCPUs in the small sizes.
macro_rules! burstable {
    ($name:literal) => {
        [
            row(concat!($name, ".nano"), 2, 512),
            row(concat!($name, ".micro"), 2, 1024),
            row(concat!($name, ".small"), 2, 2048),
            row(concat!($name, ".medium"), 2, 4096),
            row(concat!($name, ".large"), 2, 8192),
            row(concat!($name, ".xlarge"), 4, 16384),
            row(concat!($name, ".2xlarge"), 8, 32768),
        ]
    };
}

/// t2 differs: one vCPU up to `small`.
const T2: [InstanceType; 7] = [
    row("t2.nano", 1, 512),
    row("t2.micro", 1, 1024),
    row("t2.small", 1, 2048),
    row("t2.medium", 2, 4096),
    row("t2.large", 2, 8192),
    row("t2.xlarge", 4, 16384),
    row("t2.2xlarge", 8, 32768),
];
const BURSTABLE: [[InstanceType; 7]; 2] = [burstable!("t3"), burstable!("t3a")];
const FIXED: [[InstanceType; 4]; 11] = [
    family!("c5", 2),
    family!("c6a", 2),
    family!("c6i", 2),
    family!("c7i", 2),
    family!("m5", 4),
    family!("m6a", 4),
    family!("m6i", 4),
    family!("m7i", 4),
    family!("r5", 8),
    family!("r6i", 8),
    family!("r7i", 8),
];

impl InstanceType {
    /// What `kiln run` takes when nothing is said.
    pub const DEFAULT: &'static str = "t3.micro";

    /// All rows, family by family, small to large.
    pub fn all() -> impl Iterator<Item = InstanceType> {
        T2.into_iter().chain(BURSTABLE.into_iter().flatten()).chain(FIXED.into_iter().flatten())
    }

    fn family(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// What guests of this type are told of their processor.
    pub fn cpu_template(&self) -> CpuTemplate {
        if FIFTH_GENERATION.contains(&self.family()) { CpuTemplate::X86_64V3 } else { CpuTemplate::Host }
    }

    /// What instances of this type get of disks and network.
    pub fn performance(&self) -> Performance {
        let found = PERFORMANCE.iter().find(|(families, _)| families.contains(&self.family()));
        // A test holds the table complete.
        found.map_or(performance(1_000, 1_000, 3_000), |(_, performance)| *performance)
    }

    /// Looks a name up.
    pub fn find(name: &str) -> Result<InstanceType, UnknownInstanceType> {
        Self::all().find(|t| t.name == name).ok_or_else(|| UnknownInstanceType {
            name: name.to_owned(),
            suggestions: nearest(name, Self::all().map(|t| t.name), 3),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn well_known_types_have_their_ec2_size() {
        for (name, vcpus, gib_halves) in [
            ("t3.nano", 2, 1),
            ("t3.micro", 2, 2),
            ("t2.micro", 1, 2),
            ("m5.large", 2, 16),
            ("c5.4xlarge", 16, 64),
        ] {
            let t = InstanceType::find(name).unwrap();
            assert_eq!((t.vcpus, t.memory.as_bytes()), (vcpus, gib_halves * GIB / 2), "{name}");
        }
    }

    #[test]
    fn every_row_is_unique_and_bootable() {
        let names: BTreeSet<_> = InstanceType::all().map(|t| t.name).collect();
        assert_eq!(names.len(), InstanceType::all().count());
        assert!(InstanceType::all().all(|t| (1..=32).contains(&t.vcpus) && t.memory.as_mib() >= 64));
        assert!(InstanceType::find(InstanceType::DEFAULT).is_ok());
    }

    #[test]
    fn every_family_has_its_rates() {
        for t in InstanceType::all() {
            let rows = PERFORMANCE.iter().filter(|(families, _)| families.contains(&t.family()));
            assert_eq!(rows.count(), 1, "{}", t.family());
        }
        let micro = InstanceType::find("t3.micro").unwrap().performance();
        assert_eq!((micro.network_bits, micro.disk_bytes), (5_000_000_000, 260_625_000));
    }

    #[test]
    fn processor_features_are_those_of_the_generation() {
        let template = |name| InstanceType::find(name).unwrap().cpu_template();
        assert_eq!(template("t3.micro"), CpuTemplate::X86_64V3);
        assert_eq!(template("m7i.large"), CpuTemplate::Host);
        assert!(FIFTH_GENERATION.iter().all(|family| InstanceType::all().any(|t| t.family() == *family)));
    }

    #[test]
    fn typo_suggests_near_names() {
        let error = InstanceType::find("t3.mirco").unwrap_err();
        assert_eq!(error.suggestions.first(), Some(&"t3.micro"));
        assert!(
            error.to_string().starts_with("there is no instance type \"t3.mirco\" (did you mean t3.micro")
        );
        assert!(InstanceType::find("T3.MICRO").unwrap_err().suggestions.contains(&"t3.micro"));
        let error = InstanceType::find("quantum.metal-96").unwrap_err();
        assert!(error.suggestions.is_empty(), "{error}");
    }
}
