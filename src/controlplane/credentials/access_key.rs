//! Access keys: that of the owner of this installation, sealed in the store, and new ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::Secret;

use super::issuer::random_digits;
use crate::identity::KeyError;
use crate::state::{SealError, Vault};

/// Name of the sealed row.
const NAME: &str = "root-access-key";
/// Random bytes of a secret: 40 characters of base64.
const SECRET: usize = 30;

/// A key that stands for the whole account, or for a user.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// `AKIA…`.
    pub id: String,
    /// What signs requests.
    pub secret: Secret<String>,
}

impl AccessKey {
    /// A new one.
    pub(super) fn random() -> Result<Self, SealError> {
        let id = random_digits().ok_or(SealError::Library)?;
        let mut secret = [0; SECRET];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| SealError::Library)?;
        Ok(AccessKey { id: format!("AKIA{id}"), secret: Secret::new(STANDARD.encode(secret)) })
    }

    /// The key of the account, made at the first use.
    pub fn root(vault: &Vault<'_>) -> Result<Self, KeyError> {
        let row = vault.get_or_make(NAME, || {
            let AccessKey { id, secret } = Self::random()?;
            Ok(Secret::new(format!("{id} {}", secret.expose()).into_bytes()))
        })?;
        let text = std::str::from_utf8(row.expose()).map_err(|_| KeyError::Damaged(NAME))?;
        let (id, secret) = text.split_once(' ').ok_or(KeyError::Damaged(NAME))?;
        Ok(AccessKey { id: id.to_owned(), secret: Secret::new(secret.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{SqliteStore, StateDir};

    #[test]
    fn key_is_made_once_and_looks_like_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(temp.path()).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        let vault = Vault::open(&store, &dir).unwrap();
        let key = AccessKey::root(&vault).unwrap();
        assert!(key.id.len() == 20 && key.id.starts_with("AKIA"), "{}", key.id);
        assert_eq!(key.secret.expose().len(), 40);
        let again = AccessKey::root(&vault).unwrap();
        assert_eq!((again.id, again.secret.expose()), (key.id, key.secret.expose()));
    }
}
