use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::query::{Parameters, decode, parse};

fn read(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Value, ApiError> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let target = find(method, path).ok_or_else(|| ApiError::new("UnknownOperation", path))?;
    let parameters = gather(&target, &parse(query)?, &headers, body)?;
    Ok(decode(target.operation.input, &parameters, &[])?)
}

fn code(result: Result<Value, ApiError>) -> String {
    result.map_or_else(|e| e.code.into_owned(), |value| value.to_string())
}

#[test]
fn requests_are_read_from_where_the_model_has_their_members() {
    let started = json!({"VolumeSize": 8, "Timeout": null, "Encrypted": false, "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b"}]});
    assert_eq!(
        read("POST", "/snapshots", &[], started.to_string().as_bytes()).unwrap(),
        json!({"VolumeSize": 8, "Encrypted": false, "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b"}]})
    );
    let headers = [
        ("x-amz-data-length", "524288"),
        ("x-amz-checksum", " QQ== "),
        ("x-amz-checksum-algorithm", "SHA256"),
        ("x-amz-date", "whenever"),
    ];
    assert_eq!(
        read("PUT", "/snapshots/snap-01/blocks/7", &headers, b"{ bytes").unwrap(),
        json!({"SnapshotId": "snap-01", "BlockIndex": 7, "DataLength": 524_288, "Checksum": "QQ==", "ChecksumAlgorithm": "SHA256"})
    );
    assert_eq!(
        read("GET", "/snapshots/snap-01/blocks?maxResults=100&pageToken=a%2Bb", &[], b"").unwrap(),
        json!({"SnapshotId": "snap-01", "MaxResults": 100, "NextToken": "a+b"})
    );
    assert_eq!(
        read("POST", "/snapshots/completion/snap-01", &[("x-amz-changedblockscount", "0")], b"{}").unwrap(),
        json!({"SnapshotId": "snap-01", "ChangedBlocksCount": 0})
    );
    assert_eq!(
        read("GET", "/snapshots/snap-02/changedblocks?firstSnapshotId=snap-01", &[], b"").unwrap(),
        json!({"FirstSnapshotId": "snap-01", "SecondSnapshotId": "snap-02"})
    );
}

#[test]
fn what_no_operation_has_is_refused() {
    for (method, path) in [
        ("GET", "/snapshots"),
        ("DELETE", "/snapshots/snap-01/blocks/1"),
        ("GET", "/snapshots/snap-01/blocks/1/"),
        ("GET", "/snapshots//blocks"),
        ("GET", "//snapshots/snap-01/blocks"),
        ("POST", "/snapshots/completion"),
        ("GET", "/Snapshots/snap-01/blocks"),
    ] {
        assert_eq!(code(read(method, path, &[], b"")), "UnknownOperation", "{method} {path}");
    }
    for (body, expected) in [
        ("[]", "SerializationException"),
        ("{", "SerializationException"),
        ("", "MissingParameter"),
        (r#"{"VolumeSize": 0}"#, "InvalidParameterValue"),
        (r#"{"VolumeSize": 1.5}"#, "InvalidParameterValue"),
        (r#"{"VolumeSize": {"a": 1}}"#, "UnknownParameter"),
        (r#"{"VolumeSize": 1, "Timeout": 9}"#, "InvalidParameterValue"),
        (r#"{"VolumeSize": 1, "Other": 9}"#, "UnknownParameter"),
        (r#"{"VolumeSize": 1, "Tags.1.Key": "a"}"#, "UnknownParameter"),
        (r#"{"VolumeSize": 1, "Tags": [{"Key.x": "a"}]}"#, "UnknownParameter"),
        (r#"{"VolumeSize": 1, "x-amz-Checksum": "a"}"#, "UnknownParameter"),
    ] {
        assert_eq!(code(read("POST", "/snapshots", &[], body.as_bytes())), expected, "{body}");
    }
    let get = |query: &str| code(read("GET", &format!("/snapshots/snap-01/blocks{query}"), &[], b""));
    for query in ["?maxResults=99", "?maxResults=10001", "?snapshotId=snap-02", "?startingBlockIndex=-1"] {
        assert_eq!(get(query), "InvalidParameterValue", "{query}");
    }
    let refused = code(read("POST", "/snapshots?VolumeSize=1", &[], b""));
    assert_eq!(refused, "UnknownParameter", "what belongs into the body");
    for query in ["?a.b=1", "?x-amz-Checksum=a", "?X-Amz-Algorithm=AWS4-HMAC-SHA256", "?other"] {
        assert_eq!(get(query), "UnknownParameter", "{query}");
    }
    // No document makes more of itself than it is.
    let deep = format!("{{\"{}\": [{}]}}", "a".repeat(200), "[".repeat(60) + &"]".repeat(60));
    assert_eq!(code(read("POST", "/snapshots", &[], deep.as_bytes())), "UnknownParameter");
    let long = format!("{{\"{}\": 1}}", "a".repeat(300));
    let refused = read("POST", "/snapshots", &[], long.as_bytes()).unwrap_err();
    assert!(refused.code == "UnknownParameter" && refused.message.len() < 200, "{refused:?}");
}

#[test]
fn answers_have_their_headers_and_errors_their_reasons() {
    let target = find("GET", "/snapshots/snap-01/blocks/0").unwrap();
    let value = json!({"DataLength": 524_288, "Checksum": "QQ==", "ChecksumAlgorithm": "SHA256"});
    let reply = Reply { value, block: Some(b"block".to_vec()) };
    let written = write(target.operation, target.status, reply).unwrap();
    assert_eq!((written.status, written.body.as_slice()), (200, &b"block"[..]));
    assert!(written.headers.contains(&("x-amz-Data-Length", "524288".to_owned())), "{written:?}");
    let bad = Reply { value: json!({"Other": 1}), block: None };
    assert_eq!(write(target.operation, 200, bad).unwrap_err().code, "InternalError");
    for (code, status, kind, reason) in [
        ("InvalidSnapshot.NotFound", 404, "ResourceNotFoundException", json!("SNAPSHOT_NOT_FOUND")),
        ("INVALID_BLOCK", 400, "ValidationException", json!("INVALID_BLOCK")),
        ("UnknownParameter", 400, "ValidationException", json!("INVALID_PARAMETER_VALUE")),
        ("AccessDenied", 403, "AccessDeniedException", json!("UNAUTHORIZED_ACCOUNT")),
        ("IdempotentParameterMismatch", 409, "ConflictException", Value::Null),
    ] {
        let written = failure(&ApiError::new(code, "é".repeat(500)));
        assert_eq!((written.status, written.headers[0].1.as_str()), (status, kind));
        let body: Value = serde_json::from_slice(&written.body).unwrap();
        assert_eq!((&body["Reason"], body["Message"].as_str().unwrap().chars().count()), (&reason, 256));
    }
}

proptest! {
    #[test]
    fn any_path_and_body_are_read_or_refused(
        method in prop::sample::select(vec!["GET", "PUT", "POST"]),
        parts in prop::collection::vec(prop::sample::select(vec!["snapshots", "blocks", "completion", "changedblocks", "snap-01", "1", "", "..", "%2F", "é"]), 0..6),
        query in "[a-zA-Z=&%+0-9-]{0,40}",
        body in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let path = format!("/snapshots/{}", parts.join("/"));
        crate::fuzzing::rest(format!("{method}\n{path}\n{query}\nx-amz-Checksum: a\n\n").as_bytes());
        let _ = read(method, &format!("{path}?{query}"), &[], &body);
    }

    #[test]
    fn json_is_what_a_form_of_the_same_names_is(
        size in 0u64..70_000,
        tags in prop::collection::vec(("[a-z.]{1,9}", "[a-z=&]{1,9}"), 0..4),
    ) {
        let of = |(key, value): &(String, String)| json!({"Key": key, "Value": value});
        let document = json!({"VolumeSize": size, "Tags": tags.iter().map(of).collect::<Vec<_>>()});
        let mut form: Parameters = vec![("VolumeSize".to_owned(), size.to_string())];
        for (at, (key, value)) in (1..).zip(&tags) {
            form.push((format!("Tags.{at}.Key"), key.clone()));
            form.push((format!("Tags.{at}.Value"), value.clone()));
        }
        let target = find("POST", "/snapshots").unwrap();
        let by_form = decode(target.operation.input, &form, &[]);
        let by_json = read("POST", "/snapshots", &[], document.to_string().as_bytes());
        prop_assert_eq!(by_json.ok(), by_form.ok());
    }
}
