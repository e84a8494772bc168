//! Secrets at rest: rows that only the holder of the sealing key can read.
//!
//! ```text
//!   secret ── AES-256-GCM(key, random nonce, name as associated data) ──▶ row `sealed/<name>`
//!   key    ── <state dir>/sealing.key, 32 bytes, mode 0600
//! ```
//!
//! A copy of the database without the key file says nothing, and a row moved to another name does
//! not open. `KILN_SEALING_KEY` names another place for the key file, such as a credential that the
//! service manager unlocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{Row, StateDir, Store, StoreError, Transaction, transact};

/// Names the key file where it is not in the state directory.
pub const KEY_VARIABLE: &str = "KILN_SEALING_KEY";
/// Bytes of the key.
const KEY: usize = 32;

/// Why a secret cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be used.
    #[error("cannot {action} the sealing key {path}")]
    KeyFile {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not 32 bytes.
    #[error("the sealing key {0} does not have {KEY} bytes")]
    KeyLength(PathBuf),
    /// Sealed under another key, or changed.
    #[error("the secret {0:?} does not open with the sealing key of this state directory")]
    Unsealable(String),
    /// The system has no randomness, or no memory.
    #[error("the cryptographic library failed")]
    Library,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A secret as it lies in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sealed {
    name: String,
    /// Base64 of nonce, ciphertext and tag.
    sealed: String,
}

impl Row for Sealed {
    const KIND: &'static str = "sealed";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// Seals and opens.
pub struct Vault<'a> {
    store: &'a dyn Store,
    key: LessSafeKey,
}

impl std::fmt::Debug for Vault<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

impl<'a> Vault<'a> {
    /// Opens the vault of a state directory; makes its key at the first use.
    pub fn open(store: &'a dyn Store, dir: &StateDir) -> Result<Self, SealError> {
        let given = std::env::var_os(KEY_VARIABLE).map(PathBuf::from);
        let key = match given {
            Some(path) => read_key(&path)?.ok_or_else(|| {
                let source = io::ErrorKind::NotFound.into();
                SealError::KeyFile { action: "open", path, source }
            })?,
            None => own_key(&dir.sealing_key())?,
        };
        Self::with_key(store, &key)
    }

    fn with_key(store: &'a dyn Store, key: &Secret<[u8; KEY]>) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| SealError::Library)?;
        Ok(Vault { store, key: LessSafeKey::new(key) })
    }

    /// The secret of that name. Where there is none, `make` gives it; of several processes that do so
    /// at once, all get the same one.
    pub fn get_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Secret<Vec<u8>>, SealError>,
    ) -> Result<Secret<Vec<u8>>, SealError> {
        let name = name.to_owned();
        if let Some(row) = transact(self.store, |tx| tx.get::<Sealed>(&name))? {
            return self.unseal(&row);
        }
        let row = self.seal(&name, &make()?)?;
        let kept = transact(self.store, |tx| {
            let there = tx.get::<Sealed>(&name)?;
            if there.is_none() {
                tx.put(&row)?;
            }
            Ok::<_, StoreError>(there)
        })?;
        self.unseal(&kept.unwrap_or(row))
    }

    /// The secret of that name, if there is one.
    pub fn get(&self, name: &str) -> Result<Option<Secret<Vec<u8>>>, SealError> {
        let row = transact(self.store, |tx| tx.get::<Sealed>(&name.to_owned()))?;
        row.map(|row| self.unseal(&row)).transpose()
    }

    /// Seals a secret under a name, as part of `tx`.
    pub fn put(
        &self,
        tx: &mut Transaction<'_>,
        name: &str,
        secret: &Secret<Vec<u8>>,
    ) -> Result<(), SealError> {
        Ok(tx.put(&self.seal(name, secret)?)?)
    }

    /// Removes the secret of that name, as part of `tx`.
    pub fn remove(tx: &mut Transaction<'_>, name: &str) {
        tx.remove::<Sealed>(&name.to_owned());
    }

    fn seal(&self, name: &str, secret: &Secret<Vec<u8>>) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Library)?;
        let mut bytes = secret.expose().clone();
        let aad = Aad::from(name.as_bytes());
        let sealing = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(sealing, aad, &mut bytes).map_err(|_| SealError::Library)?;
        Ok(Sealed { name: name.to_owned(), sealed: STANDARD.encode([&nonce[..], &bytes].concat()) })
    }

    fn unseal(&self, row: &Sealed) -> Result<Secret<Vec<u8>>, SealError> {
        let bad = || SealError::Unsealable(row.name.clone());
        let mut bytes = STANDARD.decode(&row.sealed).map_err(|_| bad())?;
        let (nonce, rest) = bytes.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(bad)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened =
            self.key.open_in_place(nonce, Aad::from(row.name.as_bytes()), rest).map_err(|_| bad())?;
        let secret = Secret::new(opened.to_vec());
        bytes.zeroize();
        Ok(secret)
    }
}

fn key_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SealError {
    let path = path.to_owned();
    move |source| SealError::KeyFile { action, path, source }
}

fn read_key(path: &Path) -> Result<Option<Secret<[u8; KEY]>>, SealError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(key_error("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(KEY as u64 + 1).read_to_end(&mut bytes).map_err(key_error("read", path))?;
    let key = <[u8; KEY]>::try_from(bytes.as_slice()).map_err(|_| SealError::KeyLength(path.to_owned()));
    bytes.zeroize();
    key.map(|key| Some(Secret::new(key)))
}

/// The key of the state directory, made if it is not there. A whole file appears at once or not at
/// all, and of two processes that make it the first one wins.
fn own_key(path: &Path) -> Result<Secret<[u8; KEY]>, SealError> {
    if let Some(key) = read_key(path)? {
        return Ok(key);
    }
    let mut key = [0; KEY];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| SealError::Library)?;
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&key)?;
        file.sync_all()?;
        match fs::hard_link(&fresh, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    };
    let written = write();
    key.zeroize();
    let _ = fs::remove_file(&fresh);
    written.map_err(key_error("create", path))?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(key_error("create", path))?;
    }
    read_key(path)?.ok_or_else(|| key_error("read", path)(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::state::testing::Place;

    fn secret(text: &str) -> Result<Secret<Vec<u8>>, SealError> {
        Ok(Secret::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn secret_is_made_once_and_unreadable_in_the_database() {
        let place = Place::new();
        let vault = Vault::open(&place.store, &place.dir).unwrap();
        assert_eq!(vault.get_or_make("a", || secret("hunter2")).unwrap().expose(), b"hunter2");
        let again = Vault::open(&place.store, &place.dir).unwrap();
        assert_eq!(again.get_or_make("a", || secret("other")).unwrap().expose(), b"hunter2");
        let raw = place.store.read("sealed/a").unwrap().unwrap().value;
        assert!(!raw.contains("hunter2") && !raw.contains(&STANDARD.encode("hunter2")), "{raw}");
        assert_eq!(fs::metadata(place.dir.sealing_key()).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn other_key_other_name_and_changed_bytes_do_not_open() {
        let place = Place::new();
        let vault = Vault::open(&place.store, &place.dir).unwrap();
        vault.get_or_make("a", || secret("hunter2")).unwrap();
        let other = Vault::with_key(&place.store, &Secret::new([7; KEY])).unwrap();
        assert!(matches!(other.get_or_make("a", || secret("x")), Err(SealError::Unsealable(_))));
        let row = transact(&place.store, |tx| tx.get::<Sealed>(&"a".into())).unwrap().unwrap();
        let moved = Sealed { name: "b".into(), ..row.clone() };
        assert!(matches!(vault.unseal(&moved), Err(SealError::Unsealable(_))));
        let mut bytes = STANDARD.decode(&row.sealed).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let changed = Sealed { sealed: STANDARD.encode(bytes), ..row.clone() };
        assert!(matches!(vault.unseal(&changed), Err(SealError::Unsealable(_))));
        let short = Sealed { sealed: "AAAA".into(), ..row };
        assert!(matches!(vault.unseal(&short), Err(SealError::Unsealable(_))));
    }

    #[test]
    fn key_file_of_another_length_is_refused() {
        let place = Place::new();
        fs::write(place.dir.sealing_key(), "short").unwrap();
        let error = Vault::open(&place.store, &place.dir).unwrap_err();
        assert!(error.to_string().ends_with("does not have 32 bytes"), "{error}");
    }
}
