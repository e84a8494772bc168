//! What a role may do and who may assume it, as a row beside the role's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::role::RoleName;
use super::service::{RoleError, role};
use super::{Policy, Roles, TrustPolicy};
use crate::state::{Row, Transaction, transact};

/// Most bytes of all policies of a role together, as in IAM.
const MAX_TOGETHER: usize = 10_240;

/// The policies of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolePolicies {
    role: RoleName,
    /// Who may assume it; JSON.
    pub trust: Option<String>,
    /// Documents by name; JSON.
    pub inline: BTreeMap<String, String>,
}

impl Row for RolePolicies {
    const KIND: &'static str = "role-policies";
    type Key = String;

    fn key(&self) -> String {
        self.role.folded()
    }
}

impl Roles<'_> {
    /// All policies of a role.
    pub fn policies(&self, name: &str) -> Result<RolePolicies, RoleError> {
        transact(self.store, |tx| get(tx, name))
    }

    /// `PutRolePolicy`.
    pub fn put_policy(&self, name: &str, policy: &RoleName, document: &str) -> Result<(), RoleError> {
        Policy::parse(document)?;
        self.change(name, |row| {
            row.inline.insert(policy.to_string(), document.to_owned());
            match row.inline.values().map(String::len).sum::<usize>() > MAX_TOGETHER {
                true => Err(RoleError::PoliciesTooLong),
                false => Ok(()),
            }
        })
    }

    /// `DeleteRolePolicy`.
    pub fn delete_policy(&self, name: &str, policy: &str) -> Result<(), RoleError> {
        self.change(name, |row| match row.inline.remove(policy) {
            Some(_) => Ok(()),
            None => Err(RoleError::NoSuchPolicy { role: row.role.clone(), policy: policy.to_owned() }),
        })
    }

    /// `UpdateAssumeRolePolicy`.
    pub fn set_trust(&self, name: &str, document: &str) -> Result<(), RoleError> {
        TrustPolicy::parse(document)?;
        self.change(name, |row| {
            row.trust = Some(document.to_owned());
            Ok(())
        })
    }

    fn change(
        &self,
        name: &str,
        change: impl Fn(&mut RolePolicies) -> Result<(), RoleError>,
    ) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let mut row = get(tx, name)?;
            change(&mut row)?;
            // The role cannot go without noticing.
            let role = role(tx, name)?;
            tx.put(&role)?;
            Ok(tx.put(&row)?)
        })
    }
}

/// The policies of a role that is there.
fn get(tx: &mut Transaction<'_>, name: &str) -> Result<RolePolicies, RoleError> {
    let role = role(tx, name)?.name;
    let there = tx.get::<RolePolicies>(&role.folded())?;
    Ok(there.unwrap_or_else(|| RolePolicies { role, trust: None, inline: BTreeMap::new() }))
}

/// Removes what is beside a role that goes, as part of `tx`. `emptied`: only if nothing but the trust
/// is there.
pub(super) fn remove(tx: &mut Transaction<'_>, name: &RoleName, emptied: bool) -> Result<(), RoleError> {
    let row = get(tx, name.as_str())?;
    if emptied && let Some(policy) = row.inline.into_keys().next() {
        return Err(RoleError::RoleHasPolicy { role: name.clone(), policy });
    }
    tx.remove::<RolePolicies>(&name.folded());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Lifetime, NewRole, SourceSpec};
    use crate::state::SqliteStore;

    #[test]
    fn policies_are_kept_checked_and_go_before_their_role() {
        const OPEN: &str = r#"{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}"#;
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        let roles = Roles { store: &store, now: 7 };
        let wish = NewRole {
            name: "web".parse().unwrap(),
            description: String::new(),
            source: SourceSpec::Issuer,
            lifetime: Lifetime::default(),
        };
        roles.create(&wish).unwrap();
        let name = "open".parse().unwrap();
        let code = |result: Result<(), RoleError>| result.err().map_or("", |e| e.code());
        assert_eq!(code(roles.put_policy("web", &name, "{}")), "MalformedPolicyDocument");
        assert_eq!(code(roles.put_policy("wep", &name, OPEN)), "NoSuchEntity");
        roles.put_policy("WEB", &name, OPEN).unwrap();
        assert_eq!(roles.policies("web").unwrap().inline["open"], OPEN);
        let long = OPEN.to_owned() + &" ".repeat(MAX_TOGETHER - 100);
        assert_eq!(code(roles.put_policy("web", &"more".parse().unwrap(), &long)), "LimitExceeded");
        assert_eq!(code(roles.delete("web")), "DeleteConflict");
        assert_eq!(code(roles.delete_policy("web", "shut")), "NoSuchEntity");
        roles.delete_policy("web", "open").unwrap();
        roles.delete("web").unwrap();
        roles.create(&wish).unwrap();
        assert!(roles.policies("web").unwrap().inline.is_empty());
    }
}
