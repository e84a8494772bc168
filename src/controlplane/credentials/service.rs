//! What may be done to roles and instance profiles, with the rules and the error codes of IAM. The
//! command line and the API are thin layers on this.

use crate::instances::Instance;
use crate::metadata::ACCOUNT;
use crate::state::{SealError, Store, StoreError, Transaction, transact};
use kiln_model::{InstanceId, nearest};

use super::role_policies;
use super::{
    InstanceProfile, InvalidPolicy, InvalidRole, Lifetime, ParseSourceError, Role, RoleName, SourceSpec,
};

/// Longest description in characters.
const MAX_DESCRIPTION: usize = 1000;

/// Why an operation on roles or instance profiles failed.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// No such role.
    #[error("there is no role {name:?} ({})", hint(suggestions))]
    NoSuchRole {
        /// As given.
        name: String,
        /// Names that look similar.
        suggestions: Vec<String>,
    },
    /// No such instance profile.
    #[error("there is no instance profile {0:?} (see `kiln role ls`)")]
    NoSuchProfile(String),
    /// The name is taken.
    #[error("there is already {what} {name} (remove it first, or choose another name)")]
    Exists {
        /// `a role` or `an instance profile`.
        what: &'static str,
        /// Its name.
        name: RoleName,
    },
    /// A profile holds one role.
    #[error("the instance profile {0} holds a role already")]
    ProfileFull(RoleName),
    /// Still needed by an instance profile.
    #[error("the role {role} is in the instance profile {profile} (remove it from there first)")]
    RoleInProfile {
        /// Which role.
        role: RoleName,
        /// A profile that holds it.
        profile: RoleName,
    },
    /// A profile must be empty before it goes.
    #[error("the instance profile {0} still holds a role (remove it first)")]
    ProfileNotEmpty(RoleName),
    /// A policy must go before its role.
    #[error("the role {role} has the policy {policy:?} (delete that first)")]
    RoleHasPolicy {
        /// Which role.
        role: RoleName,
        /// One of its policies.
        policy: String,
    },
    /// The role or user does not have that policy.
    #[error("{holder} has no policy {policy:?}")]
    NoSuchPolicy {
        /// Which role or user.
        holder: RoleName,
        /// Name or ARN, as given.
        policy: String,
    },
    /// No such managed policy.
    #[error("there is no policy {0:?}")]
    NoSuchManaged(String),
    /// No such user.
    #[error("The user with name {0} cannot be found.")]
    NoSuchUser(String),
    /// No such group of users.
    #[error("The group with name {0} cannot be found.")]
    NoSuchGroup(String),
    /// Users and policies must go before their group.
    #[error("the group {group} has {held} (remove or detach that first)")]
    GroupHas {
        /// Which group.
        group: RoleName,
        /// A user or a policy.
        held: String,
    },
    /// The user does not have that access key.
    #[error("The Access Key with id {0} cannot be found.")]
    NoSuchKey(String),
    /// Keys and policies must go before their user.
    #[error("the user {user} has {held} (delete or detach that first)")]
    UserHas {
        /// Which user.
        user: RoleName,
        /// A key or a policy.
        held: String,
    },
    /// Still needed by a role or a user.
    #[error("the policy {0} is attached (detach it first)")]
    PolicyAttached(String),
    /// Only the version in force may be left of one that goes.
    #[error("the policy {0} has more than one version (delete those that are not in force first)")]
    PolicyHasVersions(String),
    /// No such version.
    #[error("Policy {policy} version v{number} does not exist.")]
    NoSuchVersion {
        /// ARN of the policy.
        policy: String,
        /// As given.
        number: u64,
    },
    /// The version in force stays.
    #[error("the default version of the policy {0} cannot be deleted")]
    VersionInForce(String),
    /// It is not this account's.
    #[error("the policy {0} is one of AWS's own")]
    OfAws(String),
    /// More than fits.
    #[error("these policies have at most {0} bytes together")]
    PoliciesTooLong(usize),
    /// More than IAM allows.
    #[error("a role or user has at most {0} managed policies")]
    TooManyAttached(usize),
    /// More than IAM allows.
    #[error("there are at most {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// A secret cannot be kept.
    #[error(transparent)]
    Seal(Box<SealError>),
    /// Not a policy.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// Still needed by an instance.
    #[error("instance {instance} has the role {profile} (kiln role detach {instance}, or terminate it)")]
    InUse {
        /// Which profile.
        profile: RoleName,
        /// An instance that has it.
        instance: InstanceId,
    },
    /// Name or lifetime make no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidRole),
    /// The source makes no sense.
    #[error(transparent)]
    Source(#[from] ParseSourceError),
    /// The description is too long or holds control characters.
    #[error("a description has at most {MAX_DESCRIPTION} characters, none of them control characters")]
    Description,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SealError> for RoleError {
    fn from(error: SealError) -> Self {
        RoleError::Seal(Box::new(error))
    }
}

fn hint(suggestions: &[String]) -> String {
    match suggestions {
        [] => "see `kiln role ls`, or make it with `kiln role create`".to_owned(),
        some => format!("did you mean {}?", some.join(", ")),
    }
}

impl RoleError {
    /// Error code of the IAM API.
    pub fn code(&self) -> &'static str {
        match self {
            RoleError::NoSuchRole { .. }
            | RoleError::NoSuchProfile(_)
            | RoleError::NoSuchPolicy { .. }
            | RoleError::NoSuchManaged(_)
            | RoleError::NoSuchVersion { .. }
            | RoleError::NoSuchUser(_)
            | RoleError::NoSuchGroup(_)
            | RoleError::NoSuchKey(_) => "NoSuchEntity",
            RoleError::Exists { .. } => "EntityAlreadyExists",
            RoleError::ProfileFull(_)
            | RoleError::PoliciesTooLong(_)
            | RoleError::TooManyAttached(_)
            | RoleError::TooMany { .. } => "LimitExceeded",
            RoleError::OfAws(_) => "AccessDenied",
            RoleError::Policy(_) => "MalformedPolicyDocument",
            RoleError::RoleHasPolicy { .. }
            | RoleError::RoleInProfile { .. }
            | RoleError::ProfileNotEmpty(_)
            | RoleError::UserHas { .. }
            | RoleError::GroupHas { .. }
            | RoleError::PolicyAttached(_)
            | RoleError::PolicyHasVersions(_)
            | RoleError::VersionInForce(_)
            | RoleError::InUse { .. } => "DeleteConflict",
            RoleError::Invalid(_) | RoleError::Source(_) | RoleError::Description => "ValidationError",
            RoleError::Store(_) | RoleError::Seal(_) => "ServiceFailure",
        }
    }
}

/// A wish for a role.
#[derive(Debug, Clone)]
pub struct NewRole {
    /// Its name.
    pub name: RoleName,
    /// For people.
    pub description: String,
    /// Where its credentials come from.
    pub source: SourceSpec,
    /// How long they last.
    pub lifetime: Lifetime,
}

impl NewRole {
    /// Checks what can be checked without state.
    pub fn check(&self) -> Result<(), RoleError> {
        checked_description(&self.description)?;
        Ok(self.source.check()?)
    }
}

/// Refuses a description that IAM refuses.
pub(super) fn checked_description(text: &str) -> Result<(), RoleError> {
    match text.chars().count() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        true => Err(RoleError::Description),
        false => Ok(()),
    }
}

/// Roles, instance profiles, users and managed policies of one store. Methods block.
///
/// A rule on what is *not* there (no profile holds this role) is kept by letting both sides write one
/// common row: whoever puts a role into a profile rewrites the role's row.
pub struct Roles<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) now: u64,
}

impl std::fmt::Debug for Roles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Roles")
    }
}

impl Roles<'_> {
    /// All roles by name.
    pub fn list(&self) -> Result<Vec<Role>, RoleError> {
        Ok(transact(self.store, |tx| tx.list::<Role>())?)
    }

    /// All instance profiles by name.
    pub fn profiles(&self) -> Result<Vec<InstanceProfile>, RoleError> {
        Ok(transact(self.store, |tx| tx.list::<InstanceProfile>())?)
    }

    /// `GetRole`.
    pub fn get(&self, name: &str) -> Result<Role, RoleError> {
        transact(self.store, |tx| role(tx, name))
    }

    /// `GetInstanceProfile`.
    pub fn profile(&self, name: &str) -> Result<InstanceProfile, RoleError> {
        transact(self.store, |tx| profile(tx, name))
    }

    /// `CreateRole`.
    pub fn create(&self, wish: &NewRole) -> Result<Role, RoleError> {
        wish.check()?;
        transact(self.store, |tx| self.insert_role(tx, wish))
    }

    /// `UpdateRole`: what is given replaces what was there.
    pub fn update(
        &self,
        name: &str,
        description: Option<&str>,
        lifetime: Option<Lifetime>,
    ) -> Result<(), RoleError> {
        description.map_or(Ok(()), checked_description)?;
        transact(self.store, |tx| {
            let mut role = role(tx, name)?;
            if let Some(description) = description {
                role.description = description.to_owned();
            }
            role.lifetime = lifetime.unwrap_or(role.lifetime);
            Ok(tx.put(&role)?)
        })
    }

    /// `CreateInstanceProfile`.
    pub fn create_profile(&self, name: &RoleName) -> Result<InstanceProfile, RoleError> {
        transact(self.store, |tx| self.insert_profile(tx, name, None))
    }

    /// A role with an instance profile of the same name around it, both or neither.
    pub fn create_with_profile(&self, wish: &NewRole) -> Result<Role, RoleError> {
        wish.check()?;
        transact(self.store, |tx| {
            let role = self.insert_role(tx, wish)?;
            self.insert_profile(tx, &wish.name, Some(&wish.name))?;
            Ok(role)
        })
    }

    /// `AddRoleToInstanceProfile`. Instances with the profile get the role at once.
    pub fn add_to_profile(&self, wanted: &str, to: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let role = role(tx, wanted)?;
            let mut profile = profile(tx, to)?;
            if profile.role.is_some() {
                return Err(RoleError::ProfileFull(profile.name));
            }
            profile.role = Some(role.name.clone());
            tx.put(&role)?;
            Ok(tx.put(&profile)?)
        })
    }

    /// `RemoveRoleFromInstanceProfile`. Instances with the profile lose the role at once.
    pub fn remove_from_profile(&self, role: &str, from: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let mut profile = profile(tx, from)?;
            if !profile.role.as_ref().is_some_and(|held| held.as_str().eq_ignore_ascii_case(role)) {
                return Err(no_such_role(tx, role)?);
            }
            profile.role = None;
            Ok(tx.put(&profile)?)
        })
    }

    /// `DeleteRole`: only of a role that is in no profile.
    pub fn delete(&self, name: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let role = role(tx, name)?;
            let holders = tx.list::<InstanceProfile>()?;
            if let Some(holder) = holders.into_iter().find(|p| p.role.as_ref() == Some(&role.name)) {
                return Err(RoleError::RoleInProfile { role: role.name, profile: holder.name });
            }
            role_policies::remove(tx, &role.name, true)?;
            tx.remove::<Role>(&role.name.folded());
            Ok(())
        })
    }

    /// `DeleteInstanceProfile`: only of an empty one that no instance has.
    pub fn delete_profile(&self, name: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let profile = profile(tx, name)?;
            if profile.role.is_some() {
                return Err(RoleError::ProfileNotEmpty(profile.name));
            }
            unused(tx, &profile)?;
            tx.remove::<InstanceProfile>(&profile.name.folded());
            Ok(())
        })
    }

    /// Undoes [`Roles::create_with_profile`], unless an instance has the profile or another profile has
    /// the role.
    pub fn delete_with_profile(&self, name: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let role = role(tx, name)?;
            let profiles = tx.list::<InstanceProfile>()?;
            for profile in profiles.into_iter().filter(|p| p.role.as_ref() == Some(&role.name)) {
                if profile.name != role.name {
                    return Err(RoleError::RoleInProfile { role: role.name, profile: profile.name });
                }
                // Read within the transaction, so that an association made meanwhile is a conflict.
                tx.get::<InstanceProfile>(&profile.name.folded())?;
                unused(tx, &profile)?;
                tx.remove::<InstanceProfile>(&profile.name.folded());
            }
            role_policies::remove(tx, &role.name, false)?;
            tx.remove::<Role>(&role.name.folded());
            Ok(())
        })
    }

    fn insert_role(&self, tx: &mut Transaction<'_>, wish: &NewRole) -> Result<Role, RoleError> {
        let role = Role {
            name: wish.name.clone(),
            id: unique_id("AROA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:role/{}", wish.name),
            description: wish.description.clone(),
            source: wish.source.clone(),
            lifetime: wish.lifetime,
            created: self.now,
        };
        if !tx.insert(&role)? {
            return Err(RoleError::Exists { what: "a role", name: wish.name.clone() });
        }
        Ok(role)
    }

    fn insert_profile(
        &self,
        tx: &mut Transaction<'_>,
        name: &RoleName,
        role: Option<&RoleName>,
    ) -> Result<InstanceProfile, RoleError> {
        let profile = InstanceProfile {
            name: name.clone(),
            id: unique_id("AIPA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:instance-profile/{name}"),
            role: role.cloned(),
            created: self.now,
        };
        if !tx.insert(&profile)? {
            return Err(RoleError::Exists { what: "an instance profile", name: name.clone() });
        }
        Ok(profile)
    }
}

/// `prefix` and seventeen random characters, as IAM makes unique ids.
pub(super) fn unique_id(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: u128 = rand::random();
    let digits = (0..17).map(|at| {
        let index = usize::try_from(bits >> (at * 5) & 31).unwrap_or_default();
        char::from(ALPHABET.get(index).copied().unwrap_or(b'A'))
    });
    prefix.chars().chain(digits).collect()
}

pub(super) fn role(tx: &mut Transaction<'_>, name: &str) -> Result<Role, RoleError> {
    match tx.get::<Role>(&name.to_ascii_lowercase())? {
        Some(role) => Ok(role),
        None => Err(no_such_role(tx, name)?),
    }
}

fn no_such_role(tx: &Transaction<'_>, name: &str) -> Result<RoleError, RoleError> {
    let all = tx.list::<Role>()?;
    let suggestions = nearest(name, all.iter().map(|role| role.name.as_str()), 3);
    let suggestions = suggestions.into_iter().map(str::to_owned).collect();
    Ok(RoleError::NoSuchRole { name: name.to_owned(), suggestions })
}

/// The instance profile of that name.
pub(crate) fn profile(tx: &mut Transaction<'_>, name: &str) -> Result<InstanceProfile, RoleError> {
    let found = tx.get::<InstanceProfile>(&name.to_ascii_lowercase())?;
    found.ok_or_else(|| RoleError::NoSuchProfile(name.to_owned()))
}

fn unused(tx: &Transaction<'_>, profile: &InstanceProfile) -> Result<(), RoleError> {
    let has = |i: &Instance| !i.is_gone() && i.profile.as_ref().is_some_and(|a| a.profile == profile.name);
    match tx.list::<Instance>()?.into_iter().find(has) {
        None => Ok(()),
        Some(instance) => Err(RoleError::InUse { profile: profile.name.clone(), instance: instance.id }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SqliteStore;

    fn store() -> (tempfile::TempDir, SqliteStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        (dir, store)
    }

    fn wish(name: &str) -> NewRole {
        NewRole {
            name: name.parse().unwrap(),
            description: String::new(),
            source: SourceSpec::Issuer,
            lifetime: Lifetime::default(),
        }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, RoleError>) -> &'static str {
        result.unwrap_err().code()
    }

    #[test]
    fn role_and_profile_come_and_go_together() {
        let (_dir, store) = store();
        let roles = Roles { store: &store, now: 7 };
        let role = roles.create_with_profile(&wish("web")).unwrap();
        assert!(role.id.starts_with("AROA") && role.id.len() == 21, "{}", role.id);
        assert_eq!(role.arn, "arn:aws:iam::000000000000:role/web");
        assert_eq!(roles.get("WEB").unwrap(), role);
        assert_eq!(roles.profile("web").unwrap().role, Some(role.name.clone()));
        assert_eq!(code(roles.create(&wish("Web"))), "EntityAlreadyExists");
        assert_eq!(code(roles.delete("web")), "DeleteConflict");
        assert_eq!(code(roles.delete_profile("web")), "DeleteConflict");
        roles.delete_with_profile("web").unwrap();
        assert!(roles.list().unwrap().is_empty() && roles.profiles().unwrap().is_empty());
    }

    #[test]
    fn parts_follow_the_rules_of_iam() {
        let (_dir, store) = store();
        let roles = Roles { store: &store, now: 7 };
        roles.create(&wish("web")).unwrap();
        roles.create(&wish("db")).unwrap();
        roles.create_profile(&"p".parse().unwrap()).unwrap();
        assert_eq!(code(roles.add_to_profile("wep", "p")), "NoSuchEntity");
        assert_eq!(code(roles.add_to_profile("web", "q")), "NoSuchEntity");
        roles.add_to_profile("web", "p").unwrap();
        assert_eq!(code(roles.add_to_profile("db", "p")), "LimitExceeded");
        assert_eq!(code(roles.delete_with_profile("web")), "DeleteConflict");
        assert_eq!(code(roles.remove_from_profile("db", "p")), "NoSuchEntity");
        roles.remove_from_profile("web", "p").unwrap();
        roles.delete("web").unwrap();
        roles.delete_profile("p").unwrap();
        let error = roles.get("dc").unwrap_err().to_string();
        assert_eq!(error, "there is no role \"dc\" (did you mean db?)");
    }

    #[test]
    fn wishes_that_make_no_sense_change_nothing() {
        let (_dir, store) = store();
        let roles = Roles { store: &store, now: 7 };
        let source = SourceSpec::File { path: "relative".into() };
        assert_eq!(code(roles.create(&NewRole { source, ..wish("a") })), "ValidationError");
        let description = "\x1b[2J".to_owned();
        assert_eq!(code(roles.create_with_profile(&NewRole { description, ..wish("a") })), "ValidationError");
        roles.create_profile(&"a".parse().unwrap()).unwrap();
        assert_eq!(code(roles.create_with_profile(&wish("a"))), "EntityAlreadyExists");
        assert!(roles.list().unwrap().is_empty(), "the role goes with the profile that cannot be");
    }
}
