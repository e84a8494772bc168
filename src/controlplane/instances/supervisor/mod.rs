//! The instances of a daemon: every change is asked for here, answered at once and carried out behind.
//!
//! ```text
//!  launch ─┐ checks, then one transaction            ┌ actor (a thread): plan of undoable steps ┐
//!  start   ├────────▶ rows say pending, stopping, … ─┤   └▶ machine: events, orders, deadlines   ├─▶ rows
//!  stop    │          answer                         └──────── notices ◀───────────────────────┘
//!  …       ┘
//!                     this process dies ─▶ machines go on ─▶ the next one adopts them
//! ```
//!
//! What is wanted stands in the rows before anything is done about it: an actor that finds `stopping`
//! stops its machine, whichever process wrote that and whenever. So a restart takes up every plan where
//! it was, from the rows, the processes and what those have left behind (see `recover`).
//!
//! | found at a start | done |
//! |---|---|
//! | machine runs | adopted: events, metadata and orders go on |
//! | machine ended meanwhile | as if it ended now, for the reason that it left |
//! | `pending` without a machine | what there is of it is undone, and the plan runs again |
//! | the host was restarted | `stopped`, or started again where that is set |

mod actor;
mod attribute;
mod capture;
mod error;
mod import;
mod notices;
mod recover;
mod settings;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use kiln_model::{InstanceEvent, InstanceId, InstanceState, VolumeId};
use kiln_vmspec::Command;

use super::effects::{Effect, undo};
use super::launch::{self, Admission, Also};
use super::{ControlPlane, HostMemory, Instance, InstanceError, LaunchRequest, Parts, StateReason};
use crate::host::host_memory;
use crate::state::dir::Lock;
use crate::state::{StoreError, transact};
use crate::vmm_process::{Commands as _, ControlConnection, VmmEvent};
use crate::volumes::{Volume, VolumeChange};
use actor::{Actor, Job, Order};

pub use attribute::{Attribute, DeviceEnd};
pub use capture::NewImage;
pub use error::SupervisorError;
pub use notices::{Notice, NoticeEvent, Notices};
pub use settings::{Capacity, ConsoleOutput, Counters, Health, Settings};

/// Console output that is answered, as EC2 does.
const CONSOLE_BYTES: u64 = 64 << 10;
/// How often what has had its time is looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// A state before and after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Of which instance.
    pub id: InstanceId,
    /// Before.
    pub previous: InstanceState,
    /// From now on.
    pub current: InstanceState,
}

/// Counts for metrics.
#[derive(Debug, Default)]
struct Tally {
    launches: AtomicU64,
    starts: AtomicU64,
    failed_launches: AtomicU64,
    refused: AtomicU64,
    failed_machines: AtomicU64,
    adopted: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a supervisor and its actors share.
struct Shared {
    plane: ControlPlane,
    settings: Settings,
    actors: Mutex<BTreeMap<InstanceId, Actor>>,
    /// Held while room is looked for and taken.
    admission: Mutex<()>,
    /// Held while a snapshot is taken.
    capturing: Mutex<()>,
    /// Held while a file is copied to make an image of it.
    importing: Mutex<()>,
    /// This process is about to end: nobody waits for a guest any more.
    leaving: AtomicBool,
    tally: Tally,
}

impl Shared {
    fn parts(&self) -> &Arc<Parts> {
        &self.plane.parts
    }

    fn now(&self) -> u64 {
        self.parts().clock.unix_seconds()
    }

    fn actors(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Actor>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_state(&self, instance: &Instance) {
        let reason = instance.reason.as_ref().map(|reason| reason.code.clone());
        tracing::info!(instance = %instance.id, reason = reason.as_deref(), "{}", instance.state);
        let event = NoticeEvent::InstanceState { instance: instance.id, state: instance.state, reason };
        self.parts().notices.tell(self.now(), event);
    }

    /// Sends an order to the actor of an instance; whether it has one.
    fn order(&self, id: InstanceId, order: Order) -> bool {
        self.actors().get(&id).map(|actor| actor.order(order)).is_some()
    }
}

/// See the module. Dropping it leaves all machines running.
pub struct Supervisor {
    shared: Arc<Shared>,
    housekeeper: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    captures: Mutex<Vec<JoinHandle<()>>>,
    _lock: Lock,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Becomes the daemon of a state directory: takes up what an earlier one left. Blocks for as long as it
    /// takes to look at every instance; what has to be done is done behind.
    pub fn open(plane: ControlPlane, settings: Settings) -> Result<Self, SupervisorError> {
        let lock = plane.parts.dir.lock_daemon()?.ok_or(SupervisorError::AnotherDaemon)?;
        let shared = Arc::new(Shared {
            plane,
            settings,
            actors: Mutex::default(),
            admission: Mutex::default(),
            capturing: Mutex::default(),
            importing: Mutex::default(),
            leaving: AtomicBool::new(false),
            tally: Tally::default(),
        });
        recover::recover(&shared)?;
        let (stop, stopped) = mpsc::channel();
        let housekeeper = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("housekeeper".to_owned()).spawn(move || {
                while stopped.recv_timeout(HOUSEKEEPING) == Err(RecvTimeoutError::Timeout) {
                    shared.forget_terminated();
                    if let Err(e) = shared.parts().volumes().expire_uploads() {
                        tracing::warn!("uploads were not looked through: {e}");
                    }
                }
            })
        };
        let housekeeper =
            housekeeper.map_err(|source| SupervisorError::Host { action: "start a thread", source })?;
        Ok(Supervisor {
            shared,
            housekeeper: Some((stop, housekeeper)),
            captures: Mutex::default(),
            _lock: lock,
        })
    }

    /// Everything that is not the life of an instance: images, networks, roles, tags, metadata.
    pub fn plane(&self) -> &ControlPlane {
        &self.shared.plane
    }

    /// What happens.
    pub fn notices(&self) -> &Notices {
        &self.shared.parts().notices
    }

    /// Launches between `least` and `most` instances of one wish, as many as there is room for. They are
    /// `pending` when this returns.
    pub fn launch(
        &self,
        request: &LaunchRequest,
        (least, most): (u32, u32),
        also: &mut Also<'_>,
    ) -> Result<Vec<Instance>, SupervisorError> {
        let shared = &self.shared;
        let guard = shared.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Capacity::used(shared.plane.instance_rows()?.iter().map(AsRef::as_ref));
        let count = shared.settings.capacity.admit(used, request, (least, most)).inspect_err(|_| {
            self::count(&shared.tally.refused);
        })?;
        // Memory is counted above; of huge pages the kernel knows.
        let host = HostMemory { free_hugepages: host_memory().free_hugepages, ..HostMemory::UNBOUNDED };
        let admission = Admission { count, supervised: true, also };
        let admitted = launch::admit(shared.parts(), request, host, admission)?;
        drop(guard);
        let mut instances = Vec::new();
        for (instance, lock) in admitted {
            self::count(&shared.tally.launches);
            shared.tell_state(&instance);
            Actor::spawn(shared, instance.id, Job::Launch(lock));
            instances.push(instance);
        }
        Ok(instances)
    }

    /// Starts stopped instances, all or none. They are `pending` when this returns; those that run already
    /// stay as they are.
    pub fn start(&self, ids: &[InstanceId]) -> Result<Vec<Change>, SupervisorError> {
        let shared = &self.shared;
        let _guard = shared.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.many(ids)?;
        for instance in &all {
            let next = instance.state.next(InstanceEvent::StartRequested, true);
            next.map_err(SupervisorError::state(instance.id, "be started"))?;
        }
        let stopped: Vec<&Instance> = all.iter().filter(|i| i.state == InstanceState::Stopped).collect();
        let used = Capacity::used(shared.plane.instance_rows()?.iter().map(AsRef::as_ref));
        shared.settings.capacity.admit_starts(used, &stopped).inspect_err(|_| {
            self::count(&shared.tally.refused);
        })?;
        let mut locks = Vec::new();
        for instance in &stopped {
            launch::check_start(shared.parts(), instance)?;
            locks.push(self.lock(instance.id)?);
        }
        let mut changes = Vec::new();
        let mut locks = locks.into_iter();
        for instance in &all {
            let previous = instance.state;
            if previous != InstanceState::Stopped {
                changes.push(Change { id: instance.id, previous, current: previous });
                continue;
            }
            let Some(lock) = locks.next() else { break };
            let instance = launch::note_start(shared.parts(), instance.id, true)?;
            self::count(&shared.tally.starts);
            shared.tell_state(&instance);
            Actor::spawn(shared, instance.id, Job::Launch(lock));
            changes.push(Change { id: instance.id, previous, current: instance.state });
        }
        Ok(changes)
    }

    /// Presses the power button of instances, all or none; with `force` their machines are ended at once.
    /// They are `stopping` when this returns. A guest that does not power off in time is ended.
    pub fn stop(&self, ids: &[InstanceId], force: bool) -> Result<Vec<Change>, SupervisorError> {
        let order = if force { Order::Kill } else { Order::Stop };
        self.end(ids, InstanceEvent::StopRequested, "be stopped", order)
    }

    /// Ends instances for good, all or none. They are `shutting-down` or `terminated` when this returns.
    pub fn terminate(&self, ids: &[InstanceId]) -> Result<Vec<Change>, SupervisorError> {
        let changes = self.end(ids, InstanceEvent::TerminateRequested, "be terminated", Order::Kill)?;
        let mut done = Vec::new();
        for change in changes {
            // Without a machine there is nobody to wait for.
            let current = match change.previous {
                InstanceState::Stopped => self.shared.clear(change.id)?,
                _ => change.current,
            };
            done.push(Change { current, ..change });
        }
        Ok(done)
    }

    /// Writes what is wanted into all rows at once, then gives the order.
    fn end(
        &self,
        ids: &[InstanceId],
        event: InstanceEvent,
        action: &'static str,
        order: Order,
    ) -> Result<Vec<Change>, SupervisorError> {
        let shared = &self.shared;
        let now = shared.now();
        let rows = transact(shared.parts().store.as_ref(), |tx| {
            let mut rows = Vec::new();
            for id in ids {
                let mut row = tx.get::<Instance>(id)?.ok_or(SupervisorError::NotFound(*id))?;
                let previous = row.state;
                if event == InstanceEvent::TerminateRequested && row.protected && !row.is_gone() {
                    return Err(SupervisorError::Protected(*id));
                }
                let next = previous.next(event, row.stays()).map_err(SupervisorError::state(*id, action))?;
                // A stopped one is still to be cleared away.
                let gone = previous == InstanceState::Stopped && next == InstanceState::Terminated;
                row.state = if gone { InstanceState::ShuttingDown } else { next };
                if row.state != previous {
                    row.reason = Some(StateReason::user(now));
                    tx.put(&row)?;
                }
                rows.push((previous, row));
            }
            Ok(rows)
        })?;
        let mut changes = Vec::new();
        for (previous, row) in rows {
            if row.state != previous {
                shared.tell_state(&row);
            }
            if row.is_active() && !shared.order(row.id, order) && !row.supervised {
                self.tell_owner(&row, order);
            }
            changes.push(Change { id: row.id, previous, current: row.state });
        }
        Ok(changes)
    }

    /// Passes an order on to the machine of a `kiln run`, which sees from the row what it means.
    fn tell_owner(&self, row: &Instance, order: Order) {
        let command = if order == Order::Stop { Command::PowerButton } else { Command::Kill };
        let sent = self.plane().connect(row).and_then(|(connection, _)| Ok(connection.send(command)?));
        if let Err(e) = sent {
            tracing::warn!(instance = %row.id, "its owner was not told: {e}");
        }
    }

    /// Reboots running instances, all or none: their guests are asked to power off and come up again in
    /// the same machine; those that do not in time are reset.
    pub fn reboot(&self, ids: &[InstanceId]) -> Result<(), SupervisorError> {
        for instance in self.many(ids)? {
            if instance.state != InstanceState::Running {
                let (id, state) = (instance.id, instance.state);
                return Err(SupervisorError::IncorrectState { id, state, action: "be rebooted" });
            }
        }
        for id in ids {
            self.shared.order(*id, Order::Reboot);
        }
        Ok(())
    }

    /// Changes one attribute. Answers the instance as it is then.
    pub fn modify(&self, id: InstanceId, attribute: &Attribute) -> Result<Instance, SupervisorError> {
        self.plane().modify(id, attribute)
    }

    /// Changes a volume, whoever has it.
    pub fn modify_volume(&self, id: VolumeId, change: VolumeChange) -> Result<Volume, SupervisorError> {
        let volumes = self.shared.parts().volumes();
        if let Some(attachment) = volumes.get(id)?.attachment
            && self.instance(attachment.instance)?.state == InstanceState::Stopped
        {
            self.await_actor(attachment.instance);
        }
        Ok(self.plane().modify_volume(id, change)?)
    }

    /// All instances, oldest first; those of `kiln run` are among them, and terminated ones for a while.
    pub fn instances(&self) -> Result<Vec<Instance>, SupervisorError> {
        Ok(self.plane().instances()?)
    }

    /// One instance.
    pub fn instance(&self, id: InstanceId) -> Result<Instance, SupervisorError> {
        self.plane().instance(id)
    }

    /// Whether an instance works.
    pub fn health(&self, instance: &Instance) -> Health {
        let age = self.shared.now().saturating_sub(instance.launched);
        match instance.state {
            InstanceState::Pending => Health::Initializing,
            InstanceState::Running if age < self.shared.settings.initializing.as_secs() => {
                Health::Initializing
            }
            InstanceState::Running => Health::Ok,
            _ => Health::NotApplicable,
        }
    }

    /// The end of what a guest has printed, over all its starts.
    pub fn console_output(&self, id: InstanceId) -> Result<ConsoleOutput, SupervisorError> {
        let instance = self.instance(id)?;
        let own = self.plane().instance_dir(id).console_log();
        let path = instance.console_log.unwrap_or(own);
        let read = || -> io::Result<ConsoleOutput> {
            let mut file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(ConsoleOutput { instance: id, bytes: Vec::new(), time: instance.launched });
                }
                file => file?,
            };
            let metadata = file.metadata()?;
            file.seek(SeekFrom::Start(metadata.len().saturating_sub(CONSOLE_BYTES)))?;
            let mut bytes = Vec::new();
            // It grows meanwhile.
            file.take(CONSOLE_BYTES).read_to_end(&mut bytes)?;
            let time = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            Ok(ConsoleOutput { instance: id, bytes, time })
        };
        let failed = |source| StoreError::File { action: "read the console log", path: path.clone(), source };
        Ok(read().map_err(failed)?)
    }

    /// Connects to the machine of an instance, for its console.
    pub fn connect(
        &self,
        id: InstanceId,
    ) -> Result<(ControlConnection, tokio::sync::mpsc::Receiver<VmmEvent>), SupervisorError> {
        let instance = self.instance(id)?;
        let state = instance.state;
        match self.plane().connect(&instance) {
            Err(InstanceError::NotRunning { .. }) => {
                Err(SupervisorError::IncorrectState { id, state, action: "show its console" })
            }
            result => Ok(result?),
        }
    }

    /// What there is and what was counted.
    pub fn counters(&self) -> Result<Counters, SupervisorError> {
        let all = self.plane().instance_rows()?;
        let of = |state: &InstanceState| all.iter().filter(|i| i.state == *state).count();
        let used = Capacity::used(all.iter().map(AsRef::as_ref));
        let tally = &self.shared.tally;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failures = self.plane().credential_status()?;
        Ok(Counters {
            instances: InstanceState::ALL
                .each_ref()
                .map(|state| u64::try_from(of(state)).unwrap_or(u64::MAX)),
            memory_bytes: used.memory.as_bytes(),
            vcpus: u64::from(used.vcpus),
            launches: get(&tally.launches),
            starts: get(&tally.starts),
            failed_launches: get(&tally.failed_launches),
            refused_for_capacity: get(&tally.refused),
            failed_machines: get(&tally.failed_machines),
            adopted: get(&tally.adopted),
            credential_failures: failures.iter().map(|status| status.failures).sum(),
            rows_read: self.plane().store().rows_read(),
        })
    }

    fn many(&self, ids: &[InstanceId]) -> Result<Vec<Instance>, SupervisorError> {
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        unique.into_iter().map(|id| self.instance(*id)).collect()
    }

    /// An actor gives back the lock of its instance just after it has written that it is stopped.
    fn await_actor(&self, id: InstanceId) {
        let leaving = self.shared.actors().remove(&id);
        leaving.into_iter().for_each(Actor::join);
    }

    /// Takes the lock of an instance at rest.
    fn lock(&self, id: InstanceId) -> Result<Lock, SupervisorError> {
        self.await_actor(id);
        self.shared.parts().dir.lock_instance(id)?.ok_or(SupervisorError::Foreground(id))
    }
}

impl Shared {
    /// Clears away what there is of an instance without a machine; answers its state then.
    fn clear(&self, id: InstanceId) -> Result<InstanceState, SupervisorError> {
        let Some(lock) = self.parts().dir.lock_instance(id)? else {
            return Ok(InstanceState::ShuttingDown);
        };
        let row = self.parts().find(id)?;
        let stays = row.stays() && row.state != InstanceState::ShuttingDown;
        undo(self.parts(), &row, &Effect::ALL, stays).map_err(InstanceError::from)?;
        lock.remove();
        match self.parts().find(id) {
            Ok(row) => {
                self.tell_state(&row);
                Ok(row.state)
            }
            // One of a `kiln run` leaves no row.
            Err(StoreError::Missing(_)) => Ok(InstanceState::Terminated),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes rows of instances that were terminated long ago.
    fn forget_terminated(&self) {
        let limit = self.now().saturating_sub(self.settings.show_terminated.as_secs());
        let old =
            |i: &Instance| i.is_gone() && i.reason.as_ref().map_or(i.launched, |reason| reason.since) < limit;
        for instance in self.plane.instance_rows().unwrap_or_default().iter().filter(|i| old(i)) {
            let removed = transact(self.parts().store.as_ref(), |tx| {
                tx.remove::<Instance>(&instance.id);
                Ok::<_, StoreError>(())
            });
            if let Err(e) = removed {
                tracing::warn!(instance = %instance.id, "a terminated instance is still shown: {e}");
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        // A machine is not left standing still, nor a snapshot half-way.
        for thread in self.captures.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        let actors: Vec<Actor> = std::mem::take(&mut *self.shared.actors()).into_values().collect();
        actors.iter().for_each(|actor| actor.order(Order::Leave));
        actors.into_iter().for_each(Actor::join);
        if let Some((stop, housekeeper)) = self.housekeeper.take() {
            drop(stop);
            let _ = housekeeper.join();
        }
    }
}
