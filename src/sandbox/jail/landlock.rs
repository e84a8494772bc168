//! Landlock: a second border around files, ports and signals, for the case that the first has a hole.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};

/// Newest version whose rights are named here; an older kernel takes what it knows.
const NEWEST: ABI = ABI::V6;

/// Forbids every path, TCP port, abstract socket and outside process to this thread and all that
/// it starts. Descriptors that are open already stay usable.
pub(super) fn restrict() -> Result<(), String> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.restrict_self())
        .map_err(|e| e.to_string())?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has none, or it is off".to_owned()),
        _ => Ok(()),
    }
}

/// The newest version of the rights that the kernel offers.
pub(super) fn state() -> Result<String, String> {
    let offered = |abi: &ABI| {
        let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        rules.handle_access(AccessFs::from_all(*abi)).is_ok()
    };
    match [ABI::V6, ABI::V5, ABI::V3, ABI::V2, ABI::V1].iter().find(|abi| offered(abi)) {
        Some(abi) => Ok(format!("file rights of version {}", *abi as i32)),
        None => Err("not built into this kernel, or off".to_owned()),
    }
}
