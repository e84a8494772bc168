//! Create, import, describe and delete key pairs, with the rules and the error codes of EC2.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{encoding::Pkcs8V1Der, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::{KeyPairId, Secret, SshPublicKey, Tag};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::encoding::{self, RsaPublic};
use crate::state::{Row, Store, StoreError, transact};
use crate::tags;

/// Longest name in characters.
const MAX_NAME: usize = 255;
/// Key pairs in one state directory, as EC2's quota.
const MAX_KEY_PAIRS: usize = 5000;

/// Algorithm of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// RSA; those made here have 2048 bits.
    Rsa,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    /// As the API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyKind::Rsa => "rsa",
            KeyKind::Ed25519 => "ed25519",
        }
    }
}

/// A key pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: KeyPairId,
    /// Its algorithm.
    pub kind: KeyKind,
    /// What is to be trusted.
    pub public: SshPublicKey,
    /// As EC2 computes it: SHA-1 of the private key where it was made here, MD5 of the public key where
    /// it was imported, both for RSA; SHA-256 of the public key for Ed25519.
    pub fingerprint: String,
    /// When it came, Unix seconds.
    pub created: u64,
}

impl Row for KeyPair {
    const KIND: &'static str = "key-pair";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// A new key pair with its private half.
#[derive(Debug)]
pub struct CreatedKeyPair {
    /// What is kept.
    pub pair: KeyPair,
    /// PEM: PKCS #1 for RSA, OpenSSH's own form for Ed25519.
    pub private: Secret<String>,
}

/// Why there is no such key pair.
#[derive(Debug, thiserror::Error)]
pub enum KeyPairError {
    /// No such name.
    #[error("The key pair '{0}' does not exist")]
    NoSuch(String),
    /// The name is taken.
    #[error("The keypair '{0}' already exists")]
    Exists(String),
    /// Not a name.
    #[error("A key pair's name has 1 to {MAX_NAME} ASCII characters, none of them control characters")]
    Name,
    /// Not a public key of use.
    #[error("Key is not in valid OpenSSH public key format: {0}")]
    Format(String),
    /// As many as there may be.
    #[error("There are {MAX_KEY_PAIRS} key pairs already, as many as there may be")]
    Limit,
    /// The library made none.
    #[error("no key could be made")]
    Library,
    /// Its tags cannot be set.
    #[error(transparent)]
    Tags(#[from] tags::TagError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyPairError {
    /// What EC2 calls it.
    pub fn code(&self) -> &'static str {
        match self {
            KeyPairError::NoSuch(_) => "InvalidKeyPair.NotFound",
            KeyPairError::Exists(_) => "InvalidKeyPair.Duplicate",
            KeyPairError::Name => "InvalidParameterValue",
            KeyPairError::Format(_) => "InvalidKey.Format",
            KeyPairError::Limit => "KeyPairLimitExceeded",
            KeyPairError::Tags(tags::TagError::TooMany { .. }) => "TagLimitExceeded",
            KeyPairError::Library | KeyPairError::Tags(_) | KeyPairError::Store(_) => "InternalError",
        }
    }
}

/// Key pairs of one store. Methods block.
pub struct KeyPairs<'a> {
    /// Where they are.
    pub store: &'a dyn Store,
    /// Unix seconds.
    pub now: u64,
}

impl std::fmt::Debug for KeyPairs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPairs")
    }
}

impl KeyPairs<'_> {
    /// All, by name.
    pub fn list(&self) -> Result<Vec<KeyPair>, KeyPairError> {
        Ok(transact(self.store, |tx| tx.list::<KeyPair>())?)
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Result<KeyPair, KeyPairError> {
        let found = transact(self.store, |tx| tx.get::<KeyPair>(&name.to_owned()))?;
        found.ok_or_else(|| KeyPairError::NoSuch(name.to_owned()))
    }

    /// `CreateKeyPair`.
    pub fn create(&self, name: &str, kind: KeyKind, tags: &[Tag]) -> Result<CreatedKeyPair, KeyPairError> {
        check_name(name)?;
        let (blob, fingerprint, private) = match kind {
            KeyKind::Rsa => make_rsa()?,
            KeyKind::Ed25519 => make_ed25519(name)?,
        };
        let public = format!("{} {}", algorithm(kind), STANDARD.encode(blob));
        let public = public.parse().map_err(|_| KeyPairError::Library)?;
        Ok(CreatedKeyPair { pair: self.insert(name, kind, public, fingerprint, tags)?, private })
    }

    /// `ImportKeyPair`: a line as in `authorized_keys`.
    pub fn import(&self, name: &str, line: &str, tags: &[Tag]) -> Result<KeyPair, KeyPairError> {
        check_name(name)?;
        let public: SshPublicKey = line.parse().map_err(|e| KeyPairError::Format(format!("{e}")))?;
        let text = public.to_string();
        let blob = text.split(' ').nth(1).and_then(|blob| STANDARD.decode(blob).ok()).unwrap_or_default();
        let (kind, fingerprint) = match public.algorithm() {
            "ssh-ed25519" => (KeyKind::Ed25519, sha256(&blob)),
            "ssh-rsa" => {
                let damaged = || KeyPairError::Format("its numbers are damaged".into());
                let key = RsaPublic::from_ssh(&blob).ok_or_else(damaged)?;
                if !matches!(key.bits(), 1024..=16_384) {
                    return Err(KeyPairError::Format("an RSA key has 1024 to 16384 bits".into()));
                }
                (KeyKind::Rsa, colons(&Md5::digest(key.to_spki())))
            }
            other => return Err(KeyPairError::Format(format!("{other} is neither RSA nor Ed25519"))),
        };
        self.insert(name, kind, public, fingerprint, tags)
    }

    fn insert(
        &self,
        name: &str,
        kind: KeyKind,
        public: SshPublicKey,
        fingerprint: String,
        tags: &[Tag],
    ) -> Result<KeyPair, KeyPairError> {
        let id = KeyPairId::from_bits(rand::random());
        let pair = KeyPair { name: name.to_owned(), id, kind, public, fingerprint, created: self.now };
        transact(self.store, |tx| {
            if tx.list::<KeyPair>()?.len() >= MAX_KEY_PAIRS {
                return Err(KeyPairError::Limit);
            }
            if !tx.insert(&pair)? {
                return Err(KeyPairError::Exists(pair.name.clone()));
            }
            Ok(tags::set_in(tx, &id.to_string(), tags)?)
        })?;
        Ok(pair)
    }

    /// `DeleteKeyPair`. One that is not there is no error.
    pub fn delete(&self, name: &str) -> Result<Option<KeyPair>, KeyPairError> {
        let there = transact(self.store, |tx| {
            let there = tx.get::<KeyPair>(&name.to_owned())?;
            tx.remove::<KeyPair>(&name.to_owned());
            Ok::<_, StoreError>(there)
        })?;
        if let Some(pair) = &there {
            tags::forget(self.store, &pair.id.to_string())?;
        }
        Ok(there)
    }
}

fn check_name(name: &str) -> Result<(), KeyPairError> {
    let good = |c: char| c.is_ascii() && !c.is_ascii_control();
    if name.trim().is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(KeyPairError::Name);
    }
    Ok(())
}

fn algorithm(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Rsa => "ssh-rsa",
        KeyKind::Ed25519 => "ssh-ed25519",
    }
}

/// Public key, fingerprint, private key.
type Made = (Vec<u8>, String, Secret<String>);

fn make_rsa() -> Result<Made, KeyPairError> {
    let made = || {
        let key = rsa::KeyPair::generate(KeySize::Rsa2048).ok()?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().ok()?;
        let pkcs1 = encoding::pkcs1_of_pkcs8(pkcs8.as_ref())?;
        let blob = RsaPublic::from_pkcs1(key.public_key().as_ref())?.to_ssh();
        let fingerprint = colons(digest(&SHA1_FOR_LEGACY_USE_ONLY, pkcs8.as_ref()).as_ref());
        let private = encoding::pem("RSA PRIVATE KEY", pkcs1, 64);
        Some((blob, fingerprint, Secret::new(private.to_string())))
    };
    made().ok_or(KeyPairError::Library)
}

fn make_ed25519(comment: &str) -> Result<Made, KeyPairError> {
    let made = || {
        let key = Ed25519KeyPair::generate().ok()?;
        let seed = key.seed().ok()?;
        let seed = aws_lc_rs::encoding::AsBigEndian::as_be_bytes(&seed).ok()?;
        let public = key.public_key().as_ref();
        let blob = encoding::ed25519_to_ssh(public);
        let private = encoding::ed25519_private(seed.as_ref(), public, rand::random(), comment);
        let fingerprint = sha256(&blob);
        Some((blob, fingerprint, Secret::new(private.to_string())))
    };
    made().ok_or(KeyPairError::Library)
}

fn sha256(blob: &[u8]) -> String {
    STANDARD.encode(digest(&SHA256, blob))
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;
    use crate::state::SqliteStore;

    fn with_pairs(test: impl FnOnce(&KeyPairs<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        test(&KeyPairs { store: &store, now: 7 });
    }

    /// What a tool prints, given a file with `text` and nothing else; `None` where there is no such tool.
    fn tool(command: &str, text: &str) -> Option<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let script = format!("set -e -o pipefail; f={}; {command}", file.path().display());
        let output = Command::new("bash").args(["-c", &script]).output().ok()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(127) {
            println!("SKIPPED: {command}: {complaint}");
            return None;
        }
        assert!(output.status.success(), "{command}: {complaint}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn created_keys_are_read_by_openssh_and_openssl() {
        with_pairs(|pairs| {
            for kind in [KeyKind::Rsa, KeyKind::Ed25519] {
                let created = pairs.create(kind.as_str(), kind, &[]).unwrap();
                let private = created.private.expose();
                if let Some(public) = tool("ssh-keygen -y -f $f", private) {
                    let line = created.pair.public.to_string();
                    assert!(public.starts_with(line.trim()), "{public} {line}");
                }
                let oracle = match kind {
                    KeyKind::Rsa => {
                        "openssl pkcs8 -in $f -outform DER -topk8 -nocrypt | openssl sha1 -c | sed 's/.*= *//'"
                    }
                    KeyKind::Ed25519 => "ssh-keygen -l -E sha256 -f $f | sed 's/.*SHA256://; s/ .*/=/'",
                };
                if let Some(fingerprint) = tool(oracle, private) {
                    assert_eq!(created.pair.fingerprint, fingerprint.trim());
                }
            }
        });
    }

    #[test]
    fn imported_key_has_the_fingerprint_of_its_public_half() {
        with_pairs(|pairs| {
            let created = pairs.create("a", KeyKind::Rsa, &[]).unwrap();
            let imported = pairs.import("b", &created.pair.public.to_string(), &[]).unwrap();
            let oracle =
                "openssl rsa -in $f -pubout -outform DER 2>/dev/null | openssl md5 -c | sed 's/.*= *//'";
            if let Some(fingerprint) = tool(oracle, created.private.expose()) {
                assert_eq!(imported.fingerprint, fingerprint.trim());
            }
            assert_eq!(pairs.get("b").unwrap(), imported);
        });
    }

    #[test]
    fn refusals_have_the_codes_of_ec2() {
        with_pairs(|pairs| {
            let code = |result: Result<KeyPair, KeyPairError>| result.err().map_or("", |e| e.code());
            let key = pairs.create("a", KeyKind::Ed25519, &[]).unwrap().pair.public.to_string();
            assert_eq!(code(pairs.import("a", &key, &[])), "InvalidKeyPair.Duplicate");
            for name in ["", " ", "ä", "a\n", &"x".repeat(256)] {
                assert_eq!(code(pairs.import(name, &key, &[])), "InvalidParameterValue", "{name:?}");
            }
            let damaged = STANDARD.encode(b"\0\0\0\x07ssh-rsa\0\0\0\x01\x03\0\0\xff\xff");
            for line in ["", "ssh-rsa AAAA", "-----BEGIN RSA PRIVATE KEY-----", &format!("ssh-rsa {damaged}")]
            {
                assert_eq!(code(pairs.import("b", line, &[])), "InvalidKey.Format", "{line}");
            }
            assert_eq!(code(pairs.get("b")), "InvalidKeyPair.NotFound");
            assert!(pairs.delete("b").unwrap().is_none());
            assert!(pairs.delete("a").unwrap().is_some());
            assert!(pairs.list().unwrap().is_empty());
        });
    }
}
