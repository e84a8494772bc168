//! Memory for rings and buffers: handed out upwards, taken back all at once before each test.
//!
//! Addresses are physical and virtual alike.

use core::sync::atomic::{AtomicU64, Ordering};

/// Above the image, below the end of the smallest machine.
const START: u64 = 8 << 20;
pub const END: u64 = 48 << 20;
const PAGE: u64 = 4096;

static NEXT: AtomicU64 = AtomicU64::new(START);

/// A stretch of zeroed memory of our own.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: usize,
}

/// Takes back everything.
pub fn release_all() {
    NEXT.store(START, Ordering::Relaxed);
}

/// Zeroed memory at a page of its own.
pub fn allocate(len: usize) -> Buffer {
    let address = NEXT.load(Ordering::Relaxed);
    let end = address + (len as u64).next_multiple_of(PAGE);
    assert!(end <= END, "out of memory for buffers");
    NEXT.store(end, Ordering::Relaxed);
    let buffer = Buffer { address, len };
    buffer.fill(0);
    buffer
}

impl Buffer {
    /// The device may change it at any time, so only look at it when the device is done.
    pub fn bytes(&self) -> &'static [u8] {
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.len) }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        let to = (self.address + at as u64) as *mut u8;
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    pub fn fill(&self, value: u8) {
        unsafe { core::ptr::write_bytes(self.address as *mut u8, value, self.len) }
    }

    /// The part from `at` on, `len` bytes long.
    pub fn part(&self, at: usize, len: usize) -> Buffer {
        assert!(at + len <= self.len);
        Buffer { address: self.address + at as u64, len }
    }
}
