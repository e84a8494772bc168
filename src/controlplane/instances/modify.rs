//! Changes to an existing instance that its metadata show: profile, tags, options. They are written to
//! its row; the process that runs it carries them to the guest (see the keeper).

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use kiln_model::{InstanceId, InstanceState, InvalidTag, Tag};
use kiln_vmspec::{Command, MetadataOptions, Reply};

use super::password::{PasswordReport, SEARCHED, find_password};
use super::request::MAX_TAGS;
use super::{ControlPlane, Instance, InstanceError};
use crate::credentials::{Association, CredentialStatus, RoleError, service};
use crate::metadata::{InvalidMetadataTag, check_tag_keys};
use crate::state::{StoreError, Transaction, transact};
use crate::vmm_process::Commands as _;

/// How often the arrival of a change is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Why an instance was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// No such instance, or its VMM does not serve.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// No such profile.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// It has a profile already.
    #[error("{instance} has the role {profile} already (replace it, or detach it first)")]
    Associated {
        /// Which instance.
        instance: InstanceId,
        /// What it has.
        profile: String,
    },
    /// It has no profile.
    #[error("{0} has no role")]
    NotAssociated(InstanceId),
    /// No such association.
    #[error("there is no association {0:?}")]
    NoSuchAssociation(String),
    /// Its life is over.
    #[error("{0} is {1} and cannot be changed any more")]
    Ending(InstanceId, InstanceState),
    /// A tag that its metadata cannot show.
    #[error(transparent)]
    MetadataTag(#[from] InvalidMetadataTag),
    /// A tag that cannot be.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// More than a resource can have.
    #[error("an instance has at most {MAX_TAGS} tags, not {0}")]
    TooManyTags(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ModifyError {
    /// Error code of the EC2 API.
    pub fn code(&self) -> &'static str {
        match self {
            ModifyError::Instance(InstanceError::NotFound { .. }) => "InvalidInstanceID.NotFound",
            ModifyError::Instance(InstanceError::NotRunning { .. }) | ModifyError::Ending(..) => {
                "IncorrectInstanceState"
            }
            ModifyError::Instance(InstanceError::Ambiguous(_))
            | ModifyError::Role(_)
            | ModifyError::MetadataTag(_)
            | ModifyError::Tag(_) => "InvalidParameterValue",
            ModifyError::Associated { .. } | ModifyError::NotAssociated(_) => "IncorrectState",
            ModifyError::NoSuchAssociation(_) => "InvalidAssociationID.NotFound",
            ModifyError::TooManyTags(_) => "TagLimitExceeded",
            ModifyError::Instance(_) | ModifyError::Store(_) => "InternalError",
        }
    }
}

/// What to do to the tags of an instance.
#[derive(Debug, Clone, Default)]
pub struct TagChange {
    /// Set these.
    pub set: Vec<Tag>,
    /// Remove those with these keys; absent ones are no error.
    pub remove: Vec<String>,
}

/// A new association with the profile of that name. Rewrites the profile's row, so that it cannot be
/// deleted at the same moment.
pub(super) fn associate(tx: &mut Transaction<'_>, name: &str, now: u64) -> Result<Association, RoleError> {
    let profile = service::profile(tx, name)?;
    tx.put(&profile)?;
    let id = format!("iip-assoc-0{:016x}", rand::random::<u64>());
    Ok(Association { id, profile: profile.name, since: now })
}

impl ControlPlane {
    /// `AssociateIamInstanceProfile`: a running instance gets the role without a restart.
    pub fn associate_profile(&self, id: InstanceId, profile: &str) -> Result<Association, ModifyError> {
        let now = self.clock().unix_seconds();
        self.change(id, |tx, row| {
            if let Some(there) = &row.profile {
                let profile = there.profile.to_string();
                return Err(ModifyError::Associated { instance: id, profile });
            }
            let association = associate(tx, profile, now)?;
            row.profile = Some(association.clone());
            Ok(association)
        })
    }

    /// `ReplaceIamInstanceProfileAssociation` for the profile that the instance has, if it has one.
    pub fn replace_profile(&self, id: InstanceId, profile: &str) -> Result<Association, ModifyError> {
        let now = self.clock().unix_seconds();
        self.change(id, |tx, row| {
            let association = associate(tx, profile, now)?;
            row.profile = Some(association.clone());
            Ok(association)
        })
    }

    /// `DisassociateIamInstanceProfile`: the instance's credentials leave its metadata at once. Sets that
    /// its programs hold already live until they expire.
    pub fn disassociate_profile(&self, id: InstanceId) -> Result<Association, ModifyError> {
        self.change(id, |_, row| row.profile.take().ok_or(ModifyError::NotAssociated(id)))
    }

    /// The instance with the association of that id (`iip-assoc-…`).
    pub fn find_association(&self, association: &str) -> Result<Instance, ModifyError> {
        let has = |i: &Instance| i.profile.as_ref().is_some_and(|a| a.id == association);
        let found = self.instances()?.into_iter().find(has);
        found.ok_or_else(|| ModifyError::NoSuchAssociation(association.to_owned()))
    }

    /// `ModifyInstanceMetadataOptions`.
    pub fn modify_metadata_options(
        &self,
        id: InstanceId,
        options: MetadataOptions,
    ) -> Result<Instance, ModifyError> {
        self.change(id, |_, row| {
            if options.tags_enabled {
                check_tag_keys(&row.tags)?;
            }
            row.metadata_options = options;
            Ok(row.clone())
        })
    }

    /// `CreateTags` and `DeleteTags` in one.
    pub fn change_tags(&self, id: InstanceId, change: &TagChange) -> Result<Vec<Tag>, ModifyError> {
        self.change(id, |_, row| {
            let set = |key: &str| change.set.iter().any(|tag| tag.key() == key);
            row.tags.retain(|tag| !set(tag.key()) && !change.remove.iter().any(|key| key == tag.key()));
            row.tags.extend(change.set.iter().cloned());
            if row.tags.len() > MAX_TAGS {
                return Err(ModifyError::TooManyTags(row.tags.len()));
            }
            if row.metadata_options.tags_enabled {
                check_tag_keys(&row.tags)?;
            }
            Ok(row.tags.clone())
        })
    }

    /// Waits until the guest of a running instance sees every change made so far; `false` when it does
    /// not within `patience`: whoever runs the instance is busy, or stopped.
    pub async fn metadata_applied(&self, id: InstanceId, patience: Duration) -> Result<bool, ModifyError> {
        let wait = async {
            loop {
                let row = self.find(&id.to_string())?;
                if row.vmm.is_none() || row.metadata.is_applied() {
                    return Ok(true);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(patience, wait).await.unwrap_or(Ok(false))
    }

    /// What a guest would read at `path` of its metadata service, with a good token: the body, or `None`
    /// where there is nothing. Asks the machine itself.
    pub async fn read_metadata(
        &self,
        instance: &Instance,
        path: &str,
    ) -> Result<Option<Vec<u8>>, ModifyError> {
        let (connection, _events) = self.connect(instance)?;
        let reply = connection.request(Command::ReadMetadata { path: path.to_owned() }).await;
        match reply.map_err(InstanceError::from)? {
            Reply::Metadata { found } => Ok(found.map(|value| value.as_bytes().to_vec())),
            _ => Ok(None),
        }
    }

    /// `GetPasswordData`: what a Windows guest reported on its serial port, if it has.
    pub fn password(&self, instance: &Instance) -> Result<Option<PasswordReport>, ModifyError> {
        let own = self.instance_dir(instance.id).console_log();
        let path = instance.console_log.clone().unwrap_or(own);
        let failed = |source| StoreError::File { action: "read the console log", path: path.clone(), source };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(failed)?,
        };
        let mut text = Vec::new();
        file.take(SEARCHED as u64).read_to_end(&mut text).map_err(failed)?;
        Ok(find_password(&text))
    }

    /// State of the credentials of all running instances.
    pub fn credential_status(&self) -> Result<Vec<CredentialStatus>, StoreError> {
        transact(self.parts.store.as_ref(), |tx| tx.list::<CredentialStatus>())
    }

    /// Changes the row of an instance that is not on its way out, and counts the change.
    fn change<T>(
        &self,
        id: InstanceId,
        mut change: impl FnMut(&mut Transaction<'_>, &mut Instance) -> Result<T, ModifyError>,
    ) -> Result<T, ModifyError> {
        transact(self.parts.store.as_ref(), |tx| {
            let gone = || InstanceError::NotFound { wanted: id.to_string(), suggestions: Vec::new() };
            let mut row = tx.get::<Instance>(&id)?.ok_or_else(gone)?;
            if matches!(row.state, InstanceState::ShuttingDown | InstanceState::Terminated) {
                return Err(ModifyError::Ending(id, row.state));
            }
            let value = change(tx, &mut row)?;
            row.metadata.wanted += 1;
            tx.put(&row)?;
            Ok(value)
        })
    }
}
