//! Snapshots and images of volumes, whether somebody writes them or not.
//!
//! ```text
//!   rows, pending ─▶ answer
//!        └─▶ thread ─┬─ machine runs: pause (vCPUs stand, disks drained and flushed) ─ copy ─ resume
//!                    └─ nobody has it: lock, look again, copy            └▶ rows, complete or failed
//! ```
//!
//! Where a reboot is wanted, the pause comes when the guest has powered off and its next kernel has just been
//! entered: everything that ran has ended and its file systems were put away. A guest that does not power off
//! in time is reset, as it is for `RebootInstances`.
//!
//! What is copied of each volume is its own layer, what was written since it was made, and nothing where
//! the file system shares blocks. All volumes of an image are of one moment, as after a power cut.
//! One is taken at a time: a pause must not end under another's copy.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_model::{ImageId, InstanceId, InstanceState, SnapshotId, Tag, VolumeId};
use kiln_vmspec::Command;
use tokio::sync::mpsc::Receiver;

use super::{NoticeEvent, Shared, Supervisor, SupervisorError};
use crate::images::{Image, ImageError, Made, put_made};
use crate::instances::{BaseImage, Instance, LaunchError};
use crate::state::{StoreError, Transaction, transact};
use crate::vmm_process::{Commands as _, VmmEvent};
use crate::volumes::{
    BlockDevice, DeviceWish, Layer, MAX_BELOW, Progress, Snapshot, Unwritten, Volume, VolumeError, attached,
    copy_layer, discard_layer, merge_layers, resolve, slot,
};

/// How long an instance may be between two states.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a reset may take to be told.
const RESET_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What a new image of an instance is called.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// Its name, which must be free.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Tags of the snapshots that it is made of.
    pub snapshot_tags: Vec<Tag>,
    /// What its instances get besides or instead of the volumes of this one; those of which it says that there
    /// shall be none are not taken.
    pub devices: Vec<DeviceWish>,
    /// What is said of the root volume.
    pub root: DeviceWish,
    /// Whether the guest of a running instance starts again for it.
    pub reboot: bool,
}

impl NewImage {
    fn leaves_out(&self, device: &str) -> bool {
        self.devices.iter().any(|wish| wish.none && slot(&wish.device) == slot(device))
    }
}

/// Something to be taken.
struct Capture {
    instance: Option<InstanceId>,
    pieces: Vec<(Volume, Snapshot)>,
    image: Option<ImageId>,
    reboot: bool,
}

impl Supervisor {
    /// Takes a snapshot of a volume. It is pending when this returns. The guest of a running instance stands
    /// still while its volume's layer is copied.
    pub fn create_snapshot(
        &self,
        volume: VolumeId,
        description: &str,
        tags: &[Tag],
    ) -> Result<Snapshot, SupervisorError> {
        let now = self.shared.now();
        let (volume, snapshot) = transact(self.shared.parts().store.as_ref(), |tx| {
            let volume = tx.get::<Volume>(&volume)?.ok_or(VolumeError::NoVolume(volume))?;
            let snapshot = put_snapshot(tx, &volume, description, tags, now)?;
            Ok::<_, VolumeError>((volume, snapshot))
        })?;
        let instance = volume.attachment.as_ref().map(|attachment| attachment.instance);
        self.take(Capture {
            instance,
            pieces: vec![(volume, snapshot.clone())],
            image: None,
            reboot: false,
        })?;
        Ok(snapshot)
    }

    /// Makes an image of the volumes of an instance. It is pending when this returns.
    pub fn create_image(&self, id: InstanceId, wish: &NewImage) -> Result<Image, SupervisorError> {
        let instance = self.plane().living(id, "be made an image of")?;
        let now = self.shared.now();
        let (pieces, image) = transact(self.shared.parts().store.as_ref(), |tx| {
            let mut pieces = Vec::new();
            let mut taken: Vec<(BlockDevice, Snapshot)> = Vec::new();
            let text = format!("Created by CreateImage({id})");
            for volume in attached(tx, id)? {
                // Read for its revision: it must still be attached when this is written.
                let volume = tx.get::<Volume>(&volume.id)?.ok_or(VolumeError::NoVolume(volume.id))?;
                let Some(attachment) = &volume.attachment else { continue };
                if wish.leaves_out(&attachment.device) {
                    continue;
                }
                let snapshot = put_snapshot(tx, &volume, &text, &wish.snapshot_tags, now)?;
                let device = BlockDevice {
                    device: attachment.device.clone(),
                    size: Some(volume.size),
                    snapshot: Some(snapshot.id),
                    delete_on_termination: attachment.delete_on_termination,
                    kind: volume.kind,
                };
                pieces.push((volume, snapshot.clone()));
                taken.push((device, snapshot));
            }
            let mut taken = taken.into_iter();
            let Some((mut root_device, root)) = taken.next() else {
                return Err(ImageError::Volume(VolumeError::NoVolume(instance.root.id)));
            };
            root_device.change(&wish.root);
            // As the image that it was launched from has them.
            let drivers = match instance.root.base {
                BaseImage::Imported { image } => tx.get::<Image>(&image)?.map(|image| image.drivers),
                BaseImage::InPlace { .. } => None,
            };
            let drivers = drivers.unwrap_or_default();
            let own: Vec<_> = taken.map(|(device, _)| device).collect();
            let made = Made {
                name: wish.name.clone(),
                description: wish.description.clone(),
                tags: wish.tags.clone(),
                root: root.id,
                layers: root.layers.clone(),
                devices: resolve(&wish.devices, &own)?,
                size: root.size,
                drivers,
                root_device,
                source: id.to_string(),
            };
            let image = put_made(tx, &made, Progress::Pending, now)?;
            Ok((pieces, image))
        })
        .map_err(LaunchError::from)?;
        self.take(Capture { instance: Some(id), pieces, image: Some(image.id), reboot: wish.reboot })?;
        Ok(image)
    }

    /// Begins a capture in a thread of its own.
    fn take(&self, capture: Capture) -> Result<(), SupervisorError> {
        let shared = Arc::clone(&self.shared);
        let body = move || {
            let result = shared.capture(&capture);
            if result.is_err() && capture.reboot {
                shared.let_go_on(&capture);
            }
            shared.conclude(&capture, result);
        };
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(body);
        let thread = thread.map_err(|source| SupervisorError::Host { action: "start a thread", source })?;
        let mut captures = self.captures.lock().unwrap_or_else(PoisonError::into_inner);
        captures.retain(|thread| !thread.is_finished());
        captures.push(thread);
        Ok(())
    }
}

/// The pending row of a snapshot, as part of `tx`.
fn put_snapshot(
    tx: &mut Transaction<'_>,
    volume: &Volume,
    description: &str,
    tags: &[Tag],
    now: u64,
) -> Result<Snapshot, VolumeError> {
    let id = SnapshotId::from_bits(rand::random());
    if volume.progress != Progress::Complete {
        return Err(VolumeError::Creating(volume.id));
    }
    let below =
        if volume.below.len() >= MAX_BELOW { merged_below(tx, volume, id)? } else { volume.below.clone() };
    let snapshot = Snapshot {
        id,
        volume: Some(volume.id),
        size: volume.size,
        layers: std::iter::once(Layer::Snapshot { snapshot: id }).chain(below).collect(),
        progress: Progress::Pending,
        upload: None,
        description: description.to_owned(),
        tags: tags.to_vec(),
        created: now,
    };
    tx.put(&snapshot)?;
    Ok(snapshot)
}

/// What a snapshot of a volume over too many layers lies over: one that says what they say, above those that
/// are whole disks. That of another snapshot of the same volume serves too, as what is below a volume never
/// changes.
fn merged_below(
    tx: &mut Transaction<'_>,
    volume: &Volume,
    id: SnapshotId,
) -> Result<Vec<Layer>, VolumeError> {
    let merged = |snapshot: &Snapshot| match snapshot.layers.get(1) {
        Some(layer @ Layer::Merged { .. }) if volume.below.first() != Some(layer) => Some(layer.clone()),
        _ => None,
    };
    let complete = |row: &Snapshot| row.volume == Some(volume.id) && row.progress == Progress::Complete;
    let mut own = Layer::Merged { snapshot: id };
    for there in tx.list::<Snapshot>()?.iter().filter(|row| complete(row)) {
        // Read for its revision: whoever deletes it meanwhile lets this begin again.
        if let Some(layer) = tx.get::<Snapshot>(&there.id)?.filter(complete).as_ref().and_then(merged) {
            own = layer;
            break;
        }
    }
    let whole = volume.below.iter().skip_while(|layer| layer.is_part()).cloned();
    Ok(std::iter::once(own).chain(whole).collect())
}

impl Shared {
    fn capture(&self, capture: &Capture) -> Result<(), SupervisorError> {
        self.merge(capture)?;
        let Some(id) = capture.instance else {
            let _one = self.one_capture();
            return self.copy_at_rest(capture).map(|_| ());
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|source| SupervisorError::Host { action: "wait for a VMM", source })?;
        let deadline = Instant::now() + PATIENCE;
        let mut reboots = capture.reboot;
        loop {
            let row = transact(self.parts().store.as_ref(), |tx| tx.get::<Instance>(&id))?;
            let failed = match row.filter(Instance::is_active) {
                None => {
                    let _one = self.one_capture();
                    if self.copy_at_rest(capture)? {
                        return Ok(());
                    }
                    None
                }
                Some(row) if row.vmm.is_some() && row.state == InstanceState::Running && reboots => {
                    reboots = false;
                    runtime.block_on(self.reboot_into_pause(&row)).err()
                }
                Some(row) if row.vmm.is_some() && row.state != InstanceState::Pending => {
                    let _one = self.one_capture();
                    match runtime.block_on(self.copy_paused(&row, capture)) {
                        Ok(()) => return Ok(()),
                        Err(e) => Some(e),
                    }
                }
                _ => None,
            };
            match failed {
                // It may just have ended.
                Some(e)
                    if Instant::now() < deadline
                        && !(capture.reboot && self.leaving.load(Ordering::Relaxed)) =>
                {
                    tracing::debug!(instance = %id, "not captured yet: {e}");
                }
                Some(e) => return Err(e),
                None => {}
            }
            if Instant::now() >= deadline {
                let state = self.parts().find(id).map_or(InstanceState::Terminated, |row| row.state);
                return Err(SupervisorError::IncorrectState { id, state, action: "be captured" });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn one_capture(&self) -> MutexGuard<'_, ()> {
        self.capturing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what snapshots lie over that do not lie over what is below their volumes. While everything runs: it
    /// only concerns what is never written.
    fn merge(&self, capture: &Capture) -> Result<(), SupervisorError> {
        let _one = self.one_capture();
        for (volume, snapshot) in &capture.pieces {
            if let Some(merged @ Layer::Merged { .. }) = snapshot.layers.get(1)
                && volume.below.first() != Some(merged)
            {
                merge_layers(&self.parts().dir, merged, &volume.below)?;
            }
        }
        Ok(())
    }

    /// Lets a guest power off and its machine start again, and stops that at once. Whoever copies then lets it go
    /// on, as does the end of this process.
    async fn reboot_into_pause(&self, row: &Instance) -> Result<(), SupervisorError> {
        let (connection, mut events) = self.plane.connect(row)?;
        connection.request(Command::Reboot).await?;
        let grace = self.settings.reboot_grace;
        if !self.until_rebooting(&mut events, grace).await? {
            tracing::warn!(instance = %row.id, "the guest did not power off for its image");
            connection.request(Command::Reset).await?;
            self.until_rebooting(&mut events, RESET_PATIENCE).await?;
        }
        // The machine takes it when it has begun, before its guest has come far.
        connection.request(Command::Pause).await?;
        Ok(())
    }

    /// Whether a machine begins anew before `patience` is over. Nobody waits for a guest when this process is to
    /// end.
    async fn until_rebooting(
        &self,
        events: &mut Receiver<VmmEvent>,
        patience: Duration,
    ) -> Result<bool, SupervisorError> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.leaving.load(Ordering::Relaxed) {
                let source = std::io::ErrorKind::Interrupted.into();
                return Err(SupervisorError::Host { action: "wait for a guest to start again", source });
            }
            let heard = tokio::time::timeout(LOOK, events.recv()).await;
            // Or it has ended, and its row will say so.
            if let Ok(Some(VmmEvent::Rebooting | VmmEvent::Exited(_) | VmmEvent::Lost { .. }) | None) = heard
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// No machine is left standing still for an image that is not made.
    fn let_go_on(&self, capture: &Capture) {
        let Some(row) = capture.instance.and_then(|id| self.parts().find(id).ok()) else { return };
        if let Ok((connection, _events)) = self.plane.connect(&row) {
            let _ = connection.send(Command::Resume);
        }
    }

    async fn copy_paused(&self, row: &Instance, capture: &Capture) -> Result<(), SupervisorError> {
        let (connection, _events) = self.plane.connect(row)?;
        let paused = connection.request(Command::Pause).await;
        let copied = paused.map_err(SupervisorError::from).and_then(|_| self.copy(capture));
        // Also after a failure: it may stand all the same.
        let resumed = connection.request(Command::Resume).await;
        copied?;
        resumed?;
        Ok(())
    }

    /// Copies what nobody writes; `false` if somebody does after all.
    fn copy_at_rest(&self, capture: &Capture) -> Result<bool, SupervisorError> {
        let dir = &self.parts().dir;
        // With this nobody opens them to write. Whoever has done so before has said so in a row.
        let locks = capture.pieces.iter().map(|(volume, _)| Unwritten::take(dir, volume));
        let _locks = locks.collect::<Result<Vec<_>, _>>()?;
        for (volume, _) in &capture.pieces {
            let active = transact(self.parts().store.as_ref(), |tx| {
                let row = tx.get::<Volume>(&volume.id)?;
                Ok::<_, StoreError>(match row.and_then(|row| row.attachment) {
                    Some(attachment) => {
                        tx.get::<Instance>(&attachment.instance)?.is_some_and(|row| row.is_active())
                    }
                    None => false,
                })
            })?;
            if active {
                return Ok(false);
            }
        }
        self.copy(capture)?;
        Ok(true)
    }

    fn copy(&self, capture: &Capture) -> Result<(), SupervisorError> {
        for (volume, snapshot) in &capture.pieces {
            copy_layer(&self.parts().dir, volume, snapshot)?;
        }
        Ok(())
    }

    fn conclude(&self, capture: &Capture, result: Result<(), SupervisorError>) {
        let progress = match result {
            Ok(()) => Progress::Complete,
            Err(e) => {
                tracing::warn!("a snapshot could not be taken: {}", crate::instances::lifecycle::chain(&e));
                Progress::Failed
            }
        };
        for (_, snapshot) in &capture.pieces {
            self.finish_snapshot(snapshot.id, progress);
        }
        if let Some(image) = capture.image {
            self.finish_image(image, progress);
        }
    }

    fn finish_snapshot(&self, id: SnapshotId, progress: Progress) {
        if progress == Progress::Failed
            && let Err(e) = discard_layer(&self.parts().dir, id)
        {
            tracing::warn!("{e}");
        }
        let noted = transact(self.parts().store.as_ref(), |tx| {
            if let Some(mut row) = tx.get::<Snapshot>(&id)? {
                row.progress = progress;
                tx.put(&row)?;
            }
            Ok::<_, StoreError>(())
        });
        if let Err(e) = noted {
            tracing::warn!(snapshot = %id, "its end could not be noted: {e}");
        }
        self.parts().notices.tell(self.now(), NoticeEvent::Snapshot { snapshot: id, progress });
    }

    fn finish_image(&self, id: ImageId, progress: Progress) {
        if let Err(e) = self.parts().images().note(id, progress) {
            tracing::warn!(image = %id, "its end could not be noted: {e}");
        }
        self.parts().notices.tell(self.now(), NoticeEvent::Image { image: id, progress });
    }

    /// What an earlier daemon was taking has failed with it.
    pub(super) fn give_up_captures(&self) -> Result<(), SupervisorError> {
        for snapshot in self.parts().volumes().snapshots()? {
            // Those that are uploaded go on.
            if snapshot.progress == Progress::Pending && !snapshot.is_uploading() {
                self.finish_snapshot(snapshot.id, Progress::Failed);
            }
        }
        for image in self.parts().images().list().map_err(LaunchError::from)? {
            if image.progress == Progress::Pending && image.importing.is_none() {
                self.finish_image(image.id, Progress::Failed);
            }
        }
        Ok(())
    }
}
