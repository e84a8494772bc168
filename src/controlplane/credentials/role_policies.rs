//! What a role may do and who may assume it, as a row beside the role's.

use serde::{Deserialize, Serialize};

use super::role::RoleName;
use super::service::{RoleError, role};
use super::{ManagedPolicy, PolicySet, Roles, TrustPolicy};
use crate::state::{Row, Transaction, transact};

/// Most bytes of all policies of a role together, as in IAM.
const MAX_TOGETHER: usize = 10_240;

/// The policies of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolePolicies {
    role: RoleName,
    /// Who may assume it; JSON.
    pub trust: Option<String>,
    /// What it may do.
    #[serde(flatten)]
    pub set: PolicySet,
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
        self.change(name, |_, row| row.set.put(policy, document, MAX_TOGETHER))
    }

    /// `DeleteRolePolicy`.
    pub fn delete_policy(&self, name: &str, policy: &str) -> Result<(), RoleError> {
        self.change(name, |_, row| row.set.delete(&row.role, policy))
    }

    /// `AttachRolePolicy`.
    pub fn attach(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change(name, |tx, row| row.set.attach(tx, arn))
    }

    /// `DetachRolePolicy`.
    pub fn detach(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change(name, |_, row| row.set.detach(&row.role, arn))
    }

    /// `ListAttachedRolePolicies`.
    pub fn managed_of_role(&self, name: &str) -> Result<Vec<ManagedPolicy>, RoleError> {
        transact(self.store, |tx| get(tx, name)?.set.managed(tx))
    }

    /// All documents that count for a role.
    pub fn documents(&self, name: &str) -> Result<Vec<String>, RoleError> {
        transact(self.store, |tx| get(tx, name)?.set.documents(tx))
    }

    /// `UpdateAssumeRolePolicy`.
    pub fn set_trust(&self, name: &str, document: &str) -> Result<(), RoleError> {
        TrustPolicy::parse(document)?;
        self.change(name, |_, row| {
            row.trust = Some(document.to_owned());
            Ok(())
        })
    }

    fn change(
        &self,
        name: &str,
        change: impl Fn(&mut Transaction<'_>, &mut RolePolicies) -> Result<(), RoleError>,
    ) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let mut row = get(tx, name)?;
            change(tx, &mut row)?;
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
    Ok(there.unwrap_or_else(|| RolePolicies { role, trust: None, set: PolicySet::default() }))
}

/// Removes what is beside a role that goes, as part of `tx`. `emptied`: only if nothing but the trust
/// is there.
pub(super) fn remove(tx: &mut Transaction<'_>, name: &RoleName, emptied: bool) -> Result<(), RoleError> {
    let row = get(tx, name.as_str())?;
    if emptied && let Some(policy) = row.set.first() {
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
    fn row_of_an_earlier_release_is_read() {
        let old = r#"{"role": "web", "trust": null, "inline": {"a": "{}"}}"#;
        let row: RolePolicies = serde_json::from_str(old).unwrap();
        assert!(row.set.inline.contains_key("a") && row.set.attached.is_empty());
    }

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
        assert_eq!(roles.policies("web").unwrap().set.inline["open"], OPEN);
        let long = OPEN.to_owned() + &" ".repeat(MAX_TOGETHER - 100);
        assert_eq!(code(roles.put_policy("web", &"more".parse().unwrap(), &long)), "LimitExceeded");
        assert_eq!(code(roles.delete("web")), "DeleteConflict");
        assert_eq!(code(roles.delete_policy("web", "shut")), "NoSuchEntity");
        roles.delete_policy("web", "open").unwrap();
        let look = "arn:aws:iam::aws:policy/AmazonEC2ReadOnlyAccess";
        roles.attach("web", look).unwrap();
        assert_eq!(roles.managed_of_role("web").unwrap()[0].arn, look);
        assert_eq!(roles.documents("web").unwrap().len(), 1);
        assert_eq!(code(roles.delete("web")), "DeleteConflict");
        roles.detach("web", look).unwrap();
        assert_eq!(code(roles.detach("web", look)), "NoSuchEntity");
        roles.delete("web").unwrap();
        roles.create(&wish).unwrap();
        assert!(roles.policies("web").unwrap().set.inline.is_empty());
    }
}
