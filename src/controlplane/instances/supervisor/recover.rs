//! What a new daemon does with the instances of an earlier one.

use std::sync::Arc;
use std::time::Duration;

use kiln_model::InstanceState;
use kiln_vmspec::{Command, ExitReason};
use serde::{Deserialize, Serialize};

use super::actor::{Actor, Job, note_ending};
use super::{Shared, SupervisorError};
use crate::host::{ProcessIdentity, boot_id};
use crate::instances::effects::{Effect, undo};
use crate::instances::{Ending, Instance, InstanceError, interfaces, launch};
use crate::state::dir::Lock;
use crate::state::{Row, StoreError, transact};
use crate::vmm_process::{VmmEvent, last_ending};
use crate::volumes::settle_all;

/// How long a process may take to be gone that is not to be reached any more.
const LEAVING_PATIENCE: Duration = Duration::from_secs(10);

/// The boot of the host in which a daemon last ran.
#[derive(Debug, Serialize, Deserialize)]
struct HostBoot {
    id: String,
}

impl Row for HostBoot {
    const KIND: &'static str = "host";
    type Key = String;

    fn key(&self) -> String {
        "boot".to_owned()
    }
}

/// Whether processes that the rows name may still be there. Notes the present boot and, with it, that what
/// ran in another one starts again, where that is set: whoever is killed behind this does not lose it.
fn same_boot(shared: &Shared) -> Result<bool, StoreError> {
    let (id, now) = (boot_id(), shared.now());
    transact(shared.parts().store.as_ref(), |tx| {
        let before = tx.get::<HostBoot>(&"boot".to_owned())?;
        tx.put(&HostBoot { id: id.clone() })?;
        let same = before.is_none_or(|before| before.id == id);
        if !same && shared.settings.restart_after_boot {
            for mut row in tx.list::<Instance>()?.into_iter().filter(starts_again) {
                // Its machine is gone, with what it was being given or was to let go of.
                settle_all(tx, row.id)?;
                interfaces::settle(tx, &mut row)?;
                launch::begin(&mut row, true, now);
                row.vmm = None;
                tx.put(&row)?;
            }
        }
        Ok(same)
    })
}

/// Whether it ran when the host went down, and has what it takes to run again.
fn starts_again(instance: &Instance) -> bool {
    let ran = matches!(instance.state, InstanceState::Pending | InstanceState::Running);
    instance.supervised && ran && instance.vmm.is_some() && instance.stays()
}

/// Takes up every instance that is not at rest.
pub(super) fn recover(shared: &Arc<Shared>) -> Result<(), SupervisorError> {
    let same_boot = same_boot(shared)?;
    shared.parts().volumes().finish_all()?;
    shared.give_up_captures()?;
    Shared::resume_imports(shared)?;
    for instance in shared.plane.instances()? {
        if !instance.supervised || !instance.is_active() {
            continue;
        }
        let id = instance.id;
        let Some(lock) = shared.parts().dir.lock_instance(id)? else {
            tracing::warn!(instance = %id, "another process runs it");
            continue;
        };
        if let Err(e) = take_up(shared, &instance, lock, same_boot) {
            // One that cannot be helped must not keep the others from it.
            tracing::error!(instance = %id, "it could not be taken up: {e}");
        }
    }
    shared.forget_terminated();
    Ok(())
}

fn take_up(
    shared: &Arc<Shared>,
    instance: &Instance,
    lock: Lock,
    same_boot: bool,
) -> Result<(), SupervisorError> {
    let (parts, id) = (shared.parts(), instance.id);
    match instance.vmm {
        Some(vmm) if same_boot && !vmm.wait(Duration::ZERO) => {
            match parts.launcher.adopt(&parts.dir.instance(id), vmm) {
                Ok(vmm) => {
                    // It may have been paused for a snapshot.
                    let _ = vmm.handle.send(Command::Resume);
                    Actor::spawn(shared, id, Job::Adopt(vmm, lock));
                    // What was asked for before holds.
                    let order = match instance.state {
                        InstanceState::Stopping => Some(super::Order::Stop),
                        InstanceState::ShuttingDown => Some(super::Order::Kill),
                        _ => None,
                    };
                    if let Some(order) = order {
                        shared.order(id, order);
                    }
                    return Ok(());
                }
                // A process on its way out takes no more calls but has said why it ends.
                Err(_) if vmm.wait(LEAVING_PATIENCE) => {
                    note_ending(shared, id, &left_ending(shared, instance));
                }
                Err(e) => {
                    tracing::warn!(instance = %id, "its machine cannot be reached and is ended: {e}");
                    note_ending(shared, id, &Ending::Failed(e.to_string()));
                }
            }
        }
        Some(_) if same_boot => note_ending(shared, id, &left_ending(shared, instance)),
        Some(_) => note_ending(shared, id, &Ending::Failed("the host was restarted".to_owned())),
        None if instance.state == InstanceState::Pending => {
            tracing::info!(instance = %id, "its launch is done again");
            undo(parts, instance, &AGAIN, instance.has_run).map_err(InstanceError::from)?;
            parts.update(id, |row| row.owner = ProcessIdentity::current())?;
            Actor::spawn(shared, id, Job::Launch(lock));
            return Ok(());
        }
        None => {}
    }
    drop(lock);
    shared.clear(id)?;
    Ok(())
}

/// Everything but the rows.
const AGAIN: [Effect; 3] = [Effect::Files, Effect::Network, Effect::Process];

fn left_ending(shared: &Shared, instance: &Instance) -> Ending {
    match last_ending(&shared.parts().dir.instance(instance.id)) {
        VmmEvent::Exited(ExitReason::PowerOff) => Ending::PoweredOff,
        VmmEvent::Exited(ExitReason::Killed) => Ending::Killed,
        VmmEvent::Exited(ExitReason::Failed { message }) | VmmEvent::Lost { detail: message } => {
            Ending::Failed(message)
        }
        other => Ending::Failed(format!("{other:?}")),
    }
}
