//! What processes that meet hostile data may reach.
//!
//! ```text
//!  control plane                                   kiln-vmm
//!  cgroup::Cgroup::create ─ limits
//!  spawn: new PID namespace ─ joins the cgroup ──▶ jail::enter    namespaces, empty root, no rights
//!         dies with its parent, if it shall        seccomp::…     a list of system calls per thread
//! ```
//!
//! [`confine`] is the lighter way for a short-lived worker that reads one hostile file.

pub mod block_device;
pub mod cgroup;
pub mod confine;
pub mod jail;
#[expect(unsafe_code, reason = "writing from a signal handler, and ending the process from it")]
pub mod last_words;
pub mod seccomp;
#[expect(unsafe_code, reason = "code between fork and exec can only be given as an unsafe hook")]
pub mod spawn;
