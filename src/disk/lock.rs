//! Advisory locks on image files, so that two machines never write one overlay.
//!
//! Open-file-description locks are used: they belong to the descriptor that the control plane
//! passed to us (not to the process), and vanish with its last copy, however the process ends. A
//! copy may linger in a child that has been forked and has not yet replaced itself, so a disk that is
//! closed gives its locks up rather than leave that to the descriptor.
//!
//! QEMU's tools lock single bytes: 100 + n says "I use permission n", 200 + n "others must not use
//! permission n" (1 is writing, 3 resizing). Taking part in that protocol makes `qemu-img` refuse to
//! touch the disk of a running machine:
//!
//! | holder | locks |
//! |---|---|
//! | one writer | all of 0..300 exclusively |
//! | many readers | 0..100 shared, and bytes 201 and 203 shared |

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::DiskError;

const EXCLUSIVE: &[(i64, i64)] = &[(0, 300)];
const SHARED: &[(i64, i64)] = &[(0, 100), (201, 1), (203, 1)];

/// An image file with the locks that this process holds on it, if any.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: File,
    locked: bool,
}

impl ImageFile {
    /// Locks a file that is going to be written, against every other user.
    pub fn exclusive(file: File) -> Result<Self, DiskError> {
        lock(&file, libc::F_WRLCK, EXCLUSIVE)?;
        Ok(Self { file, locked: true })
    }

    /// Locks a file that is going to be read, against writers.
    pub fn shared(file: File) -> Result<Self, DiskError> {
        lock(&file, libc::F_RDLCK, SHARED)?;
        Ok(Self { file, locked: true })
    }

    /// A file that nobody else has.
    pub fn private(file: File) -> Self {
        Self { file, locked: false }
    }
}

impl Deref for ImageFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for ImageFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if self.locked {
            // Giving up a lock that is held cannot fail.
            let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, 300)));
        }
    }
}

fn range(kind: i32, l_start: i64, l_len: i64) -> libc::flock {
    // The constants of a kind are 0 to 2; libc gives them a wider type than the field's.
    libc::flock { l_type: i16::try_from(kind).unwrap_or_default(), l_whence: 0, l_start, l_len, l_pid: 0 }
}

fn lock(file: &File, kind: i32, ranges: &[(i64, i64)]) -> Result<(), DiskError> {
    for &(start, len) in ranges {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(DiskError::InUse),
            Err(Errno::EBADF) if kind == libc::F_WRLCK => return Err(DiskError::NotWritable),
            Err(errno) => {
                return Err(DiskError::Io {
                    action: "locking the image file".to_owned(),
                    source: io::Error::from(errno),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let _first = ImageFile::exclusive(file.reopen().unwrap()).unwrap();
        assert!(matches!(ImageFile::exclusive(file.reopen().unwrap()), Err(DiskError::InUse)));
        assert!(matches!(ImageFile::shared(file.reopen().unwrap()), Err(DiskError::InUse)));
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let readers = [(); 2].map(|()| ImageFile::shared(file.reopen().unwrap()).unwrap());
        assert!(matches!(ImageFile::exclusive(file.reopen().unwrap()), Err(DiskError::InUse)));
        drop(readers);
        ImageFile::exclusive(file.reopen().unwrap()).unwrap();
    }

    #[test]
    fn a_closed_disk_is_free_although_a_copy_of_its_descriptor_lives() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reopened = file.reopen().unwrap();
        let _copy = reopened.try_clone().unwrap();
        drop(ImageFile::exclusive(reopened).unwrap());
        ImageFile::exclusive(file.reopen().unwrap()).unwrap();
    }

    #[test]
    fn a_file_opened_for_reading_cannot_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert!(matches!(ImageFile::exclusive(reader), Err(DiskError::NotWritable)));
    }
}
