//! Named network namespaces, as `ip netns` keeps them: files below `/run/netns` onto which a
//! namespace is bind-mounted.
//!
//! The namespace of a thread is changed only on threads that end soon after. The caller's thread
//! stays where it is, and what the caller's thread sees is "the host".

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::HostNetError;

/// Where names of network namespaces live.
const DIR: &str = "/run/netns";

/// An open network namespace.
pub(crate) struct NetNs {
    name: String,
    file: File,
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> HostNetError {
    let name = name.to_owned();
    move |source| HostNetError::Namespace { action, name, source }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Whether `path` is a network namespace rather than the bare file that a crash left.
fn is_mounted(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

impl NetNs {
    /// Opens a namespace by name; `None` if there is none.
    pub fn open(name: &str) -> Result<Option<Self>, HostNetError> {
        let path = path(name);
        match File::open(&path) {
            Ok(file) if is_mounted(&path) => Ok(Some(NetNs { name: name.to_owned(), file })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("opening", name)(error)),
        }
    }

    /// The calling thread's own, whatever its name is.
    pub fn current() -> Result<Self, HostNetError> {
        let name = "of the host";
        let file = File::open("/proc/thread-self/ns/net").map_err(failed("opening", name))?;
        Ok(NetNs { name: name.to_owned(), file })
    }

    /// Makes a new, empty namespace of this name; one that a crash left half-made is replaced.
    pub fn create(name: &str) -> Result<Self, HostNetError> {
        prepare_dir().map_err(failed("preparing the directory for", name))?;
        let path = path(name);
        File::create(&path).map_err(failed("naming", name))?;
        let made: io::Result<()> = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none = None::<&str>;
            mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
            Ok(())
        });
        made.map_err(failed("making", name))?;
        let file = File::open(&path).map_err(failed("opening", name))?;
        Ok(NetNs { name: name.to_owned(), file })
    }

    /// Takes the name away. The namespace itself goes when its last link and descriptor are gone.
    /// Succeeds when there is none.
    pub fn remove(name: &str) -> Result<(), HostNetError> {
        let path = path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // ENOENT: no such name. EINVAL: a bare file.
            Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
            Err(error) => return Err(failed("unmounting", name)(error.into())),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", name)(error)),
            _ => Ok(()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For netlink messages that move a link here.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `f` on a thread inside the namespace. Programs that it starts are inside as well.
    pub fn run<R: Send>(
        &self,
        f: impl FnOnce() -> Result<R, HostNetError> + Send,
    ) -> Result<R, HostNetError> {
        let fd: BorrowedFd<'_> = self.file.as_fd();
        on_thread(move || {
            setns(fd, CloneFlags::CLONE_NEWNET).map_err(|e| failed("entering", &self.name)(e.into()))?;
            f()
        })
    }
}

/// Runs `f` on a thread of its own that starts in the caller's namespace.
pub(crate) fn on_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `/run/netns` a mount point whose mounts other mount namespaces see, so that removing a name
/// removes it everywhere.
fn prepare_dir() -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let none = None::<&str>;
    let shared = || mount(none, DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match shared() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(nix::Error::EINVAL) => {
            mount(Some(DIR), DIR, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            Ok(shared()?)
        }
        Err(error) => Err(error.into()),
    }
}
