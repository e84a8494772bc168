//! What a VMM process may reach. So far: which descriptors it inherits and whose death it follows.
//! Namespaces, ids, limits and system call filters join here.

#[expect(unsafe_code, reason = "code between fork and exec can only be given as an unsafe hook")]
pub mod spawn;
