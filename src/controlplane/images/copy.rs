//! Copying an image: holes stay holes, contents are hashed on the way.
//!
//! Where the file system can share blocks between files, nothing is copied at all; the clone is
//! then only read, for its hash. What is hashed is always what was written, so that a source that
//! changes meanwhile cannot give a copy under a wrong name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::progress::Progress;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Runs of zeroes of this length and alignment are left out of the copy.
const BLOCK: usize = 64 << 10;

static ZEROES: [u8; CHUNK] = [0; CHUNK];

/// A piece of a file.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Data { len: u64 },
    Hole { len: u64 },
}

/// The piece that starts at `offset`, up to `end`.
fn piece_at(file: &File, offset: u64, end: u64) -> io::Result<Piece> {
    let seek = |whence| match rustix::fs::seek(file, whence) {
        // The rest is a hole.
        Err(Errno::NXIO) => Ok(end),
        // A block device or a file system without holes: all is data.
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(offset),
        other => other.map_err(io::Error::from),
    };
    let data = seek(SeekFrom::Data(offset))?.min(end);
    if data > offset {
        return Ok(Piece::Hole { len: data - offset });
    }
    let hole = seek(SeekFrom::Hole(offset))?.min(end);
    let stop = if hole > offset { hole } else { end };
    Ok(Piece::Data { len: stop - offset })
}

/// Copies a file into an empty one; holes stay holes, and where the file system can share blocks nothing is
/// copied at all.
pub(crate) fn copy_sparsely(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    target.set_len(len)?;
    let mut buf = vec![0; CHUNK];
    let mut offset = 0;
    while offset < len {
        match piece_at(source, offset, len)? {
            Piece::Hole { len } => offset += len,
            Piece::Data { len } => {
                let take = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
                let chunk = buf.get_mut(..take).unwrap_or_default();
                source.read_exact_at(chunk, offset)?;
                write_sparsely(target, chunk, offset)?;
                offset += u64::try_from(take).unwrap_or(u64::MAX);
            }
        }
    }
    Ok(())
}

/// Copies `len` bytes of `source` into the empty file `target`; answers their SHA-256.
pub(super) fn copy(source: &File, target: &File, len: u64, progress: &dyn Progress) -> io::Result<[u8; 32]> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() && target.metadata()?.len() == len {
        return walk(target, None, len, progress);
    }
    // A clone of a source that grew meanwhile is dropped.
    target.set_len(0)?;
    target.set_len(len)?;
    walk(source, Some(target), len, progress)
}

/// Hashes `source`, and writes what is not zero to `target`.
fn walk(source: &File, target: Option<&File>, len: u64, progress: &dyn Progress) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; CHUNK];
    let mut offset = 0;
    while offset < len {
        match piece_at(source, offset, len)? {
            Piece::Hole { len } => {
                hash_zeroes(&mut hash, len, progress);
                offset += len;
            }
            Piece::Data { len } => {
                let take = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
                let chunk = buf.get_mut(..take).unwrap_or_default();
                source.read_exact_at(chunk, offset)?;
                hash.update(&*chunk);
                if let Some(target) = target {
                    write_sparsely(target, chunk, offset)?;
                }
                let took = u64::try_from(take).unwrap_or(u64::MAX);
                progress.advance(took);
                offset += took;
            }
        }
    }
    Ok(hash.finalize().into())
}

fn hash_zeroes(hash: &mut Sha256, mut len: u64, progress: &dyn Progress) {
    while len > 0 {
        let take = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
        hash.update(ZEROES.get(..take).unwrap_or_default());
        let took = u64::try_from(take).unwrap_or(u64::MAX);
        progress.advance(took);
        len -= took;
    }
}

fn write_sparsely(target: &File, chunk: &[u8], mut offset: u64) -> io::Result<()> {
    for block in chunk.chunks(BLOCK) {
        if block != ZEROES.get(..block.len()).unwrap_or_default() {
            target.write_all_at(block, offset)?;
        }
        offset += u64::try_from(block.len()).unwrap_or(u64::MAX);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::progress::Silent;

    fn contents(file: &File) -> Vec<u8> {
        let mut buf = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut buf, 0).unwrap();
        buf
    }

    #[test]
    fn copy_equals_the_source_and_holes_stay_holes() {
        let source = tempfile::tempfile().unwrap();
        let len = 20 * (1 << 20) + 512;
        source.set_len(len).unwrap();
        source.write_all_at(b"start", 0).unwrap();
        source.write_all_at(&[7; 100_000], 5_000_001).unwrap();
        // Zeroes that take up space in the source.
        source.write_all_at(&[0; 3 << 20], 8 << 20).unwrap();
        source.write_all_at(b"end", len - 3).unwrap();
        let target = tempfile::tempfile().unwrap();
        let hash = copy(&source, &target, len, &Silent).unwrap();
        let expected = contents(&source);
        assert!(contents(&target) == expected, "contents differ");
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&expected)));
        assert!(target.metadata().unwrap().blocks() * 512 < 2 << 20, "the copy is not sparse");
    }

    #[test]
    fn copy_without_reflink_equals_the_source() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[3; 70_000], 0).unwrap();
        source.set_len(200_192).unwrap();
        let target = tempfile::tempfile().unwrap();
        target.set_len(200_192).unwrap();
        walk(&source, Some(&target), 200_192, &Silent).unwrap();
        assert!(contents(&target) == contents(&source));
    }

    #[test]
    fn what_a_shrunken_source_no_longer_has_reads_as_zeroes() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 4096], 0).unwrap();
        let target = tempfile::tempfile().unwrap();
        // It was longer when it was measured. The importer notices by the file's identity.
        let hash = copy(&source, &target, 8192, &Silent).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 8192);
        let mut expected = vec![1; 4096];
        expected.resize(8192, 0);
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&expected)));
    }
}
