//! AWS Signature Version 4, the verifying side, in the form of a header and of a presigned query.
//!
//! ```text
//!   canonical request = method, path, sorted query, signed headers, their names, hash of the body
//!   string to sign    = "AWS4-HMAC-SHA256", time, scope, hash of the canonical request
//!   key               = HMAC chain over the scope, from the secret
//! ```
//! Paths that are served have nothing to normalise: a client that leaves dots out of one means another. `Host`
//! must be signed, and so must every `X-Amz-` header: what is not signed could be added by anybody.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::query::Parameters;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// How far the clocks may be apart, in seconds.
const SKEW: u64 = 15 * 60;
/// Longest life of a presigned query in seconds.
const MAX_EXPIRES: u64 = 7 * 24 * 3600;
/// Where the hash of a body would be, of one that is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
/// Headers that a request can sign.
const MAX_SIGNED: usize = 32;

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// Such as `POST`.
    pub method: &'a str,
    /// As it came, without the query.
    pub path: &'a str,
    /// Parameters of the URL.
    pub query: &'a Parameters,
    /// Names in lower case, values.
    pub headers: &'a [(String, String)],
    /// All of it.
    pub body: &'a [u8],
    /// Whether a client may leave the body out of its signature, since something that is signed vouches for it.
    pub unsigned_body: bool,
}

/// Why a signature is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is none.
    Missing,
    /// It cannot be read.
    Incomplete(&'static str),
    /// Another time than now.
    Expired,
    /// It is wrong.
    Mismatch,
}

/// What a request says of its signature, still to be verified.
#[derive(Debug)]
pub(crate) struct Signed<'a> {
    /// Whose.
    pub access_key_id: &'a str,
    /// Session token, for keys that have one.
    pub token: Option<&'a str>,
    /// Service in the scope.
    pub service: &'a str,
    date: &'a str,
    pub region: &'a str,
    /// `20260131T235959Z`.
    time: &'a str,
    expires: Option<u64>,
    headers: Vec<&'a str>,
    signature: [u8; 32],
    message: Message<'a>,
}

fn header<'a>(message: &Message<'a>, name: &str) -> Option<&'a str> {
    message.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.trim())
}

fn parameter<'a>(message: &Message<'a>, name: &str) -> Option<&'a str> {
    message.query.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

impl<'a> Signed<'a> {
    /// Reads the signature of a request.
    pub(crate) fn read(message: Message<'a>) -> Result<Self, Refusal> {
        let incomplete = Refusal::Incomplete;
        let presigned = parameter(&message, "X-Amz-Algorithm").is_some();
        let (credential, headers, signature, time, token, expires) = if presigned {
            let get = |name| parameter(&message, name).ok_or(incomplete("a parameter of it is missing"));
            if get("X-Amz-Algorithm")? != ALGORITHM {
                return Err(incomplete("its algorithm is not AWS4-HMAC-SHA256"));
            }
            let expires =
                get("X-Amz-Expires")?.parse().map_err(|_| incomplete("X-Amz-Expires is no number"))?;
            if expires > MAX_EXPIRES {
                return Err(incomplete("X-Amz-Expires is more than a week"));
            }
            let token = parameter(&message, "X-Amz-Security-Token");
            let (headers, time) = (get("X-Amz-SignedHeaders")?, get("X-Amz-Date")?);
            (get("X-Amz-Credential")?, headers, get("X-Amz-Signature")?, time, token, Some(expires))
        } else {
            let authorization = header(&message, "authorization").ok_or(Refusal::Missing)?;
            let fields =
                authorization.strip_prefix(ALGORITHM).ok_or(incomplete("it is not AWS4-HMAC-SHA256"))?;
            let field = |name: &str| {
                let mut all = fields.split(',').filter_map(|field| field.trim().split_once('='));
                let found = all.find(|(other, _)| *other == name).map(|(_, value)| value);
                found.ok_or(incomplete("a field of Authorization is missing"))
            };
            let time =
                header(&message, "x-amz-date").ok_or(incomplete("the header X-Amz-Date is missing"))?;
            let token = header(&message, "x-amz-security-token");
            (field("Credential")?, field("SignedHeaders")?, field("Signature")?, time, token, None)
        };
        let mut scope = credential.rsplitn(5, '/');
        let mut next = || scope.next().ok_or(incomplete("the Credential has not five parts"));
        let (terminator, service, region, date, access_key_id) =
            (next()?, next()?, next()?, next()?, next()?);
        if terminator != TERMINATOR || !time.starts_with(date) || date.len() != 8 {
            return Err(incomplete("the scope of the Credential does not fit"));
        }
        let headers: Vec<_> = headers.split(';').collect();
        let must = |name: &str| name.starts_with("x-amz-") && !presigned || name == "host";
        let signs = |name: &str| headers.contains(&name);
        let all_signed = message.headers.iter().all(|(name, _)| !must(name) || signs(name));
        if headers.len() > MAX_SIGNED || !signs("host") || !all_signed {
            return Err(incomplete("Host and every X-Amz- header must be signed"));
        }
        let signature = unhex(signature).ok_or(incomplete("the Signature is not 64 hexadecimal digits"))?;
        let signed = Signed {
            access_key_id,
            token,
            service,
            date,
            region,
            time,
            expires,
            headers,
            signature,
            message,
        };
        Ok(signed)
    }

    /// Checks the time and then the signature against the key's secret. `now`: Unix seconds.
    pub(crate) fn verify(&self, secret: &str, now: u64) -> Result<(), Refusal> {
        let signed_at = seconds(self.time).ok_or(Refusal::Incomplete("the time of it cannot be read"))?;
        let until = signed_at.saturating_add(self.expires.unwrap_or(SKEW));
        if now > until || signed_at > now.saturating_add(SKEW) {
            return Err(Refusal::Expired);
        }
        // In constant time.
        self.computed(secret)?.verify_slice(&self.signature).map_err(|_| Refusal::Mismatch)
    }

    /// What the signature must be.
    fn computed(&self, secret: &str) -> Result<Hmac<Sha256>, Refusal> {
        let scope = format!("{}/{}/{}/{TERMINATOR}", self.date, self.region, self.service);
        let request = hex(&Sha256::digest(self.canonical_request()?));
        let text = format!("{ALGORITHM}\n{}\n{scope}\n{request}", self.time);
        let first = format!("AWS4{secret}").into_bytes();
        let key = [self.date, self.region, self.service, TERMINATOR]
            .iter()
            .try_fold(first, |key, part| Some(mac(&key, part)?.finalize().into_bytes().to_vec()));
        key.and_then(|key| mac(&key, &text)).ok_or(Refusal::Mismatch)
    }

    fn canonical_request(&self) -> Result<String, Refusal> {
        let Message { method, path, query, headers, body, unsigned_body } = self.message;
        let own = |name: &str| self.expires.is_some() && name == "X-Amz-Signature";
        let mut pairs: Vec<_> =
            query.iter().filter(|(name, _)| !own(name)).map(|(n, v)| (encode(n), encode(v))).collect();
        pairs.sort();
        let query: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        // What is encoded in a path is encoded once more.
        let path: Vec<_> = path.split('/').map(encode).collect();
        let mut lines = format!("{method}\n{}\n{}\n", path.join("/"), query.join("&"));
        for name in &self.headers {
            let all: Vec<_> =
                headers.iter().filter(|(other, _)| other == name).map(|(_, v)| folded(v)).collect();
            if all.is_empty() {
                return Err(Refusal::Incomplete("a signed header is not there"));
            }
            lines.push_str(&format!("{name}:{}\n", all.join(",")));
        }
        let said = header(&self.message, "x-amz-content-sha256");
        let unsigned = unsigned_body && self.expires.is_none() && said == Some(UNSIGNED);
        let hash = if unsigned { UNSIGNED.to_owned() } else { hex(&Sha256::digest(body)) };
        lines.push_str(&format!("\n{}\n{hash}", self.headers.join(";")));
        Ok(lines)
    }
}

pub(super) fn mac(key: &[u8], text: &str) -> Option<Hmac<Sha256>> {
    // Any length of key will do; there is no error to come.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(text.as_bytes());
    Some(mac)
}

/// A header's value with blanks trimmed and runs of them as one.
fn folded(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Percent-encoding of everything but the unreserved characters (RFC 3986).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; 32];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}

/// Unix seconds of `20260131T235959Z`.
fn seconds(time: &str) -> Option<u64> {
    let part = |range| time.get(range);
    if time.len() != 16 {
        return None;
    }
    let date = format!("{}-{}-{}", part(0..4)?, part(4..6)?, part(6..8)?);
    let clock = format!("{}:{}:{}", part(9..11)?, part(11..13)?, part(13..15)?);
    if part(8..9) != Some("T") || part(15..16) != Some("Z") {
        return None;
    }
    kiln_model::Utc::parse_rfc3339(&format!("{date}T{clock}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the documentation of Signature Version 4 ("get-vanilla-query" in form).
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const TIME: u64 = 1_440_938_160;

    fn example() -> (Parameters, Vec<(String, String)>) {
        let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        let headers = vec![
            text("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            text("host", "iam.amazonaws.com"),
            text("x-amz-date", "20150830T123600Z"),
            text("authorization", authorization),
        ];
        (vec![text("Version", "2010-05-08"), text("Action", "ListUsers")], headers)
    }

    fn message<'a>(query: &'a Parameters, headers: &'a [(String, String)], body: &'a [u8]) -> Message<'a> {
        Message { method: "GET", path: "/", query, headers, body, unsigned_body: false }
    }

    fn check(query: &Parameters, headers: &[(String, String)], body: &[u8], now: u64) -> Result<(), Refusal> {
        Signed::read(message(query, headers, body))?.verify(SECRET, now)
    }

    /// The signature that a client who knows `SECRET` would make.
    fn sign(message: Message<'_>) -> Vec<(String, String)> {
        let mut headers = message.headers.to_vec();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        let authorization = |signature: &str| {
            let scope = "20150830/us-east-1/ebs/aws4_request";
            let names = names.join(";");
            format!("{ALGORITHM} Credential=A/{scope}, SignedHeaders={names}, Signature={signature}")
        };
        let unsigned = authorization(&"0".repeat(64));
        let with = [headers.clone(), vec![("authorization".to_owned(), unsigned)]].concat();
        let signed = Signed::read(Message { headers: &with, ..message }).unwrap();
        let signature = hex(&signed.computed(SECRET).unwrap().finalize().into_bytes());
        let authorization = authorization(&signature);
        headers.push(("authorization".to_owned(), authorization));
        headers
    }

    #[test]
    fn published_example_verifies() {
        let (query, headers) = example();
        assert_eq!(check(&query, &headers, b"", TIME), Ok(()));
    }

    #[test]
    fn any_change_is_noticed() {
        let (query, headers) = example();
        assert_eq!(check(&query, &headers, b"x", TIME), Err(Refusal::Mismatch));
        let mut other = query.clone();
        other[1].1.push('x');
        assert_eq!(check(&other, &headers, b"", TIME), Err(Refusal::Mismatch));
        let mut other = headers.clone();
        other[1].1.push('x');
        assert_eq!(check(&query, &other, b"", TIME), Err(Refusal::Mismatch));
        let signed = Message { method: "POST", ..message(&query, &headers, b"") };
        assert_eq!(Signed::read(signed).unwrap().verify(SECRET, TIME), Err(Refusal::Mismatch));
        let signed = Message { path: "/x", ..message(&query, &headers, b"") };
        assert_eq!(Signed::read(signed).unwrap().verify(SECRET, TIME), Err(Refusal::Mismatch));
        let signed = message(&query, &headers, b"");
        assert_eq!(Signed::read(signed).unwrap().verify("other", TIME), Err(Refusal::Mismatch));
    }

    #[test]
    fn what_is_encoded_in_a_path_is_encoded_once_more() {
        let (query, headers) = (Parameters::new(), example().1);
        let raw = Message { path: "/snapshots/a%2Fb/ü~", ..message(&query, &headers, b"") };
        let canonical = Signed::read(raw).unwrap().canonical_request().unwrap();
        assert_eq!(canonical.lines().nth(1), Some("/snapshots/a%252Fb/%C3%BC~"));
    }

    #[test]
    fn body_is_left_out_of_a_signature_only_where_that_may_be_and_the_client_says_so() {
        let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let headers = |hash: &str| {
            let hash = text("x-amz-content-sha256", hash);
            vec![text("host", "h"), hash, text("x-amz-date", "20150830T123600Z")]
        };
        let query = Parameters::new();
        let verify = |message: Message<'_>| Signed::read(message)?.verify(SECRET, TIME);
        let unsigned = headers(UNSIGNED);
        let put = Message { path: "/p", unsigned_body: true, ..message(&query, &unsigned, b"body") };
        let signed = sign(put);
        for body in [&b"body"[..], b"another"] {
            assert_eq!(verify(Message { headers: &signed, body, ..put }), Ok(()));
            let strict = Message { headers: &signed, body, unsigned_body: false, ..put };
            assert_eq!(verify(strict), Err(Refusal::Mismatch));
        }
        // A client that signs it is held to it.
        let own = headers(&hex(&Sha256::digest(b"body")));
        let put = Message { headers: &own, ..put };
        let signed = sign(put);
        assert_eq!(verify(Message { headers: &signed, ..put }), Ok(()));
        let changed = Message { headers: &signed, body: b"another", ..put };
        assert_eq!(verify(changed), Err(Refusal::Mismatch));
        // That it is not signed cannot be said afterwards.
        let mut later = signed.clone();
        later[1].1 = UNSIGNED.to_owned();
        assert_eq!(verify(Message { headers: &later, ..put }), Err(Refusal::Mismatch));
    }

    #[test]
    fn quarter_of_an_hour_of_skew_passes_and_more_does_not() {
        let (query, headers) = example();
        for (now, result) in [
            (TIME + SKEW, Ok(())),
            (TIME - SKEW, Ok(())),
            (TIME + SKEW + 1, Err(Refusal::Expired)),
            (TIME - SKEW - 1, Err(Refusal::Expired)),
        ] {
            assert_eq!(check(&query, &headers, b"", now), result);
        }
    }

    #[test]
    fn unsigned_amz_headers_and_damaged_signatures_are_refused() {
        let (query, headers) = example();
        let mut more = headers.clone();
        more.push(("x-amz-security-token".to_owned(), "t".to_owned()));
        assert!(matches!(check(&query, &more, b"", TIME), Err(Refusal::Incomplete(_))));
        assert_eq!(check(&query, &headers[..3], b"", TIME), Err(Refusal::Missing));
        for (from, to) in [
            ("AWS4-HMAC-SHA256", "AWS3"),
            ("host;", ""),
            ("5d672d79", "5D672d79"),
            ("5d672d79", ""),
            ("/iam/", "/"),
            ("20150830/", "20150831/"),
            ("aws4_request", "aws5_request"),
            ("Signature=", "Sig="),
            ("content-type;", "content-type;absent;"),
        ] {
            let mut headers = headers.clone();
            headers[3].1 = headers[3].1.replacen(from, to, 1);
            assert!(matches!(check(&query, &headers, b"", TIME), Err(Refusal::Incomplete(_))), "{from}");
        }
    }
}
