//! Snapshots that somebody writes block by block.
//!
//! ```text
//!   start: a row, pending ─▶ put, put, … ─▶ complete: counted, checked, sealed
//!                              └ a layer over those of the parent, made when it is first written
//! ```
//!
//! What was written the layer says by itself, and when, the time of its file; nothing else is kept. So an upload
//! goes on where it was when this process is killed. A block that was taken is on stable storage.
//!
//! One that nobody has written to for as long as it said has failed, and its layer goes.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_disk::{Chain, DiskError};
use kiln_model::{ByteSize, SnapshotId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::blocks::{BLOCK, Search, block};
use super::files::{discard_layer, failed, make_upload, merge_layers, open_chain, seal, unusable};
use super::layer::snapshot_path;
use super::{AlsoSnapshot, Layer, MAX_BELOW, Progress, Snapshot, VolumeError, Volumes};
use crate::instances::NoticeEvent;
use crate::state::{Transaction, transact};

/// Uploads of one state directory at one time, as EC2's quota.
const MAX_PENDING: usize = 100;
/// Layers that are open at one time: more than requests are carried out at once.
const MAX_OPEN: usize = 64;
/// Blocks whose numbers are the same by this have one writer at a time.
const STRIPES: usize = 16;

/// How a snapshot is, or was, written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// What it lies over.
    pub parent: Option<SnapshotId>,
    /// How long it may rest before it is complete, in seconds.
    pub timeout: u64,
    /// Layers of a parent that has too many: those that its own second one shall say together.
    #[serde(default)]
    pub merges: Vec<Layer>,
}

/// A wish for a snapshot that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUpload {
    /// What a volume of it has.
    pub size: ByteSize,
    /// What holds where nothing is written.
    pub parent: Option<SnapshotId>,
    /// For people.
    pub description: String,
    /// How long it may rest.
    pub timeout: Duration,
}

/// SHA-256 over the SHA-256 of each written block, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearChecksum(pub [u8; 32]);

/// The layers of uploads that this process has open, the one that was used last at the end.
#[derive(Debug, Default)]
pub struct Uploads {
    open: Mutex<Vec<Arc<Open>>>,
    /// Held while layers are merged.
    merging: Mutex<()>,
}

#[derive(Debug)]
struct Open {
    snapshot: SnapshotId,
    /// Held for writing by whoever ends the upload, and `None` then.
    layer: RwLock<Option<Written>>,
    stripes: [Mutex<()>; STRIPES],
    /// Blocks that were written since it is open.
    puts: AtomicU64,
    flushed: Mutex<Flushed>,
}

/// What became of the blocks that were written first.
#[derive(Debug, Default)]
struct Flushed {
    /// So many are durable,
    durable: u64,
    /// but of so many it is not known: a flush has failed, and the next one would not tell.
    lost: u64,
}

#[derive(Debug)]
struct Written {
    chain: Chain,
    file: File,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Uploads {
    /// The layer of `snapshot`; one that is not open is opened by `open`, which looks whether it still may be.
    fn get(
        &self,
        snapshot: SnapshotId,
        open: impl FnOnce() -> Result<Written, VolumeError>,
    ) -> Result<Arc<Open>, VolumeError> {
        let mut all = lock(&self.open);
        if let Some(at) = all.iter().position(|open| open.snapshot == snapshot) {
            let found = all.remove(at);
            all.push(Arc::clone(&found));
            return Ok(found);
        }
        if all.len() >= MAX_OPEN {
            // Others are taken out of the list under this lock alone.
            let idle = all.iter().position(|open| Arc::strong_count(open) == 1);
            drop(all.remove(idle.ok_or(VolumeError::TooManyUploads)?));
        }
        let opened = Arc::new(Open {
            snapshot,
            layer: RwLock::new(Some(open()?)),
            stripes: Default::default(),
            puts: AtomicU64::new(0),
            flushed: Mutex::default(),
        });
        all.push(Arc::clone(&opened));
        Ok(opened)
    }

    fn take(&self, snapshot: SnapshotId) -> Option<Arc<Open>> {
        let mut all = lock(&self.open);
        let at = all.iter().position(|open| open.snapshot == snapshot)?;
        Some(all.remove(at))
    }

    /// Closes the layer of an upload whose row says that it is over, when those who write it are done.
    pub(super) fn close(&self, snapshot: SnapshotId) {
        if let Some(open) = self.take(snapshot) {
            drop(open.layer.write().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    fn open_ones(&self) -> Vec<SnapshotId> {
        lock(&self.open).iter().map(|open| open.snapshot).collect()
    }
}

impl Open {
    /// Writes a block and returns when it is durable.
    fn put(&self, written: &Written, index: u64, data: &mut [u8]) -> Result<(), VolumeError> {
        let failed = unusable(self.snapshot);
        let stripe = usize::try_from(index % STRIPES as u64).ok().and_then(|at| self.stripes.get(at));
        let one_at_a_time = stripe.map(lock);
        let offset = index.saturating_mul(BLOCK);
        if data.iter().all(|byte| *byte == 0) {
            written.chain.write_zeroes(offset, BLOCK).map_err(failed)?;
        } else {
            written.chain.write(data, offset).map_err(failed)?;
        }
        drop(one_at_a_time);
        let own = self.puts.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let mut flushed = lock(&self.flushed);
        if flushed.lost >= own {
            let source = std::io::Error::other("what was written before could not be flushed");
            return Err(failed(DiskError::Io { action: "flush".to_owned(), source }));
        }
        if flushed.durable >= own {
            return Ok(());
        }
        // Whoever waits for the lock meanwhile has it done with the same flush.
        let all = self.puts.load(Ordering::Acquire);
        let result = written.chain.flush();
        *(if result.is_ok() { &mut flushed.durable } else { &mut flushed.lost }) = all;
        result.map_err(failed)
    }
}

fn touch(file: &File, now: u64) -> std::io::Result<()> {
    file.set_modified(UNIX_EPOCH.checked_add(Duration::from_secs(now)).unwrap_or_else(SystemTime::now))
}

/// How many blocks there are in what is written.
fn blocks(size: ByteSize) -> u64 {
    size.as_bytes().div_ceil(BLOCK)
}

impl Snapshot {
    /// Whether somebody is writing it.
    pub fn is_uploading(&self) -> bool {
        self.progress == Progress::Pending && self.upload.is_some()
    }
}

/// The layers of what an upload lies over.
fn below(tx: &mut Transaction<'_>, wish: &NewUpload) -> Result<Vec<Layer>, VolumeError> {
    let Some(parent) = wish.parent else { return Ok(Vec::new()) };
    let row = tx.get::<Snapshot>(&parent)?.ok_or(VolumeError::NoSnapshot(parent))?;
    if row.progress != Progress::Complete {
        return Err(VolumeError::SnapshotPending(parent));
    }
    if wish.size < row.size {
        return Err(VolumeError::TooSmall { wanted: wish.size, least: row.size });
    }
    // Whoever deletes it meanwhile lets this begin again, or comes later and finds its layers named.
    tx.put(&row)?;
    Ok(row.layers)
}

impl Volumes<'_> {
    /// Begins an upload.
    pub fn start_upload(
        &self,
        wish: &NewUpload,
        also: &mut AlsoSnapshot<'_>,
    ) -> Result<Snapshot, VolumeError> {
        let size = super::check_size(wish.size)?;
        transact(self.store, |tx| {
            if tx.list::<Snapshot>()?.iter().filter(|row| row.is_uploading()).count() >= MAX_PENDING {
                return Err(VolumeError::TooManyUploads);
            }
            let id = SnapshotId::from_bits(rand::random());
            let (mut below, mut merges) = (below(tx, wish)?, Vec::new());
            if below.len() >= MAX_BELOW {
                let merged = std::iter::once(Layer::Merged { snapshot: id });
                let whole = below.iter().skip_while(|layer| layer.is_part()).cloned();
                (below, merges) = (merged.chain(whole).collect(), below);
            }
            below.insert(0, Layer::Snapshot { snapshot: id });
            let snapshot = Snapshot {
                id,
                volume: None,
                size,
                layers: below,
                progress: Progress::Pending,
                upload: Some(Upload { parent: wish.parent, timeout: wish.timeout.as_secs(), merges }),
                description: wish.description.clone(),
                tags: Vec::new(),
                created: self.now,
            };
            tx.put(&snapshot)?;
            also(tx, &snapshot)?;
            Ok(snapshot)
        })
    }

    /// Writes block number `index`, which has [`BLOCK`] bytes. On stable storage when it returns.
    pub fn put_block(&self, id: SnapshotId, index: u64, data: &mut [u8]) -> Result<(), VolumeError> {
        let row = self.uploading(id)?;
        if index >= blocks(row.size) || data.len() as u64 != BLOCK {
            return Err(VolumeError::NoBlock { snapshot: id, index });
        }
        loop {
            let open = self.uploads.get(id, || self.open_upload(id))?;
            let layer = open.layer.read().unwrap_or_else(PoisonError::into_inner);
            // It was closed meanwhile: its row says why, or it can be opened again.
            let Some(written) = layer.as_ref() else { continue };
            open.put(written, index, data)?;
            return touch(&written.file, self.now).map_err(failed("write", &snapshot_path(self.dir, id)));
        }
    }

    /// Ends an upload, if `count` blocks were written, and they are those of `checksum`. Takes as long as reading
    /// all of them, if there is one. What is complete already stays so.
    pub fn complete_upload(
        &self,
        id: SnapshotId,
        count: u64,
        checksum: Option<LinearChecksum>,
    ) -> Result<Snapshot, VolumeError> {
        let row = self.snapshot(id)?;
        if row.upload.is_some() && row.progress == Progress::Complete {
            return Ok(row);
        }
        let row = self.uploading(id)?;
        let open = self.uploads.get(id, || self.open_upload(id))?;
        let mut layer = open.layer.write().unwrap_or_else(PoisonError::into_inner);
        let Some(written) = layer.as_ref() else {
            // Somebody else was faster: the row says what there is now.
            drop(layer);
            return self.complete_upload(id, count, checksum);
        };
        check(&row, &written.chain, count, checksum)?;
        written.chain.flush().map_err(unusable(id))?;
        // From here on nobody writes; should this fail, it is opened again.
        let done = layer.take().map(|Written { chain, file }| {
            drop(chain);
            seal(self.dir, id, &file)
        });
        let result = done.unwrap_or(Ok(())).and_then(|()| self.note_end(id, Progress::Complete));
        self.uploads.take(id);
        result
    }

    /// The row of an upload that goes on; one whose time is over ends.
    fn uploading(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        let row = self.snapshot(id)?;
        if !row.is_uploading() {
            return Err(VolumeError::NotUploading(id));
        }
        if self.is_over(&row) {
            self.fail_upload(id)?;
            return Err(VolumeError::UploadTimeout(id));
        }
        self.merge(&row)?;
        Ok(row)
    }

    /// Makes one layer of those of a parent that has too many, if it is not there yet. They stay until the upload
    /// is over, so whoever is killed here begins again.
    fn merge(&self, row: &Snapshot) -> Result<(), VolumeError> {
        let merges = row.upload.as_ref().map_or(&[][..], |upload| &upload.merges);
        match row.layers.get(1) {
            Some(merged) if !merges.is_empty() && !merged.path(self.dir).exists() => {
                // Nobody else waits for it than who needs it.
                let _one = lock(&self.uploads.merging);
                merge_layers(self.dir, merged, merges)
            }
            _ => Ok(()),
        }
    }

    /// Whether nobody has written to an upload for as long as it may rest.
    fn is_over(&self, row: &Snapshot) -> bool {
        let Some(upload) = row.upload.as_ref().filter(|_| row.is_uploading()) else { return false };
        let modified = fs::metadata(snapshot_path(self.dir, row.id)).and_then(|file| file.modified());
        let written = modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let last = written.map_or(row.created, |since| since.as_secs());
        last.saturating_add(upload.timeout) < self.now
    }

    /// Ends uploads whose time is over, and closes layers of those that another process has deleted.
    pub(crate) fn expire_uploads(&self) -> Result<(), VolumeError> {
        // First, so that each of these has its row already.
        let open = self.uploads.open_ones();
        let all = self.snapshots()?;
        for row in all.iter().filter(|row| self.is_over(row)) {
            tracing::info!(snapshot = %row.id, "an upload has not been completed in time");
            self.fail_upload(row.id)?;
        }
        let goes_on = |id: &SnapshotId| all.iter().any(|row| row.id == *id && row.is_uploading());
        open.iter().filter(|id| !goes_on(id)).for_each(|id| self.uploads.close(*id));
        Ok(())
    }

    fn fail_upload(&self, id: SnapshotId) -> Result<(), VolumeError> {
        match self.note_end(id, Progress::Failed) {
            // Somebody else was faster.
            Err(VolumeError::NotUploading(_) | VolumeError::NoSnapshot(_)) => return Ok(()),
            result => drop(result?),
        }
        self.uploads.close(id);
        discard_layer(self.dir, id)
    }

    fn note_end(&self, id: SnapshotId, progress: Progress) -> Result<Snapshot, VolumeError> {
        let row = transact(self.store, |tx| {
            let mut row = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            if !row.is_uploading() {
                return Err(VolumeError::NotUploading(id));
            }
            row.progress = progress;
            row.upload.iter_mut().for_each(|upload| upload.merges.clear());
            tx.put(&row)?;
            Ok(row)
        })?;
        self.notices.tell(self.now, NoticeEvent::Snapshot { snapshot: id, progress });
        Ok(row)
    }

    /// Opens the layer of an upload; makes it the first time.
    fn open_upload(&self, id: SnapshotId) -> Result<Written, VolumeError> {
        // Whoever ends it writes that down first and closes it then.
        let row = self.snapshot(id)?;
        if !row.is_uploading() {
            return Err(VolumeError::NotUploading(id));
        }
        let file = make_upload(self.dir, &row, |file| touch(file, self.now))?;
        let again = file.try_clone().map_err(failed("open", &snapshot_path(self.dir, id)))?;
        Ok(Written { chain: open_chain(self.dir, &row, Some(again))?, file })
    }
}

/// Holds what is written against what the client says.
fn check(
    row: &Snapshot,
    chain: &Chain,
    count: u64,
    checksum: Option<LinearChecksum>,
) -> Result<(), VolumeError> {
    let mut search = Search::new(chain.size(), |offset, len| chain.says(1, offset, len));
    // Some take the digests as bytes, some as the text that the header has.
    let (mut found, mut bytes, mut text) = (0, Sha256::new(), Sha256::new());
    while let Some(index) = search.next().map_err(unusable(row.id))? {
        found += 1;
        if checksum.is_some() {
            let digest: [u8; 32] = Sha256::digest(block(chain, index).map_err(unusable(row.id))?).into();
            bytes.update(digest);
            text.update(STANDARD.encode(digest));
        }
    }
    if found != count {
        return Err(VolumeError::BlockCount { said: count, found });
    }
    let fits = |LinearChecksum(said)| {
        said == <[u8; 32]>::from(bytes.finalize()) || said == <[u8; 32]>::from(text.finalize())
    };
    if checksum.is_none_or(fits) { Ok(()) } else { Err(VolumeError::Checksum) }
}
