//! What is known of a VPC's filter, as a journal beside the records.
//!
//! ```text
//!  {policy} · {begin: change} · {done} · {begin: change} · {done} …      one JSON document a line
//! ```
//! A change costs what it says, not what the VPC holds. Whoever finds a change that was begun and not
//! done (its writer was killed) knows that the kernel has it wholly or not at all. A process that
//! changes the same VPC again finds its own copy still true if nobody else has written meanwhile:
//! the file is the same, and as long as it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_model::security::NetworkPolicy;
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::error::HostNetError;

/// A journal of changes may be as long as this and twice the policy that it began with.
const MIN_COMPACTION: u64 = 64 * 1024;
/// Most copies that a process keeps.
const MAX_KEPT: usize = 128;

/// Copies of this process, by path. They are there while nobody works with them.
static KEPT: Mutex<BTreeMap<PathBuf, Journal>> = Mutex::new(BTreeMap::new());

/// A line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Policy(NetworkPolicy),
    Begin(Change),
    Done(()),
}

/// As [`Line`], for writing.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum LineRef<'a> {
    Policy(&'a NetworkPolicy),
    Begin(&'a Change),
    Done(()),
}

/// The file as this process knows it.
#[derive(Debug)]
struct Journal {
    file: File,
    /// Its length.
    len: u64,
    /// Length of its first line.
    base: u64,
    applied: NetworkPolicy,
    pending: Option<Change>,
}

/// The note of one VPC. All methods are called under the lock of the records.
#[derive(Debug)]
pub(crate) struct Note {
    path: PathBuf,
    /// `None` where there is no file, or none that can be gone on with.
    journal: Option<Journal>,
    applied: NetworkPolicy,
    pending: Option<Change>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostNetError {
    let path = path.to_owned();
    move |source| HostNetError::Record { action, path, source }
}

impl Note {
    /// Reads the note; without one nothing is enforced yet.
    pub fn open(path: &Path) -> Result<Self, HostNetError> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        let journal = match kept.filter(|journal| journal.is_that_of(path)) {
            Some(journal) => Some(journal),
            None => Journal::read(path).map_err(failed("reading", path))?,
        };
        let mut note =
            Note { path: path.to_owned(), journal: None, applied: NetworkPolicy::default(), pending: None };
        if let Some(mut journal) = journal {
            note.applied = std::mem::take(&mut journal.applied);
            note.pending = journal.pending.take();
            note.journal = Some(journal);
        }
        Ok(note)
    }

    /// Whether there is a note to rely on. A damaged one is that of a disk that was full.
    pub fn is_known(&self) -> bool {
        self.journal.is_some()
    }

    /// In the kernel.
    pub fn applied(&self) -> &NetworkPolicy {
        &self.applied
    }

    /// Perhaps in the kernel.
    pub fn pending(&self) -> Option<&Change> {
        self.pending.as_ref()
    }

    /// Notes that `change` is about to happen.
    pub fn begin(&mut self, change: Change) -> Result<(), HostNetError> {
        let begin = LineRef::Begin(&change);
        let appended = match &mut self.journal {
            Some(journal) if !journal.is_long() => journal.append(&begin),
            _ => Journal::create(&self.path, &self.applied)
                .and_then(|journal| self.journal.insert(journal).append(&begin)),
        };
        self.written(appended)?;
        self.pending = Some(change);
        Ok(())
    }

    /// Notes that what was begun has happened: the policy is `now`.
    pub fn done(&mut self, now: NetworkPolicy) -> Result<(), HostNetError> {
        let appended = match &mut self.journal {
            Some(journal) => journal.append(&LineRef::Done(())),
            None => Ok(()),
        };
        self.written(appended)?;
        (self.applied, self.pending) = (now, None);
        Ok(())
    }

    /// A file that was perhaps written in part is read anew by whoever comes next.
    fn written(&mut self, result: io::Result<()>) -> Result<(), HostNetError> {
        result.map_err(|error| {
            self.journal = None;
            failed("writing", &self.path)(error)
        })
    }

    /// Forgets the note of a VPC that is gone.
    pub fn forget(mut self) -> Result<(), HostNetError> {
        self.journal = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let Some(mut journal) = self.journal.take() else { return };
        journal.applied = std::mem::take(&mut self.applied);
        journal.pending = self.pending.take();
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(std::mem::take(&mut self.path), journal);
    }
}

impl Journal {
    /// Whether the file at `path` is this one, and nobody has written to it since.
    fn is_that_of(&self, path: &Path) -> bool {
        // The inode cannot have been given to another file: this one is still open.
        let (Ok(there), Ok(own)) = (fs::metadata(path), self.file.metadata()) else { return false };
        (there.dev(), there.ino(), there.len()) == (own.dev(), own.ino(), self.len)
    }

    fn is_long(&self) -> bool {
        self.len > self.base.saturating_mul(3).max(MIN_COMPACTION)
    }

    /// Reads a file; `None` if there is none, or it is not whole.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        if let Err(error) = file.read_to_string(&mut text) {
            return if error.kind() == io::ErrorKind::InvalidData { Ok(None) } else { Err(error) };
        }
        let mut lines = text.split_inclusive('\n');
        let Some(first) = lines.next() else { return Ok(None) };
        let Ok(Line::Policy(applied)) = serde_json::from_str(first) else { return Ok(None) };
        let length = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
        let mut journal = Journal { file, len: length(&text), base: length(first), applied, pending: None };
        for line in lines {
            match serde_json::from_str(line) {
                Ok(Line::Begin(change)) if line.ends_with('\n') => journal.pending = Some(change),
                Ok(Line::Done(())) if line.ends_with('\n') => {
                    if let Some(change) = journal.pending.take() {
                        change.apply(&mut journal.applied);
                    }
                }
                // The last line, of a writer that was killed: as if it had not begun to write it. No
                // more is written to this file.
                _ if !line.ends_with('\n') => journal.base = 0,
                _ => return Ok(None),
            }
        }
        if journal.base == 0 {
            let (pending, applied) = (journal.pending.take(), journal.applied);
            let mut whole = Journal::create(path, &applied)?;
            if let Some(change) = &pending {
                whole.append(&LineRef::Begin(change))?;
            }
            return Ok(Some(Journal { applied, pending, ..whole }));
        }
        Ok(Some(journal))
    }

    /// Replaces the file by one that begins with `policy`.
    fn create(path: &Path, policy: &NetworkPolicy) -> io::Result<Self> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let temporary = path.with_extension("new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        let mut journal = Journal { file, len: 0, base: 0, applied: NetworkPolicy::default(), pending: None };
        journal.append(&LineRef::Policy(policy))?;
        journal.base = journal.len;
        fs::rename(&temporary, path)?;
        Ok(journal)
    }

    fn append(&mut self, line: &LineRef<'_>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.len += u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kiln_model::SecurityGroupId;

    use super::*;

    fn policy(groups: u64) -> NetworkPolicy {
        let groups = (0..groups).map(|n| (SecurityGroupId::from_bits(n), vec![])).collect();
        NetworkPolicy { groups, ..NetworkPolicy::default() }
    }

    /// One change after the other, up to `groups` groups.
    fn grow(path: &Path, groups: u64) {
        for n in 1..=groups {
            let mut note = Note::open(path).unwrap();
            let change = Change::between(note.applied(), &policy(n));
            note.begin(change).unwrap();
            note.done(policy(n)).unwrap();
        }
    }

    /// As another process finds it.
    fn elsewhere(path: &Path) -> Note {
        KEPT.lock().unwrap().remove(path);
        Note::open(path).unwrap()
    }

    #[test]
    fn note_says_the_same_to_whoever_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpc/1");
        assert!(!Note::open(&path).unwrap().is_known());
        grow(&path, 5);
        for note in [Note::open(&path).unwrap(), elsewhere(&path)] {
            assert!(note.is_known());
            assert_eq!((note.applied(), note.pending()), (&policy(5), None));
        }
        Note::open(&path).unwrap().forget().unwrap();
        assert!(!Note::open(&path).unwrap().is_known());
    }

    #[test]
    fn copy_of_a_process_is_not_used_after_another_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        grow(&path, 3);
        // As another process does, which has no copy.
        let own = KEPT.lock().unwrap().remove(&path).unwrap();
        grow(&path, 4);
        KEPT.lock().unwrap().insert(path.clone(), own);
        assert_eq!(Note::open(&path).unwrap().applied(), &policy(4));
    }

    #[test]
    fn writer_killed_at_any_byte_leaves_what_was_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        grow(&path, 2);
        let text = fs::read(&path).unwrap();
        let ends: Vec<_> = (0..text.len()).filter(|at| text[*at] == b'\n').collect();
        for len in ends[0] + 1..text.len() {
            fs::write(&path, &text[..len]).unwrap();
            let note = elsewhere(&path);
            let whole = ends.iter().filter(|end| **end < len).count();
            let expected = (policy(u64::try_from((whole - 1) / 2).unwrap()), whole % 2 == 0);
            assert_eq!((note.applied(), note.pending().is_some()), (&expected.0, expected.1), "{len}");
            drop(note);
            // And it can be gone on with.
            let again = elsewhere(&path);
            assert_eq!((again.applied(), again.pending().is_some()), (&expected.0, expected.1), "{len}");
        }
    }

    #[test]
    fn damaged_note_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        grow(&path, 2);
        let text = fs::read(&path).unwrap();
        let damaged: [&[u8]; 4] = [b"", b"{", b"\xff\xfe\n", &[&text[..], b"what\n"].concat()];
        for damaged in damaged {
            fs::write(&path, damaged).unwrap();
            assert!(!elsewhere(&path).is_known());
        }
    }

    #[test]
    fn long_journal_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        grow(&path, 40);
        let mut most = 0;
        for n in 0..4000 {
            let mut note = Note::open(&path).unwrap();
            let next = policy(40 + n % 2);
            let change = Change::between(note.applied(), &next);
            note.begin(change).unwrap();
            note.done(next).unwrap();
            most = most.max(fs::metadata(&path).unwrap().len());
        }
        assert!(most < 2 * MIN_COMPACTION, "{most}");
        assert_eq!(elsewhere(&path).applied(), &policy(41));
    }
}
