//! Groups of users: what they may do, all who are in them may.
//!
//! A user's row names its groups. Who puts a user into a group writes both rows, so that neither can go at the
//! same time.

use serde::{Deserialize, Serialize};

use super::policy_set::PolicySet;
use super::role::RoleName;
use super::service::{RoleError, unique_id};
use super::{ManagedPolicy, Roles, User, users};
use crate::metadata::ACCOUNT;
use crate::state::{Row, Transaction, transact};

/// Groups in one state directory, as IAM's default quota.
const MAX_GROUPS: usize = 300;
/// Groups of one user, as in IAM.
const MAX_GROUPS_OF_USER: usize = 10;
/// Most bytes of all documents of a group's own together, as in IAM.
const MAX_TOGETHER: usize = 5120;

/// A group of users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserGroup {
    /// Its name.
    pub name: RoleName,
    /// `AGPA…`.
    pub id: String,
    /// `arn:aws:iam::…:group/…`.
    pub arn: String,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// What its users may do.
    pub policies: PolicySet,
}

impl Row for UserGroup {
    const KIND: &'static str = "user-group";
    type Key = String;

    fn key(&self) -> String {
        self.name.folded()
    }
}

/// The group of that name.
fn group(tx: &mut Transaction<'_>, name: &str) -> Result<UserGroup, RoleError> {
    let found = tx.get::<UserGroup>(&name.to_ascii_lowercase())?;
    found.ok_or_else(|| RoleError::NoSuchGroup(name.to_owned()))
}

/// What the groups of a user allow and deny, all documents of them.
pub(super) fn documents(tx: &mut Transaction<'_>, user: &User) -> Result<Vec<String>, RoleError> {
    let mut all = Vec::new();
    for name in &user.groups {
        all.extend(group(tx, name)?.policies.documents(tx)?);
    }
    Ok(all)
}

impl Roles<'_> {
    /// `CreateGroup`.
    pub fn create_group(&self, name: &RoleName) -> Result<UserGroup, RoleError> {
        let group = UserGroup {
            name: name.clone(),
            id: unique_id("AGPA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:group/{name}"),
            created: self.now,
            policies: PolicySet::default(),
        };
        transact(self.store, |tx| {
            if tx.rows::<UserGroup>()?.len() >= MAX_GROUPS {
                return Err(RoleError::TooMany { what: "groups", most: MAX_GROUPS });
            }
            match tx.insert(&group)? {
                true => Ok(group.clone()),
                false => Err(RoleError::Exists { what: "a group", name: name.clone() }),
            }
        })
    }

    /// `GetGroup`: the group, and who is in it.
    pub fn group(&self, name: &str) -> Result<(UserGroup, Vec<User>), RoleError> {
        transact(self.store, |tx| {
            let group = group(tx, name)?;
            let members = members(tx, &group)?;
            Ok((group, members))
        })
    }

    /// All groups by name.
    pub fn groups(&self) -> Result<Vec<UserGroup>, RoleError> {
        Ok(transact(self.store, |tx| tx.list::<UserGroup>())?)
    }

    /// `ListGroupsForUser`.
    pub fn groups_of_user(&self, name: &str) -> Result<Vec<UserGroup>, RoleError> {
        transact(self.store, |tx| {
            let user = users::user(tx, name)?;
            user.groups.iter().map(|name| group(tx, name)).collect()
        })
    }

    /// `DeleteGroup`: only of one without users and policies.
    pub fn delete_group(&self, name: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let group = group(tx, name)?;
            let member = members(tx, &group)?.first().map(|user| user.name.to_string());
            if let Some(held) = member.or_else(|| group.policies.first()) {
                return Err(RoleError::GroupHas { group: group.name, held });
            }
            tx.remove::<UserGroup>(&group.name.folded());
            Ok(())
        })
    }

    /// `AddUserToGroup`. Who is in it already stays so.
    pub fn add_to_group(&self, name: &str, user: &str) -> Result<(), RoleError> {
        self.change_group(name, |tx, group| {
            let mut user = users::user(tx, user)?;
            user.groups.insert(group.name.folded());
            if user.groups.len() > MAX_GROUPS_OF_USER {
                return Err(RoleError::TooMany { what: "groups of a user", most: MAX_GROUPS_OF_USER });
            }
            Ok(tx.put(&user)?)
        })
    }

    /// `RemoveUserFromGroup`. Who is not in it stays out.
    pub fn remove_from_group(&self, name: &str, user: &str) -> Result<(), RoleError> {
        self.change_group(name, |tx, group| {
            let mut user = users::user(tx, user)?;
            user.groups.remove(&group.name.folded());
            Ok(tx.put(&user)?)
        })
    }

    /// `PutGroupPolicy`.
    pub fn put_group_policy(&self, name: &str, policy: &RoleName, document: &str) -> Result<(), RoleError> {
        self.change_group(name, |_, group| group.policies.put(policy, document, MAX_TOGETHER))
    }

    /// `DeleteGroupPolicy`.
    pub fn delete_group_policy(&self, name: &str, policy: &str) -> Result<(), RoleError> {
        self.change_group(name, |_, group| group.policies.delete(&group.name, policy))
    }

    /// `AttachGroupPolicy`.
    pub fn attach_to_group(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change_group(name, |tx, group| group.policies.attach(tx, arn))
    }

    /// `DetachGroupPolicy`.
    pub fn detach_from_group(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change_group(name, |_, group| group.policies.detach(&group.name, arn))
    }

    /// `ListAttachedGroupPolicies`.
    pub fn managed_of_group(&self, name: &str) -> Result<Vec<ManagedPolicy>, RoleError> {
        transact(self.store, |tx| group(tx, name)?.policies.managed(tx))
    }

    fn change_group(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Transaction<'_>, &mut UserGroup) -> Result<(), RoleError>,
    ) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let mut row = group(tx, name)?;
            change(tx, &mut row)?;
            Ok(tx.put(&row)?)
        })
    }
}

fn members(tx: &Transaction<'_>, group: &UserGroup) -> Result<Vec<User>, RoleError> {
    let users = tx.rows::<User>()?;
    let own = users.iter().filter(|user| user.groups.contains(&group.name.folded()));
    Ok(own.map(|user| User::clone(user)).collect())
}
