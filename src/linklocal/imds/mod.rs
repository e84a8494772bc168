//! The instance metadata service: what is answered to which request.
//!
//! ```text
//!   bytes ─http::parse─▶ Request ─┬─ endpoint disabled ────────────────▶ 403
//!                                 ├─ PUT /latest/api/token ────────────▶ token, 400 or 403
//!                                 ├─ PUT of anything else ─────────────▶ 403
//!                                 ├─ GET of the token path, POST, … ───▶ 405
//!                                 └─ GET, HEAD ─ token? ─ 401
//!                                                  └─ path ─ tree ─────▶ 200 or 404
//! ```
//!
//! Requests without a token are version 1 of the service; a token that does not hold is refused even
//! where none is needed.

pub(crate) mod http;
mod path;
pub(crate) mod token;
mod tree;

use std::sync::Arc;

use kiln_vmspec::{HttpTokens, LeafValue, MetadataSnapshot};

use crate::counters::Counters;
use crate::time::Time;
use http::{Field, Method, Parsed, Request, Response, Status};
use path::BadTarget;
use token::{MAX_TTL_SECONDS, TokenAuthority};
use tree::Node;

/// The page behind every 404: 339 bytes, like that of the real service.
const NOT_FOUND_PAGE: &str = include_str!("not_found.xhtml");

const ALLOW_DATA: &str = "GET, HEAD, OPTIONS";
const ALLOW_TOKEN: &str = "OPTIONS, PUT";

/// What a guest with a good token reads at `target` (a request target, version first); `None` where it
/// gets 404, or asks for something that is no path.
pub fn read_metadata(snapshot: &MetadataSnapshot, target: &str) -> Option<LeafValue> {
    let path = path::parse(target).ok()?;
    match tree::lookup(snapshot, &path.segments)? {
        Node::Leaf(value) => Some(value.to_vec().into()),
        Node::Listing(text) => Some(text.into()),
    }
}

/// One answer, ready to be sent.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Bytes of the request that this answers.
    pub(crate) consumed: usize,
    pub(crate) bytes: Vec<u8>,
    /// Hop limit of the segments that carry it, where it is not the usual one.
    pub(crate) hop_limit: Option<u8>,
    /// Close the connection behind it.
    pub(crate) close: bool,
}

/// The service of one interface.
pub(crate) struct Imds {
    snapshot: Arc<MetadataSnapshot>,
    tokens: TokenAuthority,
}

impl Imds {
    pub(crate) fn new(snapshot: Arc<MetadataSnapshot>, seed: &[u8; 32]) -> Self {
        let tokens = TokenAuthority::new(seed, &snapshot.instance_id);
        Imds { snapshot, tokens }
    }

    pub(crate) fn set_snapshot(&mut self, snapshot: Arc<MetadataSnapshot>) {
        self.snapshot = snapshot;
    }

    /// Makes all tokens handed out so far worthless.
    pub(crate) fn reseed(&mut self, seed: &[u8; 32]) {
        self.tokens = TokenAuthority::new(seed, &self.snapshot.instance_id);
    }

    /// Answers the request at the start of `received`; `None` until it is whole.
    pub(crate) fn answer(&mut self, now: Time, received: &[u8], counters: &mut Counters) -> Option<Reply> {
        let (response, consumed, hop_limit) = match http::parse(received) {
            Parsed::Partial => return None,
            Parsed::Refused(status) => (Response::empty(status), received.len(), None),
            Parsed::Whole(request, consumed) => {
                let issued = self.issue(now, &request, counters);
                let hop_limit = issued.is_some().then_some(self.snapshot.options.hop_limit.clamp(1, 64));
                let mut response = issued.unwrap_or_else(|| self.respond(now, &request, counters));
                response.close = !request.keep_alive || response.status == Status::BadRequest;
                response.head_only = request.method == Method::Head;
                (response, consumed, hop_limit)
            }
        };
        counters.imds_requests += 1;
        match response.status {
            Status::Unauthorized => counters.imds_unauthorized += 1,
            Status::Forbidden => counters.imds_forbidden += 1,
            _ => {}
        }
        Some(Reply { consumed, bytes: response.encode(now.wall.as_secs()), hop_limit, close: response.close })
    }

    /// The response with a new token, if that is what is asked for and may be had.
    fn issue(&mut self, now: Time, request: &Request<'_>, counters: &mut Counters) -> Option<Response> {
        let wanted = self.snapshot.options.endpoint_enabled
            && request.method == Method::Put
            && !request.forwarded
            && path::parse(request.target).is_ok_and(|path| is_token_path(&path) && !path.trailing_slash);
        let ttl = ttl_seconds(request.ttl).filter(|_| wanted)?;
        counters.imds_tokens += 1;
        Some(Response {
            token_ttl: Some(u64::from(ttl)),
            body: self.tokens.issue(now.uptime, ttl).into_bytes(),
            ..Response::empty(Status::Ok)
        })
    }

    /// The response to anything but a successful request for a token.
    fn respond(&self, now: Time, request: &Request<'_>, counters: &mut Counters) -> Response {
        if !self.snapshot.options.endpoint_enabled {
            return Response::empty(Status::Forbidden);
        }
        let path = match path::parse(request.target) {
            Err(BadTarget::Refused) => return Response::empty(Status::BadRequest),
            Err(BadTarget::Unknown) => None,
            Ok(path) => Some(path),
        };
        let of_token = path.as_ref().is_some_and(is_token_path);
        let allow = if of_token { ALLOW_TOKEN } else { ALLOW_DATA };
        match request.method {
            Method::Put => {
                let exact = of_token && path.is_some_and(|path| !path.trailing_slash) && !request.forwarded;
                Response::empty(if exact { Status::BadRequest } else { Status::Forbidden })
            }
            Method::Options => Response { allow: Some(allow), ..Response::empty(Status::Ok) },
            Method::Get | Method::Head if !of_token => match self.authorize(now, request, counters) {
                Err(()) => Response::empty(Status::Unauthorized),
                Ok(token_ttl) => {
                    Response { token_ttl, ..path.map_or_else(not_found, |path| self.look_up(&path.segments)) }
                }
            },
            _ => Response { allow: Some(allow), ..Response::empty(Status::NotAllowed) },
        }
    }

    /// Seconds left of the token that came along, if one came and holds, or if none is needed.
    fn authorize(
        &self,
        now: Time,
        request: &Request<'_>,
        counters: &mut Counters,
    ) -> Result<Option<u64>, ()> {
        match request.token {
            Field::Once(token) => {
                let left = self.tokens.remaining(now.uptime, token).ok_or(())?;
                // Rounded up, so that a token that still holds never shows 0.
                Ok(Some(left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)))
            }
            Field::Absent if self.snapshot.options.tokens == HttpTokens::Optional => {
                counters.imds_no_token += 1;
                Ok(None)
            }
            Field::Absent | Field::Repeated => Err(()),
        }
    }

    fn look_up(&self, segments: &[String]) -> Response {
        let body = match tree::lookup(&self.snapshot, segments) {
            Some(Node::Leaf(value)) => value.to_vec(),
            Some(Node::Listing(text)) => text.into_bytes(),
            None => return not_found(),
        };
        let is_user_data = matches!(segments, [_, name] if name == "user-data");
        Response {
            content_type: if is_user_data { "application/octet-stream" } else { "text/plain" },
            last_modified: Some(self.snapshot.published),
            body,
            ..Response::empty(Status::Ok)
        }
    }
}

/// Whether `path` is that of the token, with or without a slash at the end.
fn is_token_path(path: &path::Path) -> bool {
    path.segments == ["latest", "api", "token"]
}

fn ttl_seconds(field: Field<'_>) -> Option<u32> {
    let Field::Once(value) = field else { return None };
    let ttl = http::decimal(value).and_then(|ttl| u32::try_from(ttl).ok())?;
    (1..=MAX_TTL_SECONDS).contains(&ttl).then_some(ttl)
}

fn not_found() -> Response {
    Response {
        content_type: "text/html",
        body: NOT_FOUND_PAGE.as_bytes().to_vec(),
        ..Response::empty(Status::NotFound)
    }
}

#[cfg(test)]
mod tests;
