//! The `credential_process` format of the AWS CLI, which files use too:
//! `{"Version": 1, "AccessKeyId": …, "SecretAccessKey": …, "SessionToken": …, "Expiration": …}`.

use kiln_model::{Secret, Utc};
use serde::Deserialize;
use zeroize::Zeroize;

use super::{Credentials, SourceError, Subject};

/// Largest text that is looked at.
pub(super) const MAX_BYTES: usize = 64 << 10;
/// Longest value of a field. Tokens of STS have under 4 KiB.
const MAX_FIELD: usize = 16 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Form {
    version: u64,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

/// Reads one set. Credentials without an end are good for the subject's lifetime and then fetched
/// again.
pub(super) fn parse(text: &[u8], subject: &Subject, now: u64) -> Result<Credentials, SourceError> {
    let malformed = |detail: &str| SourceError::Malformed { detail: detail.to_owned() };
    if text.len() > MAX_BYTES {
        return Err(malformed("more than 64 KiB came"));
    }
    // An error of the parser may repeat a part of the text; its place does not.
    let mut form: Form = serde_json::from_slice(text).map_err(|e| {
        let what = if e.is_data() { "a field is missing or of the wrong type" } else { "it is not JSON" };
        malformed(&format!("{what} (line {}, column {})", e.line(), e.column()))
    })?;
    if form.version != 1 {
        return Err(malformed("Version is not 1"));
    }
    let token = form.session_token.take().unwrap_or_default();
    for value in [&form.access_key_id, &form.secret_access_key, &token] {
        if value.len() > MAX_FIELD || value.chars().any(char::is_control) {
            return Err(malformed("a field is too long or holds control characters"));
        }
    }
    if form.access_key_id.is_empty() || form.secret_access_key.is_empty() {
        return Err(malformed("a key is empty"));
    }
    let expiration = match &form.expiration {
        None => now.saturating_add(subject.lifetime.seconds()),
        Some(text) => Utc::parse_rfc3339(text).ok_or_else(|| malformed("Expiration is no ISO 8601 time"))?,
    };
    let credentials = Credentials {
        access_key_id: form.access_key_id,
        secret_access_key: Secret::new(std::mem::take(&mut form.secret_access_key)),
        session_token: Secret::new(token),
        expiration,
    };
    form.secret_access_key.zeroize();
    Ok(credentials)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::credentials::Lifetime;

    pub(in crate::credentials) fn subject() -> Subject {
        Subject {
            role_arn: "arn:aws:iam::000000000000:role/web".into(),
            role_id: "AROAEXAMPLE".into(),
            session_name: "i-0123456789abcdef0".into(),
            lifetime: Lifetime::default(),
        }
    }

    const GOOD: &str = r#"{"Version":1,"AccessKeyId":"ASIA","SecretAccessKey":"s","SessionToken":"t",
        "Expiration":"2023-07-01T01:25:35Z","Extra":[]}"#;

    #[test]
    fn convention_of_the_aws_cli_is_understood() {
        let set = parse(GOOD.as_bytes(), &subject(), 0).unwrap();
        assert_eq!((set.access_key_id.as_str(), set.expiration), ("ASIA", 1_688_174_735));
        assert_eq!(
            (set.secret_access_key.expose().as_str(), set.session_token.expose().as_str()),
            ("s", "t")
        );
        let zone = GOOD.replace("01:25:35Z", "03:25:35.123+02:00");
        assert_eq!(parse(zone.as_bytes(), &subject(), 0).unwrap().expiration, 1_688_174_735);
        let endless = r#"{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"s"}"#;
        assert_eq!(parse(endless.as_bytes(), &subject(), 1_000).unwrap().expiration, 22_600);
    }

    #[test]
    fn rubbish_is_refused_without_repeating_it() {
        for text in [
            "",
            "secret",
            "{}",
            "[1]",
            &GOOD.replace("\"Version\":1", "\"Version\":2"),
            &GOOD.replace("2023-07-01T", "soon"),
            &GOOD.replace("\"s\"", "\"\""),
            &GOOD.replace("\"s\"", "[\"secret\"]"),
            &GOOD.replace("ASIA", "A\\nB"),
            &GOOD.replace("ASIA", &"A".repeat(20_000)),
            &"x".repeat(70_000),
        ] {
            let error = parse(text.as_bytes(), &subject(), 0).unwrap_err();
            assert!(matches!(error, SourceError::Malformed { .. }), "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            let _ = parse(&bytes, &subject(), 0);
        }

        #[test]
        fn any_time_is_refused_or_read(time in "[0-9TZ:.+-]{0,30}") {
            let _ = parse(GOOD.replace("2023-07-01T01:25:35Z", &time).as_bytes(), &subject(), 0);
        }
    }
}
