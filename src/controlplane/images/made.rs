//! Images of instances: rows that name layers which snapshots keep, and copies of rows.

use kiln_model::{ByteSize, Clock, ImageId, SnapshotId, Tag};
use kiln_vmspec::DiskFormat;

use super::{Drivers, Image, ImageError, ImageName, Images, check_name};
use crate::state::{StoreError, Transaction, transact};
use crate::volumes::{self, BlockDevice, DeviceWish, Layer, Progress, Snapshot, VolumeError};

/// What a new image of an instance is made of.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) tags: Vec<Tag>,
    pub(crate) root: SnapshotId,
    pub(crate) layers: Vec<Layer>,
    pub(crate) root_device: BlockDevice,
    pub(crate) devices: Vec<BlockDevice>,
    pub(crate) size: ByteSize,
    pub(crate) drivers: Drivers,
    /// For people.
    pub(crate) source: String,
}

impl Image {
    /// Layers of its root volume, top first.
    pub fn layers(&self) -> Vec<Layer> {
        match self.root {
            Some(_) => self.made_of.clone(),
            None => vec![Layer::Image { file: self.file_name(), format: self.format }],
        }
    }

    /// What it says of the root volume of its instances.
    pub fn root_volume(&self) -> BlockDevice {
        let said = self.root_device.clone().unwrap_or_else(BlockDevice::plain_root);
        BlockDevice { snapshot: self.root, size: said.size.or(Some(self.virtual_size)), ..said }
    }

    /// Snapshots that it is made of.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        self.root.into_iter().chain(self.devices.iter().filter_map(|device| device.snapshot))
    }
}

/// The row of a new image that is made of snapshots, as part of `tx`.
pub(crate) fn put_made(
    tx: &mut Transaction<'_>,
    made: &Made,
    progress: Progress,
    now: u64,
) -> Result<Image, ImageError> {
    let root = BlockDevice { snapshot: Some(made.root), ..made.root_device.clone() };
    check_devices(tx, &std::iter::once(&root).chain(&made.devices).collect::<Vec<_>>())?;
    let image = Image {
        id: ImageId::from_bits(rand::random()),
        name: Some(made.name.clone()),
        format: DiskFormat::Qcow2,
        sha256: String::new(),
        file_bytes: made.size,
        virtual_size: made.size,
        created: now,
        source: made.source.clone(),
        launches: 0,
        root: Some(made.root),
        made_of: made.layers.clone(),
        root_device: Some(made.root_device.clone()),
        devices: made.devices.clone(),
        progress,
        importing: None,
        failure: None,
        drivers: made.drivers.clone(),
        description: made.description.clone(),
        tags: made.tags.clone(),
    };
    put_named(tx, &image)?;
    Ok(image)
}

/// Writes a row and its name, which must be free.
pub(super) fn put_named(tx: &mut Transaction<'_>, image: &Image) -> Result<(), ImageError> {
    let name = image.name.clone().unwrap_or_default();
    check_name(&name)?;
    if let Some(taken) = tx.get::<ImageName>(&name)?
        && tx.get::<Image>(&taken.image)?.is_some()
    {
        return Err(ImageError::NameTaken { name, id: taken.image });
    }
    tx.put(&ImageName { name, image: image.id })?;
    Ok(tx.put(image)?)
}

/// Whether volumes can be made as an image says; as part of the transaction that writes the image. The
/// snapshots are written too: whoever deletes one meanwhile does not see the image yet.
fn check_devices(tx: &mut Transaction<'_>, devices: &[&BlockDevice]) -> Result<(), VolumeError> {
    for device in devices {
        device.kind.check()?;
        match (device.snapshot, device.size) {
            (None, None) => return Err(VolumeError::NoSize),
            (None, Some(size)) => drop(volumes::check_size(size)?),
            (Some(id), size) => {
                let snapshot = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
                if let Some(wanted) = size.filter(|size| *size < snapshot.size) {
                    return Err(VolumeError::TooSmall { wanted, least: snapshot.size });
                }
                // One that is being taken may be that of the image itself.
                if snapshot.progress == Progress::Failed || snapshot.is_uploading() {
                    return Err(VolumeError::SnapshotPending(id));
                }
                tx.put(&snapshot)?;
            }
        }
    }
    Ok(())
}

/// What else the transaction shall write that makes an image, such as a client's token. It may run several
/// times; its error undoes all.
pub type AlsoImage<'a> = dyn FnMut(&mut Transaction<'_>, &Image) -> Result<(), StoreError> + 'a;

/// A wish for an image of snapshots.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Its name, which must be free.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its root volume, with a snapshot.
    pub root: BlockDevice,
    /// Its other volumes.
    pub devices: Vec<DeviceWish>,
    /// What is said of its drivers.
    pub drivers: Drivers,
}

/// What a copy of an image is called.
#[derive(Debug, Clone)]
pub struct CopyWish {
    /// Its name, which must be free.
    pub name: String,
    /// For people.
    pub description: Option<String>,
}

impl Images<'_> {
    /// `RegisterImage` of snapshots: there at once.
    pub fn register(
        &self,
        wish: &Registration,
        clock: &dyn Clock,
        also: &mut AlsoImage<'_>,
    ) -> Result<Image, ImageError> {
        transact(self.store, |tx| {
            let id = wish.root.snapshot.ok_or(VolumeError::NoSize)?;
            let root = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            let mut devices = volumes::resolve(&wish.devices, &[])?;
            let mut root_device = wish.root.clone();
            for device in devices.iter_mut().chain([&mut root_device]) {
                let Some(id) = device.snapshot else { continue };
                let row = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
                if row.progress != Progress::Complete {
                    return Err(VolumeError::SnapshotPending(id).into());
                }
                device.size = device.size.or(Some(row.size));
            }
            let made = Made {
                name: wish.name.clone(),
                description: wish.description.clone(),
                tags: Vec::new(),
                root: id,
                layers: root.layers.clone(),
                size: root.size,
                root_device,
                devices,
                drivers: wish.drivers.clone(),
                source: id.to_string(),
            };
            let image = put_made(tx, &made, Progress::Complete, clock.unix_seconds())?;
            also(tx, &image)?;
            Ok(image)
        })
    }

    /// `CopyImage`: another row over the same files, with snapshots of its own.
    pub fn copy(
        &self,
        id: ImageId,
        wish: &CopyWish,
        clock: &dyn Clock,
        also: &mut AlsoImage<'_>,
    ) -> Result<Image, ImageError> {
        let now = clock.unix_seconds();
        transact(self.store, |tx| {
            let from = self.get(tx, id)?;
            if from.progress != Progress::Complete {
                return Err(ImageError::NotReady(id));
            }
            let own = ImageId::from_bits(rand::random());
            let mut copied = |snapshot: SnapshotId| {
                let source = tx.get::<Snapshot>(&snapshot)?.ok_or(VolumeError::NoSnapshot(snapshot))?;
                let text = format!(
                    "Copied for DestinationAmi {own} from SourceAmi {id} for SourceSnapshot {snapshot}"
                );
                Ok::<_, ImageError>(volumes::put_copy(tx, &source, &text, now)?.id)
            };
            let root = from.root.map(&mut copied).transpose()?;
            let mut devices = from.devices.clone();
            for device in &mut devices {
                device.snapshot = device.snapshot.map(&mut copied).transpose()?;
            }
            let copy = Image {
                id: own,
                name: Some(wish.name.clone()),
                description: wish.description.clone().unwrap_or_else(|| from.description.clone()),
                created: now,
                tags: Vec::new(),
                launches: 0,
                root,
                devices,
                ..from
            };
            put_named(tx, &copy)?;
            also(tx, &copy)?;
            Ok(copy)
        })
    }

    /// `DeregisterImage`: instances of it go on, and can be started again; no new ones can be launched. Its
    /// file goes when nobody needs it any more.
    pub fn deregister(&self, id: ImageId) -> Result<Image, ImageError> {
        let _lock = self.dir.lock_images()?;
        let image = transact(self.store, |tx| {
            let image = self.get(tx, id)?;
            if let Some(name) = &image.name {
                tx.remove::<ImageName>(name);
            }
            tx.remove::<Image>(&id);
            Ok::<_, ImageError>(image)
        })?;
        self.remove_unused()?;
        Ok(image)
    }

    /// Replaces the tags of an image.
    pub fn set_tags(&self, id: ImageId, tags: &[Tag]) -> Result<(), ImageError> {
        self.change(id, |image| image.tags = tags.to_vec()).map(|_| ())
    }

    /// Changes the description of an image.
    pub fn describe(&self, id: ImageId, description: &str) -> Result<(), ImageError> {
        self.change(id, |image| description.clone_into(&mut image.description)).map(|_| ())
    }

    /// Notes how far the image has come.
    pub(crate) fn note(&self, id: ImageId, progress: Progress) -> Result<Image, ImageError> {
        self.change(id, |image| image.progress = progress)
    }

    fn change(&self, id: ImageId, mut change: impl FnMut(&mut Image)) -> Result<Image, ImageError> {
        transact(self.store, |tx| {
            let mut image = self.get(tx, id)?;
            change(&mut image);
            tx.put(&image)?;
            Ok(image)
        })
    }

    fn get(&self, tx: &mut Transaction<'_>, id: ImageId) -> Result<Image, ImageError> {
        let missing = || ImageError::NotFound { wanted: id.to_string(), suggestions: Vec::new() };
        tx.get::<Image>(&id)?.ok_or_else(missing)
    }
}
