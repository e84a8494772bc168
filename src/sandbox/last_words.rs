//! What a process says when it must end at once: on standard error, and in a file for whoever comes later.
//!
//! A signal handler may say it too: nothing here allocates, locks or unwinds.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// No descriptor.
const NONE: RawFd = -1;
/// The file that waits for last words, until somebody writes there.
static FILE: AtomicI32 = AtomicI32::new(NONE);
/// What stands before and after them in the file.
static FRAME: OnceLock<[&'static str; 2]> = OnceLock::new();

/// Has last words go to `file` too, with `before` and `after` around them: the text itself holds no quotation
/// mark, no backslash, no line break and nothing but ASCII, so that it can be a string of JSON. `file` is empty,
/// and stays open until [`claim`] is called.
pub fn keep_in(file: BorrowedFd<'_>, before: &'static str, after: &'static str) {
    let _ = FRAME.set([before, after]);
    FILE.store(file.as_raw_fd(), Ordering::Release);
}

/// Whether the caller, and nobody else, may write to that file from now on.
pub fn claim() -> bool {
    claimed().is_some()
}

fn claimed() -> Option<RawFd> {
    Some(FILE.swap(NONE, Ordering::AcqRel)).filter(|fd| *fd != NONE)
}

/// Says `parts` as one line and ends the process with `status`.
pub fn say_and_leave(parts: &[&str], status: i32) -> ! {
    let mut line = Line::default();
    line.push("kiln-vmm: ");
    parts.iter().for_each(|part| line.push_text(part));
    line.push("\n");
    line.write(libc::STDERR_FILENO);
    if let (Some(fd), Some([before, after])) = (claimed(), FRAME.get()) {
        let mut line = Line::default();
        line.push(before);
        parts.iter().for_each(|part| line.push_text(part));
        line.push(after);
        line.write(fd);
    }
    leave(status);
}

/// Ends the process at once with one system call: no exit handlers, no destructors, which a filter
/// would forbid.
pub fn leave(status: i32) -> ! {
    // SAFETY: ends the process; whatever it owned is the kernel's to free.
    unsafe { libc::_exit(status) }
}

const MOST: usize = 512;
/// Of these as many as fit, and room for what comes after the text.
const MOST_TEXT: usize = 384;

/// A line without allocation.
struct Line {
    bytes: [u8; MOST],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line { bytes: [0; MOST], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.push_byte(byte, MOST));
    }

    fn push_text(&mut self, text: &str) {
        for byte in text.bytes() {
            let shown = match byte {
                b'"' => b'\'',
                b'\\' => b'/',
                b' '..=b'~' => byte,
                b'\n' | b'\t' => b' ',
                _ => b'?',
            };
            self.push_byte(shown, MOST_TEXT);
        }
    }

    fn push_byte(&mut self, byte: u8, most: usize) {
        if self.len < most
            && let Some(slot) = self.bytes.get_mut(self.len)
        {
            *slot = byte;
            self.len += 1;
        }
    }

    fn write(&self, fd: RawFd) {
        // SAFETY: the first `len` bytes are initialised; `push_byte` never counts beyond the array.
        let _ = unsafe { libc::write(fd, self.bytes.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(parts: &[&str]) -> String {
        let mut line = Line::default();
        line.push("{\"");
        parts.iter().for_each(|part| line.push_text(part));
        line.push("\"}");
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn text_cannot_break_out_of_its_frame() {
        assert_eq!(line(&["a \"b\"\\", "\nc\u{7}é"]), "{\"a 'b'/ c???\"}");
        let long = line(&[&"x".repeat(10_000)]);
        assert!(long.ends_with("x\"}") && long.len() < MOST, "{}", long.len());
    }
}
