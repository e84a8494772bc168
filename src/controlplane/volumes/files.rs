//! Making, opening and copying the files of volumes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use kiln_disk::{Backing, Chain, DiskError, Format};
use kiln_model::SnapshotId;
use kiln_vmspec::DiskFormat;
use rustix::fs::{FlockOperation, flock};

use super::layer::{snapshot_path, volume_path};
use super::{Layer, Snapshot, Volume, VolumeError};
use crate::images::copy_sparsely;
use crate::state::StateDir;

pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { action, path: path.clone(), source }
}

fn format(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}

/// Makes a volume's own layer, with nothing on it yet; one that is there already is replaced.
pub(crate) fn make_volume(dir: &StateDir, volume: &Volume) -> Result<(), VolumeError> {
    let path = volume_path(dir, volume.id);
    remove(&path)?;
    let mut options = OpenOptions::new();
    options.create_new(true).read(true).write(true).mode(0o600);
    let file = options.open(&path).map_err(failed("create", &path))?;
    let synced = file.try_clone().map_err(failed("create", &path))?;
    let over = volume.below.first().map(|below| backing(dir, below));
    kiln_disk::create_overlay(file, volume.size.as_bytes(), over.as_ref())
        .map_err(|source| VolumeError::Disk { path: path.clone(), source: Box::new(source) })?;
    synced.sync_all().and_then(|()| sync_dir(&dir.volumes())).map_err(failed("write", &path))
}

/// As long as it lives, nobody who looks opens the volume to write it.
pub(crate) struct Unwritten {
    _file: File,
}

impl Unwritten {
    /// Waits for nobody: several may copy at once, and whoever opens to write lets go at once.
    pub(crate) fn take(dir: &StateDir, volume: &Volume) -> Result<Self, VolumeError> {
        let path = volume_path(dir, volume.id);
        let file = File::open(&path).map_err(failed("open", &path))?;
        flock(&file, FlockOperation::LockShared).map_err(|e| failed("lock", &path)(e.into()))?;
        Ok(Unwritten { _file: file })
    }
}

/// Makes a volume larger that nobody has open.
pub(super) fn grow_volume(dir: &StateDir, volume: &Volume) -> Result<(), VolumeError> {
    let path = volume_path(dir, volume.id);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| failed("lock", &path)(e.into()))?;
    kiln_disk::grow_overlay(&file, volume.size.as_bytes())
        .map_err(|source| VolumeError::Disk { path, source: Box::new(source) })?;
    Ok(())
}

/// Opens all files of a volume, top first; only the first for writing, once nobody copies it. Say in a row
/// before that it is going to be written: see [`Unwritten`].
pub(crate) fn open_volume(dir: &StateDir, volume: &Volume) -> Result<Vec<(File, DiskFormat)>, VolumeError> {
    let files = try_open_volume(dir, volume)?;
    if let Some((top, _)) = files.first() {
        // Taken and given back: only copies hold it for longer.
        let path = volume_path(dir, volume.id);
        let passed =
            flock(top, FlockOperation::LockExclusive).and_then(|()| flock(top, FlockOperation::Unlock));
        passed.map_err(|e| failed("lock", &path)(e.into()))?;
    }
    Ok(files)
}

/// The same without waiting for anybody, to see whether it can be done.
pub(crate) fn try_open_volume(
    dir: &StateDir,
    volume: &Volume,
) -> Result<Vec<(File, DiskFormat)>, VolumeError> {
    let path = volume_path(dir, volume.id);
    let top = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
    let mut files = vec![(top, DiskFormat::Qcow2)];
    for layer in &volume.below {
        files.push((layer.open(dir)?, layer.format()));
    }
    Ok(files)
}

/// Copies a volume's own layer, which nobody writes meanwhile, and makes it that of `snapshot`, whose row says
/// what it lies over. Where the file system shares blocks between files it takes no time and no room.
pub(crate) fn copy_layer(dir: &StateDir, volume: &Volume, snapshot: &Snapshot) -> Result<(), VolumeError> {
    let from = volume_path(dir, volume.id);
    let source = File::open(&from).map_err(failed("open", &from))?;
    publish(dir, &snapshot_path(dir, snapshot.id), |target, path| {
        copy_sparsely(&source, target).map_err(failed("write", path))?;
        match snapshot.layers.get(1) {
            Some(below) if volume.below.first() != Some(below) => {
                kiln_disk::rebase_overlay(target, &backing(dir, below))
                    .map_err(|source| VolumeError::Disk { path: path.to_owned(), source: Box::new(source) })
            }
            _ => Ok(()),
        }
    })
}

/// Makes one layer of the upper ones of `below`, as `merged` names it; what is there already stays.
pub(crate) fn merge_layers(dir: &StateDir, merged: &Layer, below: &[Layer]) -> Result<(), VolumeError> {
    let to = merged.path(dir);
    if to.exists() {
        // It got its name when it was whole.
        return Ok(());
    }
    let parts = below.iter().take_while(|layer| layer.is_part()).count();
    let (upper, rest) = below.split_at(parts);
    publish(dir, &to, |target, path| {
        let upper = upper.iter().map(|layer| layer.open(dir)).collect::<Result<Vec<_>, _>>()?;
        let open = |layer: &Layer| {
            Ok::<_, VolumeError>(kiln_disk::Layer { file: layer.open(dir)?, format: format(layer.format()) })
        };
        let lower = rest.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let over = rest.first().map(|below| backing(dir, below));
        kiln_disk::merge_overlays(upper, lower, target, over.as_ref())
            .map_err(|source| VolumeError::Disk { path: path.to_owned(), source: Box::new(source) })
    })
}

/// Opens the layer of an upload for writing; makes it, with `prepare`, if it is not there.
pub(super) fn make_upload(
    dir: &StateDir,
    snapshot: &Snapshot,
    prepare: impl Fn(&File) -> io::Result<()>,
) -> Result<File, VolumeError> {
    let path = snapshot_path(dir, snapshot.id);
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        result => return result.map_err(failed("open", &path)),
    }
    let over = snapshot.layers.get(1).map(|below| backing(dir, below));
    make(dir, &path, 0o600, |target, part| {
        let again = target.try_clone().map_err(failed("create", part))?;
        kiln_disk::create_overlay(again, snapshot.size.as_bytes(), over.as_ref())
            .map_err(|source| VolumeError::Disk { path: part.to_owned(), source: Box::new(source) })?;
        prepare(target).map_err(failed("write", part))
    })?;
    options.open(&path).map_err(failed("open", &path))
}

/// The layer of an upload is whole: it is never written again.
pub(super) fn seal(dir: &StateDir, snapshot: SnapshotId, file: &File) -> Result<(), VolumeError> {
    let sealed = file.set_permissions(Permissions::from_mode(0o444)).and_then(|()| file.sync_all());
    sealed.and_then(|()| sync_dir(&dir.volumes())).map_err(failed("write", &snapshot_path(dir, snapshot)))
}

/// Opens all layers of a snapshot; its own is `top`, if it is still written.
pub(super) fn open_chain(
    dir: &StateDir,
    snapshot: &Snapshot,
    top: Option<File>,
) -> Result<Chain, VolumeError> {
    let read_only = top.is_none();
    let mut top = top;
    let mut layers = Vec::with_capacity(snapshot.layers.len());
    for layer in &snapshot.layers {
        let file = top.take().map_or_else(|| layer.open(dir), Ok)?;
        layers.push(kiln_disk::Layer { file, format: format(layer.format()) });
    }
    Chain::open(layers, read_only).map_err(unusable(snapshot.id))
}

/// The layers of a snapshot are not what they should be, or the host fails.
pub(super) fn unusable(snapshot: SnapshotId) -> impl Fn(DiskError) -> VolumeError + Copy {
    move |source| VolumeError::Layers { snapshot, source: Box::new(source) }
}

fn backing(dir: &StateDir, below: &Layer) -> Backing {
    Backing { path: below.path(dir).to_string_lossy().into_owned(), format: format(below.format()) }
}

/// Makes a file that is never written again.
fn publish(
    dir: &StateDir,
    to: &Path,
    write: impl FnOnce(&File, &Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    make(dir, to, 0o444, write)
}

/// Makes a file that has its name when it is whole and durable.
fn make(
    dir: &StateDir,
    to: &Path,
    mode: u32,
    write: impl FnOnce(&File, &Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let part = to.with_extension("part");
    remove(&part)?;
    let mut options = OpenOptions::new();
    options.create_new(true).read(true).write(true).mode(0o600);
    let target = options.open(&part).map_err(failed("create", &part))?;
    let finish = || {
        target.set_permissions(Permissions::from_mode(mode))?;
        target.sync_all()?;
        fs::rename(&part, to)?;
        sync_dir(&dir.volumes())
    };
    write(&target, to).and_then(|()| finish().map_err(failed("write", to))).inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}

/// Removes what there is of a snapshot's layer. What was merged for it goes with the next sweep: another may
/// lie over it by now.
pub(crate) fn discard_layer(dir: &StateDir, snapshot: SnapshotId) -> Result<(), VolumeError> {
    let path = snapshot_path(dir, snapshot);
    remove(&path.with_extension("part"))?;
    remove(&path)
}

/// Removes a volume's own layer.
pub(super) fn remove_volume(dir: &StateDir, volume: &Volume) -> Result<(), VolumeError> {
    remove(&volume_path(dir, volume.id))
}

pub(super) fn remove(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
