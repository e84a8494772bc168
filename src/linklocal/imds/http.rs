//! HTTP/1.1 as far as the metadata service speaks it: requests in, responses out, bytes only.
//!
//! Requests are bounded by [`MAX_REQUEST`], body included. Conditional, range and content-negotiation
//! headers are ignored, `Host` is not checked. A response always has a length and is never chunked;
//! the order of its headers is that of the real service.

use std::fmt::Write as _;

use kiln_model::Utc;

/// Longest request in bytes, head and body together. User agents of SDKs run to several hundred.
pub const MAX_REQUEST: usize = 8 * 1024;

/// Most header lines of one request.
const MAX_HEADERS: usize = 64;

/// What the first bytes of a connection are.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// No whole request yet.
    Partial,
    /// Not a request that can be answered; the connection ends after the response.
    Refused(Status),
    /// A request and the number of bytes it took.
    Whole(Request<'a>, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Put,
    Options,
    Other,
}

/// A header that must not be there twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Absent,
    Once(&'a [u8]),
    Repeated,
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Field::Absent => Field::Once(value),
            Field::Once(_) | Field::Repeated => Field::Repeated,
        };
    }
}

/// The parts of a request that matter.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) target: &'a str,
    /// The client wants to send more requests on this connection and says so.
    pub(crate) keep_alive: bool,
    /// `X-aws-ec2-metadata-token`.
    pub(crate) token: Field<'a>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub(crate) ttl: Field<'a>,
    /// There is an `X-Forwarded-For`: some proxy stands between.
    pub(crate) forwarded: bool,
}

/// Parses the request at the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Refused(Status::HeadersTooLarge);
        }
        Err(_) => return Parsed::Refused(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Parsed::Refused(Status::BadRequest);
    };
    let mut request = Request {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        },
        target,
        keep_alive: false,
        token: Field::Absent,
        ttl: Field::Absent,
        forwarded: false,
    };
    let mut body = Field::Absent;
    for header in head.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("x-aws-ec2-metadata-token") {
            request.token.add(header.value);
        } else if is("x-aws-ec2-metadata-token-ttl-seconds") {
            request.ttl.add(header.value);
        } else if is("x-forwarded-for") {
            request.forwarded = true;
        } else if is("connection") {
            let mut options = header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            request.keep_alive |= version == 1 && options.any(|o| o.eq_ignore_ascii_case(b"keep-alive"));
        } else if is("content-length") {
            body.add(header.value);
        } else if is("transfer-encoding") {
            // No client of the service sends a body, least of all one of unknown length.
            return Parsed::Refused(Status::BadRequest);
        }
    }
    let body_length = match body {
        Field::Absent => 0,
        Field::Once(value) => match decimal(value) {
            Some(length) => length,
            None => return Parsed::Refused(Status::BadRequest),
        },
        Field::Repeated => return Parsed::Refused(Status::BadRequest),
    };
    let length = usize::try_from(body_length).unwrap_or(usize::MAX).saturating_add(head_length);
    if length > MAX_REQUEST {
        Parsed::Refused(Status::ContentTooLarge)
    } else if length > bytes.len() {
        Parsed::Partial
    } else {
        Parsed::Whole(request, length)
    }
}

/// A number in ASCII digits and nothing else, at most ten of them.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if !(1..=10).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    NotAllowed,
    ContentTooLarge,
    HeadersTooLarge,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            // The service's own wording.
            Status::NotAllowed => "405 Not Allowed",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::HeadersTooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// A response before it is bytes.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: Status,
    /// `Allow`.
    pub(crate) allow: Option<&'static str>,
    /// `X-Aws-Ec2-Metadata-Token-Ttl-Seconds`.
    pub(crate) token_ttl: Option<u64>,
    pub(crate) content_type: &'static str,
    /// `Last-Modified` in Unix seconds, and with it `Accept-Ranges: none`.
    pub(crate) last_modified: Option<u64>,
    pub(crate) body: Vec<u8>,
    /// Send the headers and keep the body back.
    pub(crate) head_only: bool,
    /// The connection ends with this response.
    pub(crate) close: bool,
}

impl Response {
    /// A response without a body.
    pub(crate) fn empty(status: Status) -> Self {
        Response {
            status,
            allow: None,
            token_ttl: None,
            content_type: "text/plain",
            last_modified: None,
            body: Vec::new(),
            head_only: false,
            close: true,
        }
    }

    /// The bytes on the wire, `Date` being `wall_seconds`.
    pub(crate) fn encode(&self, wall_seconds: u64) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\n", self.status.line());
        // Writing to a string cannot fail.
        if let Some(allow) = self.allow {
            let _ = write!(head, "Allow: {allow}\r\n");
        }
        if let Some(seconds) = self.token_ttl {
            let _ = write!(head, "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {seconds}\r\n");
        }
        let _ = write!(head, "Content-Type: {}\r\n", self.content_type);
        if let Some(published) = self.last_modified {
            let _ = write!(
                head,
                "Accept-Ranges: none\r\nLast-Modified: {}\r\n",
                Utc::from_unix(published).http_date()
            );
        }
        let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        let _ = write!(head, "Date: {}\r\nServer: EC2ws\r\n", Utc::from_unix(wall_seconds).http_date());
        if self.close {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !self.head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> Option<Status> {
        match parse(bytes) {
            Parsed::Refused(status) => Some(status),
            _ => None,
        }
    }

    #[test]
    fn request_arrives_in_any_pieces() {
        let whole = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
            x-AWS-ec2-metadata-TOKEN-ttl-seconds:  60 \r\nContent-Length: 3\r\n\r\nabcGET ";
        for length in 0..whole.len() - 4 {
            assert!(matches!(parse(&whole[..length]), Parsed::Partial), "{length}");
        }
        let Parsed::Whole(request, length) = parse(whole) else { panic!("not whole") };
        assert_eq!(length, whole.len() - 4);
        assert_eq!((request.method, request.target), (Method::Put, "/latest/api/token"));
        assert_eq!((request.ttl, request.token), (Field::Once(b"60"), Field::Absent));
        assert!(!request.keep_alive && !request.forwarded);
    }

    #[test]
    fn keep_alive_must_be_asked_for_in_http_1_1() {
        for (version, value, keep_alive) in [
            ("1.1", "Connection: keep-alive", true),
            ("1.1", "connection: Foo , Keep-Alive", true),
            ("1.1", "Connection: close", false),
            ("1.1", "X: keep-alive", false),
            ("1.0", "Connection: keep-alive", false),
        ] {
            let text = format!("GET / HTTP/{version}\r\n{value}\r\n\r\n");
            let Parsed::Whole(request, _) = parse(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(request.keep_alive, keep_alive, "{text}");
        }
    }

    #[test]
    fn repeated_token_headers_are_noticed() {
        let text = b"GET / HTTP/1.1\r\nX-aws-ec2-metadata-token: a\r\nX-aws-ec2-metadata-token: a\r\n\
            X-Forwarded-For:\r\n\r\n";
        let Parsed::Whole(request, _) = parse(text) else { panic!("not whole") };
        assert_eq!(request.token, Field::Repeated);
        assert!(request.forwarded);
    }

    #[test]
    fn rubbish_is_refused() {
        for text in [
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\u{16}\u{3}\u{1}\u{2}\r\n\r\n",
            "GET / HTTP/1.1\r\nbad header\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        ] {
            assert_eq!(refused(text.as_bytes()), Some(Status::BadRequest), "{text:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST));
        assert_eq!(refused(&long.as_bytes()[..MAX_REQUEST]), Some(Status::HeadersTooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(refused(many.as_bytes()), Some(Status::HeadersTooLarge));
        let body = format!("PUT / HTTP/1.1\r\nContent-Length: {MAX_REQUEST}\r\n\r\n");
        assert_eq!(refused(body.as_bytes()), Some(Status::ContentTooLarge));
        assert_eq!(
            refused(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            Some(Status::BadRequest)
        );
    }

    #[test]
    fn headers_come_in_the_order_of_the_real_service() {
        let response = Response {
            token_ttl: Some(21_518),
            last_modified: Some(1_719_526_660),
            body: b"us-east-1".to_vec(),
            ..Response::empty(Status::Ok)
        };
        assert_eq!(
            String::from_utf8(response.encode(1_719_527_491)).unwrap(),
            "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21518\r\nContent-Type: text/plain\r\n\
             Accept-Ranges: none\r\nLast-Modified: Thu, 27 Jun 2024 22:17:40 GMT\r\nContent-Length: 9\r\n\
             Date: Thu, 27 Jun 2024 22:31:31 GMT\r\nServer: EC2ws\r\nConnection: close\r\n\r\nus-east-1"
        );
    }
}
