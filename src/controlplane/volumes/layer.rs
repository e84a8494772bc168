//! Files that volumes are made of, and which of them somebody needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use kiln_model::{SnapshotId, VolumeId};
use kiln_vmspec::DiskFormat;
use serde::{Deserialize, Serialize};

use super::{Snapshot, Volume, VolumeError};
use crate::images::{FileIdentity, Image, Source, SourceError};
use crate::state::{StateDir, Store, StoreError, transact};

/// A file that is read and never written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Layer {
    /// An imported image, by the name of its file, which says what is in it.
    Image {
        /// In the directory of images.
        file: String,
        /// Its declared format.
        format: DiskFormat,
    },
    /// What a snapshot keeps.
    Snapshot {
        /// Whose.
        snapshot: SnapshotId,
    },
    /// What several snapshots keep together, made when a snapshot was taken over too many of them.
    Merged {
        /// Of which snapshot.
        snapshot: SnapshotId,
    },
    /// A file or device that is used where it is.
    InPlace {
        /// Absolute path.
        path: PathBuf,
        /// How it was when it was first used.
        identity: FileIdentity,
        /// Its declared format.
        format: DiskFormat,
    },
}

impl Layer {
    /// Its declared format.
    pub fn format(&self) -> DiskFormat {
        match self {
            Layer::Image { format, .. } | Layer::InPlace { format, .. } => *format,
            Layer::Snapshot { .. } | Layer::Merged { .. } => DiskFormat::Qcow2,
        }
    }

    /// Whether layers above it may be made one with it: it is not a whole disk that others share.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self, Layer::Snapshot { .. } | Layer::Merged { .. })
    }

    /// Where it is.
    pub fn path(&self, dir: &StateDir) -> PathBuf {
        match self {
            Layer::Image { file, .. } => dir.images().join(file),
            Layer::Snapshot { snapshot } => snapshot_path(dir, *snapshot),
            Layer::Merged { snapshot } => dir.volumes().join(merged_name(*snapshot)),
            Layer::InPlace { path, .. } => path.clone(),
        }
    }

    /// Opens it for reading, if it is still what it was.
    pub(crate) fn open(&self, dir: &StateDir) -> Result<File, VolumeError> {
        if let Layer::InPlace { path, identity, format } = self {
            let source = Source::open(path, Some(*format))?;
            if source.identity != *identity {
                return Err(SourceError::Changed(path.clone()).into());
            }
            return Ok(source.file);
        }
        let path = self.path(dir);
        File::open(&path).map_err(|source| VolumeError::Io { action: "open", path, source })
    }
}

/// Where a volume's own layer is.
pub(super) fn volume_path(dir: &StateDir, id: VolumeId) -> PathBuf {
    dir.volumes().join(format!("{id}.qcow2"))
}

/// Where a snapshot's own layer is.
pub(super) fn snapshot_path(dir: &StateDir, id: SnapshotId) -> PathBuf {
    dir.volumes().join(format!("{id}.qcow2"))
}

fn merged_name(snapshot: SnapshotId) -> String {
    format!("{snapshot}-below.qcow2")
}

/// Names of all files that some row needs.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// In the directory of images.
    pub images: BTreeSet<String>,
    /// In the directory of volumes.
    pub volumes: BTreeSet<String>,
}

impl Names {
    fn add(&mut self, layers: &[Layer]) {
        for layer in layers {
            match layer {
                Layer::Image { file, .. } => drop(self.images.insert(file.clone())),
                Layer::Snapshot { snapshot } => drop(self.volumes.insert(format!("{snapshot}.qcow2"))),
                Layer::Merged { snapshot } => drop(self.volumes.insert(merged_name(*snapshot))),
                Layer::InPlace { .. } => {}
            }
        }
    }
}

/// Which files the rows need. A row that is written later may need more only of what another needs now.
pub(crate) fn named(store: &dyn Store) -> Result<Names, StoreError> {
    let mut names = Names::default();
    transact(store, |tx| {
        for volume in tx.list::<Volume>()? {
            names.volumes.insert(format!("{}.qcow2", volume.id));
            names.add(&volume.below);
        }
        for snapshot in tx.list::<Snapshot>()? {
            names.volumes.insert(format!("{}.qcow2", snapshot.id));
            names.add(&snapshot.layers);
            names.add(snapshot.upload.as_ref().map_or(&[], |upload| &upload.merges));
        }
        tx.list::<Image>()?.iter().for_each(|image| names.add(&image.layers()));
        Ok::<_, StoreError>(())
    })?;
    Ok(names)
}
