//! What this installation vouches for, and with which keys.
//!
//! ```text
//!   sealed rows ──▶ InstallationKeys ─┬─ RSA 2048 + certificate ──▶ instance identity (signed at launch)
//!                                     └─ P-256, HMAC key ─────────▶ session credentials of instances
//! ```
//!
//! Made at first use, one set per state directory, never handed to a VMM. Verifiers get the
//! certificate and the public session key from the control plane, not from the metadata service: what
//! a guest says of itself proves nothing.

mod keys;
mod pkcs7;

#[cfg(test)]
pub(crate) use keys::tests;
pub use keys::{InstallationKeys, KeyError};
