//! What a volume is called and promised as: `gp3` with so many operations per second. It is remembered and
//! shown; how fast a disk is, its instance's type says.

use std::str::FromStr;

use kiln_model::ByteSize;
use serde::{Deserialize, Serialize};

use super::VolumeError;

/// Names of EC2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// Magnetic, of long ago.
    Standard,
    /// Provisioned operations.
    Io1,
    /// The same, more durable.
    Io2,
    /// General purpose, fast by its size.
    Gp2,
    /// General purpose.
    #[default]
    Gp3,
    /// Cold.
    Sc1,
    /// Streaming.
    St1,
}

impl VolumeType {
    const ALL: [(VolumeType, &'static str); 7] = [
        (VolumeType::Standard, "standard"),
        (VolumeType::Io1, "io1"),
        (VolumeType::Io2, "io2"),
        (VolumeType::Gp2, "gp2"),
        (VolumeType::Gp3, "gp3"),
        (VolumeType::Sc1, "sc1"),
        (VolumeType::St1, "st1"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("gp3", |(_, name)| name)
    }
}

impl FromStr for VolumeType {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(kind, _)| *kind).ok_or_else(|| VolumeError::Kind(format!("Unknown volume type: {text}")))
    }
}

/// A type with what was asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeKind {
    /// Its type.
    pub volume_type: VolumeType,
    /// Operations per second, if said.
    #[serde(default)]
    pub iops: Option<u32>,
    /// MiB per second, if said.
    #[serde(default)]
    pub throughput: Option<u32>,
}

/// What gp3 volumes have when nothing is said.
const GP3_IOPS: u32 = 3000;
const GP3_THROUGHPUT: u32 = 125;

impl VolumeKind {
    /// Whether EC2 would sell that: the ranges of its tables.
    pub fn check(self) -> Result<Self, VolumeError> {
        let name = self.volume_type.name();
        let range = match self.volume_type {
            VolumeType::Gp3 => Some(GP3_IOPS..=80_000),
            VolumeType::Io1 => Some(100..=64_000),
            VolumeType::Io2 => Some(100..=256_000),
            _ => None,
        };
        match (self.iops, range) {
            (Some(_), None) => {
                return Err(VolumeError::KindCombination(format!(
                    "The parameter iops is not supported for {name} volumes"
                )));
            }
            (Some(iops), Some(range)) if !range.contains(&iops) => {
                let (least, most) = (range.start(), range.end());
                return Err(VolumeError::Kind(format!(
                    "{name} volumes have {least} to {most} iops, not {iops}"
                )));
            }
            (None, Some(_)) if self.volume_type != VolumeType::Gp3 => {
                return Err(VolumeError::KindCombination(format!(
                    "The parameter iops must be specified for {name} volumes"
                )));
            }
            _ => {}
        }
        match self.throughput {
            Some(_) if self.volume_type != VolumeType::Gp3 => Err(VolumeError::KindCombination(format!(
                "The parameter throughput is not supported for {name} volumes"
            ))),
            Some(throughput) if !(GP3_THROUGHPUT..=2000).contains(&throughput) => Err(VolumeError::Kind(
                format!("{name} volumes have a throughput of 125 to 2000 MiB/s, not {throughput}"),
            )),
            _ => Ok(self),
        }
    }

    /// Operations per second as EC2 shows them for a volume of that size, where it does.
    pub fn shown_iops(self, size: ByteSize) -> Option<u32> {
        let gib = u32::try_from(size.as_bytes().div_ceil(1 << 30)).unwrap_or(u32::MAX);
        match self.volume_type {
            VolumeType::Gp2 => Some(gib.saturating_mul(3).clamp(100, 16_000)),
            VolumeType::Gp3 => Some(self.iops.unwrap_or(GP3_IOPS)),
            VolumeType::Io1 | VolumeType::Io2 => self.iops,
            _ => None,
        }
    }

    /// Throughput as EC2 shows it, where it does.
    pub fn shown_throughput(self) -> Option<u32> {
        (self.volume_type == VolumeType::Gp3).then(|| self.throughput.unwrap_or(GP3_THROUGHPUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_those_that_ec2_sells() {
        let kind = |name: &str, iops, throughput| {
            VolumeKind { volume_type: name.parse().unwrap(), iops, throughput }.check()
        };
        for good in [
            kind("gp3", None, None),
            kind("gp3", Some(4000), Some(250)),
            kind("gp2", None, None),
            kind("io2", Some(100), None),
        ] {
            good.unwrap();
        }
        assert!(matches!("gp4".parse::<VolumeType>(), Err(VolumeError::Kind(_))));
        for bad in
            [kind("gp3", Some(2999), None), kind("gp3", None, Some(124)), kind("io1", Some(64_001), None)]
        {
            assert!(matches!(bad, Err(VolumeError::Kind(_))), "{bad:?}");
        }
        for bad in [kind("gp2", Some(3000), None), kind("io1", None, None), kind("st1", None, Some(200))] {
            assert!(matches!(bad, Err(VolumeError::KindCombination(_))), "{bad:?}");
        }
    }

    #[test]
    fn what_is_shown_depends_on_type_and_size() {
        let gib = |count: u64| ByteSize::bytes(count << 30);
        let gp2 = VolumeKind { volume_type: VolumeType::Gp2, ..VolumeKind::default() };
        assert_eq!(
            [gib(1), gib(100), gib(9000)].map(|s| gp2.shown_iops(s)),
            [Some(100), Some(300), Some(16_000)]
        );
        assert_eq!(gp2.shown_throughput(), None);
        let gp3 = VolumeKind::default();
        assert_eq!((gp3.shown_iops(gib(1)), gp3.shown_throughput()), (Some(3000), Some(125)));
    }
}
