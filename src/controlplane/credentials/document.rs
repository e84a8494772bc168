//! A set of credentials, and the document in which an instance reads it.

use kiln_model::{Secret, Utc};
use kiln_vmspec::LeafValue;
use serde::Deserialize;
use serde_json::json;

use super::SourceError;
use crate::metadata::document::{object, timestamp};

/// Session credentials. `Debug` shows neither secret nor token.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// `ASIA…`; not secret, it is in every request.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: Secret<String>,
    /// The session token.
    pub session_token: Secret<String>,
    /// Unix seconds at which they end.
    pub expiration: u64,
}

impl Credentials {
    /// `iam/security-credentials/<role>`, byte for byte as EC2 writes it. `published`: Unix seconds.
    pub fn document(&self, published: u64) -> LeafValue {
        object(&[
            ("Code", json!("Success")),
            ("LastUpdated", json!(timestamp(published))),
            ("Type", json!("AWS-HMAC")),
            ("AccessKeyId", json!(self.access_key_id)),
            ("SecretAccessKey", json!(self.secret_access_key.expose())),
            ("Token", json!(self.session_token.expose())),
            ("Expiration", json!(timestamp(self.expiration))),
        ])
        .into()
    }

    /// Reads such a document back, unless it tells of a failure.
    pub fn from_document(document: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Form {
            access_key_id: String,
            secret_access_key: String,
            token: String,
            expiration: String,
        }
        let form: Form = serde_json::from_slice(document).ok()?;
        Some(Credentials {
            access_key_id: form.access_key_id,
            secret_access_key: Secret::new(form.secret_access_key),
            session_token: Secret::new(form.token),
            expiration: Utc::parse_rfc3339(&form.expiration)?,
        })
    }

    /// Whether `other` is the same set.
    pub fn is_same(&self, other: &Credentials) -> bool {
        self.access_key_id == other.access_key_id && self.expiration == other.expiration
    }
}

/// What an instance reads where there are no credentials. Says nothing of the host: the message is
/// one of a few fixed ones.
pub fn failure_document(error: &SourceError, since: u64) -> LeafValue {
    object(&[
        ("Code", json!(error.code())),
        ("Message", json!(error.message_for_guest())),
        ("LastUpdated", json!(timestamp(since))),
    ])
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: Secret::new("s3cr3t".into()),
            session_token: Secret::new("t0k3n".into()),
            expiration: 1_688_174_735,
        }
    }

    #[test]
    fn document_is_that_of_ec2() {
        let document = credentials().document(1_688_152_002);
        assert_eq!(
            std::str::from_utf8(document.as_bytes()).unwrap(),
            "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2023-06-30T19:06:42Z\",\n  \
             \"Type\" : \"AWS-HMAC\",\n  \"AccessKeyId\" : \"ASIAEXAMPLE\",\n  \
             \"SecretAccessKey\" : \"s3cr3t\",\n  \"Token\" : \"t0k3n\",\n  \
             \"Expiration\" : \"2023-07-01T01:25:35Z\"\n}"
        );
    }

    #[test]
    fn document_is_read_back_and_a_failure_is_not() {
        let back = Credentials::from_document(credentials().document(1_688_152_002).as_bytes()).unwrap();
        assert!(back.is_same(&credentials()));
        assert_eq!(
            (back.session_token.expose().as_str(), back.secret_access_key.expose().as_str()),
            ("t0k3n", "s3cr3t")
        );
        let failure = failure_document(&SourceError::Pending, 0);
        assert!(Credentials::from_document(failure.as_bytes()).is_none());
    }

    #[test]
    fn neither_debug_nor_a_failure_shows_what_is_secret() {
        let text = format!("{:?}", credentials());
        assert!(text.contains("ASIAEXAMPLE") && !text.contains("s3cr3t") && !text.contains("t0k3n"));
        let error = SourceError::Process { detail: "cannot read /etc/vault-token".into() };
        let document = failure_document(&error, 0);
        let text = std::str::from_utf8(document.as_bytes()).unwrap();
        assert!(text.contains("\"Code\" : \"CredentialSourceFailed\"") && !text.contains("vault"), "{text}");
    }
}
