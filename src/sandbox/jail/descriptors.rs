//! Closing what was inherited by accident.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Closes everything above the standard streams but `keep`.
pub(super) fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = u32::try_from(keep.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if keep > 3 {
        close_range(3, keep.saturating_sub(1))?;
    }
    close_range(keep.saturating_add(1).max(3), u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the process has only begun: nothing in it owns a descriptor in the range, as the caller
    // of `enter` keeps none but the one named and the standard streams.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
