//! What can be asked of volumes and snapshots that needs no running machine.

use kiln_model::{ByteSize, InstanceId, InstanceState, SnapshotId, VolumeId};

use super::files::{grow_volume, make_volume, remove, remove_volume};
use super::layer::{named, snapshot_path};
use super::{
    Attachment, MAX_ATTACHED, MAX_BELOW, MAX_SIZE, MIN_SIZE, NewVolume, Progress, ROOT_DEVICE, Snapshot,
    Volume, VolumeError,
};
use crate::images::Image;
use crate::instances::Instance;
use crate::state::dir::Lock;
use crate::state::{StateDir, Store, StoreError, Transaction, transact};

/// Volumes and snapshots of a state directory. Methods block.
#[derive(Clone, Copy)]
pub struct Volumes<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) dir: &'a StateDir,
    pub(crate) now: u64,
}

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

/// Takes an instance's volumes from it, as part of `tx`.
pub(crate) fn detach_all(tx: &mut Transaction<'_>, instance: &Instance) -> Result<(), StoreError> {
    for volume in attached(tx, instance.id)? {
        let Some(mut volume) = tx.get::<Volume>(&volume.id)? else { continue };
        if goes(&volume, instance) {
            tx.remove::<Volume>(&volume.id);
        } else {
            volume.attachment = None;
            tx.put(&volume)?;
        }
    }
    Ok(())
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

pub(crate) fn check_device(device: &str) -> Result<(), VolumeError> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let good = (2..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if good && device != ROOT_DEVICE { Ok(()) } else { Err(VolumeError::Device(device.to_owned())) }
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
    let tags = wish.tags.clone();
    Ok(Volume { id, size, below, snapshot: wish.snapshot, attachment: None, tags, created: now })
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
        let volume = transact(self.store, |tx| {
            let volume = plan_volume(tx, wish, self.now)?;
            tx.put(&volume)?;
            Ok::<_, VolumeError>(volume)
        })?;
        make_volume(self.dir, &volume).inspect_err(|_| {
            // A row without a file would be a volume that cannot be used.
            let _ = self.forget(volume.id);
        })?;
        Ok(volume)
    }

    /// Deletes a volume that nobody has.
    pub fn delete(&self, id: VolumeId) -> Result<(), VolumeError> {
        let volume = self.forget(id)?;
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
        check_device(device)?;
        transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            if let Some(Attachment { instance, .. }) = volume.attachment {
                return Err(VolumeError::InUse { volume: id, instance });
            }
            at_rest(tx, instance, "attaching to")?;
            let others = attached(tx, instance)?;
            if others.iter().any(|v| v.attachment.as_ref().is_some_and(|a| a.device == device)) {
                return Err(VolumeError::DeviceTaken { instance, device: device.to_owned() });
            }
            if others.len() > MAX_ATTACHED {
                return Err(VolumeError::TooMany(instance));
            }
            let (device, since) = (device.to_owned(), self.now);
            volume.attachment = Some(Attachment { instance, device, delete_on_termination: false, since });
            tx.put(&volume)?;
            Ok(volume)
        })
    }

    /// Takes a volume from a stopped instance. Answers it as it was.
    pub fn detach(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        transact(self.store, |tx| {
            let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            let before = volume.clone();
            let Some(attachment) = volume.attachment.take() else { return Err(VolumeError::NotAttached(id)) };
            if before.is_root() {
                return Err(VolumeError::Root(id));
            }
            at_rest(tx, attachment.instance, "detaching")?;
            tx.put(&volume)?;
            Ok(before)
        })
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

    /// Makes a volume larger that nobody has, or a stopped instance.
    pub fn resize(&self, id: VolumeId, size: ByteSize) -> Result<Volume, VolumeError> {
        let size = check_size(size)?;
        let lock = match self.get(id)?.attachment {
            // Nobody starts it meanwhile.
            Some(Attachment { instance, .. }) => {
                let running = VolumeError::Running { action: "resizing a volume", instance };
                Some(self.dir.lock_instance(instance)?.ok_or(running)?)
            }
            None => None,
        };
        let volume = transact(self.store, |tx| {
            let volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            if size < volume.size {
                return Err(VolumeError::TooSmall { wanted: size, least: volume.size });
            }
            if let Some(attachment) = &volume.attachment {
                at_rest(tx, attachment.instance, "resizing a volume")?;
            }
            Ok(Volume { size, ..volume })
        })?;
        // The file first: a file that is larger than its row says is still whole.
        grow_volume(self.dir, &volume)?;
        transact(self.store, |tx| {
            let mut row = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            row.size = row.size.max(size);
            if row.is_root()
                && let Some(attachment) = &row.attachment
                && let Some(mut instance) = tx.get::<Instance>(&attachment.instance)?
            {
                instance.root.size = row.size;
                tx.put(&instance)?;
            }
            tx.put(&row)?;
            Ok(row)
        })
        .inspect(|_| lock.into_iter().for_each(Lock::remove))
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

    /// Deletes a snapshot that no image is made of. Volumes that were made from it stay as they are.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<(), VolumeError> {
        transact(self.store, |tx| {
            let row = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            if row.progress == Progress::Pending {
                return Err(VolumeError::SnapshotPending(id));
            }
            if let Some(image) = tx.list::<Image>()?.iter().find(|image| image.snapshots().any(|s| s == id)) {
                return Err(VolumeError::SnapshotInUse { snapshot: id, image: image.id });
            }
            tx.remove::<Snapshot>(&id);
            Ok(())
        })?;
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

    /// Removes files that nobody needs any more.
    fn reclaim(&self) -> Result<(), VolumeError> {
        let _lock = self.dir.lock_images()?;
        sweep(self.store, self.dir)
    }

    /// Where the own layer of a snapshot is, for people and tools.
    pub fn snapshot_file(&self, id: SnapshotId) -> std::path::PathBuf {
        snapshot_path(self.dir, id)
    }

    /// Where the own layer of a volume is, for people and tools.
    pub fn file(&self, id: VolumeId) -> std::path::PathBuf {
        super::layer::volume_path(self.dir, id)
    }
}

/// Sees to it that an instance has no machine and gets none before `tx` is through.
fn at_rest(tx: &mut Transaction<'_>, id: InstanceId, action: &'static str) -> Result<(), VolumeError> {
    let instance = tx.get::<Instance>(&id)?.ok_or(VolumeError::NoInstance(id))?;
    if instance.state != InstanceState::Stopped {
        return Err(VolumeError::Running { action, instance: id });
    }
    // Whoever starts it meanwhile writes its row too, and one of the two begins again.
    Ok(tx.put(&instance)?)
}
