//! Managed policies: documents with an ARN that several roles and users may have.
//!
//! Those of this account are rows. Of AWS's own there are a few, which say of EC2 and IAM what AWS's say;
//! what those say of services that Kiln does not have is left out. A policy has one version, `v1`.
//!
//! Whoever attaches a policy writes its row too, so that it cannot be deleted at the same time.

use serde::{Deserialize, Serialize};

use super::role::RoleName;
use super::role_policies::RolePolicies;
use super::service::{RoleError, checked_description, unique_id};
use super::{Policy, Roles, User};
use crate::metadata::ACCOUNT;
use crate::state::{Row, Transaction, transact};

/// Longest document in bytes, as in IAM.
const MAX_DOCUMENT: usize = 6144;
/// Managed policies in one state directory, as IAM's default quota.
const MAX_POLICIES: usize = 1500;
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

/// How many roles and users have a policy.
fn attachments(tx: &Transaction<'_>, arn: &str) -> Result<usize, RoleError> {
    let roles = tx.rows::<RolePolicies>()?.iter().filter(|row| row.set.attached.contains(arn)).count();
    let users = tx.rows::<User>()?.iter().filter(|row| row.policies.attached.contains(arn)).count();
    Ok(roles + users)
}

impl Roles<'_> {
    /// `CreatePolicy`.
    pub fn create_managed(
        &self,
        name: &RoleName,
        description: &str,
        document: &str,
    ) -> Result<ManagedPolicy, RoleError> {
        Policy::parse(document)?;
        if document.len() > MAX_DOCUMENT {
            return Err(RoleError::PoliciesTooLong(MAX_DOCUMENT));
        }
        checked_description(description)?;
        let policy = ManagedPolicy {
            name: name.clone(),
            id: unique_id("ANPA"),
            arn: format!("arn:aws:iam::{ACCOUNT}:policy/{name}"),
            description: description.to_owned(),
            document: document.to_owned(),
            created: self.now,
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
            tx.remove::<ManagedPolicy>(&policy.name.folded());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_policies_of_aws_can_be_read() {
        assert_eq!(of_aws().count(), OF_AWS.len());
        for policy in of_aws() {
            assert!(policy.is_aws() && Policy::parse(&policy.document).is_ok(), "{policy:?}");
        }
    }
}
