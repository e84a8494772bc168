//! Key pairs: public keys by name. Private halves are given out once and never kept.

mod encoding;
mod service;

pub use service::{CreatedKeyPair, KeyKind, KeyPair, KeyPairError, KeyPairs};
