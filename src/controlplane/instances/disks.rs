//! Volumes of instances that run: given to the machine, taken back, grown under it.
//!
//! ```text
//!   available ─ attaching ─▶ machine has it: attached ─ detaching ─▶ guest lets go, or force ─▶ available
//!                  │ refused                                │ machine ends
//!                  └──▶ available                           └──▶ available
//! ```
//!
//! What is wanted stands in the row of the volume first. Whoever dies in between leaves it there, and the next
//! daemon does it again ([`resume`]): to give a machine what it has, or to ask it for what it has not, changes
//! nothing. Machines are spoken to by their control socket, so it makes no difference whose they are: a
//! daemon's or those of a `kiln run`. That the guest has let go is noted by whoever runs the instance.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_model::{ByteSize, InstanceId, InstanceState, VolumeId};
use kiln_vmspec::{AttachedDisk, Command, FdIndex, ImageLayer, Reply};

use super::machine::Machine;
use super::{ControlPlane, Instance, Parts, bounds, spec};
use crate::state::transact;
use crate::vmm_process::{Commands, VmmError};
use crate::volumes::{Attachment, AttachmentState, Volume, VolumeChange, VolumeError, attached, open_volume};

fn failed(action: &'static str) -> impl FnOnce(VmmError) -> VolumeError {
    move |source| VolumeError::Machine { action, source: Box::new(source) }
}

/// What disks a machine has, and room for how many more.
async fn disks(commands: &dyn Commands) -> Result<(Vec<AttachedDisk>, usize), VmmError> {
    match commands.request(Command::ListDisks).await? {
        Reply::Disks { disks, spare } => Ok((disks, spare)),
        _ => Err(VmmError::NoAnswer),
    }
}

fn disks_of(machine: &Machine) -> Result<(Vec<AttachedDisk>, usize), VmmError> {
    machine.wait(disks(&machine.connection))
}

fn has(disks: &[AttachedDisk], volume: &Volume) -> bool {
    disks.iter().any(|disk| disk.serial == volume.serial())
}

/// Lets the machine write as much as a full volume takes.
fn make_room(row: &Instance, size: ByteSize, action: &'static str) -> Result<(), VolumeError> {
    let vmm = row.vmm.ok_or_else(|| failed(action)(VmmError::NoAnswer))?;
    vmm.allow_file_size(bounds::largest_layer(size.as_bytes())).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => VolumeError::NoRight { action, instance: row.id },
        _ => failed(action)(VmmError::Start {
            action: "raise the limit on the size of the VMM's files",
            source,
        }),
    })
}

/// Gives a machine the files of a volume.
async fn give(
    parts: &Parts,
    row: &Instance,
    volume: &Volume,
    commands: &dyn Commands,
) -> Result<(), VolumeError> {
    const ACTION: &str = "attaching a volume";
    let files = open_volume(&parts.dir, volume)?;
    make_room(row, volume.size, ACTION)?;
    let layers = (0..).zip(&files).map(|(n, (_, format))| ImageLayer { file: FdIndex(n), format: *format });
    let disk = spec::disk(row, volume, 1, layers.collect());
    let fds: Vec<OwnedFd> = files.into_iter().map(|(file, _)| file.into()).collect();
    commands.hand_over(Command::AttachDisk(Box::new(disk)), fds).await.map_err(failed(ACTION))?;
    Ok(())
}

/// Notes that a machine has been given a volume, unless it was asked for again meanwhile: then it is taken back
/// before anybody else opens it.
async fn confirm(
    parts: &Parts,
    id: VolumeId,
    instance: InstanceId,
    commands: &dyn Commands,
) -> Result<Volume, VolumeError> {
    let volume = parts.volumes().conclude(id, instance, AttachmentState::Attaching, true)?;
    if volume.attachment.as_ref().is_none_or(|own| own.instance != instance) {
        let command = Command::DetachDisk { serial: volume.serial(), force: true };
        commands.request(command).await.map_err(failed("taking back a volume"))?;
        return Err(VolumeError::NotAttached(id));
    }
    Ok(volume)
}

impl ControlPlane {
    /// Attaches a volume to an instance that runs or is stopped. A running guest finds it at once.
    pub fn attach_volume(
        &self,
        id: VolumeId,
        instance: InstanceId,
        device: &str,
    ) -> Result<Volume, VolumeError> {
        const ACTION: &str = "attaching a volume";
        let Some(row) = self.running(instance)? else {
            return self.volumes().attach(id, instance, device);
        };
        let machine = Machine::connect(self, row).map_err(failed(ACTION))?;
        let (_, spare) = disks_of(&machine).map_err(failed(ACTION))?;
        if spare == 0 {
            return Err(VolumeError::NoSpare(instance));
        }
        let how_far = AttachmentState::Attaching;
        let volume = self.volumes().note_attach(id, instance, device, InstanceState::Running, how_far)?;
        let given = give(&self.parts, &machine.row, &volume, &machine.connection);
        let given = machine.wait(given);
        // Another may have been quicker, or the answer was lost.
        let there = given.is_ok() || disks_of(&machine).is_ok_and(|(disks, _)| has(&disks, &volume));
        match given {
            Err(e) if !there => {
                let volume = match disks_of(&machine) {
                    Ok(_) => self.volumes().conclude(id, instance, how_far, false)?,
                    // The machine has ended, which says what becomes of it; or the next daemon tries again.
                    Err(_) => self.volumes().get(id)?,
                };
                let settled = |a: &Attachment| a.instance == instance && a.state == AttachmentState::Attached;
                if volume.attachment.as_ref().is_some_and(settled) { Ok(volume) } else { Err(e) }
            }
            _ => machine.wait(confirm(&self.parts, id, instance, &machine.connection)),
        }
    }

    /// Takes a volume from an instance. Answers it as it is then: a running guest is asked to let go of it, and
    /// it is `detaching` until it has. With `force` it is taken at once, and the guest finds a
    /// disk that answers with errors.
    pub fn detach_volume(&self, id: VolumeId, force: bool) -> Result<Volume, VolumeError> {
        const ACTION: &str = "detaching a volume";
        let Some(Attachment { instance, .. }) = self.volumes().get(id)?.attachment else {
            return Err(VolumeError::NotAttached(id));
        };
        let Some(row) = self.running(instance)? else {
            self.volumes().detach(id)?;
            return self.volumes().get(id);
        };
        let volume = self.volumes().note_detaching(id)?;
        let machine = Machine::connect(self, row).map_err(failed(ACTION))?;
        let (disks, _) = disks_of(&machine).map_err(failed(ACTION))?;
        let mut gone = !has(&disks, &volume);
        if !gone {
            let command = Command::DetachDisk { serial: volume.serial(), force };
            let asked = machine.wait(machine.connection.request(command));
            // The guest may have let go just now.
            gone = asked.is_ok() && force || !has(&disks_of(&machine).map_err(failed(ACTION))?.0, &volume);
            if !gone {
                asked.map_err(failed(ACTION))?;
            }
        }
        if gone {
            return self.volumes().conclude(id, instance, AttachmentState::Detaching, false);
        }
        Ok(volume)
    }

    /// Changes a volume, whoever has it. A running guest is told of a new size. Answers it as it is then; its
    /// size never shrinks.
    pub fn modify_volume(&self, id: VolumeId, change: VolumeChange) -> Result<Volume, VolumeError> {
        const ACTION: &str = "resizing a volume";
        let volume = self.volumes().get(id)?;
        let Some(Attachment { instance, state, .. }) = volume.attachment.clone() else {
            return self.volumes().modify(id, change);
        };
        let Some(row) = self.running(instance)? else { return self.volumes().modify(id, change) };
        let (size, kind) = change.of(&volume)?;
        if size > volume.size {
            if state != AttachmentState::Attached {
                return Err(VolumeError::Between { volume: id, state: state.name() });
            }
            make_room(&row, size, ACTION)?;
            let machine = Machine::connect(self, row).map_err(failed(ACTION))?;
            // The file first, as with one that nobody has: a file that is larger than its row says is still whole.
            let command = Command::ResizeDisk { serial: volume.serial(), size: size.as_bytes() };
            machine.wait(machine.connection.request(command)).map_err(failed(ACTION))?;
        }
        self.volumes().note_modified(id, size, kind)
    }

    /// The instance, if it has a machine with a guest in it.
    fn running(&self, id: InstanceId) -> Result<Option<Instance>, VolumeError> {
        let row = transact(self.parts.store.as_ref(), |tx| tx.get::<Instance>(&id))?;
        let row = row.ok_or(VolumeError::NoInstance(id))?;
        Ok((row.state == InstanceState::Running).then_some(row))
    }
}

/// Notes that the guest has let go of a disk.
pub(super) async fn note_detached(parts: &Arc<Parts>, instance: InstanceId, serial: String) {
    let parts = Arc::clone(parts);
    let noted = tokio::task::spawn_blocking(move || -> Result<(), VolumeError> {
        let volumes = parts.volumes().of(instance)?;
        for volume in volumes.iter().filter(|volume| volume.serial() == serial) {
            parts.volumes().conclude(volume.id, instance, AttachmentState::Detaching, false)?;
        }
        Ok(())
    });
    match noted.await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!(%instance, "a volume that was let go of could not be noted: {e}"),
        Err(e) => tracing::error!("noting a volume panicked: {e}"),
    }
}

/// Goes on with what an earlier process had begun with the volumes of a machine that has been taken over.
pub(super) async fn resume(
    parts: &Parts,
    row: &Instance,
    commands: &dyn Commands,
) -> Result<(), VolumeError> {
    const ACTION: &str = "taking over a machine's volumes";
    let volumes = transact(parts.store.as_ref(), |tx| attached(tx, row.id))?;
    let open = |volume: &Volume| match &volume.attachment {
        Some(Attachment { state: AttachmentState::Attached, .. }) | None => None,
        Some(Attachment { state, .. }) => Some(*state),
    };
    if volumes.iter().all(|volume| open(volume).is_none()) {
        return Ok(());
    }
    let (disks, _) = disks(commands).await.map_err(failed(ACTION))?;
    for volume in &volumes {
        let Some(state) = open(volume) else { continue };
        let there = has(&disks, volume);
        let has_it = match state {
            AttachmentState::Attaching if !there => match give(parts, row, volume, commands).await {
                Ok(()) => {
                    if let Err(e) = confirm(parts, volume.id, row.id, commands).await {
                        tracing::warn!(volume = %volume.id, "it was attached in vain: {e}");
                    }
                    continue;
                }
                Err(e) => {
                    tracing::warn!(volume = %volume.id, "it could not be attached: {e}");
                    false
                }
            },
            AttachmentState::Detaching if there => {
                let command = Command::DetachDisk { serial: volume.serial(), force: false };
                commands.request(command).await.map_err(failed(ACTION))?;
                continue;
            }
            _ => there,
        };
        parts.volumes().conclude(volume.id, row.id, state, has_it)?;
    }
    Ok(())
}
