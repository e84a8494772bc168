//! The control plane as one object: the way in for the command line and, later, for the daemon.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_model::{Clock, IllegalTransition, InstanceEvent, InstanceId, InstanceState, Ipv4Cidr, nearest};
use kiln_vmspec::Command;

use super::effects::{Effect, undo};
use super::request::HostMemory;
use super::{Instance, LaunchError, LaunchRequest, Notices, RunningInstance, UndoError, launch};
use crate::credentials::{AssumeRole, Issuer, Opener, Roles};
use crate::host::{SystemClock, host_ranges};
use crate::identity::{InstallationKeys, KeyError};
use crate::images::Images;
use crate::network::{Moved, NetworkFabric, Networks, choose_range};
use crate::state::dir;
use crate::state::{Rows, SqliteStore, StateDir, Store, StoreError, Vault, rows, transact};
use crate::vmm_process::{Commands, ControlConnection, ProcessLauncher, VmmError, VmmLauncher};
use crate::volumes::{Uploads, Volumes};

/// What the control plane is made of. Each can be replaced for tests.
pub struct Parts {
    /// Files.
    pub dir: StateDir,
    /// Rows.
    pub store: Arc<dyn Store>,
    /// Links.
    pub fabric: Arc<dyn NetworkFabric>,
    /// Processes.
    pub launcher: Arc<dyn VmmLauncher>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// STS.
    pub sts: Arc<dyn AssumeRole>,
    /// Keys of the installation.
    pub keys: KeyRing,
    /// What happens to instances.
    pub notices: Notices,
    /// Snapshots that are being written.
    pub uploads: Uploads,
    /// Range of the default VPC, should it have to be made.
    pub vpc_range: Ipv4Cidr,
}

/// Keys of the installation, opened when they are first needed.
#[derive(Debug, Default)]
pub struct KeyRing(Mutex<Option<Arc<InstallationKeys>>>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Parts {
    /// The images.
    pub(super) fn images(&self) -> Images<'_> {
        Images { store: self.store.as_ref(), dir: &self.dir }
    }

    /// The volumes.
    pub(super) fn volumes(&self) -> Volumes<'_> {
        let (store, notices) = (self.store.as_ref(), &self.notices);
        Volumes { store, dir: &self.dir, notices, uploads: &self.uploads, now: self.clock.unix_seconds() }
    }

    /// The keys of the installation. Blocks; the first time ever it makes them.
    pub(super) fn keys(&self) -> Result<Arc<InstallationKeys>, KeyError> {
        let mut ring = self.keys.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = ring.as_ref() {
            return Ok(Arc::clone(keys));
        }
        let vault = Vault::open(self.store.as_ref(), &self.dir)?;
        let keys = Arc::new(InstallationKeys::open(&vault, self.clock.unix_seconds())?);
        *ring = Some(Arc::clone(&keys));
        Ok(keys)
    }

    /// What opens credential sources.
    pub(super) fn opener(&self) -> Result<Opener, KeyError> {
        Ok(Opener { issuer: Issuer::new(self.keys()?), sts: Arc::clone(&self.sts) })
    }

    /// The row of an instance.
    pub(super) fn find(&self, id: InstanceId) -> Result<Instance, StoreError> {
        let row = transact(self.store.as_ref(), |tx| tx.get::<Instance>(&id))?;
        row.ok_or_else(|| StoreError::Missing(id.to_string()))
    }

    /// Changes the row of an instance; answers it as it is now.
    pub(super) fn update(
        &self,
        id: InstanceId,
        mut change: impl FnMut(&mut Instance),
    ) -> Result<Instance, StoreError> {
        transact(self.store.as_ref(), |tx| {
            let mut row = tx.get::<Instance>(&id)?.ok_or_else(|| StoreError::Missing(id.to_string()))?;
            change(&mut row);
            tx.put(&row)?;
            Ok(row)
        })
    }
}

/// Why an operation on an existing instance failed.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// No such instance.
    #[error("there is no instance {wanted:?} ({})", hint(suggestions))]
    NotFound {
        /// As given.
        wanted: String,
        /// Ids or names that look similar.
        suggestions: Vec<String>,
    },
    /// It refuses to be terminated.
    #[error("instance {0} is protected from termination (aws ec2 modify-instance-attribute takes that away)")]
    Protected(InstanceId),
    /// Several have that name.
    #[error("several instances are named {0:?}; say which by its id (see `kiln ps`)")]
    Ambiguous(String),
    /// Not possible in this state.
    #[error(transparent)]
    State(#[from] IllegalTransition),
    /// Another process runs it.
    #[error("instance {0} is run by another process at the moment")]
    Busy(InstanceId),
    /// It belongs to the daemon.
    #[error("instance {0} belongs to kilnd, which starts it")]
    Supervised(InstanceId),
    /// It has no machine.
    #[error("instance {id} is {state}, it has no machine to talk to")]
    NotRunning {
        /// Which.
        id: InstanceId,
        /// Its state.
        state: InstanceState,
    },
    /// Starting failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Its VMM does not serve.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Something of it is left.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn hint(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        "see `kiln ps`".to_owned()
    } else {
        format!("did you mean {}? See `kiln ps`", suggestions.join(", "))
    }
}

/// How long `terminate` waits for the owner of a running instance to clean up.
const OWNER_PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const OWNER_POLL: Duration = Duration::from_millis(50);

/// An open state directory with everything that acts on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    pub(super) parts: Arc<Parts>,
}

impl ControlPlane {
    /// Opens a state directory, makes it if need be, and clears away what killed processes left.
    pub fn open(
        state_dir: &Path,
        fabric: Arc<dyn NetworkFabric>,
        sts: Arc<dyn AssumeRole>,
    ) -> Result<Self, StoreError> {
        let dir = StateDir::create(state_dir)?;
        let scatter = (dir.root() != Path::new(dir::DEFAULT)).then(rand::random);
        let store = SqliteStore::open(&dir.database())?;
        Ok(Self::with_parts(Parts {
            dir,
            store: Arc::new(store),
            fabric,
            launcher: Arc::new(ProcessLauncher),
            clock: Arc::new(SystemClock),
            sts,
            keys: KeyRing::default(),
            notices: Notices::default(),
            uploads: Uploads::default(),
            vpc_range: choose_range(&host_ranges(), scatter),
        }))
    }

    /// The same from given parts.
    pub fn with_parts(parts: Parts) -> Self {
        let plane = ControlPlane { parts: Arc::new(parts) };
        plane.sweep();
        plane
    }

    /// The images.
    pub fn images(&self) -> Images<'_> {
        self.parts.images()
    }

    /// Volumes and snapshots.
    pub fn volumes(&self) -> Volumes<'_> {
        self.parts.volumes()
    }

    /// The networks.
    pub fn networks(&self) -> Networks<'_> {
        let Parts { store, fabric, vpc_range, .. } = self.parts.as_ref();
        Networks { store: store.as_ref(), fabric: fabric.as_ref(), range: *vpc_range }
    }

    /// Roles and instance profiles.
    pub fn roles(&self) -> Roles<'_> {
        Roles { store: self.parts.store.as_ref(), now: self.parts.clock.unix_seconds() }
    }

    /// Keys of this installation: what verifiers need, and the issuer of session credentials. Blocks;
    /// the first time ever it makes them.
    pub fn keys(&self) -> Result<Arc<InstallationKeys>, KeyError> {
        self.parts.keys()
    }

    /// The rows.
    pub fn store(&self) -> &dyn Store {
        self.parts.store.as_ref()
    }

    /// The files.
    pub fn state_dir(&self) -> &StateDir {
        &self.parts.dir
    }

    /// Notes which public addresses instances have after Elastic ones have moved.
    pub fn note_moved(&self, moved: &Moved) -> Result<(), StoreError> {
        for (id, address) in moved {
            match self.parts.update(*id, |row| row.public_address = *address) {
                // It has gone meanwhile.
                Ok(_) | Err(StoreError::Missing(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Time, as this control plane sees it.
    pub fn clock(&self) -> &dyn Clock {
        self.parts.clock.as_ref()
    }

    /// Directory of an instance.
    pub fn instance_dir(&self, id: InstanceId) -> crate::state::dir::InstanceDir {
        self.parts.dir.instance(id)
    }

    /// All instances, oldest first.
    pub fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        let mut all = transact(self.parts.store.as_ref(), |tx| tx.list::<Instance>())?;
        all.sort_by_key(|i| (i.created, i.id));
        Ok(all)
    }

    /// All instances by their ids, without a copy.
    pub fn instance_rows(&self) -> Result<Arc<Rows<Instance>>, StoreError> {
        rows(self.parts.store.as_ref())
    }

    /// The instance that an id or a name stands for.
    pub fn find(&self, wanted: &str) -> Result<Instance, InstanceError> {
        let all = self.instance_rows()?;
        if let Some(instance) = wanted.parse::<InstanceId>().ok().and_then(|id| all.get(&id)) {
            return Ok(Instance::clone(instance));
        }
        let mut found = all.iter().filter(|i| i.name() == Some(wanted));
        match (found.next(), found.next()) {
            (Some(instance), None) => Ok(Instance::clone(instance)),
            (Some(_), Some(_)) => Err(InstanceError::Ambiguous(wanted.to_owned())),
            (None, _) => {
                let ids: Vec<String> = all.iter().map(|i| i.id.to_string()).collect();
                let names = all.iter().filter_map(|i| i.name()).chain(ids.iter().map(String::as_str));
                let suggestions = nearest(wanted, names, 3).into_iter().map(str::to_owned).collect();
                Err(InstanceError::NotFound { wanted: wanted.to_owned(), suggestions })
            }
        }
    }

    /// Launches an instance that this process runs. Blocks until its VMM has been told everything;
    /// whether it boots comes as an event.
    pub fn launch(&self, request: &LaunchRequest, host: HostMemory) -> Result<RunningInstance, LaunchError> {
        launch::launch(&self.parts, request, host)
    }

    /// Starts a stopped instance in this process.
    pub fn start(&self, id: InstanceId) -> Result<RunningInstance, InstanceError> {
        let lock = self.parts.dir.lock_instance(id)?.ok_or(InstanceError::Busy(id))?;
        // Looked up under the lock: nobody else changes it from here on.
        let instance = self.find(&id.to_string())?;
        if instance.supervised {
            return Err(InstanceError::Supervised(id));
        }
        if instance.state != InstanceState::Stopped {
            instance.state.next(InstanceEvent::StartRequested, true)?;
            return Err(InstanceError::Busy(id));
        }
        Ok(launch::start(&self.parts, &instance, lock)?)
    }

    /// Connects to the VMM of a running instance.
    pub fn connect(
        &self,
        instance: &Instance,
    ) -> Result<(ControlConnection, tokio::sync::mpsc::Receiver<crate::vmm_process::VmmEvent>), InstanceError>
    {
        if instance.vmm.is_none() {
            return Err(InstanceError::NotRunning { id: instance.id, state: instance.state });
        }
        Ok(ControlConnection::connect(&self.parts.dir.instance(instance.id).control_socket())?)
    }

    /// Notes what a person wants of an instance, if it is possible in its state.
    pub fn note(&self, id: InstanceId, event: InstanceEvent) -> Result<Instance, InstanceError> {
        transact(self.parts.store.as_ref(), |tx| {
            let gone = || InstanceError::NotFound { wanted: id.to_string(), suggestions: Vec::new() };
            let mut row = tx.get::<Instance>(&id)?.ok_or_else(gone)?;
            row.state = row.state.next(event, row.stays())?;
            tx.put(&row)?;
            Ok(row)
        })
    }

    /// Ends an instance for good: machine, volume, address. Blocks until nothing of it is left.
    pub async fn terminate(&self, id: InstanceId) -> Result<(), InstanceError> {
        let instance = self.find(&id.to_string())?;
        if instance.protected {
            return Err(InstanceError::Protected(id));
        }
        if let Some(lock) = self.parts.dir.lock_instance(id)? {
            // Nobody runs it: what is to be done is done here. It may have run since it was looked up.
            let instance = self.find(&id.to_string())?;
            undo(&self.parts, &instance, &Effect::ALL, false)?;
            lock.remove();
            return Ok(());
        }
        // Its owner cleans up when the machine ends, and sees from the state that nothing is to stay.
        self.note(id, InstanceEvent::TerminateRequested)?;
        if let Ok((connection, _events)) = self.connect(&instance) {
            // The VMM may end before it answers.
            let _ = connection.request(Command::Kill).await;
        }
        let gone = async {
            while self.find(&id.to_string()).is_ok_and(|instance| !instance.is_gone()) {
                tokio::time::sleep(OWNER_POLL).await;
            }
        };
        tokio::time::timeout(OWNER_PATIENCE, gone).await.map_err(|_| InstanceError::Busy(id))
    }

    /// Undoes what is left of instances whose process was killed. Errors are logged: a leftover must
    /// not keep anybody from working, and the next sweep tries again.
    pub fn sweep(&self) {
        if let Err(e) = self.parts.images().sweep() {
            tracing::warn!("sweeping images failed: {e}");
        }
        let all = self.instances().unwrap_or_default();
        // Those of a daemon outlive it; the next daemon looks after them.
        for instance in all.iter().filter(|i| i.state != InstanceState::Stopped && !i.supervised) {
            if let Err(e) = self.sweep_one(instance.id) {
                tracing::warn!(instance = %instance.id, "sweeping failed: {e}");
            }
        }
        self.sweep_directories();
        self.networks().apply_all();
    }

    fn sweep_one(&self, id: InstanceId) -> Result<(), InstanceError> {
        let Some(lock) = self.parts.dir.lock_instance(id)? else { return Ok(()) };
        // It may have ended by itself before the lock was taken.
        let Ok(instance) = self.find(&id.to_string()) else {
            lock.remove();
            return Ok(());
        };
        if instance.state == InstanceState::Stopped {
            return Ok(());
        }
        tracing::info!(instance = %id, "clearing away what a killed process left");
        let stays = instance.stays() && instance.state != InstanceState::ShuttingDown;
        undo(&self.parts, &instance, &Effect::ALL, stays)?;
        lock.remove();
        Ok(())
    }

    /// Directories and locks without a row: their process was killed between two steps.
    fn sweep_directories(&self) {
        let names = |dir| {
            std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.file_name())
        };
        let ids = names(self.parts.dir.instances()).chain(names(self.parts.dir.run())).filter_map(|name| {
            let name = name.to_string_lossy().into_owned();
            name.trim_end_matches(".lock").parse::<InstanceId>().ok()
        });
        for id in ids.collect::<std::collections::BTreeSet<_>>() {
            if self.find(&id.to_string()).is_ok() {
                continue;
            }
            if let Ok(Some(lock)) = self.parts.dir.lock_instance(id) {
                // Under the lock, so a launch is not between its lock and its row now.
                if self.find(&id.to_string()).is_err() {
                    let _ = self.parts.dir.instance(id).remove();
                    lock.remove();
                }
            }
        }
    }
}
