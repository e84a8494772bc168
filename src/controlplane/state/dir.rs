//! The state directory: where what is too large for rows lives.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_model::{InstanceId, InterfaceId};
use rustix::fs::{FlockOperation, flock};

use super::StoreError;

/// Where state lives when nothing else is said.
pub const DEFAULT: &str = "/var/lib/kiln";
/// File among the locks in which a daemon notes where it listens.
pub const ENDPOINT: &str = "kilnd.endpoint";
/// Socket among the locks on which a daemon listens, for the owner of the directory alone.
pub const SOCKET: &str = "kilnd.sock";
/// Path on that socket at which it tells what happens, a line of JSON each; `?since=N` begins after notice N.
pub const EVENTS: &str = "/events";
/// Where a daemon listens when nothing else is said.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:4580";

fn dir_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Dir { path, source }
}

/// The database of the state directory `root`, which need not be there.
pub fn database(root: &Path) -> PathBuf {
    root.join("kiln.db")
}

/// An open state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}

impl StateDir {
    /// Creates what is missing of the directory, readable by its owner alone.
    pub fn create(root: &Path) -> Result<Self, StoreError> {
        let make = |path: &Path| {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700).create(path).map_err(dir_error(path))
        };
        make(root)?;
        let root = fs::canonicalize(root).map_err(dir_error(root))?;
        for sub in ["images", "instances", "run", "volumes"] {
            make(&root.join(sub))?;
        }
        Ok(StateDir { root })
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        database(&self.root)
    }

    /// Key that opens sealed rows.
    pub fn sealing_key(&self) -> PathBuf {
        self.root.join("sealing.key")
    }

    /// Base images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Volumes, and the layers that snapshots are made of.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// All instance directories.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// Locks.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Everything of one instance.
    pub fn instance(&self, id: InstanceId) -> InstanceDir {
        InstanceDir { path: self.instances().join(id.to_string()) }
    }

    /// Takes the lock that says "this process runs this instance". `None`: another process does.
    /// The kernel gives it back however the process ends.
    pub fn lock_instance(&self, id: InstanceId) -> Result<Option<Lock>, StoreError> {
        Lock::try_take(&self.run().join(format!("{id}.lock")))
    }

    /// Waits for the lock under which an interface comes to a running machine or goes from it.
    pub fn lock_interface(&self, id: InterfaceId) -> Result<Lock, StoreError> {
        Lock::wait(&self.run().join(format!("{id}.lock")))
    }

    /// Takes the lock that says "this process is the daemon of this directory". `None`: another one is.
    pub fn lock_daemon(&self) -> Result<Option<Lock>, StoreError> {
        Lock::try_take(&self.run().join("daemon.lock"))
    }

    /// Waits for the lock under which base image files appear and disappear.
    pub fn lock_images(&self) -> Result<Lock, StoreError> {
        Lock::wait(&self.run().join("images.lock"))
    }
}

/// Files of one instance.
#[derive(Debug, Clone)]
pub struct InstanceDir {
    path: PathBuf,
}

impl InstanceDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the guest printed.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What the VMM printed.
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// Where the VMM listens.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Named pipe through which a VMM that outlives its parent prints.
    pub fn vmm_pipe(&self) -> PathBuf {
        self.path.join("vmm.pipe")
    }

    /// Why the machine of such a VMM ended, written by the VMM.
    pub fn ending(&self) -> PathBuf {
        self.path.join("ending.json")
    }

    /// Creates the directory, which must not exist.
    pub fn create(&self) -> Result<(), StoreError> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(file("create", &self.path))
    }

    /// Removes the directory with all it holds; succeeds when it is not there.
    pub fn remove(&self) -> Result<(), StoreError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file("remove", &self.path)(e)),
            _ => Ok(()),
        }
    }

    /// Removes what belongs to one run and keeps what a later start needs.
    pub fn remove_run_files(&self) -> Result<(), StoreError> {
        for path in [self.control_socket(), self.vmm_pipe(), self.ending()] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// An advisory lock on a file, held until dropped or until the process ends. The file says whose it is.
///
/// A child that is being started when its parent is killed has the descriptor, and with it the lock,
/// until it replaces or ends itself. So a lock whose owner is gone is about to be free.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// How often, and after what pauses, a lock is asked for whose owner is gone.
const ORPHAN_TRIES: u32 = 300;
const ORPHAN_PAUSE: Duration = Duration::from_millis(10);

impl Lock {
    fn open(path: &Path) -> Result<File, StoreError> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(file("open the lock", path))
    }

    /// The lock counts only while the file is still the one at its path: a holder removes it.
    fn is_current(file: &File, path: &Path) -> bool {
        let held = file.metadata().map(|m| (m.dev(), m.ino()));
        let there = fs::metadata(path).map(|m| (m.dev(), m.ino()));
        matches!((held, there), (Ok(a), Ok(b)) if a == b)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Option<Lock>, StoreError> {
        let mut tries = 0;
        loop {
            let candidate = Self::open(path)?;
            match flock(&candidate, operation) {
                Ok(()) if Self::is_current(&candidate, path) => {
                    // A full disk must not keep anybody from ending what fills it: an unsigned lock
                    // counts too.
                    match candidate.write_all_at(&std::process::id().to_ne_bytes(), 0) {
                        Err(e) if e.kind() != io::ErrorKind::StorageFull => {
                            return Err(file("sign the lock", path)(e));
                        }
                        _ => {}
                    }
                    return Ok(Some(Lock { file: candidate, path: path.to_owned() }));
                }
                // Removed between open and lock, or interrupted by a signal.
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if tries < ORPHAN_TRIES && Self::is_orphan(&candidate) => {
                    tries += 1;
                    std::thread::sleep(ORPHAN_PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(file("take the lock", path)(e.into())),
            }
        }
    }

    /// Whether the process that took the lock has ended.
    fn is_orphan(file: &File) -> bool {
        let mut owner = [0; size_of::<u32>()];
        file.read_exact_at(&mut owner, 0).is_ok()
            && !Path::new(&format!("/proc/{}", u32::from_ne_bytes(owner))).exists()
    }

    fn try_take(path: &Path) -> Result<Option<Lock>, StoreError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn wait(path: &Path) -> Result<Lock, StoreError> {
        // A blocking flock answers WOULDBLOCK never.
        Self::take(path, FlockOperation::LockExclusive)?.ok_or(StoreError::Contended)
    }

    /// Gives the lock back and removes its file, so that ended instances leave nothing.
    pub fn remove(self) {
        // Best effort: an empty file left behind does no harm and the next sweep removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // For a child that is being started and has the descriptor too. It cannot fail.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_created_for_its_owner_alone() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temp.path().join("a/b")).unwrap();
        for path in [state.root().to_owned(), state.images(), state.instances(), state.run(), state.volumes()]
        {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700, "{}", path.display());
        }
        assert!(StateDir::create(state.root()).is_ok(), "an existing directory is taken as it is");
    }

    #[test]
    fn lock_outlives_its_owner_no_longer_than_the_owners_last_child() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let lock = Lock::try_take(&path).unwrap().unwrap();
        // As if a process that has ended had taken it, and a child of its still held it.
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        lock.file.write_all_at(&ended.id().to_ne_bytes(), 0).unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(ORPHAN_PAUSE * 3);
            drop(lock);
        });
        assert!(Lock::try_take(&path).unwrap().is_some());
        child.join().unwrap();
    }

    #[test]
    fn state_dir_below_a_file_names_the_path() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let error = StateDir::create(&temp.path().join("x")).unwrap_err().to_string();
        assert!(error.starts_with("cannot use the state directory /"), "{error}");
    }

    #[test]
    fn instance_lock_is_exclusive_until_dropped_or_removed() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(temp.path()).unwrap();
        let id = InstanceId::from_bits(1);
        let lock = state.lock_instance(id).unwrap().unwrap();
        assert!(state.lock_instance(id).unwrap().is_none());
        assert!(state.lock_instance(InstanceId::from_bits(2)).unwrap().is_some());
        drop(lock);
        let lock = state.lock_instance(id).unwrap().unwrap();
        lock.remove();
        assert!(!state.run().join(format!("{id}.lock")).exists());
        assert!(state.lock_instance(id).unwrap().is_some());
    }
}
