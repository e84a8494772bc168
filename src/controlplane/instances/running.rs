//! An instance that this process runs.

use std::sync::Arc;
use std::time::Duration;

use kiln_model::{InstanceEvent, InstanceState};
use kiln_vmspec::ExitReason;

use super::effects::{Effect, undo};
use super::keeper::{Held, MetadataKeeper};
use super::{Instance, Parts, UndoError, disks, interfaces};
use crate::printable;
use crate::state::dir::Lock;
use crate::vmm_process::{Commands, StartedVmm, VmmEvent, VmmHandle};

/// A VMM that said that it ends may take this long to be gone.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Lines of a failed VMM's log that are shown to whoever wants details: the log itself goes.
const LOG_LINES: usize = 50;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off.
    PoweredOff,
    /// Somebody ended it.
    Killed,
    /// It could not go on.
    Failed(String),
}

/// A machine and the duty to clean up after it. Dropping it without [`RunningInstance::finish`]
/// cleans up as well, as far as that goes without a place to report errors.
pub struct RunningInstance {
    parts: Arc<Parts>,
    instance: Instance,
    vmm: StartedVmm,
    held: Option<Held>,
    pending: Option<VmmEvent>,
    ending: Option<Ending>,
    lock: Option<Lock>,
}

impl std::fmt::Debug for RunningInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningInstance").field("id", &self.instance.id).finish_non_exhaustive()
    }
}

impl RunningInstance {
    pub(super) fn new(
        parts: &Arc<Parts>,
        instance: Instance,
        vmm: StartedVmm,
        held: Held,
        lock: Lock,
    ) -> Self {
        RunningInstance {
            parts: Arc::clone(parts),
            instance,
            vmm,
            held: Some(held),
            pending: None,
            ending: None,
            lock: Some(lock),
        }
    }

    /// A machine that does not answer any more: it is only waited for.
    pub(super) fn orphan(parts: &Arc<Parts>, instance: Instance, vmm: StartedVmm, lock: Lock) -> Self {
        let parts = Arc::clone(parts);
        RunningInstance { parts, instance, vmm, held: None, pending: None, ending: None, lock: Some(lock) }
    }

    /// The row as of the last change made here.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The next news; `None` after the last.
    pub async fn next_event(&mut self) -> Option<VmmEvent> {
        // Kept here over the await below, so that a caller may drop this future and ask again.
        if self.pending.is_none() {
            self.pending = self.vmm.events.recv().await;
        }
        if matches!(self.pending, Some(VmmEvent::Running { .. })) {
            self.note_running().await;
        }
        if let Some(VmmEvent::DiskDetached { serial }) = &self.pending {
            let serial = serial.clone();
            disks::note_detached(&self.parts, self.instance.id, serial).await;
        }
        if let Some(VmmEvent::NicDetached { mac }) = self.pending {
            interfaces::note_detached(&self.parts, self.instance.id, mac, self.commands()).await;
        }
        let event = self.pending.take()?;
        match &event {
            VmmEvent::Exited(ExitReason::PowerOff) => self.ending = Some(Ending::PoweredOff),
            VmmEvent::Exited(ExitReason::Killed) => self.ending = Some(Ending::Killed),
            VmmEvent::Exited(ExitReason::Failed { message }) => {
                self.ending = Some(Ending::Failed(message.clone()));
            }
            VmmEvent::Lost { detail } => self.ending = Some(Ending::Failed(detail.clone())),
            VmmEvent::Running { .. }
            | VmmEvent::Console(_)
            | VmmEvent::DiskDetached { .. }
            | VmmEvent::NicDetached { .. }
            | VmmEvent::Rebooting => {}
        }
        Some(event)
    }

    /// Notes that vCPUs run.
    pub(super) async fn note_running(&mut self) {
        let (parts, id) = (Arc::clone(&self.parts), self.instance.id);
        let update = move || {
            parts.update(id, |row| {
                row.has_run = true;
                // A request to stop or terminate that came meanwhile stands.
                row.state = row.state.next(InstanceEvent::Booted, row.keep).unwrap_or(row.state);
            })
        };
        match tokio::task::spawn_blocking(update).await {
            Ok(Ok(row)) => self.instance = row,
            Ok(Err(e)) => tracing::warn!(instance = %id, "the state could not be written: {e}"),
            Err(e) => tracing::error!("writing the state panicked: {e}"),
        }
    }

    /// Who keeps the instance's metadata up to date while it runs. Asked for once; run it beside
    /// [`RunningInstance::next_event`].
    pub fn keeper(&mut self) -> Option<MetadataKeeper> {
        let held = self.held.take()?;
        Some(MetadataKeeper::new(&self.parts, held, self.commands()))
    }

    /// To command the machine, from any task.
    pub fn commands(&self) -> Arc<dyn Commands> {
        Arc::<dyn VmmHandle>::clone(&self.vmm.handle)
    }

    /// Ends the machine if it still runs and clears away what does not stay. Blocks.
    pub fn finish(mut self) -> Result<(Instance, Ending), UndoError> {
        self.clean_up()?;
        Ok((self.instance.clone(), self.ending.clone().unwrap_or(Ending::Killed)))
    }

    /// Leaves everything as a killed process would.
    pub(super) fn leave(mut self) {
        self.lock = None;
    }

    /// Ends the machine whatever it says. Blocks.
    pub(super) fn kill(&self) -> impl FnOnce() + Send + 'static {
        let handle = Arc::clone(&self.vmm.handle);
        move || handle.end(Duration::ZERO)
    }

    /// How it ended, once it has.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    fn clean_up(&mut self) -> Result<(), UndoError> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let patience = if self.ending.is_some() { END_PATIENCE } else { Duration::ZERO };
        self.vmm.handle.end(patience);
        if let Some(Ending::Failed(_)) = self.ending {
            let log = std::fs::read(self.parts.dir.instance(self.instance.id).vmm_log()).unwrap_or_default();
            let text = String::from_utf8_lossy(&log);
            let first = text.lines().count().saturating_sub(LOG_LINES);
            for line in text.lines().skip(first) {
                tracing::debug!("kiln-vmm: {}", printable(line));
            }
        }
        // Others may have asked for its end meanwhile.
        let id = self.instance.id;
        if let Ok(row) = self.parts.update(id, |_| {}) {
            self.instance = row;
        }
        let stays = self.instance.stays() && self.instance.state != InstanceState::ShuttingDown;
        undo(&self.parts, &self.instance, &Effect::ALL, stays)?;
        if stays && let Ok(row) = self.parts.update(id, |_| {}) {
            self.instance = row;
        }
        lock.remove();
        Ok(())
    }
}

impl Drop for RunningInstance {
    fn drop(&mut self) {
        if let Err(e) = self.clean_up() {
            tracing::warn!(instance = %self.instance.id, "cleaning up failed: {e}");
        }
    }
}
