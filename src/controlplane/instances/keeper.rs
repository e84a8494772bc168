//! Keeps the metadata of one running instance up to date.
//!
//! ```text
//!   store changed? ─┐                        ┌─▶ whole new snapshot to the VMM
//!   fetch due? ─────┼─ look, twice a second ─┼─▶ fetch in the background ─▶ look again
//!   set expired? ───┘                        └─▶ status row for people
//! ```
//!
//! It belongs to the process that runs the instance and is the only one that sends snapshots. Others
//! change rows; the keeper sees that the store's revision moved, reads what concerns its instance, and
//! sends a snapshot if the guest would see a difference. Sources of credentials are asked in the
//! background, one fetch at a time, so a source that hangs delays nothing but its own role.

use std::sync::Arc;
use std::time::Duration;

use kiln_model::InstanceId;
use kiln_vmspec::{Command, MetadataSnapshot, Reply};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::MissedTickBehavior;

use super::facts::{self, Around, Live};
use super::{Instance, LaunchError, NoticeEvent, Parts};
use crate::credentials::{
    CredentialSource, CredentialStatus, Credentials, InstanceProfile, Lifetime, Principal, Role, Rotation,
    SourceError, Subject,
};
use crate::metadata::{ACCOUNT, InstanceRole};
use crate::state::{StoreError, transact};
use crate::vmm_process::{Commands, VmmError};

/// How long a change may wait to be seen. Nothing but one number is read when nothing changed.
const LOOK: Duration = Duration::from_millis(500);
/// Name of the role that speaks for an instance itself.
const OWN_ROLE: &str = "aws:ec2-instance";

/// A role as an instance has it.
struct HeldRole {
    /// Changes when the instance gets another profile, or the same one anew.
    association: String,
    role: Role,
    info: InstanceRole,
    subject: Subject,
    source: Arc<dyn CredentialSource>,
    rotation: Rotation,
}

/// Everything known of the metadata of one instance. Its methods block on the store.
pub(super) struct Held {
    instance: Instance,
    role: Option<HeldRole>,
    own: Rotation,
    around: Around,
    published: MetadataSnapshot,
    /// Store revision that this is as of.
    revision: u64,
    /// Whether the role's set was good when the snapshot was made.
    was_good: bool,
    /// Last status row written.
    status: Option<CredentialStatus>,
}

/// What a look led to.
struct Findings {
    /// To be sent to the guest.
    snapshot: Option<MetadataSnapshot>,
    /// To be asked.
    fetch: Option<(Arc<dyn CredentialSource>, Subject)>,
}

impl Held {
    /// What an instance starts with. Sources that need no time are asked; the others are pending.
    pub(super) fn new(parts: &Parts, instance: &Instance) -> Result<Self, LaunchError> {
        let now = parts.clock.unix_seconds();
        let mut held = Held {
            // Read before the rows: what changes meanwhile is looked at again.
            revision: parts.store.revision()?,
            instance: instance.clone(),
            role: None,
            own: Rotation::new(now),
            around: Around::read(parts.store.as_ref(), instance)?,
            published: MetadataSnapshot::default(),
            was_good: false,
            status: None,
        };
        held.renew_own(parts, now)?;
        held.resolve(parts, now)?;
        held.published = held.snapshot(now, instance.starts << 32)?;
        Ok(held)
    }

    /// What goes on with a machine that another process started, whose metadata are of `generation`. What
    /// has changed since goes out with the first look.
    pub(super) async fn adopted(
        parts: &Arc<Parts>,
        instance: &Instance,
        generation: u64,
        commands: &dyn Commands,
    ) -> Result<Self, LaunchError> {
        let mut held = Held::new(parts, instance)?;
        let now = parts.clock.unix_seconds();
        if let Some(role) = &mut held.role
            && role.rotation.current(now).is_none()
        {
            // The guest still has the set of before, which lies nowhere else: it is good until its end.
            let path = format!("/latest/meta-data/iam/security-credentials/{}", role.role.name);
            if let Ok(Reply::Metadata { found: Some(document) }) =
                commands.request(Command::ReadMetadata { path }).await
                && let Some(set) = Credentials::from_document(document.as_bytes())
            {
                role.rotation.fetched(Ok(set), now, rand::random());
            }
        }
        held.published = MetadataSnapshot { generation, ..MetadataSnapshot::default() };
        // Of no revision, so that the first look is a thorough one.
        held.revision = 0;
        Ok(held)
    }

    /// The last snapshot.
    pub(super) fn published(&self) -> &MetadataSnapshot {
        &self.published
    }

    /// Fetches what the embedded issuer gives the instance itself.
    fn renew_own(&mut self, parts: &Parts, now: u64) -> Result<(), LaunchError> {
        let id = self.instance.id;
        let principal = Principal {
            arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{OWN_ROLE}/{id}"),
            id: format!("{OWN_ROLE}:{id}"),
        };
        let issuer = parts.opener()?.issuer;
        self.own.fetched(issuer.issue(&principal, Lifetime::default(), now), now, rand::random());
        Ok(())
    }

    /// Finds out which role the instance has now.
    fn resolve(&mut self, parts: &Parts, now: u64) -> Result<(), LaunchError> {
        let Some(association) = self.instance.profile.clone() else {
            self.role = None;
            return Ok(());
        };
        let found = transact(parts.store.as_ref(), |tx| {
            let key = association.profile.as_str().to_ascii_lowercase();
            let Some(profile) = tx.get::<InstanceProfile>(&key)? else { return Ok(None) };
            let Some(name) = &profile.role else { return Ok(None) };
            let role = tx.get::<Role>(&name.as_str().to_ascii_lowercase())?;
            Ok::<_, StoreError>(role.map(|role| (profile, role)))
        })?;
        let Some((profile, role)) = found else {
            self.role = None;
            return Ok(());
        };
        if self.role.as_ref().is_some_and(|held| held.association == association.id && held.role == role) {
            return Ok(());
        }
        let subject = Subject {
            role_arn: role.arn.clone(),
            role_id: role.id.clone(),
            session_name: self.instance.id.to_string(),
            lifetime: role.lifetime,
        };
        let source: Arc<dyn CredentialSource> = parts.opener()?.open(&role.source).into();
        let mut rotation = Rotation::new(now);
        if let Some(result) = source.at_once(&subject, now) {
            note(parts, self.instance.id, &role, &result);
            rotation.fetched(result, now, rand::random());
        }
        let info = InstanceRole {
            profile_arn: profile.arn,
            profile_id: profile.id,
            role_name: role.name.to_string(),
            updated: association.since,
            credentials: rotation.document(now),
        };
        self.role = Some(HeldRole { association: association.id, role, info, subject, source, rotation });
        Ok(())
    }

    fn snapshot(&mut self, now: u64, generation: u64) -> Result<MetadataSnapshot, LaunchError> {
        if let Some(held) = &mut self.role {
            held.info.credentials = held.rotation.document(now);
            self.was_good = held.rotation.current(now).is_some();
        }
        let live = Live {
            generation,
            published: now,
            role: self.role.as_ref().map(|held| held.info.clone()),
            own: Some(self.own.document(now)),
            around: self.around.clone(),
        };
        Ok(facts::snapshot(&self.instance, live)?)
    }

    /// Looks at everything once. `fetched`: what a fetch for the role gave.
    fn look(
        &mut self,
        parts: &Parts,
        fetched: Option<Result<Credentials, SourceError>>,
        idle: bool,
    ) -> Result<Findings, LaunchError> {
        let now = parts.clock.unix_seconds();
        let mut changed = false;
        if let (Some(result), Some(held)) = (fetched, &mut self.role) {
            note(parts, self.instance.id, &held.role, &result);
            held.rotation.fetched(result, now, rand::random());
            changed = true;
        }
        let revision = parts.store.revision()?;
        if revision != self.revision {
            self.revision = revision;
            self.instance = parts.find(self.instance.id)?;
            self.around = Around::read(parts.store.as_ref(), &self.instance)?;
            self.resolve(parts, now)?;
            changed = true;
        }
        if self.own.is_due(now) {
            self.renew_own(parts, now)?;
            changed = true;
        }
        let good = self.role.as_ref().is_some_and(|held| held.rotation.current(now).is_some());
        changed |= good != self.was_good && self.role.is_some();
        let snapshot = if changed { self.difference(now)? } else { None };
        self.write_status(parts, now)?;
        let due = |held: &&HeldRole| idle && (held.rotation.is_due(now) || held.source.has_news());
        let fetch = self.role.as_ref().filter(due);
        let fetch = fetch.map(|held| (Arc::clone(&held.source), held.subject.clone()));
        Ok(Findings { snapshot, fetch })
    }

    /// A snapshot, if the guest would see a difference.
    fn difference(&mut self, now: u64) -> Result<Option<MetadataSnapshot>, LaunchError> {
        let next = self.snapshot(now, self.published.generation + 1)?;
        let old = &self.published;
        let same = MetadataSnapshot { generation: old.generation, published: old.published, ..next.clone() };
        Ok((same != *old).then_some(next))
    }

    /// Notes that the guest sees all that this knows.
    fn applied(&mut self, parts: &Parts) -> Result<(), StoreError> {
        let wanted = self.instance.metadata.wanted;
        if self.instance.metadata.applied < wanted {
            self.instance = parts.update(self.instance.id, |row| row.metadata.applied = wanted)?;
        }
        Ok(())
    }

    fn write_status(&mut self, parts: &Parts, now: u64) -> Result<(), StoreError> {
        let id = self.instance.id;
        let status = self.role.as_ref().map(|held| {
            let rotation = &held.rotation;
            let current = rotation.current(now);
            let error = rotation.error();
            CredentialStatus {
                instance: id,
                role: held.role.name.to_string(),
                code: match (current, error) {
                    (Some(_), _) => "Success",
                    (None, Some((error, _))) => error.code(),
                    (None, None) => "ExpiredCredentials",
                }
                .to_owned(),
                error: error.map(|(error, _)| error.to_string()),
                access_key_id: current.map(|set| set.access_key_id.clone()),
                expiration: current.map(|set| set.expiration),
                next_fetch: rotation.next_fetch(),
                rotations: rotation.rotations(),
                failures: rotation.failures(),
            }
        });
        if status == self.status {
            return Ok(());
        }
        transact(parts.store.as_ref(), |tx| match &status {
            // Not for an instance that another process has just removed.
            Some(status) if tx.get::<Instance>(&id)?.is_some() => tx.put(status),
            _ => {
                tx.remove::<CredentialStatus>(&id);
                Ok(())
            }
        })?;
        self.status = status;
        Ok(())
    }
}

/// Tells people what a fetch gave.
fn note(parts: &Parts, instance: InstanceId, role: &Role, result: &Result<Credentials, SourceError>) {
    let name = role.name.to_string();
    let event = match result {
        Ok(set) => {
            tracing::info!(%instance, role = %role.name, key = set.access_key_id, "new credentials");
            NoticeEvent::Credentials { instance, role: name, expiration: set.expiration }
        }
        Err(error) => {
            tracing::warn!(%instance, role = %role.name, source = %role.source, "no credentials: {error}");
            NoticeEvent::CredentialFailure { instance, role: name, code: error.code().to_owned() }
        }
    };
    parts.notices.tell(parts.clock.unix_seconds(), event);
}

/// A fetch in the background; it ends with this value.
struct Running {
    task: JoinHandle<Result<Credentials, SourceError>>,
    /// For which association, so that the answer does not go to another one.
    association: Option<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// See the module.
pub struct MetadataKeeper {
    parts: Arc<Parts>,
    id: InstanceId,
    commands: Arc<dyn Commands>,
    /// Absent only while a blocking thread has it.
    held: Option<Held>,
    running: Option<Running>,
}

impl std::fmt::Debug for MetadataKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetadataKeeper").field("instance", &self.id).finish_non_exhaustive()
    }
}

/// Why the keeper stopped.
enum Stop {
    /// The machine has gone, or its row has.
    Gone,
    /// Something failed; it may work at the next look.
    Again(String),
}

impl MetadataKeeper {
    pub(super) fn new(parts: &Arc<Parts>, held: Held, commands: Arc<dyn Commands>) -> Self {
        let id = held.instance.id;
        MetadataKeeper { parts: Arc::clone(parts), id, commands, held: Some(held), running: None }
    }

    /// Runs until the machine ends. May be dropped at any time; then metadata stay as they are.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complained = String::new();
        loop {
            let fetched = tokio::select! {
                _ = ticks.tick() => None,
                result = fetched(&mut self.running) => Some(result),
            };
            match self.step(fetched).await {
                Ok(()) => complained.clear(),
                Err(Stop::Gone) => return,
                // Once per kind of trouble, not twice a second.
                Err(Stop::Again(text)) if text != complained => {
                    tracing::warn!(instance = %self.id, "metadata stay as they are: {text}");
                    complained = text;
                }
                Err(Stop::Again(_)) => {}
            }
        }
    }

    async fn step(&mut self, fetched: Option<Result<Credentials, SourceError>>) -> Result<(), Stop> {
        let association = match &fetched {
            Some(_) => self.running.take().and_then(|running| running.association.clone()),
            None => None,
        };
        // A fetch for a role that was taken away meanwhile is of no use to anybody.
        let now_held = self.held.as_ref().and_then(|held| held.role.as_ref()).map(|r| r.association.clone());
        let fetched = fetched.filter(|_| association == now_held);
        let idle = self.running.is_none();
        let findings = self.blocking(move |held, parts| held.look(parts, fetched, idle)).await?;
        if let Some((source, subject)) = findings.fetch {
            let now = self.parts.clock.unix_seconds();
            let task = tokio::spawn(async move { source.fetch(&subject, now).await });
            let held = self.held.as_ref().and_then(|held| held.role.as_ref());
            self.running = Some(Running { task, association: held.map(|r| r.association.clone()) });
        }
        if let Some(snapshot) = findings.snapshot {
            let update = Command::UpdateMetadata(Box::new(snapshot.clone()));
            match self.commands.request(update).await {
                Ok(_) => {}
                Err(VmmError::Refused(why)) => return Err(Stop::Again(why)),
                Err(_) => return Err(Stop::Gone),
            }
            tracing::debug!(instance = %self.id, generation = snapshot.generation, "metadata published");
            if let Some(held) = &mut self.held {
                held.published = snapshot;
            }
        }
        self.blocking(|held, parts| Ok(held.applied(parts)?)).await
    }

    /// Runs `body` where it may block.
    async fn blocking<T: Send + 'static>(
        &mut self,
        body: impl FnOnce(&mut Held, &Parts) -> Result<T, LaunchError> + Send + 'static,
    ) -> Result<T, Stop> {
        let Some(mut held) = self.held.take() else { return Err(Stop::Gone) };
        let parts = Arc::clone(&self.parts);
        let work = move || {
            let result = body(&mut held, &parts);
            (held, result)
        };
        let (held, result) = tokio::task::spawn_blocking(work).await.map_err(|e: JoinError| {
            tracing::error!("keeping metadata panicked: {e}");
            Stop::Gone
        })?;
        self.held = Some(held);
        result.map_err(|error| match error {
            LaunchError::Store(StoreError::Missing(_)) => Stop::Gone,
            error => Stop::Again(error.to_string()),
        })
    }
}

/// What the running fetch gives; never, without one.
async fn fetched(running: &mut Option<Running>) -> Result<Credentials, SourceError> {
    match running {
        None => std::future::pending().await,
        Some(running) => (&mut running.task).await.unwrap_or(Err(SourceError::Timeout)),
    }
}
