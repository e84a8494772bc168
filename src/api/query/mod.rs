//! The Query protocol: parameters in, XML out.

mod decode;
mod form;
mod write;

pub use decode::{DecodeError, decode};
pub use form::{FormError, Parameters, parse};
pub use write::{Mismatch, envelope, escape, write};

#[cfg(test)]
mod tests;
