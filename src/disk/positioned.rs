//! Vectored reads and writes at an offset, between a file and volatile memory.
//!
//! Guest memory changes under our feet, so it must never become a `&[u8]`; the standard library
//! offers vectored positioned I/O only on such slices. This module is the one place where a
//! [`VolatileSlice`] meets `preadv` and `pwritev`.
#![expect(unsafe_code, reason = "preadv and pwritev on memory that must not become a Rust slice")]

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Buffers passed to the kernel in one call. Larger requests take several calls; the array lives
/// on the stack.
const BATCH: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    /// What is past the end of the file reads as zeroes.
    ReadZeroFilled,
    Write,
}

/// Fills `bufs` from `offset` on. Short reads are continued; the end of the file is
/// [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn read_exact(file: &File, bufs: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(file, bufs, offset, Direction::Read)
}

/// Writes `bufs` from `offset` on. Short writes are continued.
pub(crate) fn write_all(file: &File, bufs: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(file, bufs, offset, Direction::Write)
}

/// Fills `bufs` from `offset` on; what is past the end of the file reads as zeroes.
pub(crate) fn read_zero_filled(file: &File, bufs: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(file, bufs, offset, Direction::ReadZeroFilled)
}

/// Fills `bufs` with zeroes.
pub(crate) fn fill_zero(bufs: &[VolatileSlice<'_>]) {
    const ZEROES: [u8; 4096] = [0; 4096];
    for buf in bufs {
        let mut rest = *buf;
        while !rest.is_empty() {
            rest.copy_from(&ZEROES[..]);
            rest = rest.offset(rest.len().min(ZEROES.len())).unwrap_or(rest);
        }
    }
}

/// Copies from the front of `data` into `bufs`, as far as both go.
pub(crate) fn copy_from(bufs: &[VolatileSlice<'_>], mut data: &[u8]) {
    for buf in bufs {
        let (now, later) = data.split_at(buf.len().min(data.len()));
        buf.copy_from(now);
        data = later;
    }
}

/// The `len` bytes of `bufs` after the first `skip`.
pub(crate) fn part<'b, 'm>(
    bufs: &'b [VolatileSlice<'m>],
    skip: u64,
    len: u64,
) -> Cow<'b, [VolatileSlice<'m>]> {
    if skip == 0 && total_len(bufs) == Some(len) {
        return Cow::Borrowed(bufs);
    }
    let (mut skip, mut len) = (skip, len);
    let mut parts = Vec::new();
    for buf in bufs {
        let size = buf.len() as u64;
        let start = skip.min(size);
        let count = len.min(size - start);
        skip -= start;
        len -= count;
        if count > 0
            && let Ok(piece) = buf.subslice(start as usize, count as usize)
        {
            parts.push(piece);
        }
    }
    Cow::Owned(parts)
}

/// Sum of the lengths, or `None` if it does not fit.
pub(crate) fn total_len(bufs: &[VolatileSlice<'_>]) -> Option<u64> {
    bufs.iter().try_fold(0u64, |sum, buf| sum.checked_add(buf.len() as u64))
}

fn transfer(
    file: &File,
    mut bufs: &[VolatileSlice<'_>],
    mut offset: u64,
    direction: Direction,
) -> io::Result<()> {
    // Bytes of `bufs[0]` that are done.
    let mut skip = 0usize;
    loop {
        while let Some(first) = bufs.first()
            && skip >= first.len()
        {
            skip -= first.len();
            bufs = &bufs[1..];
        }
        if bufs.is_empty() {
            return Ok(());
        }
        match transfer_some(file, bufs, skip, offset, direction) {
            Ok(0) if direction == Direction::ReadZeroFilled => {
                fill_zero(&part(bufs, skip as u64, u64::MAX));
                return Ok(());
            }
            Ok(0) if direction == Direction::Read => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => {
                skip += done;
                offset += done as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// One system call. `skip` is less than the length of `bufs[0]`.
fn transfer_some(
    file: &File,
    bufs: &[VolatileSlice<'_>],
    skip: usize,
    offset: u64,
    direction: Direction,
) -> io::Result<usize> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut count = 0;
    let mut skip = skip;
    for (vector, buf) in vectors.iter_mut().zip(bufs) {
        // `skip` lies inside the first buffer, and is zero for all others.
        let Ok(rest) = buf.offset(skip) else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
        skip = 0;
        // The guard only pins a mapping on Xen; here the slice's lifetime keeps the memory mapped.
        vector.iov_base = rest.ptr_guard_mut().as_ptr().cast();
        vector.iov_len = rest.len();
        count += 1;
    }
    let done = match direction {
        // SAFETY: `vectors` holds `count` (at most BATCH) entries, each naming memory of a
        // `VolatileSlice` borrowed for this call, so mapped and writable; the descriptor is open,
        // owned by `file`. The kernel writes only inside these ranges.
        Direction::Read | Direction::ReadZeroFilled => unsafe {
            libc::preadv64(file.as_raw_fd(), vectors.as_ptr(), count, offset)
        },
        // SAFETY: as above; the kernel only reads these ranges.
        Direction::Write => unsafe { libc::pwritev64(file.as_raw_fd(), vectors.as_ptr(), count, offset) },
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_buffers_than_a_batch_are_read_and_written() {
        let file = tempfile::tempfile().unwrap();
        let mut data: Vec<u8> = (0..BATCH * 5).map(|i| (i % 251) as u8).collect();
        let bufs: Vec<_> = data.chunks_mut(2).map(VolatileSlice::from).collect();
        write_all(&file, &bufs, 7).unwrap();

        let mut back = vec![0; BATCH * 5];
        let bufs: Vec<_> = back.chunks_mut(3).map(VolatileSlice::from).collect();
        read_exact(&file, &bufs, 7).unwrap();
        assert_eq!(back, data);
    }

    #[test]
    fn empty_buffers_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        let (mut a, mut b, mut c, mut d) = ([], [1u8, 2], [], [3u8]);
        let bufs = [&mut a[..], &mut b, &mut c, &mut d].map(VolatileSlice::from);
        write_all(&file, &bufs, 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let mut buf = [0u8; 4];
        let error = read_exact(&file, &[VolatileSlice::from(&mut buf[..])], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
