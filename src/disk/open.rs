//! The one way in: a chain of open files becomes a disk.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use crate::lock::ImageFile;
use crate::qcow2::Qcow2Disk;
use crate::{Disk, DiskError, RawDisk};

/// Format of one image. Always declared, never guessed from the contents: a guest can write
/// whatever header it likes into a raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the file are the bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// Name as in `qemu-img -f`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// The image. For a disk that is to be written, the top file must be open for writing.
    pub file: File,
    /// What is in it.
    pub format: Format,
}

/// Layers that a chain may have: far more than any sensible use, few enough to walk for each read.
const MAX_LAYERS: usize = 16;

/// Opens a disk from its layers, top first. Each layer but the last is a qcow2 overlay over the
/// next; names of backing files *inside* the images are never followed.
///
/// The top file is locked against every other user (against writers only, if `read_only`), the
/// lower ones against writers.
pub fn open(layers: Vec<Layer>, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
    let mut layers = locked(layers, read_only)?.into_iter();
    let Some((top, format)) = layers.next() else {
        return Err(DiskError::Format { format: "disk", detail: "its chain of images is empty".to_owned() });
    };
    match format {
        Format::Raw if layers.len() > 0 => Err(DiskError::raw_overlay()),
        Format::Raw => Ok(Arc::new(RawDisk::over(top, read_only)?)),
        Format::Qcow2 => Ok(Arc::new(Qcow2Disk::open(top, layers, read_only)?)),
    }
}

/// Takes the locks of a chain of images.
pub(crate) fn locked(layers: Vec<Layer>, read_only: bool) -> Result<Vec<(ImageFile, Format)>, DiskError> {
    if layers.len() > MAX_LAYERS {
        return Err(DiskError::Format {
            format: "disk",
            detail: format!("its chain of {} images is longer than {MAX_LAYERS}", layers.len()),
        });
    }
    let mut locked = Vec::with_capacity(layers.len());
    for (depth, Layer { file, format }) in layers.into_iter().enumerate() {
        let write = depth == 0 && !read_only;
        let file = if write { ImageFile::exclusive(file)? } else { ImageFile::shared(file)? };
        locked.push((file, format));
    }
    Ok(locked)
}
