//! What can be asked of volumes and snapshots that needs no running machine.

use kiln_model::{ByteSize, InstanceId, InstanceState, SnapshotId, VolumeId};

use super::files::{make_volume, remove, remove_volume};
use super::layer::{named, snapshot_path};
use super::{
    Attachment, AttachmentState, MAX_ATTACHED, MAX_BELOW, MAX_SIZE, MIN_SIZE, NewVolume, Progress, Snapshot,
    Uploads, Volume, VolumeError, VolumeState, check_device, slot,
};
use crate::images::{Image, ImageError, Images};
use crate::instances::{Instance, NoticeEvent, Notices};
use crate::state::{StateDir, Store, StoreError, Transaction, transact};
use crate::tags;

/// Volumes and snapshots of a state directory. Methods block.
#[derive(Clone, Copy)]
pub struct Volumes<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) dir: &'a StateDir,
    pub(crate) notices: &'a Notices,
    pub(crate) uploads: &'a Uploads,
    pub(crate) now: u64,
}

/// What else the transaction shall write that makes a volume, such as a client's token. It may run several
/// times; its error undoes all.
pub type AlsoVolume<'a> = dyn FnMut(&mut Transaction<'_>, &Volume) -> Result<(), StoreError> + 'a;

impl std::fmt::Debug for Volumes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes").field("dir", self.dir).finish_non_exhaustive()
    }
}

/// Volumes that an instance has, its root volume first.
pub(crate) fn attached(tx: &Transaction<'_>, instance: InstanceId) -> Result<Vec<Volume>, StoreError> {
    let all = tx.rows::<Volume>()?;
    let mut volumes: Vec<Volume> = all.held_by(&instance.to_string()).map(|v| Volume::clone(v)).collect();
    let device = |volume: &Volume| volume.attachment.as_ref().map(|a| a.device.clone());
    volumes.sort_by_key(|volume| (!volume.is_root(), device(volume), volume.id));
    Ok(volumes)
}

/// Whether a volume goes when its instance does: one that has never run leaves nothing worth keeping.
fn goes(volume: &Volume, instance: &Instance) -> bool {
    !instance.has_run || volume.attachment.as_ref().is_none_or(|a| a.delete_on_termination)
}

/// Removes the files of those volumes of an instance that go with it.
pub(crate) fn remove_files_of(
    store: &dyn Store,
    dir: &StateDir,
    instance: &Instance,
) -> Result<(), VolumeError> {
    let volumes = transact(store, |tx| attached(tx, instance.id))?;
    volumes.iter().filter(|volume| goes(volume, instance)).try_for_each(|volume| remove_volume(dir, volume))
}

/// Takes an instance's volumes from it, as part of `tx`. Answers what became of them.
pub(crate) fn detach_all(
    tx: &mut Transaction<'_>,
    instance: &Instance,
) -> Result<Vec<(VolumeId, VolumeState)>, StoreError> {
    let mut states = Vec::new();
    for volume in attached(tx, instance.id)? {
        let Some(mut volume) = tx.get::<Volume>(&volume.id)? else { continue };
        if goes(&volume, instance) {
            tags::forget_in(tx, &volume.id.to_string());
            tx.remove::<Volume>(&volume.id);
            states.push((volume.id, VolumeState::Deleted));
        } else {
            volume.attachment = None;
            tx.put(&volume)?;
            states.push((volume.id, VolumeState::Available));
        }
    }
    Ok(states)
}

/// Removes files of volumes and snapshots that no row needs. Call under the lock of images.
pub(crate) fn sweep(store: &dyn Store, dir: &StateDir) -> Result<(), VolumeError> {
    // The files first: one that appears later belongs to a row that was there before it.
    let entries = std::fs::read_dir(dir.volumes());
    let entries =
        entries.map_err(|source| VolumeError::Io { action: "list", path: dir.volumes(), source })?;
    let found: Vec<_> = entries.filter_map(Result::ok).collect();
    let names = named(store)?;
    for entry in found {
        let name = entry.file_name().to_string_lossy().into_owned();
        let needed = name.strip_suffix(".part").map_or_else(
            || names.volumes.contains(&name),
            |stem| names.volumes.contains(&format!("{stem}.qcow2")),
        );
        if !needed {
            // Whoever cannot remove it leaves it to the next sweep.
            let _ = remove(&entry.path());
        }
    }
    Ok(())
}

pub(crate) fn check_size(size: ByteSize) -> Result<ByteSize, VolumeError> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size.as_bytes()) {
        return Err(VolumeError::Size(size));
    }
    Ok(ByteSize::bytes(size.as_bytes().next_multiple_of(512)))
}

/// The row of a new volume, as part of `tx`, which must write it.
pub(crate) fn plan_volume(
    tx: &mut Transaction<'_>,
    wish: &NewVolume,
    now: u64,
) -> Result<Volume, VolumeError> {
    let id = VolumeId::from_bits(rand::random());
    let (below, least) = match wish.snapshot {
        None => (Vec::new(), None),
        Some(snapshot) => {
            let row = tx.get::<Snapshot>(&snapshot)?.ok_or(VolumeError::NoSnapshot(snapshot))?;
            if row.progress != Progress::Complete {
                return Err(VolumeError::SnapshotPending(snapshot));
            }
            (row.layers, Some(row.size))
        }
    };
    let size = match (wish.size, least) {
        (Some(wanted), Some(least)) if wanted < least => return Err(VolumeError::TooSmall { wanted, least }),
        (Some(wanted), _) => check_size(wanted)?,
        (None, Some(least)) => least,
        (None, None) => return Err(VolumeError::NoSize),
    };
    if below.len() > MAX_BELOW {
        return Err(VolumeError::TooDeep(id));
    }
    Ok(Volume {
        id,
        size,
        below,
        snapshot: wish.snapshot,
        attachment: None,
        kind: wish.kind.check()?,
        progress: Progress::Complete,
        modification: None,
        tags: wish.tags.clone(),
        created: now,
    })
}

impl Volumes<'_> {
    /// All volumes, oldest first.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut all = transact(self.store, |tx| tx.list::<Volume>())?;
        all.sort_by_key(|volume| (volume.created, volume.id));
        Ok(all)
    }

    /// One volume.
    pub fn get(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        transact(self.store, |tx| tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id)))
    }

    /// Volumes of an instance, its root volume first.
    pub fn of(&self, instance: InstanceId) -> Result<Vec<Volume>, VolumeError> {
        Ok(transact(self.store, |tx| attached(tx, instance))?)
    }

    /// Makes a volume, empty or from a snapshot. In constant time.
    pub fn create(&self, wish: &NewVolume) -> Result<Volume, VolumeError> {
        self.create_and(wish, &mut |_, _| Ok(()))
    }

    /// As [`Volumes::create`], with something more in its transaction.
    pub fn create_and(&self, wish: &NewVolume, also: &mut AlsoVolume<'_>) -> Result<Volume, VolumeError> {
        // Whoever has it finds no volume half made by a process that lives.
        let _lock = self.dir.lock_images()?;
        let volume = transact(self.store, |tx| {
            let volume = Volume { progress: Progress::Pending, ..plan_volume(tx, wish, self.now)? };
            tx.put(&volume)?;
            also(tx, &volume)?;
            Ok::<_, VolumeError>(volume)
        })?;
        self.finish(&volume).inspect_err(|_| {
            // A row without a file would be a volume that cannot be used.
            let _ = self.forget(volume.id);
            let _ = remove_volume(self.dir, &volume);
        })
    }

    /// Makes the file of a volume that has only a row.
    fn finish(&self, volume: &Volume) -> Result<Volume, VolumeError> {
        make_volume(self.dir, volume)?;
        let done = transact(self.store, |tx| {
            let mut row = tx.get::<Volume>(&volume.id)?.ok_or(VolumeError::NoVolume(volume.id))?;
            row.progress = Progress::Complete;
            tx.put(&row)?;
            Ok::<_, VolumeError>(row)
        })?;
        self.tell(volume.id, VolumeState::Available, None);
        Ok(done)
    }

    /// Makes what processes that were killed had only begun to make.
    pub(crate) fn finish_all(&self) -> Result<(), VolumeError> {
        let _lock = self.dir.lock_images()?;
        for volume in self.list()?.iter().filter(|volume| volume.progress == Progress::Pending) {
            if let Err(e) = self.finish(volume) {
                tracing::warn!(volume = %volume.id, "it could not be made: {e}");
            }
        }
        Ok(())
    }

    pub(super) fn tell(&self, volume: VolumeId, state: VolumeState, instance: Option<InstanceId>) {
        self.notices.tell(self.now, NoticeEvent::Volume { volume, state, instance });
    }

    /// Deletes a volume that nobody has.
    pub fn delete(&self, id: VolumeId) -> Result<(), VolumeError> {
        let volume = self.forget(id)?;
        self.tell(id, VolumeState::Deleted, None);
        remove_volume(self.dir, &volume)?;
        self.reclaim()
    }

    /// Removes the row. Its file, should this process die now, goes with the next sweep.
    fn forget(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        transact(self.store, |tx| {
            let volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            if let Some(Attachment { instance, .. }) = volume.attachment {
                return Err(VolumeError::InUse { volume: id, instance });
            }
            tx.remove::<Volume>(&id);
            Ok(volume)
        })
    }

    /// Attaches a volume to a stopped instance.
    pub fn attach(&self, id: VolumeId, instance: InstanceId, device: &str) -> Result<Volume, VolumeError> {
        self.note_attach(id, instance, device, InstanceState::Stopped, AttachmentState::Attached)
    }

    /// Writes down that an instance in `state` has a volume, or is being given it.
    pub(crate) fn note_attach(
        &self,
        id: VolumeId,
        instance: InstanceId,
        device: &str,
        state: InstanceState,
        how_far: AttachmentState,
    ) -> Result<Volume, VolumeError> {
        check_device(device)?;
        let attached = transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            if let Some(Attachment { instance, .. }) = volume.attachment {
                return Err(VolumeError::InUse { volume: id, instance });
            }
            if volume.progress != Progress::Complete {
                return Err(VolumeError::Creating(id));
            }
            in_state(tx, instance, state, "attaching a volume")?;
            let others = attached(tx, instance)?;
            if others.iter().any(|v| v.attachment.as_ref().is_some_and(|a| slot(&a.device) == slot(device))) {
                return Err(VolumeError::DeviceTaken { instance, device: device.to_owned() });
            }
            if others.len() > MAX_ATTACHED {
                return Err(VolumeError::TooMany(instance));
            }
            volume.attachment = Some(Attachment {
                instance,
                device: device.to_owned(),
                delete_on_termination: false,
                since: self.now,
                state: how_far,
            });
            tx.put(&volume)?;
            Ok(volume)
        })?;
        self.tell(id, VolumeState::InUse, Some(instance));
        Ok(attached)
    }

    /// Takes a volume from a stopped instance. Answers it as it was.
    pub fn detach(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        let before = transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            let before = volume.clone();
            let Some(attachment) = volume.attachment.take() else { return Err(VolumeError::NotAttached(id)) };
            if before.is_root() {
                return Err(VolumeError::Root(id));
            }
            in_state(tx, attachment.instance, InstanceState::Stopped, "detaching a volume")?;
            tx.put(&volume)?;
            Ok(before)
        })?;
        self.tell(id, VolumeState::Available, None);
        Ok(before)
    }

    /// Writes down that a running instance is to let go of a volume. It may be said again.
    pub(crate) fn note_detaching(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            if volume.is_root() {
                return Err(VolumeError::Root(id));
            }
            let Some(attachment) = &mut volume.attachment else { return Err(VolumeError::NotAttached(id)) };
            attachment.state = AttachmentState::Detaching;
            in_state(tx, attachment.instance, InstanceState::Running, "detaching a volume")?;
            tx.put(&volume)?;
            Ok(volume)
        })
    }

    /// Writes down how an attachment that was `from` has ended: the instance has the volume, or it has not.
    /// Another attachment than that stays as it is. Answers the volume as it is then.
    pub(crate) fn conclude(
        &self,
        id: VolumeId,
        instance: InstanceId,
        from: AttachmentState,
        has_it: bool,
    ) -> Result<Volume, VolumeError> {
        let (volume, taken) = transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            let mut taken = false;
            if let Some(attachment) = &mut volume.attachment
                && attachment.instance == instance
                && attachment.state == from
            {
                attachment.state = AttachmentState::Attached;
                taken = !has_it;
                if taken {
                    volume.attachment = None;
                }
                tx.put(&volume)?;
            }
            Ok::<_, VolumeError>((volume, taken))
        })?;
        if taken {
            self.tell(id, VolumeState::Available, None);
        }
        Ok(volume)
    }

    /// Whether an attached volume goes with its instance.
    pub fn set_delete_on_termination(&self, id: VolumeId, goes: bool) -> Result<Volume, VolumeError> {
        transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            let Some(attachment) = &mut volume.attachment else { return Err(VolumeError::NotAttached(id)) };
            attachment.delete_on_termination = goes;
            tx.put(&volume)?;
            Ok(volume)
        })
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let mut all = transact(self.store, |tx| tx.list::<Snapshot>())?;
        all.sort_by_key(|snapshot| (snapshot.created, snapshot.id));
        Ok(all)
    }

    /// One snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        transact(self.store, |tx| tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id)))
    }

    /// Deletes a snapshot that no image is made of, be it still written. Volumes that were made from it stay as they are.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<(), VolumeError> {
        transact(self.store, |tx| {
            let row = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            if row.progress == Progress::Pending && !row.is_uploading() {
                return Err(VolumeError::SnapshotPending(id));
            }
            if let Some(image) = tx.list::<Image>()?.iter().find(|image| image.snapshots().any(|s| s == id)) {
                return Err(VolumeError::SnapshotInUse { snapshot: id, image: image.id });
            }
            tx.remove::<Snapshot>(&id);
            Ok(())
        })?;
        self.uploads.close(id);
        self.reclaim()
    }

    /// Replaces the tags of a volume.
    pub fn set_tags(&self, id: VolumeId, tags: &[kiln_model::Tag]) -> Result<(), VolumeError> {
        transact(self.store, |tx| {
            let mut row = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            row.tags = tags.to_vec();
            Ok(tx.put(&row)?)
        })
    }

    /// Replaces the tags of a snapshot.
    pub fn set_snapshot_tags(&self, id: SnapshotId, tags: &[kiln_model::Tag]) -> Result<(), VolumeError> {
        transact(self.store, |tx| {
            let mut row = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            row.tags = tags.to_vec();
            Ok(tx.put(&row)?)
        })
    }

    /// Removes files that nobody needs any more, those of images too: their rows may be gone for long.
    fn reclaim(&self) -> Result<(), VolumeError> {
        let images = Images { store: self.store, dir: self.dir };
        match images.sweep() {
            Err(ImageError::Volume(error)) => Err(error),
            Err(ImageError::Store(error)) => Err(error.into()),
            // Whoever cannot list them leaves them to the next sweep.
            _ => Ok(()),
        }
    }

    /// Where the topmost layer of a snapshot is, for people and tools.
    pub fn snapshot_file(&self, snapshot: &Snapshot) -> std::path::PathBuf {
        snapshot.layers.first().map_or_else(|| snapshot_path(self.dir, snapshot.id), |top| top.path(self.dir))
    }

    /// Where the own layer of a volume is, for people and tools.
    pub fn file(&self, id: VolumeId) -> std::path::PathBuf {
        super::layer::volume_path(self.dir, id)
    }
}

/// Sees to it that an instance is in `wanted` and stays there until `tx` is through.
pub(super) fn in_state(
    tx: &mut Transaction<'_>,
    id: InstanceId,
    wanted: InstanceState,
    action: &'static str,
) -> Result<(), VolumeError> {
    let instance = tx.get::<Instance>(&id)?.ok_or(VolumeError::NoInstance(id))?;
    if instance.state != wanted {
        return Err(VolumeError::State { action, instance: id, state: instance.state });
    }
    // Whoever starts or ends it meanwhile writes its row too, and one of the two begins again.
    Ok(tx.put(&instance)?)
}

/// The machine of an instance is gone, as part of `tx`: what it was being given is the instance's, and what
/// it was to let go of is not any more.
pub(crate) fn settle_all(tx: &mut Transaction<'_>, instance: InstanceId) -> Result<(), StoreError> {
    for volume in attached(tx, instance)? {
        let Some(mut volume) = tx.get::<Volume>(&volume.id)? else { continue };
        let Some(attachment) = &mut volume.attachment else { continue };
        match attachment.state {
            AttachmentState::Attached => continue,
            AttachmentState::Attaching => attachment.state = AttachmentState::Attached,
            AttachmentState::Detaching => volume.attachment = None,
        }
        tx.put(&volume)?;
    }
    Ok(())
}
