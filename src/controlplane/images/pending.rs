//! Images of files that are being copied: a row that says so, and later what became of it.
//!
//! ```text
//!   begin: row, pending, with the path ─▶ carry_out: copy ─▶ file under its name ─▶ row, complete
//!                     └────── killed, begun again ──┘    └─ it could not be ──────▶ row, failed, why
//! ```

use std::path::PathBuf;

use kiln_model::{ByteSize, Clock, ImageId};
use serde::{Deserialize, Serialize};

use super::made::put_named;
use super::{
    AlsoImage, Drivers, FileIdentity, Image, ImageError, Images, ImportRequest, Source, check_name,
    default_name,
};
use crate::progress::Reporter;
use crate::state::transact;
use crate::volumes::Progress;

/// Where the contents of a pending image come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingImport {
    path: PathBuf,
    identity: FileIdentity,
}

impl Images<'_> {
    /// Writes the row of an image whose file is yet to be copied. Everything that can be said of the file
    /// without reading all of it is said here.
    pub fn begin_import(
        &self,
        request: &ImportRequest,
        description: &str,
        clock: &dyn Clock,
        also: &mut AlsoImage<'_>,
    ) -> Result<Image, ImageError> {
        let name = request.name.clone().unwrap_or_else(|| default_name(&request.path));
        check_name(&name)?;
        let source = Source::open(&request.path, request.format)?;
        self.check_space(&source)?;
        let image = Image {
            description: description.to_owned(),
            progress: Progress::Pending,
            drivers: request.drivers.clone(),
            importing: Some(PendingImport { path: source.path.clone(), identity: source.identity }),
            ..Image::of_file(ImageId::from_bits(rand::random()), name, &source, clock.unix_seconds())
        };
        transact(self.store, |tx| {
            put_named(tx, &image)?;
            also(tx, &image)?;
            Ok(image.clone())
        })
    }

    /// Copies the file of a pending image. Whatever becomes of it is in the row when this returns; `None` if
    /// the row is gone, or was not pending.
    pub(crate) fn carry_out(
        &self,
        id: ImageId,
        reporter: &dyn Reporter,
    ) -> Result<Option<Image>, ImageError> {
        let Some(image) = transact(self.store, |tx| tx.get::<Image>(&id))? else { return Ok(None) };
        let Some(import) = image.importing.clone().filter(|_| image.progress == Progress::Pending) else {
            return Ok(None);
        };
        let result = self.copy_in(&image, &import, reporter);
        transact(self.store, |tx| {
            let Some(mut row) = tx.get::<Image>(&id)? else { return Ok(None) };
            row.importing = None;
            match &result {
                Ok(done) => (row.sha256, row.progress) = (done.clone(), Progress::Complete),
                Err(e) => {
                    row.progress = Progress::Failed;
                    row.failure = Some(crate::instances::chain(e));
                }
            }
            tx.put(&row)?;
            Ok::<_, ImageError>(Some(row))
        })
    }

    /// Answers the digest of the file that is there then.
    fn copy_in(
        &self,
        image: &Image,
        import: &PendingImport,
        reporter: &dyn Reporter,
    ) -> Result<String, ImageError> {
        let source = Source::open(&import.path, Some(image.format))?;
        if source.identity != import.identity {
            return Err(ImageError::ChangedMeanwhile(source.path));
        }
        let (unfinished, sha256) =
            self.copy_source(&source, image.name.as_deref().unwrap_or_default(), reporter)?;
        let done = Image { sha256: sha256.clone(), ..image.clone() };
        let _lock = self.dir.lock_images()?;
        // Before the file has its name: a sweep keeps what a row names.
        transact(self.store, |tx| {
            let Some(mut row) = tx.get::<Image>(&image.id)? else {
                return Err(ImageError::NotFound { wanted: image.id.to_string(), suggestions: Vec::new() });
            };
            row.sha256.clone_from(&sha256);
            Ok(tx.put(&row)?)
        })?;
        unfinished.publish(&self.path(&done))?;
        Ok(sha256)
    }

    /// Images whose files are still to be copied.
    pub(crate) fn pending_imports(&self) -> Result<Vec<ImageId>, ImageError> {
        let pending = |image: &Image| image.importing.is_some() && image.progress == Progress::Pending;
        Ok(self.list()?.iter().filter(|image| pending(image)).map(|image| image.id).collect())
    }
}

impl Image {
    /// A complete image of a file; without its digest.
    pub(super) fn of_file(id: ImageId, name: String, source: &Source, created: u64) -> Self {
        Image {
            id,
            name: Some(name),
            format: source.format,
            sha256: String::new(),
            file_bytes: ByteSize::bytes(source.file_bytes),
            virtual_size: source.virtual_size,
            created,
            source: source.path.display().to_string(),
            launches: 0,
            root: None,
            made_of: Vec::new(),
            root_device: None,
            devices: Vec::new(),
            progress: Progress::Complete,
            importing: None,
            failure: None,
            drivers: Drivers::default(),
            description: String::new(),
            tags: Vec::new(),
        }
    }
}
