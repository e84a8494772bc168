//! Qcow2 images through the crate `imago`.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use vm_memory::VolatileSlice;

use crate::disk::check_range;
use crate::open::{Format, Layer};
use crate::positioned::total_len;
use crate::raw::file_size;
use crate::{Disk, DiskError, Extent};

type Image = FormatAccess<imago::file::File>;

/// A qcow2 image over its backing images.
pub(crate) struct Qcow2Disk {
    image: Mutex<Image>,
    size: u64,
    read_only: bool,
}

/// The image that a new overlay lies over, as written into its header for other tools to find. We
/// never follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Absolute path.
    pub path: String,
    /// Its format.
    pub format: Format,
}

/// Writes a fresh overlay of `size_bytes` into `file`, replacing its contents.
pub fn create_overlay(file: File, size_bytes: u64, backing: Option<&Backing>) -> Result<(), DiskError> {
    let storage = storage(file)?;
    let mut builder = Qcow2::<imago::file::File>::create_builder(storage).size(size_bytes);
    if let Some(backing) = backing {
        builder = builder.backing(backing.path.clone(), backing.format.name().to_owned());
    }
    builder.create().map_err(|source| DiskError::Io { action: "creating a qcow2 overlay".to_owned(), source })
}

fn storage(file: File) -> Result<imago::file::File, DiskError> {
    imago::file::File::try_from(file)
        .map_err(|source| DiskError::Io { action: "opening the image file".to_owned(), source })
}

fn format_error(format: &'static str, error: &io::Error) -> DiskError {
    DiskError::Format { format, detail: error.to_string() }
}

impl Qcow2Disk {
    pub(crate) fn open(
        file: File,
        below: impl DoubleEndedIterator<Item = Layer>,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        let mut backing: Option<Arc<Image>> = None;
        for layer in below.rev() {
            let image = match layer.format {
                Format::Raw if backing.is_some() => {
                    return Err(DiskError::Format {
                        format: "raw",
                        detail: "a raw image cannot be an overlay over another image".to_owned(),
                    });
                }
                Format::Raw => {
                    let size = file_size(&layer.file)?;
                    if !size.is_multiple_of(crate::SECTOR_SIZE) {
                        return Err(DiskError::Format {
                            format: "raw",
                            detail: format!("its size of {size} bytes is not a multiple of 512"),
                        });
                    }
                    let raw =
                        Raw::open_image(storage(layer.file)?, false).map_err(|e| format_error("raw", &e))?;
                    FormatAccess::new(raw)
                }
                Format::Qcow2 => Self::open_image(layer.file, backing.take(), false)?,
            };
            backing = Some(Arc::new(image));
        }
        let image = Self::open_image(file, backing, !read_only)?;
        let size = image.size();
        if !size.is_multiple_of(crate::SECTOR_SIZE) {
            return Err(DiskError::Format {
                format: "qcow2",
                detail: format!("its size of {size} bytes is not a multiple of 512"),
            });
        }
        Ok(Self { image: Mutex::new(image), size, read_only })
    }

    fn open_image(file: File, backing: Option<Arc<Image>>, writable: bool) -> Result<Image, DiskError> {
        let image = Qcow2::<imago::file::File, Arc<Image>>::builder(storage(file)?)
            .backing(backing)
            .data_file(None)
            .write(writable)
            .open(DenyImplicitOpenGate::default())
            .map_err(|e| format_error("qcow2", &e))?;
        if image.requires_external_data_file() {
            return Err(DiskError::Format {
                format: "qcow2",
                detail: "it keeps its data in another file".to_owned(),
            });
        }
        Ok(FormatAccess::new(image))
    }

    fn lock(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> Result<(), DiskError> {
        if self.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        let len = check_range(offset, total_len(bufs), self.size)?;
        let (vector, _guard) = IoVectorMut::from_volatile_slice(bufs);
        self.lock().readv(vector, offset).map_err(|e| DiskError::transfer("read", len, offset, e))
    }

    fn write_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, total_len(bufs), self.size)?;
        let (vector, _guard) = IoVector::from_volatile_slice(bufs);
        self.lock().writev(vector, offset).map_err(|e| DiskError::transfer("write", len, offset, e))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        let image = self.lock();
        image
            .flush()
            .and_then(|()| image.sync())
            .map_err(|source| DiskError::Io { action: "flush".to_owned(), source })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, Some(len), self.size)?;
        self.lock().write_zeroes(offset, len).map_err(|e| DiskError::transfer("zeroing", len, offset, e))
    }

    fn extent(&self, _offset: u64, _len: u64, _write: bool) -> Option<Extent> {
        None
    }

    fn discard_granularity(&self) -> u32 {
        65536
    }
}
