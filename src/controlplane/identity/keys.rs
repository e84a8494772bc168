//! Key material of an installation.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::{Secret, Utc};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SigningKey as _,
};
use rcgen::{KeyUsagePurpose, date_time_ymd};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::pkcs7;
use crate::metadata::SignedIdentity;
use crate::state::{SealError, Vault};

/// Names of the sealed rows.
const IDENTITY: &str = "instance-identity";
const SESSION: &str = "session-credentials";
/// How long the certificate is good for. Those of EC2 last for many years too: a verifier that
/// pinned one should not have to be told every summer.
const CERTIFICATE_YEARS: i32 = 30;
/// Characters of a line of base64, as EC2 breaks them.
const LINE: usize = 76;
/// Bytes of the key that session secrets derive from.
const MAC_KEY: usize = 32;

/// Why there are no keys, or why they do not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// They cannot be kept.
    #[error("the keys of this installation cannot be used")]
    Seal(#[from] SealError),
    /// A row that opened does not hold keys.
    #[error("the key material {0:?} is damaged")]
    Damaged(&'static str),
    /// Key generation or signing failed.
    #[error("cannot {0}")]
    Library(&'static str),
}

/// What is sealed for signing identity documents.
#[derive(Serialize, Deserialize)]
struct IdentityRow {
    key: String,
    certificate: String,
}

impl Drop for IdentityRow {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The keys of one installation. Send and share freely; signing locks nothing.
pub struct InstallationKeys {
    identity: KeyPair,
    certificate: Vec<u8>,
    session: EcdsaKeyPair,
    session_mac: hmac::Key,
}

impl std::fmt::Debug for InstallationKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InstallationKeys")
    }
}

impl InstallationKeys {
    /// Opens the keys; makes them at the first use. `now`: Unix seconds, start of the certificate.
    pub fn open(vault: &Vault<'_>, now: u64) -> Result<Self, KeyError> {
        let identity = vault.get_or_make(IDENTITY, || make_identity(now).map_err(|_| SealError::Library))?;
        let (identity, certificate) = parse_identity(&identity).ok_or(KeyError::Damaged(IDENTITY))?;
        let session = vault.get_or_make(SESSION, || make_session().map_err(|_| SealError::Library))?;
        let damaged = || KeyError::Damaged(SESSION);
        let (mac, pkcs8) = session.expose().split_first_chunk::<MAC_KEY>().ok_or_else(damaged)?;
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8);
        Ok(InstallationKeys {
            identity,
            certificate,
            session: signing.map_err(|_| damaged())?,
            session_mac: hmac::Key::new(hmac::HMAC_SHA256, mac),
        })
    }

    /// The certificate that identity documents verify with, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The same in PEM.
    pub fn certificate_pem(&self) -> String {
        let lines = wrapped(&self.certificate, 64);
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    }

    /// Signs an identity document in all three forms. The same document has the same signatures.
    pub fn sign_identity(&self, document: String) -> Result<SignedIdentity, KeyError> {
        let failed = || KeyError::Library("sign the identity document");
        let signature = self.identity.sign(document.as_bytes()).map_err(|_| failed())?;
        let signed =
            pkcs7::signed_data(document.as_bytes(), &signature, &self.certificate).map_err(|_| failed())?;
        let structure = wrapped(&signed, 64);
        Ok(SignedIdentity {
            signature: Some(wrapped(&signature, LINE)),
            rsa2048: Some(structure.clone()),
            // DSA with SHA-1, as EC2 has it here, is out of service; verifiers read the algorithm from
            // the structure.
            pkcs7: Some(structure),
            document,
        })
    }

    /// Signs the claims of a session: ECDSA on P-256 with SHA-256, both halves side by side (`ES256`).
    pub(crate) fn sign_session(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.session.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| KeyError::Library("sign session credentials"))?.as_ref().to_vec())
    }

    /// Whether [`Self::sign_session`] made `signature`.
    pub(crate) fn verify_session(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.session.public_key());
        key.verify(message, signature).is_ok()
    }

    /// The secret that belongs to a session token, as long as AWS makes them: 40 characters.
    pub(crate) fn session_secret(&self, token: &str) -> Secret<String> {
        let tag = hmac::sign(&self.session_mac, token.as_bytes());
        let bytes = Zeroizing::new(tag.as_ref().get(..30).unwrap_or_default().to_vec());
        Secret::new(STANDARD.encode(bytes.as_slice()))
    }

    /// Public half of the session key: the uncompressed point, `04 x y`.
    pub fn session_public_key(&self) -> &[u8] {
        self.session.public_key().as_ref()
    }

    /// Public half of the session key as a JSON Web Key Set (RFC 7517).
    pub fn session_key_set(&self) -> serde_json::Value {
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let point = self.session_public_key();
        let half = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        serde_json::json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "x": half(1..33), "y": half(33..65),
        }] })
    }
}

/// Base64 in lines of `width`, without a newline at the end.
fn wrapped(bytes: &[u8], width: usize) -> String {
    let text: Vec<char> = STANDARD.encode(bytes).chars().collect();
    text.chunks(width).map(|line| line.iter().collect::<String>()).collect::<Vec<_>>().join("\n")
}

fn make_identity(now: u64) -> Result<Secret<Vec<u8>>, rcgen::Error> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let start = Utc::from_unix(now);
    // The 29th of February has no counterpart in most years.
    let date = |years: i32| date_time_ymd(i32::from(start.year) + years, start.month, start.day.min(28));
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Kiln");
    name.push(DnType::CommonName, "Kiln instance identity");
    let mut params = CertificateParams::default();
    params.not_before = date(0);
    params.not_after = date(CERTIFICATE_YEARS);
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    let row = IdentityRow {
        key: STANDARD.encode(key.serialized_der()),
        certificate: STANDARD.encode(certificate.der()),
    };
    // Two strings: this cannot fail.
    Ok(Secret::new(serde_json::to_vec(&row).unwrap_or_default()))
}

fn parse_identity(sealed: &Secret<Vec<u8>>) -> Option<(KeyPair, Vec<u8>)> {
    let row: IdentityRow = serde_json::from_slice(sealed.expose()).ok()?;
    let key = Zeroizing::new(STANDARD.decode(&row.key).ok()?);
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key.as_slice().into(), &PKCS_RSA_SHA256).ok()?;
    Some((key, STANDARD.decode(&row.certificate).ok()?))
}

/// 32 random bytes, then the private key as PKCS #8.
fn make_session() -> Result<Secret<Vec<u8>>, aws_lc_rs::error::Unspecified> {
    let mut bytes = vec![0; MAC_KEY];
    aws_lc_rs::rand::fill(&mut bytes)?;
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let pkcs8 = key.to_pkcs8v1()?;
    bytes.extend_from_slice(pkcs8.as_ref());
    Ok(Secret::new(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::state::{SqliteStore, StateDir};

    /// Keys of an installation of its own.
    pub(crate) fn keys() -> InstallationKeys {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(temp.path()).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        InstallationKeys::open(&Vault::open(&store, &dir).unwrap(), 1_700_000_000).unwrap()
    }

    #[test]
    fn keys_stay_the_same_and_sign_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(temp.path()).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        let open = |now| InstallationKeys::open(&Vault::open(&store, &dir).unwrap(), now).unwrap();
        let (first, second) = (open(1_700_000_000), open(1_800_000_000));
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        assert_eq!(first.session_public_key(), second.session_public_key());
        let sign = |keys: &InstallationKeys| keys.sign_identity("{}".into()).unwrap();
        assert_eq!(sign(&first), sign(&second));
        let signature = first.sign_session(b"claims").unwrap();
        assert!(second.verify_session(b"claims", &signature));
        assert!(!second.verify_session(b"claimz", &signature));
        assert!(!keys().verify_session(b"claims", &signature), "another installation");
        assert_eq!(first.session_secret("t").expose(), second.session_secret("t").expose());
        assert_eq!(first.session_secret("t").expose().len(), 40);
    }

    #[test]
    fn private_keys_are_sealed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(temp.path()).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        let keys = InstallationKeys::open(&Vault::open(&store, &dir).unwrap(), 0).unwrap();
        let der = STANDARD.encode(keys.identity.serialized_der());
        let middle = &der[der.len() / 2..der.len() / 2 + 40];
        for file in [dir.database(), temp.path().join("kiln.db-wal")] {
            let bytes = std::fs::read(&file).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(middle), "{}", file.display());
        }
    }
}
