//! Framing on the control socket: a little-endian `u32` length, then that many bytes of JSON.
//! Descriptors travel with the first byte of the frame that names them.

/// Largest frame in bytes. A spec with 16 KiB of user data and a full metadata tree stays far below.
pub const MAX_FRAME: usize = 4 << 20;

/// Most descriptors one frame may carry (the kernel's own limit, `SCM_MAX_FD`, is 253).
pub const MAX_FDS: usize = 128;
