//! CPU templates: which of its host's processor features a guest is told of.

use serde::{Deserialize, Serialize};

/// What a guest may find its processor to have, at most: what the host lacks no template adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// All that the host has and KVM can share.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The psABI's level x86-64-v3 (AVX2, BMI, FMA) with AES, and what every server processor since
    /// Skylake and Zen has beside it: the same set on all of them. Mitigations are passed on as they are.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

impl CpuTemplate {
    /// How users know it.
    pub fn name(self) -> &'static str {
        match self {
            CpuTemplate::Host => "host",
            CpuTemplate::X86_64V3 => "x86-64-v3",
        }
    }
}
