//! Roles and instance profiles as rows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SourceSpec;
use crate::state::Row;

/// Longest name of a role (IAM `roleNameType`).
const MAX_ROLE_NAME: usize = 64;
/// Shortest lifetime of credentials in seconds. SDKs start to worry 15 minutes before the end, and
/// need a set to replace the old one by then.
pub const MIN_LIFETIME: u64 = 3600;
/// Longest lifetime in seconds: the most that STS gives.
pub const MAX_LIFETIME: u64 = 12 * 3600;

/// Why a role is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRole {
    /// Not a name.
    #[error("{0:?} is no name for a role (1 to {MAX_ROLE_NAME} letters, digits and + = , . @ _ -)")]
    Name(String),
    /// Out of range.
    #[error("credentials live for 1 to 12 hours, not {0} seconds")]
    Lifetime(u64),
}

/// Name of a role, an instance profile, a user or a policy. Alike in other case is the same to IAM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

impl RoleName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What must not occur twice: the key of its row.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RoleName {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        // Both would be no path segment of the metadata service.
        let dots = matches!(text, "." | "..");
        if text.is_empty() || text.len() > MAX_ROLE_NAME || !text.chars().all(allowed) || dots {
            return Err(InvalidRole::Name(text.to_owned()));
        }
        Ok(RoleName(text.to_owned()))
    }
}

impl TryFrom<String> for RoleName {
    type Error = InvalidRole;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RoleName> for String {
    fn from(name: RoleName) -> String {
        name.0
    }
}

/// How long credentials shall last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Lifetime(u64);

impl Lifetime {
    /// In seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl Default for Lifetime {
    /// Six hours, as EC2 has it.
    fn default() -> Self {
        Lifetime(6 * 3600)
    }
}

impl TryFrom<u64> for Lifetime {
    type Error = InvalidRole;

    fn try_from(seconds: u64) -> Result<Self, Self::Error> {
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&seconds) {
            return Err(InvalidRole::Lifetime(seconds));
        }
        Ok(Lifetime(seconds))
    }
}

impl From<Lifetime> for u64 {
    fn from(lifetime: Lifetime) -> u64 {
        lifetime.0
    }
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Its name.
    pub name: RoleName,
    /// `AROA…`.
    pub id: String,
    /// `arn:aws:iam::…:role/…`.
    pub arn: String,
    /// For people.
    pub description: String,
    /// Where its credentials come from.
    pub source: SourceSpec,
    /// How long they last.
    pub lifetime: Lifetime,
    /// When it was made, Unix seconds.
    pub created: u64,
}

impl Row for Role {
    const KIND: &'static str = "role";
    type Key = String;

    fn key(&self) -> String {
        self.name.folded()
    }
}

/// What an instance is launched with; holds at most one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceProfile {
    /// Its name.
    pub name: RoleName,
    /// `AIPA…`.
    pub id: String,
    /// `arn:aws:iam::…:instance-profile/…`.
    pub arn: String,
    /// The role in it.
    pub role: Option<RoleName>,
    /// When it was made, Unix seconds.
    pub created: u64,
}

impl Row for InstanceProfile {
    const KIND: &'static str = "instance-profile";
    type Key = String;

    fn key(&self) -> String {
        self.name.folded()
    }
}

/// That an instance has a profile; part of the instance's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// `iip-assoc-…`.
    pub id: String,
    /// Which profile.
    pub profile: RoleName,
    /// Since when, Unix seconds.
    pub since: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_iam_and_fit_a_path() {
        for name in ["web", "a", "A+b=c,d.e@f_g-h", &"x".repeat(64), "..."] {
            assert_eq!(name.parse::<RoleName>().unwrap().as_str(), name);
        }
        for name in ["", "a b", "a/b", "ä", ".", "..", "a\n", &"x".repeat(65)] {
            assert_eq!(name.parse::<RoleName>(), Err(InvalidRole::Name(name.to_owned())), "{name}");
        }
    }

    #[test]
    fn lifetimes_are_one_to_twelve_hours() {
        for (seconds, good) in [(0, false), (3599, false), (3600, true), (43_200, true), (43_201, false)] {
            assert_eq!(Lifetime::try_from(seconds).is_ok(), good, "{seconds}");
        }
        assert_eq!(Lifetime::default().seconds(), 21_600);
    }
}
