//! Contents of a file: runs of bytes on the partition, with holes between them.

use vm_memory::VolatileSlice;

use super::super::source::Source;
use super::FsError;

/// More runs than any file on a healthy disk has: bounds memory at 1.5 MiB a file.
const MAX_RUNS: usize = 1 << 16;

/// Bytes `at..at + len` of the file lie at `place` on the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) place: u64,
}

#[derive(Debug)]
enum Layout {
    /// In ascending order, not overlapping; what lies between them is a hole.
    Runs { source: Source, runs: Vec<Run> },
    /// Small files inside their inode.
    Inline(Vec<u8>),
    /// What is not only runs.
    Pieces(Box<dyn Pieces>),
}

/// Contents that a file system puts together itself.
pub(super) trait Pieces: std::fmt::Debug + Send + Sync {
    /// Fills `buf` from `offset` on, all of which is inside of the file.
    fn read(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError>;
}

/// An open file. Reading does not change it and needs no file system any more.
#[derive(Debug)]
pub struct Contents {
    len: u64,
    layout: Layout,
}

impl Contents {
    /// A file whose bytes were in its inode.
    pub(crate) fn inline(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len() as u64, layout: Layout::Inline(bytes) }
    }

    /// A file of `len` bytes.
    pub(super) fn pieces(len: u64, pieces: Box<dyn Pieces>) -> Self {
        Self { len, layout: Layout::Pieces(pieces) }
    }

    /// Length in bytes, as the file system tells it. Holes count.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from `offset` on; holes read as zero. Blocks.
    ///
    /// # Errors
    /// A range that is not wholly inside the file, or a failed read.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), FsError> {
        self.read_volatile_at(VolatileSlice::from(buf), offset)
    }

    /// Like [`Contents::read_exact_at`], into memory that a guest may touch meanwhile.
    ///
    /// # Errors
    /// The same.
    pub fn read_volatile_at(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(FsError::Damaged("a file is shorter than it should be"));
        }
        match &self.layout {
            Layout::Inline(bytes) => {
                // In range: `bytes` is as long as the file.
                let found = bytes.get(offset as usize..).unwrap_or_default();
                buf.copy_from(found.get(..buf.len()).unwrap_or_default());
                Ok(())
            }
            Layout::Runs { source, runs } => read_runs(source, runs, buf, offset),
            Layout::Pieces(pieces) => pieces.read(buf, offset),
        }
    }

    /// Where the byte at `offset` lies on the partition; `None` in holes and inodes.
    pub(super) fn place_of(&self, offset: u64) -> Option<u64> {
        let Layout::Runs { runs, .. } = &self.layout else {
            return None;
        };
        let after = runs.partition_point(|run| run.at <= offset);
        let run = runs.get(after.checked_sub(1)?)?;
        let skip = offset - run.at;
        (skip < run.len).then_some(run.place + skip)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`FsError::TooLarge`] beyond `limit` bytes, before anything is allocated.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, FsError> {
        if self.len > limit {
            return Err(FsError::TooLarge { size: self.len, limit });
        }
        let mut bytes = vec![0; self.len as usize];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn read_runs(source: &Source, runs: &[Run], buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError> {
    let span = |run: &Run| (run.at, run.len);
    fill(runs, span, buf, offset, |run, piece, skip| source.data(piece, run.place + skip))
}

/// Fills `buf` from `offset` on with pieces of a file in their order, and with zeroes where there is none. `span`:
/// where a piece is in the file, and how long; `read` fills a buffer with the bytes of a piece that come after
/// some of it.
pub(super) fn fill<T>(
    pieces: &[T],
    span: impl Fn(&T) -> (u64, u64),
    buf: VolatileSlice<'_>,
    offset: u64,
    read: impl Fn(&T, VolatileSlice<'_>, u64) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let first = pieces.partition_point(|piece| {
        let (start, len) = span(piece);
        start + len <= offset
    });
    let mut rest = buf;
    let mut at = offset;
    for piece in pieces.get(first..).unwrap_or_default() {
        if rest.is_empty() {
            break;
        }
        let (start, len) = span(piece);
        // The hole before the piece, then the piece.
        let hole = start.saturating_sub(at).min(rest.len() as u64);
        let (zeroes, after) = split(rest, hole)?;
        fill_with_zeroes(zeroes);
        at += hole;
        let skip = at.saturating_sub(start);
        let len = len.saturating_sub(skip).min(after.len() as u64);
        let (wanted, after) = split(after, len)?;
        if len > 0 {
            read(piece, wanted, skip)?;
        }
        at += len;
        rest = after;
    }
    fill_with_zeroes(rest);
    Ok(())
}

fn split<'a>(buf: VolatileSlice<'a>, at: u64) -> Result<(VolatileSlice<'a>, VolatileSlice<'a>), FsError> {
    let at = at as usize;
    let halves = buf.subslice(0, at).and_then(|head| Ok((head, buf.offset(at)?)));
    // Does not happen: `at` was held against the length.
    halves.map_err(|_| FsError::Damaged("a file is shorter than it should be"))
}

fn fill_with_zeroes(buf: VolatileSlice<'_>) {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while let Ok(rest) = buf.offset(at)
        && !rest.is_empty()
    {
        // Copies as much as fits.
        rest.copy_from(&ZEROES);
        at += rest.len().min(ZEROES.len());
    }
}

/// Collects the runs of a file in file order and joins neighbours.
pub(super) struct Runs {
    source: Source,
    len: u64,
    runs: Vec<Run>,
}

impl Runs {
    /// For a file of `len` bytes.
    pub(super) fn new(source: &Source, len: u64) -> Self {
        Self { source: source.clone(), len, runs: Vec::new() }
    }

    /// First byte of the file that has no run yet, holes aside.
    pub(super) fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.at + run.len)
    }

    /// Says that `len` bytes from `at` on lie at `place`. What is past the end of the file is cut.
    ///
    /// # Errors
    /// Runs out of order, outside the partition, or too many.
    pub(super) fn push(&mut self, at: u64, len: u64, place: u64) -> Result<(), FsError> {
        if at < self.end() {
            return Err(FsError::Damaged("blocks of a file are out of order"));
        }
        let len = len.min(self.len.saturating_sub(at));
        if len == 0 {
            return Ok(());
        }
        if place.checked_add(len).is_none_or(|end| end > self.source.len()) {
            return Err(FsError::Damaged("a file lies outside its partition"));
        }
        if let Some(last) = self.runs.last_mut()
            && last.at + last.len == at
            && last.place + last.len == place
        {
            last.len += len;
            return Ok(());
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(FsError::Exhausted);
        }
        self.runs.push(Run { at, len, place });
        Ok(())
    }

    pub(super) fn finish(self) -> Contents {
        Contents { len: self.len, layout: Layout::Runs { source: self.source, runs: self.runs } }
    }
}
