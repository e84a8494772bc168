//! What is in snapshots, block by block.
//!
//! A block is listed when there can be anything but zeroes in it. Two snapshots differ in those blocks whose bytes
//! differ: their layers say where that can be, and there they are compared. A request looks at so much and no
//! more, and answers where the next one goes on.

use kiln_disk::{Chain, DiskError};
use kiln_model::SnapshotId;

use super::files::{open_chain, unusable};
use super::{Progress, Snapshot, VolumeError, Volumes};

/// Bytes of a block.
pub const BLOCK: u64 = 512 << 10;
/// How often one request looks at what layers say.
const MAX_LOOKS: usize = 1 << 16;
/// Blocks that one request compares.
const MAX_COMPARED: usize = 256;

/// Blocks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Of which snapshot.
    pub snapshot: Snapshot,
    /// In their order.
    pub blocks: Vec<T>,
    /// Where what may be left begins.
    pub next: Option<u64>,
}

/// A block that differs between two snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedBlock {
    /// Its number.
    pub index: u64,
    /// Whether the first of the two has anything there.
    pub in_first: bool,
}

/// Goes through a disk block by block for those of which a question is answered yes in any part.
pub(super) struct Search<F> {
    size: u64,
    at: u64,
    looks: usize,
    look: F,
}

impl<F: Fn(u64, u64) -> Result<(bool, u64), DiskError>> Search<F> {
    pub(super) fn new(size: u64, look: F) -> Self {
        Search { size, at: 0, looks: 0, look }
    }

    fn from(mut self, index: u64) -> Self {
        self.at = index.saturating_mul(BLOCK);
        self
    }

    /// The next block; `None`: there are no more.
    pub(super) fn next(&mut self) -> Result<Option<u64>, DiskError> {
        self.next_within(usize::MAX)
    }

    /// The same, looking at most so often in all.
    fn next_within(&mut self, looks: usize) -> Result<Option<u64>, DiskError> {
        while self.at < self.size && self.looks < looks {
            self.looks = self.looks.saturating_add(1);
            let (yes, run) = (self.look)(self.at, self.size - self.at)?;
            if yes {
                let index = self.at / BLOCK;
                self.at = index.saturating_add(1).saturating_mul(BLOCK);
                return Ok(Some(index));
            }
            self.at = self.at.saturating_add(run);
        }
        Ok(None)
    }

    /// The block to go on with; `None` at the end.
    fn rest(&self) -> Option<u64> {
        (self.at < self.size).then_some(self.at / BLOCK)
    }
}

/// The bytes of a block.
pub(super) fn block(chain: &Chain, index: u64) -> Result<Vec<u8>, DiskError> {
    let mut bytes = vec![0; usize::try_from(BLOCK).unwrap_or(0)];
    chain.read(&mut bytes, index.saturating_mul(BLOCK))?;
    Ok(bytes)
}

/// How many layers at the top of each are its own.
fn own_layers(first: &Snapshot, second: &Snapshot) -> Option<(usize, usize)> {
    let (a, b) = (&first.layers, &second.layers);
    let common = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    // A parent with too many layers shares none with what lies over it.
    let over = |a: &Snapshot, b: &Snapshot| a.upload.as_ref().is_some_and(|own| own.parent == Some(b.id));
    let same_volume = first.volume.is_some() && first.volume == second.volume;
    let related = common > 0 || same_volume || over(first, second) || over(second, first);
    related.then(|| (a.len() - common, b.len() - common))
}

impl Volumes<'_> {
    /// A snapshot that can be read, and its layers.
    fn open_complete(&self, id: SnapshotId) -> Result<(Snapshot, Chain), VolumeError> {
        let row = self.snapshot(id)?;
        if row.progress != Progress::Complete {
            return Err(VolumeError::SnapshotPending(id));
        }
        // Deleted meanwhile, its files are gone too.
        let chain = open_chain(self.dir, &row, None).map_err(|e| self.snapshot(id).err().unwrap_or(e))?;
        Ok((row, chain))
    }

    /// Blocks of a snapshot with anything in them, from number `from` on, `most` of them.
    pub fn list_blocks(&self, id: SnapshotId, from: u64, most: usize) -> Result<Page<u64>, VolumeError> {
        let (snapshot, chain) = self.open_complete(id)?;
        let mut search = Search::new(chain.size(), |offset, len| chain.holds(offset, len)).from(from);
        let mut blocks = Vec::new();
        while blocks.len() < most
            && let Some(index) = search.next_within(MAX_LOOKS).map_err(unusable(id))?
        {
            blocks.push(index);
        }
        Ok(Page { snapshot, blocks, next: search.rest() })
    }

    /// Blocks in which two snapshots differ, of one volume or one over the other. The page is that of the second.
    pub fn changed_blocks(
        &self,
        (first, second): (SnapshotId, SnapshotId),
        from: u64,
        most: usize,
    ) -> Result<Page<ChangedBlock>, VolumeError> {
        let ((a, old), (b, new)) = (self.open_complete(first)?, self.open_complete(second)?);
        let (own_a, own_b) = own_layers(&a, &b).ok_or(VolumeError::Unrelated { first, second })?;
        let said = |offset, len| {
            let ((in_old, run_old), (in_new, run_new)) =
                (old.says(own_a, offset, len)?, new.says(own_b, offset, len)?);
            Ok(match (in_old, in_new) {
                (false, false) => (false, run_old.min(run_new)),
                _ => (true, 1),
            })
        };
        let mut search = Search::new(old.size().max(new.size()), said).from(from);
        let (mut blocks, mut compared) = (Vec::new(), 0);
        let failed = unusable(second);
        while blocks.len() < most
            && compared < MAX_COMPARED
            && let Some(index) = search.next_within(MAX_LOOKS).map_err(failed)?
        {
            compared += 1;
            let before = block(&old, index).map_err(failed)?;
            if before != block(&new, index).map_err(failed)? {
                let in_first = before.iter().any(|byte| *byte != 0);
                blocks.push(ChangedBlock { index, in_first });
            }
        }
        Ok(Page { snapshot: b, blocks, next: search.rest() })
    }

    /// The bytes of a block of a snapshot.
    pub fn read_block(&self, id: SnapshotId, index: u64) -> Result<Vec<u8>, VolumeError> {
        let (_, chain) = self.open_complete(id)?;
        if index >= chain.size().div_ceil(BLOCK) {
            return Err(VolumeError::NoBlock { snapshot: id, index });
        }
        block(&chain, index).map_err(unusable(id))
    }
}
