//! Managed policies: documents with an ARN that several roles and users may have.
//!
//! Those of this account are rows. Of AWS's own there are a few, which say of EC2 and IAM what AWS's say;
//! what those say of services that Kiln does not have is left out. A policy of this account has up to five
//! versions, of which one is in force; numbers are not given again.
//!
//! Whoever attaches a policy writes its row too, so that it cannot be deleted at the same time.

use serde::{Deserialize, Serialize};

use super::role::{Role, RoleName};
use super::role_policies::RolePolicies;
use super::service::{RoleError, checked_description, role, unique_id};
use super::{Policy, Roles, User, UserGroup};
use crate::metadata::ACCOUNT;
use crate::state::{Row, Transaction, transact};

/// Longest document in bytes, as in IAM.
const MAX_DOCUMENT: usize = 6144;
/// Managed policies in one state directory, as IAM's default quota.
const MAX_POLICIES: usize = 1500;
/// Versions of one policy, as in IAM.
const MAX_VERSIONS: usize = 5;
/// What AWS's own policies are of.
const AWS: &str = "arn:aws:iam::aws:policy/";

/// A managed policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedPolicy {
    /// Its name.
    pub name: RoleName,
    /// `ANPA…`.
    pub id: String,
    /// `arn:aws:iam::…:policy/…`.
    pub arn: String,
    /// For people.
    pub description: String,
    /// JSON, of the version that is in force.
    pub document: String,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// Number of the version that is in force.
    #[serde(default = "first_version")]
    version: u64,
    /// When that was made, Unix seconds; with the policy if not said.
    #[serde(default)]
    version_created: Option<u64>,
    /// Versions that are not in force.
    #[serde(default)]
    others: Vec<PolicyVersion>,
    /// The highest number that was given.
    #[serde(default = "first_version")]
    last_version: u64,
}

fn first_version() -> u64 {
    1
}

/// A version of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Its number, from 1.
    pub number: u64,
    /// JSON.
    pub document: String,
    /// When it was made, Unix seconds.
    pub created: u64,
}

impl Row for ManagedPolicy {
    const KIND: &'static str = "policy";
    type Key = String;

    fn key(&self) -> String {
        self.name.folded()
    }
}

impl ManagedPolicy {
    /// Whether it is one of AWS's own.
    pub fn is_aws(&self) -> bool {
        self.arn.starts_with(AWS)
    }

    /// The version that is in force.
    pub fn current(&self) -> PolicyVersion {
        let created = self.version_created.unwrap_or(self.created);
        PolicyVersion { number: self.version, document: self.document.clone(), created }
    }

    /// All versions, by number.
    pub fn versions(&self) -> Vec<PolicyVersion> {
        let mut all = self.others.clone();
        all.push(self.current());
        all.sort_by_key(|version| version.number);
        all
    }

    /// When it was changed last, Unix seconds.
    pub fn updated(&self) -> u64 {
        self.versions().iter().map(|version| version.created).max().unwrap_or(self.created)
    }

    /// Puts another version in force.
    fn set_current(&mut self, next: PolicyVersion) {
        self.others.retain(|other| other.number != next.number);
        if next.number != self.version {
            self.others.push(self.current());
        }
        (self.version, self.document, self.version_created) =
            (next.number, next.document, Some(next.created));
    }
}

/// Name, id and document of AWS's own policies.
const OF_AWS: [(&str, &str, &str); 5] = [
    (
        "AdministratorAccess",
        "ANPAIWMBCKSKIEE64ZLYK",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#,
    ),
    (
        "AmazonEC2FullAccess",
        "ANPAI3VAJF5ZCRZ7MCQE6",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:*","Resource":"*"}]}"#,
    ),
    (
        "AmazonEC2ReadOnlyAccess",
        "ANPAIGDT4SV4GSETWTBZK",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ec2:Describe*","ec2:GetSecurityGroupsForVpc"],"Resource":"*"}]}"#,
    ),
    (
        "IAMFullAccess",
        "ANPAI7XKCFMBPM3QQRRVQ",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"}]}"#,
    ),
    (
        "IAMReadOnlyAccess",
        "ANPAJKSO7NDY4T57MWDSQ",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:GenerateCredentialReport","iam:GenerateServiceLastAccessedDetails","iam:Get*","iam:List*","iam:SimulateCustomPolicy","iam:SimulatePrincipalPolicy"],"Resource":"*"}]}"#,
    ),
];
/// AWS made its own in February 2015.
const AWS_CREATED: u64 = 1_423_161_600;

fn of_aws() -> impl Iterator<Item = ManagedPolicy> {
    let one = |(name, id, document): &(&str, &str, &str)| {
        Some(ManagedPolicy {
            name: name.parse().ok()?,
            id: (*id).to_owned(),
            arn: format!("{AWS}{name}"),
            description: String::new(),
            document: (*document).to_owned(),
            created: AWS_CREATED,
            version: first_version(),
            version_created: None,
            others: Vec::new(),
            last_version: first_version(),
        })
    };
    OF_AWS.iter().filter_map(one)
}

/// The policy of an ARN.
pub(super) fn get(tx: &mut Transaction<'_>, arn: &str) -> Result<ManagedPolicy, RoleError> {
    let found = match arn.strip_prefix(&format!("arn:aws:iam::{ACCOUNT}:policy/")) {
        Some(name) => tx.get::<ManagedPolicy>(&name.to_ascii_lowercase())?.filter(|policy| policy.arn == arn),
        None => of_aws().find(|policy| policy.arn == arn),
    };
    found.ok_or_else(|| RoleError::NoSuchManaged(arn.to_owned()))
}

/// Makes the deletion of a policy a conflict of this transaction.
pub(super) fn keep(tx: &mut Transaction<'_>, policy: &ManagedPolicy) -> Result<(), RoleError> {
    match policy.is_aws() {
        true => Ok(()),
        false => Ok(tx.put(policy)?),
    }
}

fn check_document(document: &str) -> Result<(), RoleError> {
    Policy::parse(document)?;
    match document.len() > MAX_DOCUMENT {
        true => Err(RoleError::PoliciesTooLong(MAX_DOCUMENT)),
        false => Ok(()),
    }
}

/// How many roles, users and groups have a policy.
fn attachments(tx: &Transaction<'_>, arn: &str) -> Result<usize, RoleError> {
    let roles = tx.rows::<RolePolicies>()?.iter().filter(|row| row.set.attached.contains(arn)).count();
    let users = tx.rows::<User>()?.iter().filter(|row| row.policies.attached.contains(arn)).count();
    let groups = tx.rows::<UserGroup>()?.iter().filter(|row| row.policies.attached.contains(arn)).count();
    Ok(roles + users + groups)
}

/// Who has a managed policy.
#[derive(Debug, Clone, Default)]
pub struct Holders {
    /// Roles.
    pub roles: Vec<Role>,
    /// Users.
    pub users: Vec<User>,
    /// Groups of users.
    pub groups: Vec<UserGroup>,
}

impl Roles<'_> {
    /// `ListEntitiesForPolicy`: who has a policy.
    pub fn holders(&self, arn: &str) -> Result<Holders, RoleError> {
        transact(self.store, |tx| {
            // It must be there.
            let arn = get(tx, arn)?.arn;
            let mut roles = Vec::new();
            for row in tx.list::<RolePolicies>()?.iter().filter(|row| row.set.attached.contains(&arn)) {
                roles.push(role(tx, &row.key())?);
            }
            let mut users = tx.list::<User>()?;
            users.retain(|row| row.policies.attached.contains(&arn));
            let mut groups = tx.list::<UserGroup>()?;
            groups.retain(|row| row.policies.attached.contains(&arn));
            Ok(Holders { roles, users, groups })
        })
    }

    /// `CreatePolicy`.
    pub fn create_managed(
        &self,
        name: &RoleName,
        description: &str,
        document: &str,
    ) -> Result<ManagedPolicy, RoleError> {
        check_document(document)?;
        checked_description(description)?;
        let policy = ManagedPolicy {
            name: name.clone(),
            id: unique_id("ANPA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:policy/{name}"),
            description: description.to_owned(),
            document: document.to_owned(),
            created: self.now,
            version: first_version(),
            version_created: None,
            others: Vec::new(),
            last_version: first_version(),
        };
        transact(self.store, |tx| {
            if tx.rows::<ManagedPolicy>()?.len() >= MAX_POLICIES {
                return Err(RoleError::TooMany { what: "managed policies", most: MAX_POLICIES });
            }
            match tx.insert(&policy)? {
                true => Ok(policy.clone()),
                false => Err(RoleError::Exists { what: "a policy", name: name.clone() }),
            }
        })
    }

    /// `GetPolicy`, with the number of roles and users that have it.
    pub fn managed(&self, arn: &str) -> Result<(ManagedPolicy, usize), RoleError> {
        transact(self.store, |tx| Ok((get(tx, arn)?, attachments(tx, arn)?)))
    }

    /// All managed policies, AWS's own among them, each with the number of roles and users that have it.
    pub fn all_managed(&self) -> Result<Vec<(ManagedPolicy, usize)>, RoleError> {
        transact(self.store, |tx| {
            let all = of_aws().chain(tx.list::<ManagedPolicy>()?);
            let counted = |policy: ManagedPolicy| Ok((attachments(tx, &policy.arn)?, policy));
            all.map(|policy| counted(policy).map(|(count, policy)| (policy, count))).collect()
        })
    }

    /// `CreatePolicyVersion`: the next one, in force at once with `in_force`.
    pub fn create_policy_version(
        &self,
        arn: &str,
        document: &str,
        in_force: bool,
    ) -> Result<PolicyVersion, RoleError> {
        check_document(document)?;
        self.change_managed(arn, |policy| {
            if policy.others.len() + 1 >= MAX_VERSIONS {
                return Err(RoleError::TooMany { what: "versions of a policy", most: MAX_VERSIONS });
            }
            policy.last_version += 1;
            let (number, document) = (policy.last_version, document.to_owned());
            let version = PolicyVersion { number, document, created: self.now };
            match in_force {
                true => policy.set_current(version.clone()),
                false => policy.others.push(version.clone()),
            }
            Ok(version)
        })
    }

    /// `SetDefaultPolicyVersion`.
    pub fn set_policy_version(&self, arn: &str, number: u64) -> Result<(), RoleError> {
        self.change_managed(arn, |policy| {
            let next = policy.versions().into_iter().find(|version| version.number == number);
            let missing = || RoleError::NoSuchVersion { policy: arn.to_owned(), number };
            policy.set_current(next.ok_or_else(missing)?);
            Ok(())
        })
    }

    /// `DeletePolicyVersion`: of one that is not in force.
    pub fn delete_policy_version(&self, arn: &str, number: u64) -> Result<(), RoleError> {
        self.change_managed(arn, |policy| {
            if number == policy.version {
                return Err(RoleError::VersionInForce(arn.to_owned()));
            }
            let before = policy.others.len();
            policy.others.retain(|version| version.number != number);
            match policy.others.len() < before {
                true => Ok(()),
                false => Err(RoleError::NoSuchVersion { policy: arn.to_owned(), number }),
            }
        })
    }

    fn change_managed<T>(
        &self,
        arn: &str,
        mut change: impl FnMut(&mut ManagedPolicy) -> Result<T, RoleError>,
    ) -> Result<T, RoleError> {
        transact(self.store, |tx| {
            let mut policy = get(tx, arn)?;
            if policy.is_aws() {
                return Err(RoleError::OfAws(arn.to_owned()));
            }
            let changed = change(&mut policy)?;
            tx.put(&policy)?;
            Ok(changed)
        })
    }

    /// `DeletePolicy`: only of one of this account that nobody has.
    pub fn delete_managed(&self, arn: &str) -> Result<(), RoleError> {
        transact(self.store, |tx| {
            let policy = get(tx, arn)?;
            if policy.is_aws() {
                return Err(RoleError::OfAws(arn.to_owned()));
            }
            if attachments(tx, arn)? > 0 {
                return Err(RoleError::PolicyAttached(arn.to_owned()));
            }
            if !policy.others.is_empty() {
                return Err(RoleError::PolicyHasVersions(arn.to_owned()));
            }
            tx.remove::<ManagedPolicy>(&policy.name.folded());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::Place;

    #[test]
    fn policy_of_before_there_were_versions_has_one() {
        let place = Place::new();
        let row = r#"{"name":"look","id":"ANPA","arn":"arn:aws:iam::000000000000:policy/look",
            "description":"","document":"{}","created":7}"#;
        let old: ManagedPolicy = serde_json::from_str(row).unwrap();
        let first = PolicyVersion { number: 1, document: "{}".into(), created: 7 };
        assert_eq!(old.versions(), [first]);
        transact(&place.store, |tx| tx.put(&old)).unwrap();
        let roles = Roles { store: &place.store, now: 9 };
        let document = r#"{"Statement": []}"#;
        assert_eq!(roles.create_policy_version(&old.arn, document, true).unwrap().number, 2);
        let numbers = || {
            let (policy, _) = roles.managed(&old.arn).unwrap();
            let all: Vec<_> =
                policy.versions().iter().map(|version| (version.number, version.created)).collect();
            (policy.current().number, policy.document.clone(), all)
        };
        assert_eq!(numbers(), (2, document.into(), vec![(1, 7), (2, 9)]));
        roles.set_policy_version(&old.arn, 1).unwrap();
        assert_eq!(numbers(), (1, "{}".into(), vec![(1, 7), (2, 9)]));
    }

    #[test]
    fn own_policies_of_aws_can_be_read() {
        assert_eq!(of_aws().count(), OF_AWS.len());
        for policy in of_aws() {
            assert!(policy.is_aws() && Policy::parse(&policy.document).is_ok(), "{policy:?}");
        }
    }
}
