//! Base images: imported once, named by their contents, never written.
//!
//! ```text
//!   import FILE ─▶ images/.import-… (locked, sparse, hashed) ─▶ images/sha256-<hex>.<format>  0444
//!                                                            └▶ rows image/ami-…, image-name/…
//! ```
//!
//! Several rows may share one file. A file exists as long as a row names it; both change under one
//! lock, so that an import cannot adopt a file that a removal is about to delete.

mod copy;
mod inspect;
mod made;
mod pending;
mod qcow2_header;
mod source;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_model::{ByteSize, Clock, ImageId, InstanceId, SnapshotId, Tag, nearest};
use kiln_vmspec::DiskFormat;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::instances::{BaseImage, Instance};
use crate::progress::Reporter;
use crate::state::{Row, StateDir, Store, StoreError, transact};
use crate::volumes::{self, BlockDevice, Layer, Progress, VolumeError};

pub(crate) use copy::copy_sparsely;
pub use inspect::{InspectError, Report, inspect};
pub use made::{AlsoImage, CopyWish, Registration};
pub(crate) use made::{Made, put_made};
pub use pending::PendingImport;
pub use source::{FileIdentity, Source, SourceError, declared_format};

/// Files of unfinished imports start with this.
const UNFINISHED: &str = ".import-";
/// And those of imported images with this.
const FINISHED: &str = "sha256-";
/// Longest name.
const MAX_NAME: usize = 128;

/// An imported image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name, if it has not been given to another image since.
    pub name: Option<String>,
    /// Declared format.
    pub format: DiskFormat,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub file_bytes: ByteSize,
    /// Size of the disk inside.
    pub virtual_size: ByteSize,
    /// When it was imported, Unix seconds.
    pub created: u64,
    /// The file it came from, for people.
    pub source: String,
    /// Number of launches. Changes with each, so that a removal and a launch at the same time
    /// cannot both succeed.
    pub launches: u64,
    /// Of an image of an instance: the snapshot of its root volume. It has no file and no digest of its own.
    #[serde(default)]
    pub root: Option<SnapshotId>,
    /// And the layers of that snapshot. See [`Image::layers`].
    #[serde(default)]
    pub made_of: Vec<Layer>,
    /// What it says of the root volume of its instances, if anything.
    #[serde(default)]
    pub root_device: Option<BlockDevice>,
    /// Volumes besides the root volume that its instances get.
    #[serde(default)]
    pub devices: Vec<BlockDevice>,
    /// How far it is.
    #[serde(default)]
    pub progress: Progress,
    /// The file that is being copied.
    #[serde(default)]
    pub importing: Option<PendingImport>,
    /// Why it could not be made.
    #[serde(default)]
    pub failure: Option<String>,
    /// What was said of its drivers.
    #[serde(default)]
    pub drivers: Drivers,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
}

/// Which of EC2's network interfaces an image is said to know. Remembered and shown: instances have virtio.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drivers {
    /// Elastic network adapter.
    pub ena: bool,
    /// The older one: `simple`.
    pub sriov: Option<String>,
}

impl Image {
    /// Name of its file in the images directory.
    fn file_name(&self) -> String {
        format!("{FINISHED}{}.{}", self.sha256, format_name(self.format))
    }
}

/// Name of a format as people and `qemu-img` write it.
pub fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

impl Row for Image {
    const KIND: &'static str = "image";
    type Key = ImageId;

    fn key(&self) -> ImageId {
        self.id
    }
}

/// Which image a name stands for.
#[derive(Debug, Serialize, Deserialize)]
struct ImageName {
    name: String,
    image: ImageId,
}

impl Row for ImageName {
    const KIND: &'static str = "image-name";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Copying failed.
    #[error("cannot {action} the imported image at {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The source changed while it was read.
    #[error("{0} changed while it was being imported (import it again when nothing writes to it)")]
    ChangedMeanwhile(PathBuf),
    /// Not enough room.
    #[error(
        "the state directory has {free} free, the image needs up to {needed} (make room, or use another --state-dir)"
    )]
    NoSpace {
        /// Free bytes for this user.
        free: ByteSize,
        /// Allocated bytes of the source.
        needed: ByteSize,
    },
    /// Not a name.
    #[error(
        "{0:?} cannot be the name of an image (use 1 to 128 letters, digits, dots, dashes and underscores, \
         starting with a letter or digit, and not ami-)"
    )]
    BadName(String),
    /// The name stands for another image.
    #[error(
        "an image named {name} exists already ({id}); give another --name, or --replace to move the name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// What it stands for.
        id: ImageId,
    },
    /// No such image or file.
    #[error("there is no image or file {wanted:?} ({})", missing_hint(suggestions))]
    NotFound {
        /// As given.
        wanted: String,
        /// Names that look similar.
        suggestions: Vec<String>,
    },
    /// It is still being made, or could not be.
    #[error("image {0} is not available")]
    NotReady(ImageId),
    /// It has no file of its own.
    #[error("image {0} was made of an instance, its contents are not in one file")]
    Layered(ImageId),
    /// Files of volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Instances need it.
    #[error("image {id} is the base of {} (terminate {} first: kiln terminate {})", list(instances),
        if instances.len() == 1 { "it" } else { "them" }, spaced(instances))]
    InUse {
        /// The image.
        id: ImageId,
        /// Who needs it.
        instances: Vec<InstanceId>,
    },
}

fn list(ids: &[InstanceId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn spaced(ids: &[InstanceId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn missing_hint(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        "see `kiln image ls`, or import one with `kiln image import FILE`".to_owned()
    } else {
        format!("did you mean {}? See `kiln image ls`", suggestions.join(", "))
    }
}

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format, where the name does not say it.
    pub format: Option<DiskFormat>,
    /// Name of the image; by default the file's without its end.
    pub name: Option<String>,
    /// Move the name if it stands for another image.
    pub replace: bool,
    /// What is said of its drivers.
    pub drivers: Drivers,
}

/// The images of one state directory.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// Rows.
    pub store: &'a dyn Store,
    /// Files.
    pub dir: &'a StateDir,
}

impl std::fmt::Debug for Images<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("dir", self.dir).finish_non_exhaustive()
    }
}

/// Checks that `name` can stand where an id or a path could stand too.
fn check_name(name: &str) -> Result<(), ImageError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.starts_with(ImageId::PREFIX);
    if valid { Ok(()) } else { Err(ImageError::BadName(name.to_owned())) }
}

fn default_name(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Images<'_> {
    /// All images, oldest first.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = transact(self.store, |tx| tx.list::<Image>())?;
        images.sort_by_key(|image| (image.created, image.id));
        Ok(images)
    }

    /// The image that an id or a name stands for.
    pub fn find(&self, wanted: &str) -> Result<Image, ImageError> {
        let found = transact(self.store, |tx| {
            let id = match wanted.parse() {
                Ok(id) => Some(id),
                Err(_) => tx.get::<ImageName>(&wanted.to_owned())?.map(|name| name.image),
            };
            Ok::<_, StoreError>(match id {
                Some(id) => tx.get::<Image>(&id)?,
                None => None,
            })
        })?;
        match found {
            Some(image) => Ok(image),
            None => Err(self.not_found(wanted)),
        }
    }

    fn not_found(&self, wanted: &str) -> ImageError {
        let names: Vec<_> = self.list().unwrap_or_default().into_iter().filter_map(|i| i.name).collect();
        let suggestions =
            nearest(wanted, names.iter().map(String::as_str), 3).into_iter().map(str::to_owned).collect();
        ImageError::NotFound { wanted: wanted.to_owned(), suggestions }
    }

    /// The file of an image.
    pub fn path(&self, image: &Image) -> PathBuf {
        self.dir.images().join(image.file_name())
    }

    /// Opens the file of an imported image for reading.
    pub fn open(&self, image: &Image) -> Result<File, ImageError> {
        if image.root.is_some() {
            return Err(ImageError::Layered(image.id));
        }
        if image.progress != Progress::Complete {
            return Err(ImageError::NotReady(image.id));
        }
        let path = self.path(image);
        File::open(&path).map_err(|source| ImageError::Io { action: "open", path, source })
    }

    /// Copies a file into the state directory and gives it a row. Importing the same contents under
    /// the same name again changes nothing and answers the image that is there.
    pub fn import(
        &self,
        request: &ImportRequest,
        clock: &dyn Clock,
        reporter: &dyn Reporter,
    ) -> Result<Image, ImageError> {
        let name = request.name.clone().unwrap_or_else(|| default_name(&request.path));
        check_name(&name)?;
        let source = Source::open(&request.path, request.format)?;
        self.check_space(&source)?;
        let (unfinished, sha256) = self.copy_source(&source, &name, reporter)?;
        let id = ImageId::from_bits(rand::random());
        let image = Image { sha256, ..Image::of_file(id, name, &source, clock.unix_seconds()) };
        let _lock = self.dir.lock_images()?;
        unfinished.publish(&self.path(&image))?;
        let added = self.add_rows(&image, request.replace);
        if added.is_err() {
            self.remove_unused()?;
        }
        added
    }

    /// Copies a file into the directory of images, as yet without its name; answers its digest too.
    fn copy_source(
        &self,
        source: &Source,
        name: &str,
        reporter: &dyn Reporter,
    ) -> Result<(Unfinished, String), ImageError> {
        let unfinished = Unfinished::create(&self.dir.images())?;
        let progress = reporter.task(&format!("Importing {name}"), source.file_bytes);
        let digest = copy::copy(&source.file, &unfinished.file, source.file_bytes, progress.as_ref())
            .map_err(unfinished.failed("write"))?;
        drop(progress);
        // The open file is the same by definition; its name may stand for another by now, which
        // would not matter. What matters is that nobody wrote.
        let again = Source::open(&source.path, Some(source.format))?;
        if again.identity != source.identity {
            return Err(ImageError::ChangedMeanwhile(source.path.clone()));
        }
        Ok((unfinished, digest.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Writes the rows of a new image, or answers the one that is there already.
    fn add_rows(&self, image: &Image, replace: bool) -> Result<Image, ImageError> {
        let name = image.name.clone().unwrap_or_default();
        transact(self.store, |tx| {
            let before = match tx.get::<ImageName>(&name)? {
                Some(row) => tx.get::<Image>(&row.image)?,
                None => None,
            };
            if let Some(mut before) = before {
                if (&before.sha256, before.format) == (&image.sha256, image.format) {
                    return Ok(before);
                }
                if !replace {
                    return Err(ImageError::NameTaken { name: name.clone(), id: before.id });
                }
                before.name = None;
                tx.put(&before)?;
            }
            tx.put(&ImageName { name: name.clone(), image: image.id })?;
            tx.put(image)?;
            Ok(image.clone())
        })
    }

    /// Removes an image that no instance needs.
    pub fn remove(&self, wanted: &str) -> Result<Image, ImageError> {
        let image = self.find(wanted)?;
        let _lock = self.dir.lock_images()?;
        transact(self.store, |tx| {
            // Read first: a launch that comes between the look at the instances and the commit
            // changes this row, and this body runs again.
            let Some(row) = tx.get::<Image>(&image.id)? else { return Ok(()) };
            let uses = |i: &Instance| !i.is_gone() && i.root.base == BaseImage::Imported { image: image.id };
            let users = tx.list::<Instance>()?.into_iter().filter(uses);
            let instances: Vec<_> = users.map(|i| i.id).collect();
            if !instances.is_empty() {
                return Err(ImageError::InUse { id: image.id, instances });
            }
            if let Some(name) = row.name {
                tx.remove::<ImageName>(&name);
            }
            tx.remove::<Image>(&image.id);
            Ok(())
        })?;
        self.remove_unused()?;
        Ok(image)
    }

    /// Removes files that no row needs. Call under the images lock.
    fn remove_unused(&self) -> Result<(), ImageError> {
        let dir = self.dir.images();
        let entries = fs::read_dir(&dir);
        let entries =
            entries.map_err(|source| ImageError::Io { action: "list", path: dir.clone(), source })?;
        let found: Vec<_> = entries.filter_map(Result::ok).collect();
        let named = volumes::named(self.store)?.images;
        for entry in found {
            let name = entry.file_name().to_string_lossy().into_owned();
            let dead = if name.starts_with(UNFINISHED) {
                // A living import holds the lock of its file.
                File::open(entry.path())
                    .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
            } else {
                name.starts_with(FINISHED) && !named.contains(&name)
            };
            if dead {
                // Whoever cannot remove it leaves it to the next sweep.
                let _ = fs::remove_file(entry.path());
            }
        }
        volumes::sweep(self.store, self.dir)?;
        Ok(())
    }

    fn check_space(&self, source: &Source) -> Result<(), ImageError> {
        let Ok(fs) = rustix::fs::statvfs(self.dir.root()) else { return Ok(()) };
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        let allocated = rustix::fs::fstat(&source.file)
            .ok()
            .and_then(|stat| u64::try_from(stat.st_blocks).ok())
            .map_or(0, |blocks| blocks.saturating_mul(512));
        if allocated > free {
            return Err(ImageError::NoSpace {
                free: ByteSize::bytes(free),
                needed: ByteSize::bytes(allocated),
            });
        }
        Ok(())
    }

    /// Removes files of imports whose process was killed, and files of images and volumes that no row needs.
    pub(crate) fn sweep(&self) -> Result<(), ImageError> {
        // Under the lock, an import is not between its file and its row.
        let _lock = self.dir.lock_images()?;
        self.remove_unused()
    }
}

/// A file under import: locked as long as its process lives, removed unless published.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn create(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
        let failed = |source| ImageError::Io { action: "create", path: path.clone(), source };
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        // A sweep that comes before the lock removes the file; publishing then fails, which is
        // told. The window is two system calls wide.
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
        Ok(Unfinished { file, path })
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> ImageError {
        let path = self.path.clone();
        move |source| ImageError::Io { action, path, source }
    }

    /// Makes the file durable, read-only and visible under its name.
    fn publish(self, target: &Path) -> Result<(), ImageError> {
        self.file.set_permissions(Permissions::from_mode(0o444)).map_err(self.failed("protect"))?;
        self.file.sync_all().map_err(self.failed("write"))?;
        fs::rename(&self.path, target).map_err(self.failed("rename"))?;
        let dir = target.parent().unwrap_or(target);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(self.failed("write"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After publishing there is nothing at this path.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
