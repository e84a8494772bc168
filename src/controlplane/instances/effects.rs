//! What a launch does outside of this process, and how each part is undone.

use std::time::Duration;

use kiln_model::{InstanceEvent, InstanceState};
use kiln_sandbox::cgroup::Hierarchies;

use super::{Instance, NetworkMode, NoticeEvent, Parts, interfaces};
use crate::credentials::CredentialStatus;
use crate::network::{FabricError, Networks};
use crate::state::{StoreError, transact};
use crate::volumes::{VolumeError, detach_all, remove_files_of, settle_all};

/// A killed VMM frees its memory before it is gone.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// One outside effect, in the order in which a launch has them. Undoing one that never happened
/// succeeds: the sweep after a crash does not know how far a launch came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Row of the instance, its address, its volumes.
    Rows,
    /// Directory, and files of volumes that go with the instance.
    Files,
    /// Tap, routes, firewall.
    Network,
    /// The VMM process with its control group.
    Process,
}

impl Effect {
    pub(super) const ALL: [Effect; 4] = [Effect::Rows, Effect::Files, Effect::Network, Effect::Process];
}

/// An effect could not be undone. The rows stay, so that the next sweep tries again.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The VMM process lives on.
    #[error("cannot end kiln-vmm process {pid}")]
    Process {
        /// Its id.
        pid: u32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its control group is left.
    #[error("cannot remove the control group of {id}")]
    Cgroup {
        /// Whose.
        id: kiln_model::InstanceId,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Links are left.
    #[error("cannot remove the network of {0}")]
    Network(kiln_model::InstanceId, #[source] FabricError),
    /// Volumes are left.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Files or rows are left.
    #[error(transparent)]
    State(#[from] StoreError),
}

/// Undoes `effects`, last first. With `stays`, what a later start needs remains and the instance is
/// stopped; without, nothing of it remains. Goes on after an error, but keeps the rows then, and
/// answers the first error.
pub(super) fn undo(
    parts: &Parts,
    instance: &Instance,
    effects: &[Effect],
    stays: bool,
) -> Result<(), UndoError> {
    let mut first = None;
    for effect in effects.iter().rev() {
        if *effect == Effect::Rows && first.is_some() {
            break;
        }
        if let Err(e) = undo_one(parts, instance, *effect, stays) {
            tracing::warn!(instance = %instance.id, ?effect, "undo failed: {e}");
            first.get_or_insert(e);
        }
    }
    first.map_or(Ok(()), Err)
}

fn undo_one(parts: &Parts, instance: &Instance, effect: Effect, stays: bool) -> Result<(), UndoError> {
    match effect {
        Effect::Process => {
            if let Some(vmm) = instance.vmm {
                vmm.kill(KILL_PATIENCE).map_err(|source| UndoError::Process { pid: vmm.pid, source })?;
            }
            let removed = Hierarchies::host().remove(&instance.id.to_string());
            removed.map_err(|source| UndoError::Cgroup { id: instance.id, source })
        }
        Effect::Network if instance.network == NetworkMode::LinkLocalOnly => Ok(()),
        Effect::Network => {
            // All are tried.
            let undone: Vec<_> = instance.interfaces().map(|own| parts.fabric.detach(own.id)).collect();
            undone.into_iter().collect::<Result<(), _>>().map_err(|e| UndoError::Network(instance.id, e))
        }
        Effect::Files if stays => Ok(parts.dir.instance(instance.id).remove_run_files()?),
        Effect::Files => {
            remove_files_of(parts.store.as_ref(), &parts.dir, instance)?;
            Ok(parts.dir.instance(instance.id).remove()?)
        }
        Effect::Rows => Ok(undo_rows(parts, instance, stays)?),
    }
}

fn undo_rows(parts: &Parts, instance: &Instance, stays: bool) -> Result<(), StoreError> {
    let volumes = transact(parts.store.as_ref(), |tx| {
        let Some(mut row) = tx.get::<Instance>(&instance.id)? else { return Ok(Vec::new()) };
        tx.remove::<CredentialStatus>(&row.id);
        if stays {
            // Whatever it was about to do, its machine is gone.
            row.state = row.state.next(InstanceEvent::MachineEnded, true).unwrap_or(row.state);
            row.owner = None;
            row.vmm = None;
            row.public_address = None;
            settle_all(tx, row.id)?;
            interfaces::settle(tx, &mut row)?;
            tx.put(&row)?;
            Ok(Vec::new())
        } else if row.is_gone() {
            // Given back already, and by now perhaps another's.
            Ok(Vec::new())
        } else {
            for interface in row.interfaces() {
                Networks::give_back(tx, interface)?;
            }
            let volumes = detach_all(tx, &row)?;
            if !row.supervised {
                tx.remove::<Instance>(&row.id);
                return Ok(volumes);
            }
            row.state = InstanceState::Terminated;
            row.owner = None;
            row.vmm = None;
            row.public_address = None;
            tx.put(&row)?;
            Ok::<_, StoreError>(volumes)
        }
    })?;
    let now = parts.clock.unix_seconds();
    for (volume, state) in volumes {
        parts.notices.tell(now, NoticeEvent::Volume { volume, state, instance: None });
    }
    Ok(())
}
