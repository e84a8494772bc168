//! EC2 nouns as plain data. No I/O, no clocks, no global state.
//!
//! Every other crate may use this one; it uses none of them.

#![forbid(unsafe_code)]

mod mac;

pub use mac::{MacAddr, ParseMacError};
