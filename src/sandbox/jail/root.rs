//! A root directory with nothing in it.

use std::io;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

/// A directory that every host has, to mount on. What it holds does not matter.
const PLACE: &str = "/proc";

const NONE: Option<&str> = None;

/// Leaves every mount of the host behind for an empty tmpfs that cannot be written. Call in a mount
/// namespace of one's own.
pub(super) fn empty() -> io::Result<()> {
    // Nothing mounted here is seen outside, and the other way round.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), PLACE, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir(PLACE)?;
    // Old and new root in one place: the old one lies on top and is taken away (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(mount(NONE, "/", NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)?)
}
