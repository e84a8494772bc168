//! Credentials out of a file that somebody else keeps fresh.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{CredentialSource, Credentials, Fetch, SourceError, Subject, json};

/// What of a file changes when it is written or replaced.
type Stamp = (u64, u64, u64, i64, i64);

/// Reads a file when it has changed. Its owner should replace it by renaming; a half-written file is
/// an error until it is whole.
pub(super) struct FileSource {
    path: PathBuf,
    /// How the file was when it was last read; `None` where there was none.
    seen: Mutex<Option<Stamp>>,
}

impl FileSource {
    pub(super) fn new(path: PathBuf) -> Self {
        FileSource { path, seen: Mutex::new(None) }
    }

    fn stamp(&self) -> Option<Stamp> {
        let m = fs::metadata(&self.path).ok()?;
        Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    }

    fn read(&self, subject: &Subject, now: u64) -> Result<Credentials, SourceError> {
        let failed = |detail: String| SourceError::File { detail };
        // Before reading: a change in between is news at the next look.
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = self.stamp();
        // A pipe or a device could block for ever.
        let kind = fs::metadata(&self.path).map_err(|e| failed(e.to_string()))?;
        if !kind.is_file() {
            return Err(failed("it is no regular file".into()));
        }
        let mut text = zeroize::Zeroizing::new(Vec::new());
        let file = File::open(&self.path).map_err(|e| failed(e.to_string()))?;
        file.take(json::MAX_BYTES as u64 + 1).read_to_end(&mut text).map_err(|e| failed(e.to_string()))?;
        json::parse(&text, subject, now)
    }
}

impl CredentialSource for FileSource {
    fn fetch<'a>(&'a self, subject: &'a Subject, now: u64) -> Fetch<'a> {
        Box::pin(async move { self.read(subject, now) })
    }

    fn has_news(&self) -> bool {
        self.stamp() != *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_once(&self, subject: &Subject, now: u64) -> Option<Result<Credentials, SourceError>> {
        Some(self.read(subject, now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::subject;
    use super::*;

    fn write(path: &std::path::Path, key: &str) {
        let fresh = path.with_extension("new");
        let text = format!(r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"s"}}"#);
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, path).unwrap();
    }

    #[test]
    fn every_change_of_the_file_is_news_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("c.json");
        let source = FileSource::new(path.clone());
        let key = || source.at_once(&subject(), 0).unwrap().map(|set| set.access_key_id);
        assert!(matches!(key(), Err(SourceError::File { .. })));
        assert!(!source.has_news(), "still no file");
        for round in ["A", "B", "C"] {
            write(&path, round);
            assert!(source.has_news());
            assert_eq!(key().unwrap(), round);
            assert!(!source.has_news());
        }
        fs::remove_file(&path).unwrap();
        assert!(source.has_news());
    }

    #[test]
    fn devices_and_directories_are_refused() {
        for path in ["/dev/zero", "/"] {
            let source = FileSource::new(path.into());
            let error = source.at_once(&subject(), 0).unwrap().unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
    }
}
