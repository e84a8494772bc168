//! Who asks, and whether he may.

mod block_token;
mod caller;
mod policy;
mod sigv4;

pub(crate) use block_token::{BlockTokens, LIFE as TOKEN_LIFE, Purpose};
pub(crate) use caller::{Authenticator, Caller, Kind, refuse};
pub(crate) use policy::{Request as PolicyRequest, kind_of, nothing, permits, permits_passing, resource_arn};
pub(crate) use sigv4::{Message, Refusal, Signed};
