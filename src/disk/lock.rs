//! Advisory locks on image files, so that two machines never write one overlay.
//!
//! Open-file-description locks are used: they belong to the descriptor that the control plane
//! passed to us (not to the process), and vanish with its last copy, however the process ends.
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

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::DiskError;

const EXCLUSIVE: &[(i64, i64)] = &[(0, 300)];
const SHARED: &[(i64, i64)] = &[(0, 100), (201, 1), (203, 1)];

/// Locks a file that is going to be written, against every other user.
pub(crate) fn exclusive(file: &File) -> Result<(), DiskError> {
    lock(file, libc::F_WRLCK, EXCLUSIVE)
}

/// Locks a file that is going to be read, against writers.
pub(crate) fn shared(file: &File) -> Result<(), DiskError> {
    lock(file, libc::F_RDLCK, SHARED)
}

fn lock(file: &File, kind: i32, ranges: &[(i64, i64)]) -> Result<(), DiskError> {
    for &(l_start, l_len) in ranges {
        let request = libc::flock {
            // The constants are 0 and 1; libc gives them a wider type than the field's.
            l_type: i16::try_from(kind).unwrap_or_default(),
            l_whence: 0,
            l_start,
            l_len,
            l_pid: 0,
        };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&request)) {
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
        exclusive(file.as_file()).unwrap();
        let second = file.reopen().unwrap();
        assert!(matches!(exclusive(&second), Err(DiskError::InUse)));
        assert!(matches!(shared(&second), Err(DiskError::InUse)));
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (file.reopen().unwrap(), file.reopen().unwrap());
        shared(&a).unwrap();
        shared(&b).unwrap();
        assert!(matches!(exclusive(file.as_file()), Err(DiskError::InUse)));
        drop((a, b));
        exclusive(file.as_file()).unwrap();
    }

    #[test]
    fn a_file_opened_for_reading_cannot_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert!(matches!(exclusive(&reader), Err(DiskError::NotWritable)));
    }
}
