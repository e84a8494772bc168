//! The embedded issuer: session credentials of Kiln's own.
//!
//! ```text
//!   token   = JWS (RFC 7515), ES256:  header . claims . signature
//!   claims  = access key id, principal, instance, issue and expiry
//!   secret  = base64(HMAC-SHA-256(installation key, token))[..40]
//! ```
//!
//! Nothing is stored. Whoever has the public key can tell who a token speaks for and until when;
//! only the holder of the installation's keys can tell the secret that signs requests (SigV4), and
//! needs nothing but the token for it. A token lives until it expires: taking a role from an instance
//! ends the supply, as in EC2.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiln_model::Secret;
use serde::{Deserialize, Serialize};

use super::{CredentialSource, Credentials, Fetch, Lifetime, SourceError, Subject};
use crate::identity::InstallationKeys;

/// `{"alg":"ES256","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9";
/// `iss` of every token.
const ISSUER: &str = "kiln";
/// Longest token that is looked at.
const MAX_TOKEN: usize = 4096;
/// Digits of an access key id after its prefix: base 32.
const KEY_DIGITS: usize = 16;
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Who a session speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
    pub arn: String,
    /// Unique id: `AROA…:SESSION`.
    pub id: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    /// ARN of the principal.
    sub: String,
    /// Unique id of the principal.
    uid: String,
    /// Access key id.
    jti: String,
    iat: u64,
    exp: u64,
}

/// A session that a token proves.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who it speaks for.
    pub principal: Principal,
    /// When it was issued, Unix seconds.
    pub issued: u64,
    /// When it ends, Unix seconds.
    pub expiration: u64,
    /// Key of the request signature.
    pub secret_access_key: Secret<String>,
}

/// Why a token proves nothing. The codes are those of the EC2 and STS APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not ours, changed, or of another access key.
    #[error("The security token included in the request is invalid")]
    Invalid,
    /// Its time is over.
    #[error("The security token included in the request is expired")]
    Expired,
}

impl VerifyError {
    /// Error code of the APIs.
    pub fn code(self) -> &'static str {
        match self {
            VerifyError::Invalid => "InvalidClientTokenId",
            VerifyError::Expired => "ExpiredToken",
        }
    }
}

/// Issues and verifies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Issuer {
    keys: Arc<InstallationKeys>,
}

impl Issuer {
    /// An issuer with the keys of an installation.
    pub fn new(keys: Arc<InstallationKeys>) -> Self {
        Issuer { keys }
    }

    /// Credentials for `principal` from `now` on.
    pub fn issue(
        &self,
        principal: &Principal,
        lifetime: Lifetime,
        now: u64,
    ) -> Result<Credentials, SourceError> {
        self.issue_for(principal, lifetime.seconds(), now)
    }

    /// As [`Issuer::issue`], for any number of seconds: `AssumeRole` gives a quarter of an hour too.
    pub fn issue_for(
        &self,
        principal: &Principal,
        seconds: u64,
        now: u64,
    ) -> Result<Credentials, SourceError> {
        let failed = |detail: String| SourceError::Issuer { detail };
        let digits = random_digits().ok_or_else(|| failed("no random numbers".into()))?;
        let access_key_id = format!("ASIA{digits}");
        let expiration = now.saturating_add(seconds);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: principal.arn.clone(),
            uid: principal.id.clone(),
            jti: access_key_id.clone(),
            iat: now,
            exp: expiration,
        };
        let claims = serde_json::to_vec(&claims).map_err(|e| failed(e.to_string()))?;
        let message = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = self.keys.sign_session(message.as_bytes()).map_err(|e| failed(e.to_string()))?;
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        Ok(Credentials {
            access_key_id,
            secret_access_key: self.keys.session_secret(&token),
            session_token: Secret::new(token),
            expiration,
        })
    }

    /// The session that `token` proves at the time `now`, if `access_key_id` is its key.
    pub fn verify(&self, access_key_id: &str, token: &str, now: u64) -> Result<Session, VerifyError> {
        let claims = self.claims(token).ok_or(VerifyError::Invalid)?;
        if claims.iss != ISSUER || claims.jti != access_key_id {
            return Err(VerifyError::Invalid);
        }
        if claims.exp <= now {
            return Err(VerifyError::Expired);
        }
        Ok(Session {
            principal: Principal { arn: claims.sub, id: claims.uid },
            issued: claims.iat,
            expiration: claims.exp,
            secret_access_key: self.keys.session_secret(token),
        })
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        // The header is a constant: there is no algorithm to be talked into.
        let claims = message.strip_prefix(HEADER)?.strip_prefix('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if !self.keys.verify_session(message.as_bytes(), &signature) {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

/// 80 random bits as the digits of an access key id.
pub(super) fn random_digits() -> Option<String> {
    let mut digits = [0; KEY_DIGITS];
    aws_lc_rs::rand::fill(&mut digits).ok()?;
    digits.iter().map(|byte| BASE32.get(usize::from(byte % 32)).copied().map(char::from)).collect()
}

impl Subject {
    /// The principal that the subject's sessions speak for.
    pub fn principal(&self) -> Principal {
        let session = &self.session_name;
        let account = self.role_arn.split(':').nth(4).unwrap_or_default();
        let role = self.role_arn.rsplit('/').next().unwrap_or_default();
        Principal {
            arn: format!("arn:aws:sts::{account}:assumed-role/{role}/{session}"),
            id: format!("{}:{session}", self.role_id),
        }
    }
}

impl CredentialSource for Issuer {
    fn fetch<'a>(&'a self, subject: &'a Subject, now: u64) -> Fetch<'a> {
        Box::pin(async move { self.issue(&subject.principal(), subject.lifetime, now) })
    }

    fn at_once(&self, subject: &Subject, now: u64) -> Option<Result<Credentials, SourceError>> {
        Some(self.issue(&subject.principal(), subject.lifetime, now))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::json::tests::subject;
    use super::*;
    use crate::identity::tests::keys;

    const NOW: u64 = 1_700_000_000;

    pub(crate) fn issuer() -> Issuer {
        Issuer::new(Arc::new(keys()))
    }

    fn issue(issuer: &Issuer) -> (Credentials, String) {
        let set = issuer.issue(&subject().principal(), Lifetime::default(), NOW).unwrap();
        let token = set.session_token.expose().clone();
        (set, token)
    }

    #[test]
    fn verifier_learns_principal_end_and_secret_from_the_token() {
        let issuer = issuer();
        let (set, token) = issue(&issuer);
        assert_eq!(set.access_key_id.len(), 20);
        assert_eq!(set.expiration, NOW + 21_600);
        let session = issuer.verify(&set.access_key_id, &token, NOW + 21_599).unwrap();
        assert_eq!(session.principal.arn, "arn:aws:sts::000000000000:assumed-role/web/i-0123456789abcdef0");
        assert_eq!(session.principal.id, "AROAEXAMPLE:i-0123456789abcdef0");
        assert_eq!(session.secret_access_key.expose(), set.secret_access_key.expose());
        assert_eq!((session.issued, session.expiration), (NOW, NOW + 21_600));
    }

    #[test]
    fn other_sets_have_other_keys_and_secrets() {
        let issuer = issuer();
        let ((one, token), (two, _)) = (issue(&issuer), issue(&issuer));
        assert_ne!(one.access_key_id, two.access_key_id);
        assert_ne!(one.secret_access_key.expose(), two.secret_access_key.expose());
        assert_eq!(issuer.verify(&two.access_key_id, &token, NOW).unwrap_err(), VerifyError::Invalid);
    }

    #[test]
    fn expired_changed_and_foreign_tokens_are_refused() {
        let issuer = issuer();
        let (set, token) = issue(&issuer);
        let verify = |token: &str, now| issuer.verify(&set.access_key_id, token, now).map(drop);
        assert_eq!(verify(&token, NOW + 21_600), Err(VerifyError::Expired));
        for at in (0..token.len()).step_by(7) {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(verify(&forged, NOW), Err(VerifyError::Invalid), "position {at}");
        }
        let (message, _) = token.rsplit_once('.').unwrap();
        let none = token.replace(HEADER, &URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
        for text in ["", ".", "..", message, &format!("{message}."), &none, &"x".repeat(5000)] {
            assert_eq!(verify(text, NOW), Err(VerifyError::Invalid), "{text}");
        }
        let stranger = super::tests::issuer();
        assert_eq!(stranger.verify(&set.access_key_id, &token, NOW).unwrap_err(), VerifyError::Invalid);
    }
}
