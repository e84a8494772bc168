//! Instance types: how many vCPUs and how much memory a name such as `t3.micro` stands for.

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
