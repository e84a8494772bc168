//! Images of instances: rows that name layers which snapshots keep, and copies of rows.

use kiln_model::{ByteSize, Clock, ImageId, SnapshotId, Tag};
use kiln_vmspec::DiskFormat;

use super::{Image, ImageError, ImageName, Images, check_name};
use crate::state::{Transaction, transact};
use crate::volumes::{BlockDevice, Layer, Progress};

/// What a new image of an instance is made of.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) tags: Vec<Tag>,
    pub(crate) root: SnapshotId,
    pub(crate) layers: Vec<Layer>,
    pub(crate) devices: Vec<BlockDevice>,
    pub(crate) size: ByteSize,
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

    /// Snapshots that it is made of.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        self.root.into_iter().chain(self.devices.iter().filter_map(|device| device.snapshot))
    }
}

/// The pending row of a new image of an instance, as part of `tx`.
pub(crate) fn put_made(tx: &mut Transaction<'_>, made: &Made, now: u64) -> Result<Image, ImageError> {
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
        devices: made.devices.clone(),
        progress: Progress::Pending,
        description: made.description.clone(),
        tags: made.tags.clone(),
    };
    put_named(tx, &image)?;
    Ok(image)
}

/// Writes a row and its name, which must be free.
fn put_named(tx: &mut Transaction<'_>, image: &Image) -> Result<(), ImageError> {
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

impl Images<'_> {
    /// `CopyImage`: another row over the same files.
    pub fn copy(
        &self,
        id: ImageId,
        name: &str,
        description: &str,
        clock: &dyn Clock,
    ) -> Result<Image, ImageError> {
        transact(self.store, |tx| {
            let from = self.get(tx, id)?;
            if from.progress != Progress::Complete {
                return Err(ImageError::NotReady(id));
            }
            let copy = Image {
                id: ImageId::from_bits(rand::random()),
                name: Some(name.to_owned()),
                description: description.to_owned(),
                created: clock.unix_seconds(),
                tags: Vec::new(),
                launches: 0,
                ..from
            };
            put_named(tx, &copy)?;
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
