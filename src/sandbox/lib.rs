//! What processes that meet hostile data may reach. So far: which descriptors a child inherits and
//! whose death it follows, and what a worker gives up by itself. Namespaces and system call filters
//! join here.

pub mod confine;
#[expect(unsafe_code, reason = "code between fork and exec can only be given as an unsafe hook")]
pub mod spawn;
