//! Launch templates: what instances are launched with, under a name, in numbered versions.
//!
//! What a version says is in the words of the API, which alone reads it. A version never changes; a number
//! that was given is not given again.

use kiln_model::LaunchTemplateId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::network::Also;
use crate::state::{Row, Store, StoreError, Transaction, transact};
use crate::tags;

/// Templates in one state directory, as EC2's quota.
const MAX_TEMPLATES: usize = 5000;
/// Versions of one template, as EC2's quota.
const MAX_VERSIONS: usize = 10_000;
/// Longest description of a version in characters.
const MAX_DESCRIPTION: usize = 255;
/// Characters of a name besides letters and digits.
const NAME_CHARACTERS: &str = "().-/_";

/// A launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplate {
    /// Its id.
    pub id: LaunchTemplateId,
    /// Its name, which no other has.
    pub name: String,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// ARN of who made it.
    pub creator: String,
    /// The version that is meant where none is named.
    pub default_version: u64,
    /// The highest version that there is.
    pub latest_version: u64,
    /// The highest number that was given.
    pub last_number: u64,
}

impl Row for LaunchTemplate {
    const KIND: &'static str = "launch-template";
    type Key = LaunchTemplateId;

    fn key(&self) -> LaunchTemplateId {
        self.id
    }
}

/// The template of a name. Names are taken one by one through these rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TemplateName {
    name: String,
    template: LaunchTemplateId,
}

impl Row for TemplateName {
    const KIND: &'static str = "launch-template-name";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// A version of a launch template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// The template.
    pub template: LaunchTemplateId,
    /// Its number, from 1.
    pub number: u64,
    /// What it is for.
    pub description: Option<String>,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// ARN of who made it.
    pub creator: String,
    /// Parameters of a launch.
    pub data: Value,
}

impl TemplateVersion {
    fn key_of(template: LaunchTemplateId, number: u64) -> String {
        format!("{template}.{number}")
    }
}

impl Row for TemplateVersion {
    const KIND: &'static str = "launch-template-version";
    type Key = String;

    fn key(&self) -> String {
        Self::key_of(self.template, self.number)
    }

    fn holder(&self) -> Option<String> {
        Some(self.template.to_string())
    }
}

/// What an instance was launched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateUse {
    /// The template.
    pub template: LaunchTemplateId,
    /// Number of its version.
    pub version: u64,
}

/// What a new version is.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// ARN of who makes it.
    pub creator: String,
    /// What it is for.
    pub description: Option<String>,
    /// Parameters of a launch.
    pub data: Value,
}

impl NewVersion {
    fn check(&self) -> Result<(), LaunchTemplateError> {
        let length = self.description.as_ref().map_or(0, |text| text.chars().count());
        if length > MAX_DESCRIPTION { Err(LaunchTemplateError::Description) } else { Ok(()) }
    }

    fn numbered(&self, template: LaunchTemplateId, number: u64, now: u64) -> TemplateVersion {
        let NewVersion { creator, description, data } = self.clone();
        TemplateVersion { template, number, description, created: now, creator, data }
    }
}

/// Which version of a template is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedVersion {
    /// `$Default`.
    Default,
    /// `$Latest`.
    Latest,
    /// The one of that number.
    Number(u64),
}

impl WantedVersion {
    /// Its number in `template`.
    pub fn of(self, template: &LaunchTemplate) -> u64 {
        match self {
            WantedVersion::Default => template.default_version,
            WantedVersion::Latest => template.latest_version,
            WantedVersion::Number(number) => number,
        }
    }
}

/// Why there is no such template.
#[derive(Debug, thiserror::Error)]
pub enum LaunchTemplateError {
    /// No such id.
    #[error("The specified launch template, with template ID {0}, does not exist.")]
    NoSuchId(LaunchTemplateId),
    /// No such name.
    #[error("The specified launch template, with template name {0}, does not exist.")]
    NoSuchName(String),
    /// No such version.
    #[error("Could not find the specified version {number} for the launch template with ID {template}.")]
    NoSuchVersion {
        /// Of which template.
        template: LaunchTemplateId,
        /// Which version.
        number: u64,
    },
    /// The name is taken.
    #[error("Launch template name already in use: {0}")]
    Exists(String),
    /// Not a name.
    #[error("A launch template's name has 3 to 128 letters, digits and {NAME_CHARACTERS}")]
    Name,
    /// The description is too long.
    #[error("The description of a version has at most {MAX_DESCRIPTION} characters")]
    Description,
    /// The default version stays.
    #[error("Version {0} is the default version, which cannot be deleted")]
    IsDefault(u64),
    /// As many as there may be.
    #[error("There are {MAX_TEMPLATES} launch templates already, as many as there may be")]
    Limit,
    /// As many versions as there may be.
    #[error("The launch template has {MAX_VERSIONS} versions already, as many as there may be")]
    VersionLimit,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LaunchTemplateError {
    /// What EC2 calls it.
    pub fn code(&self) -> &'static str {
        match self {
            LaunchTemplateError::NoSuchId(_) => "InvalidLaunchTemplateId.NotFound",
            LaunchTemplateError::NoSuchName(_) => "InvalidLaunchTemplateName.NotFoundException",
            LaunchTemplateError::NoSuchVersion { .. } => "InvalidLaunchTemplateId.VersionNotFound",
            LaunchTemplateError::Exists(_) => "InvalidLaunchTemplateName.AlreadyExistsException",
            LaunchTemplateError::Name => "InvalidLaunchTemplateName.MalformedException",
            LaunchTemplateError::Description => "InvalidParameterValue",
            LaunchTemplateError::IsDefault(_) => "OperationNotPermitted",
            LaunchTemplateError::Limit => "LaunchTemplateLimitExceeded",
            LaunchTemplateError::VersionLimit => "LaunchTemplateVersionLimitExceeded",
            LaunchTemplateError::Store(_) => "InternalError",
        }
    }
}

/// Launch templates of one store. Methods block.
pub struct LaunchTemplates<'a> {
    /// Where they are.
    pub store: &'a dyn Store,
    /// Unix seconds.
    pub now: u64,
}

impl std::fmt::Debug for LaunchTemplates<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaunchTemplates")
    }
}

impl LaunchTemplates<'_> {
    /// All, by id.
    pub fn list(&self) -> Result<Vec<LaunchTemplate>, LaunchTemplateError> {
        Ok(transact(self.store, |tx| tx.list::<LaunchTemplate>())?)
    }

    /// The one of that id.
    pub fn get(&self, id: LaunchTemplateId) -> Result<LaunchTemplate, LaunchTemplateError> {
        transact(self.store, |tx| find(tx, id))
    }

    /// The one of that name.
    pub fn named(&self, name: &str) -> Result<LaunchTemplate, LaunchTemplateError> {
        transact(self.store, |tx| {
            let missing = || LaunchTemplateError::NoSuchName(name.to_owned());
            let row = tx.get::<TemplateName>(&name.to_owned())?.ok_or_else(missing)?;
            find(tx, row.template)
        })
    }

    /// Versions of a template, by number.
    pub fn versions(&self, id: LaunchTemplateId) -> Result<Vec<TemplateVersion>, LaunchTemplateError> {
        transact(self.store, |tx| versions(tx, id))
    }

    /// One version of a template.
    pub fn version(
        &self,
        template: LaunchTemplateId,
        number: u64,
    ) -> Result<TemplateVersion, LaunchTemplateError> {
        let found = transact(self.store, |tx| tx.get(&TemplateVersion::key_of(template, number)))?;
        found.ok_or(LaunchTemplateError::NoSuchVersion { template, number })
    }

    /// Makes a template whose first version, its default, is `first`.
    pub fn create(
        &self,
        name: &str,
        first: &NewVersion,
        also: &mut Also<'_>,
    ) -> Result<LaunchTemplate, LaunchTemplateError> {
        check_name(name)?;
        first.check()?;
        let id = LaunchTemplateId::from_bits(rand::random());
        let template = LaunchTemplate {
            id,
            name: name.to_owned(),
            created: self.now,
            creator: first.creator.clone(),
            default_version: 1,
            latest_version: 1,
            last_number: 1,
        };
        transact(self.store, |tx| {
            if tx.rows::<LaunchTemplate>()?.len() >= MAX_TEMPLATES {
                return Err(LaunchTemplateError::Limit);
            }
            if !tx.insert(&TemplateName { name: name.to_owned(), template: id })? {
                return Err(LaunchTemplateError::Exists(name.to_owned()));
            }
            tx.put(&template)?;
            tx.put(&first.numbered(id, 1, self.now))?;
            Ok(also(tx, &id.to_string())?)
        })?;
        Ok(template)
    }

    /// Makes the next version of a template. `also` is given its number.
    pub fn add_version(
        &self,
        id: LaunchTemplateId,
        new: &NewVersion,
        also: &mut Also<'_>,
    ) -> Result<TemplateVersion, LaunchTemplateError> {
        new.check()?;
        transact(self.store, |tx| {
            let mut template = find(tx, id)?;
            if tx.rows::<TemplateVersion>()?.held_by(&id.to_string()).count() >= MAX_VERSIONS {
                return Err(LaunchTemplateError::VersionLimit);
            }
            template.last_number += 1;
            template.latest_version = template.last_number;
            let version = new.numbered(id, template.last_number, self.now);
            tx.put(&template)?;
            tx.put(&version)?;
            also(tx, &version.number.to_string())?;
            Ok(version)
        })
    }

    /// Another version is the default.
    pub fn set_default(
        &self,
        id: LaunchTemplateId,
        wanted: WantedVersion,
    ) -> Result<LaunchTemplate, LaunchTemplateError> {
        transact(self.store, |tx| {
            let mut template = find(tx, id)?;
            let number = wanted.of(&template);
            let there = tx.get::<TemplateVersion>(&TemplateVersion::key_of(id, number))?;
            there.ok_or(LaunchTemplateError::NoSuchVersion { template: id, number })?;
            template.default_version = number;
            tx.put(&template)?;
            Ok(template)
        })
    }

    /// Deletes one version.
    pub fn delete_version(&self, id: LaunchTemplateId, number: u64) -> Result<(), LaunchTemplateError> {
        transact(self.store, |tx| {
            let mut template = find(tx, id)?;
            let key = TemplateVersion::key_of(id, number);
            let there = tx.get::<TemplateVersion>(&key)?;
            there.ok_or(LaunchTemplateError::NoSuchVersion { template: id, number })?;
            if number == template.default_version {
                return Err(LaunchTemplateError::IsDefault(number));
            }
            tx.remove::<TemplateVersion>(&key);
            let others = versions(tx, id)?.into_iter().map(|version| version.number);
            // Written whether it changes or not, so that no other version goes unseen meanwhile.
            template.latest_version =
                others.filter(|other| *other != number).max().unwrap_or(template.default_version);
            tx.put(&template)?;
            Ok(())
        })
    }

    /// Deletes a template with all its versions.
    pub fn delete(&self, id: LaunchTemplateId) -> Result<LaunchTemplate, LaunchTemplateError> {
        let template = transact(self.store, |tx| {
            let template = find(tx, id)?;
            for version in versions(tx, id)? {
                tx.remove::<TemplateVersion>(&version.key());
            }
            tx.remove::<TemplateName>(&template.name);
            tx.remove::<LaunchTemplate>(&id);
            Ok::<_, LaunchTemplateError>(template)
        })?;
        tags::forget(self.store, &id.to_string())?;
        Ok(template)
    }
}

fn find(tx: &mut Transaction<'_>, id: LaunchTemplateId) -> Result<LaunchTemplate, LaunchTemplateError> {
    tx.get(&id)?.ok_or(LaunchTemplateError::NoSuchId(id))
}

fn versions(tx: &Transaction<'_>, id: LaunchTemplateId) -> Result<Vec<TemplateVersion>, LaunchTemplateError> {
    let rows = tx.rows::<TemplateVersion>()?;
    let mut all: Vec<_> =
        rows.held_by(&id.to_string()).map(|version| TemplateVersion::clone(version)).collect();
    all.sort_by_key(|version| version.number);
    Ok(all)
}

fn check_name(name: &str) -> Result<(), LaunchTemplateError> {
    let good = |c: char| c.is_ascii_alphanumeric() || NAME_CHARACTERS.contains(c);
    if !(3..=128).contains(&name.len()) || !name.chars().all(good) {
        return Err(LaunchTemplateError::Name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::SqliteStore;

    fn with_templates(test: impl FnOnce(&LaunchTemplates<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        test(&LaunchTemplates { store: &store, now: 7 });
    }

    fn new(kind: &str) -> NewVersion {
        NewVersion {
            creator: "arn:aws:iam::000000000000:root".into(),
            description: None,
            data: json!({"InstanceType": kind}),
        }
    }

    #[test]
    fn versions_are_numbered_for_good_and_the_default_stays() {
        with_templates(|templates| {
            let none = &mut |_: &mut Transaction<'_>, _: &str| Ok(());
            let web = templates.create("web", &new("t3.nano"), none).unwrap();
            assert!(matches!(
                templates.create("web", &new("t3.nano"), none),
                Err(LaunchTemplateError::Exists(_))
            ));
            for bad in ["ab", "a b c", &"x".repeat(129), "wäb"] {
                assert!(matches!(
                    templates.create(bad, &new("t3.nano"), none),
                    Err(LaunchTemplateError::Name)
                ));
            }
            for number in 2..=12 {
                assert_eq!(templates.add_version(web.id, &new("t3.micro"), none).unwrap().number, number);
            }
            assert!(matches!(templates.delete_version(web.id, 1), Err(LaunchTemplateError::IsDefault(1))));
            assert_eq!(templates.set_default(web.id, WantedVersion::Latest).unwrap().default_version, 12);
            let wrong = templates.set_default(web.id, WantedVersion::Number(13)).unwrap_err();
            assert_eq!(wrong.code(), "InvalidLaunchTemplateId.VersionNotFound");
            templates.set_default(web.id, WantedVersion::Number(3)).unwrap();
            for number in [1, 12] {
                templates.delete_version(web.id, number).unwrap();
            }
            let now = templates.named("web").unwrap();
            assert_eq!((now.default_version, now.latest_version), (3, 11));
            let numbers: Vec<_> =
                templates.versions(web.id).unwrap().into_iter().map(|version| version.number).collect();
            assert_eq!(numbers, (2..=11).collect::<Vec<_>>());
            assert_eq!(templates.add_version(web.id, &new("t3.micro"), none).unwrap().number, 13);
            templates.delete(web.id).unwrap();
            assert!(templates.versions(web.id).unwrap().is_empty());
            assert_eq!(templates.get(web.id).unwrap_err().code(), "InvalidLaunchTemplateId.NotFound");
            templates.create("web", &new("t3.nano"), none).unwrap();
        });
    }
}
