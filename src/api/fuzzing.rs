//! Entry points for fuzzing: any bytes in, and what must hold whatever they are.

use crate::auth::{Message, Signed};
use crate::query::{Parameters, decode, parse};
use crate::rest::{find, gather, serves};
use crate::schema::{Operation, SERVICES};

/// A request's form, for the operation that the first two bytes choose.
pub fn query_form(bytes: &[u8]) {
    let Some((choice, form)) = bytes.split_first_chunk::<2>() else { return };
    let Ok(form) = std::str::from_utf8(form) else { return };
    let Ok(parameters) = parse(form) else { return };
    assert_eq!(parse(&written(&parameters)).as_ref(), Ok(&parameters), "it reads as it was written");
    let operations: Vec<&Operation> = SERVICES.iter().flat_map(|service| service.operations).collect();
    let Some(operation) = operations.get(usize::from(u16::from_le_bytes(*choice)) % operations.len()) else {
        return;
    };
    let read = |parameters: &Parameters| decode(operation.input, parameters, &["Action", "Version"]);
    let decoded = read(&parameters);
    // The order of parameters says nothing.
    let reversed: Parameters = parameters.into_iter().rev().collect();
    let again = read(&reversed);
    match decoded {
        Ok(value) => {
            assert_eq!(again.as_ref(), Ok(&value), "it is the same in another order");
            let known = |name: &str| operation.input.member(name).is_some();
            assert!(value.as_object().is_some_and(|all| all.keys().all(|name| known(name))), "{value}");
        }
        Err(error) => {
            assert!(again.is_err(), "{error} in one order alone");
            assert!(error.to_string().len() < 4096, "an error as long as the request");
        }
    }
}

/// A request whose signature nobody made: its method, query, body and headers are lines of the input, in
/// this order, names of headers before a colon.
pub fn sigv4(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (method, query, body) = (next(), next(), next());
    let query = parse(query).unwrap_or_default();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body = body.as_bytes();
    let message = Message { method, path: "/", query: &query, headers: &headers, body, unsigned_body: false };
    if let Ok(signed) = Signed::read(message) {
        for now in [0, 1_440_938_160, u64::MAX] {
            assert!(signed.verify("a secret that no input knows", now).is_err(), "a forgery");
        }
    }
}

/// A request by paths: its method, path, query and headers are lines of the input, then an empty one, and its body.
pub fn rest(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut lines = head.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (method, path, query) = (next(), next(), next());
    let Some(target) = find(method, path) else { return };
    assert!(serves(path), "an operation where nobody looks for one");
    let Ok(query) = parse(query) else { return };
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let Ok(parameters) = gather(&target, &query, &headers, body.as_bytes()) else { return };
    let held: usize = parameters.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(held <= 300 * (bytes.len() + 1), "{held} bytes of parameters from {}", bytes.len());
    if let Ok(value) = decode(target.operation.input, &parameters, &[]) {
        let known = |name: &str| target.operation.input.member(name).is_some();
        assert!(value.as_object().is_some_and(|all| all.keys().all(|name| known(name))), "{value}");
    }
}

/// The parameters as a form.
fn written(parameters: &Parameters) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// Text that is put together from what requests are made of, and from anything.
    fn of(parts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            8 => select(parts).prop_map(|part| part.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..4),
        ];
        vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    const FORM: &[&str] = &[
        "&",
        "&",
        "=",
        "=",
        ".",
        ".",
        "1",
        "2",
        "0",
        "4294967295",
        "-1",
        "%",
        "%41",
        "+",
        "true",
        "member",
        "Filter",
        "Name",
        "Value",
        "InstanceId",
        "IpPermissions",
        "IpRanges",
        "CidrIp",
        "TagSpecification",
        "Tag",
        "Key",
        "ResourceType",
        "MaxResults",
        "UserData",
        "QQ==",
        "RoleName",
        "PolicyDocument",
        "Tags",
        "2026-01-01T00:00:00Z",
        "DryRun",
        "Action",
        "Version",
        "UserName",
        "PolicyArn",
        "DurationSeconds",
    ];
    const SIGNED: &[&str] = &[
        "POST",
        "GET",
        "\n",
        "\n",
        "\n",
        "Authorization: AWS4-HMAC-SHA256 ",
        "Credential=",
        "AKID/",
        "20150830/",
        "us-east-1/",
        "iam/",
        "ec2/",
        "aws4_request",
        ", ",
        "SignedHeaders=",
        "content-type;",
        "host;",
        "host",
        "x-amz-date",
        "Signature=",
        "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        "Host: iam\n",
        "X-Amz-Date: 20150830T123600Z\n",
        "X-Amz-Security-Token: t\n",
        "X-Amz-Algorithm=",
        "AWS4-HMAC-SHA256",
        "&X-Amz-Credential=",
        "&X-Amz-Date=20150830T123600Z",
        "&X-Amz-Expires=",
        "300",
        "&X-Amz-SignedHeaders=host",
        "&X-Amz-Signature=",
        "99999999999999999999",
        "é",
    ];
    /// One that is whole but for its secret.
    const WHOLE: &str = "POST\n\nAction=ListUsers\nHost: iam\nX-Amz-Date: 20150830T123600Z\nAuthorization: \
        AWS4-HMAC-SHA256 Credential=AKID/20150830/us-east-1/iam/aws4_request, SignedHeaders=host;x-amz-date, \
        Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";

    #[test]
    fn whole_request_is_read_to_its_signature() {
        let lines: Vec<_> = WHOLE.split('\n').skip(3).map(|line| line.split_once(':').unwrap()).collect();
        let headers: Vec<_> = lines.iter().map(|(n, v)| (n.to_ascii_lowercase(), (*v).to_owned())).collect();
        let message = Message {
            method: "POST",
            path: "/",
            query: &Vec::new(),
            headers: &headers,
            body: b"Action=ListUsers",
            unsigned_body: false,
        };
        assert!(Signed::read(message).is_ok(), "the entry point gets as far as the signature");
        sigv4(WHOLE.as_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_form_or_none(bytes in vec(any::<u8>(), 0..2000)) {
            query_form(&bytes);
            sigv4(&bytes);
        }

        #[test]
        fn what_looks_like_a_form_is_read_or_refused(choice in any::<[u8; 2]>(), form in of(FORM)) {
            query_form(&[&choice[..], &form].concat());
        }

        #[test]
        fn what_looks_like_a_signature_is_none(text in of(SIGNED)) {
            sigv4(&text);
        }

        #[test]
        fn changed_signature_is_none(at in 0..WHOLE.len(), byte in any::<u8>()) {
            let mut bytes = WHOLE.as_bytes().to_vec();
            bytes[at] = byte;
            sigv4(&bytes);
        }
    }
}
