//! Users, and the access keys by which they sign.
//!
//! ```text
//!   row `user/<name>`           who it is, its policies, ids and states of its keys
//!       `access-key/<id>`       whose key it is: what a signature is looked up by
//!       `sealed/access-key.<id>` the secret, which only the holder of the sealing key can read
//! ```
//! All rows of a key are written in one transaction. Its secret is told once, when it is made.

use std::collections::BTreeSet;

use kiln_model::Secret;
use serde::{Deserialize, Serialize};

use super::policy_set::PolicySet;
use super::role::RoleName;
use super::service::{RoleError, unique_id};
use super::{AccessKey, ManagedPolicy, Roles, user_groups};
use crate::metadata::ACCOUNT;
use crate::state::{Row, SealError, StateDir, Store, StoreError, Transaction, Vault, transact};

/// Access keys of one user, as in IAM.
const MAX_KEYS: usize = 2;
/// Users in one state directory, as IAM's default quota.
const MAX_USERS: usize = 5000;
/// Most bytes of all documents of a user's own together, as in IAM.
const MAX_TOGETHER: usize = 2048;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: RoleName,
    /// `AIDA…`.
    pub id: String,
    /// `arn:aws:iam::…:user/…`.
    pub arn: String,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// What it may do.
    pub policies: PolicySet,
    /// Names of its groups, in lower case.
    #[serde(default)]
    pub(super) groups: BTreeSet<String>,
    /// Its access keys, in the order of their making.
    pub keys: Vec<UserKey>,
}

/// What is known of an access key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserKey {
    /// `AKIA…`.
    pub id: String,
    /// Whether it can sign.
    pub active: bool,
    /// When it was made, Unix seconds.
    pub created: u64,
}

impl Row for User {
    const KIND: &'static str = "user";
    type Key = String;

    fn key(&self) -> String {
        self.name.folded()
    }
}

/// Whose key it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeyOwner {
    id: String,
    user: RoleName,
    #[serde(default)]
    last_used: Option<KeyUse>,
}

/// When and for what an access key was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// Unix seconds, at most [`USE_PRECISION`] before the last time.
    pub at: u64,
    /// Such as `ec2`.
    pub service: String,
    /// Such as `us-east-1`.
    pub region: String,
}

/// Seconds for which further uses of a key are not noted, so that requests do not write.
pub const USE_PRECISION: u64 = 15 * 60;

impl Row for KeyOwner {
    const KIND: &'static str = "access-key";
    type Key = String;

    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Name of the sealed row of a key.
fn sealed(id: &str) -> String {
    format!("access-key.{id}")
}

/// The user of that name.
pub(super) fn user(tx: &mut Transaction<'_>, name: &str) -> Result<User, RoleError> {
    let found = tx.get::<User>(&name.to_ascii_lowercase())?;
    found.ok_or_else(|| RoleError::NoSuchUser(name.to_owned()))
}

/// Who has an active access key, and its secret. `None`: there is none of that id, or it cannot sign.
pub fn signer(
    store: &dyn Store,
    dir: &StateDir,
    id: &str,
) -> Result<Option<(User, Secret<String>)>, SealError> {
    let found = transact(store, |tx| {
        let Some(owner) = tx.get::<KeyOwner>(&id.to_owned())? else { return Ok(None) };
        tx.get::<User>(&owner.user.folded())
    })?;
    let active = |user: &User| user.keys.iter().any(|key| key.id == id && key.active);
    let Some(user) = found.filter(active) else { return Ok(None) };
    let secret = Vault::open(store, dir)?.get(&sealed(id))?;
    let text = secret.and_then(|bytes| String::from_utf8(bytes.expose().clone()).ok());
    Ok(text.map(|text| (user, Secret::new(text))))
}

/// Notes that a key has signed a request. Does nothing if much the same was noted a while ago.
pub fn note_use(store: &dyn Store, id: &str, used: &KeyUse) -> Result<(), StoreError> {
    let fresh = |before: &KeyUse| {
        (&before.service, &before.region) == (&used.service, &used.region)
            && before.at.saturating_add(USE_PRECISION) > used.at
    };
    transact(store, |tx| {
        let Some(mut owner) = tx.get::<KeyOwner>(&id.to_owned())? else { return Ok(()) };
        if owner.last_used.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        owner.last_used = Some(used.clone());
        tx.put(&owner)
    })
}

impl Roles<'_> {
    /// `GetAccessKeyLastUsed`: whose key it is, and its last use.
    pub fn key_use(&self, id: &str) -> Result<(RoleName, Option<KeyUse>), RoleError> {
        let owner = transact(self.store, |tx| tx.get::<KeyOwner>(&id.to_owned()))?;
        let owner = owner.ok_or_else(|| RoleError::NoSuchKey(id.to_owned()))?;
        Ok((owner.user, owner.last_used))
    }

    /// `CreateUser`.
    pub fn create_user(&self, name: &RoleName) -> Result<User, RoleError> {
        let user = User {
            name: name.clone(),
            id: unique_id("AIDA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:user/{name}"),
            created: self.now,
            policies: PolicySet::default(),
            groups: BTreeSet::new(),
            keys: Vec::new(),
        };
        transact(self.store, |tx| {
            if tx.rows::<User>()?.len() >= MAX_USERS {
                return Err(RoleError::TooMany { what: "users", most: MAX_USERS });
            }
            match tx.insert(&user)? {
                true => Ok(user.clone()),
                false => Err(RoleError::Exists { what: "a user", name: name.clone() }),
            }
        })
    }

    /// `GetUser`.
    pub fn user(&self, name: &str) -> Result<User, RoleError> {
        transact(self.store, |tx| user(tx, name))
    }

    /// All users by name.
    pub fn users(&self) -> Result<Vec<User>, RoleError> {
        Ok(transact(self.store, |tx| tx.list::<User>())?)
    }

    /// `DeleteUser`: only of one without keys, policies and groups.
    pub fn delete_user(&self, name: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let user = user(tx, name)?;
            let held = user.keys.first().map(|key| key.id.clone()).or_else(|| user.policies.first());
            let held = held.or_else(|| user.groups.first().map(|group| format!("the group {group}")));
            if let Some(held) = held {
                return Err(RoleError::UserHas { user: user.name, held });
            }
            tx.remove::<User>(&user.name.folded());
            Ok(())
        })
    }

    /// `CreateAccessKey`: the key with its secret, which is told here and nowhere else.
    pub fn create_key(&self, vault: &Vault<'_>, name: &str) -> Result<(User, AccessKey), RoleError> {
        let key = AccessKey::random()?;
        let user = transact(self.store, |tx| {
            let mut user = user(tx, name)?;
            if user.keys.len() >= MAX_KEYS {
                return Err(RoleError::TooMany { what: "access keys of a user", most: MAX_KEYS });
            }
            user.keys.push(UserKey { id: key.id.clone(), active: true, created: self.now });
            tx.put(&user)?;
            tx.put(&KeyOwner { id: key.id.clone(), user: user.name.clone(), last_used: None })?;
            vault.put(tx, &sealed(&key.id), &Secret::new(key.secret.expose().clone().into_bytes()))?;
            Ok(user)
        })?;
        Ok((user, key))
    }

    /// `UpdateAccessKey`.
    pub fn set_key_active(&self, name: &str, id: &str, active: bool) -> Result<(), RoleError> {
        self.change_user(name, |_, user| {
            let key = user.keys.iter_mut().find(|key| key.id == id);
            key.ok_or_else(|| RoleError::NoSuchKey(id.to_owned()))?.active = active;
            Ok(())
        })
    }

    /// `DeleteAccessKey`.
    pub fn delete_key(&self, name: &str, id: &str) -> Result<(), RoleError> {
        self.change_user(name, |tx, user| {
            let before = user.keys.len();
            user.keys.retain(|key| key.id != id);
            if user.keys.len() == before {
                return Err(RoleError::NoSuchKey(id.to_owned()));
            }
            tx.remove::<KeyOwner>(&id.to_owned());
            Vault::remove(tx, &sealed(id));
            Ok(())
        })
    }

    /// `PutUserPolicy`.
    pub fn put_user_policy(&self, name: &str, policy: &RoleName, document: &str) -> Result<(), RoleError> {
        self.change_user(name, |_, user| user.policies.put(policy, document, MAX_TOGETHER))
    }

    /// `DeleteUserPolicy`.
    pub fn delete_user_policy(&self, name: &str, policy: &str) -> Result<(), RoleError> {
        self.change_user(name, |_, user| user.policies.delete(&user.name, policy))
    }

    /// `AttachUserPolicy`.
    pub fn attach_to_user(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change_user(name, |tx, user| user.policies.attach(tx, arn))
    }

    /// `DetachUserPolicy`.
    pub fn detach_from_user(&self, name: &str, arn: &str) -> Result<(), RoleError> {
        self.change_user(name, |_, user| user.policies.detach(&user.name, arn))
    }

    /// `ListAttachedUserPolicies`.
    pub fn managed_of_user(&self, name: &str) -> Result<Vec<ManagedPolicy>, RoleError> {
        transact(self.store, |tx| user(tx, name)?.policies.managed(tx))
    }

    /// All documents that count for a user, those of its groups among them, if it is the one of this unique id.
    pub fn user_documents(&self, name: &str, id: &str) -> Result<Vec<String>, RoleError> {
        transact(self.store, |tx| {
            let user = user(tx, name)?;
            match user.id == id {
                true => Ok([user.policies.documents(tx)?, user_groups::documents(tx, &user)?].concat()),
                false => Err(RoleError::NoSuchUser(name.to_owned())),
            }
        })
    }

    fn change_user(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Transaction<'_>, &mut User) -> Result<(), RoleError>,
    ) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let mut row = user(tx, name)?;
            change(tx, &mut row)?;
            Ok(tx.put(&row)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SqliteStore;
    use crate::state::testing::Place;

    /// Ids of keys whose secret is kept.
    fn kept(store: &SqliteStore) -> Vec<String> {
        let all = store.list("sealed/").unwrap();
        all.into_iter().filter_map(|e| Some(e.key.strip_prefix("sealed/access-key.")?.to_owned())).collect()
    }

    fn code<T>(result: Result<T, RoleError>) -> &'static str {
        result.err().map_or("", |e| e.code())
    }

    #[test]
    fn key_signs_while_it_is_active_and_leaves_nothing() {
        let place = Place::new();
        let roles = Roles { store: &place.store, now: 7 };
        let vault = Vault::open(&place.store, &place.dir).unwrap();
        let user = roles.create_user(&"Ann".parse().unwrap()).unwrap();
        assert!(user.id.starts_with("AIDA") && user.arn.ends_with(":user/Ann"), "{user:?}");
        assert_eq!(code(roles.create_user(&"ann".parse().unwrap())), "EntityAlreadyExists");
        assert_eq!(code(roles.create_key(&vault, "bob")), "NoSuchEntity");
        let (_, key) = roles.create_key(&vault, "ANN").unwrap();
        let other = roles.create_key(&vault, "ann").unwrap().1;
        assert_eq!(code(roles.create_key(&vault, "ann")), "LimitExceeded");
        let signs = |id: &str| signer(&place.store, &place.dir, id).unwrap();
        let (found, secret) = signs(&key.id).unwrap();
        assert_eq!((found.id, secret.expose()), (user.id, key.secret.expose()));
        assert_eq!(kept(&place.store).len(), 2);
        let raw = ["user/", "access-key/", "sealed/"].map(|kind| place.store.list(kind).unwrap()).concat();
        assert!(raw.iter().all(|entry| !entry.value.contains(key.secret.expose())), "it lies open");
        roles.set_key_active("ann", &key.id, false).unwrap();
        assert!(signs(&key.id).is_none() && signs(&other.id).is_some() && signs("AKIA").is_none());
        roles.set_key_active("ann", &key.id, true).unwrap();
        assert!(signs(&key.id).is_some());
        assert_eq!(code(roles.delete_user("ann")), "DeleteConflict");

        assert_eq!(roles.key_use(&key.id).unwrap(), ("Ann".parse().unwrap(), None));
        let used = |at| KeyUse { at, service: "ec2".to_owned(), region: "us-east-1".to_owned() };
        for (at, noted) in
            [(100, 100), (100 + USE_PRECISION - 1, 100), (100 + USE_PRECISION, 100 + USE_PRECISION)]
        {
            note_use(&place.store, &key.id, &used(at)).unwrap();
            assert_eq!(roles.key_use(&key.id).unwrap().1, Some(used(noted)));
        }
        let iam = KeyUse { service: "iam".to_owned(), ..used(101 + USE_PRECISION) };
        note_use(&place.store, &key.id, &iam).unwrap();
        assert_eq!(roles.key_use(&key.id).unwrap().1, Some(iam));
        note_use(&place.store, "AKIA", &used(1)).unwrap();
        assert_eq!(code(roles.key_use("AKIA")), "NoSuchEntity");
        for key in [&key, &other] {
            roles.delete_key("ann", &key.id).unwrap();
            assert_eq!(code(roles.delete_key("ann", &key.id)), "NoSuchEntity");
        }
        assert!(signs(&key.id).is_none() && kept(&place.store).is_empty());
        roles.delete_user("ann").unwrap();
        assert_eq!(code(roles.user("ann")), "NoSuchEntity");
    }

    #[test]
    fn policies_of_a_user_are_its_own_and_those_attached() {
        const LOOK: &str =
            r#"{"Statement": {"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"}}"#;
        let place = Place::new();
        let roles = Roles { store: &place.store, now: 7 };
        let user = roles.create_user(&"ann".parse().unwrap()).unwrap();
        let managed = roles.create_managed(&"look".parse().unwrap(), "", LOOK).unwrap();
        assert_eq!(code(roles.create_managed(&"LOOK".parse().unwrap(), "", LOOK)), "EntityAlreadyExists");
        roles.attach_to_user("ann", &managed.arn).unwrap();
        roles.attach_to_user("ann", &managed.arn).unwrap();
        roles.attach_to_user("ann", "arn:aws:iam::aws:policy/IAMFullAccess").unwrap();
        for arn in ["arn:aws:iam::aws:policy/None", "arn:aws:iam::000000000000:policy/Look", "look", ""] {
            assert_eq!(code(roles.attach_to_user("ann", arn)), "NoSuchEntity", "{arn}");
        }
        roles.put_user_policy("ann", &"own".parse().unwrap(), LOOK).unwrap();
        let long = LOOK.to_owned() + &" ".repeat(MAX_TOGETHER);
        assert_eq!(code(roles.put_user_policy("ann", &"long".parse().unwrap(), &long)), "LimitExceeded");
        assert_eq!(roles.user_documents("ann", &user.id).unwrap().len(), 3);
        assert_eq!(code(roles.user_documents("ann", "AIDAOTHER")), "NoSuchEntity");
        assert_eq!(roles.managed(&managed.arn).unwrap().1, 1);
        assert_eq!(code(roles.delete_managed(&managed.arn)), "DeleteConflict");
        assert_eq!(code(roles.delete_managed("arn:aws:iam::aws:policy/IAMFullAccess")), "AccessDenied");
        roles.detach_from_user("ann", &managed.arn).unwrap();
        assert_eq!(code(roles.detach_from_user("ann", &managed.arn)), "NoSuchEntity");
        roles.delete_managed(&managed.arn).unwrap();
        assert_eq!(code(roles.delete_user("ann")), "DeleteConflict");
        roles.delete_user_policy("ann", "own").unwrap();
        roles.detach_from_user("ann", "arn:aws:iam::aws:policy/IAMFullAccess").unwrap();
        roles.delete_user("ann").unwrap();
    }
}
