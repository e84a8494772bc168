//! Serial output, and what went wrong.

use core::fmt;

use crate::io;

const SERIAL_PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = SERIAL_PORT + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// The first serial port. Needs no set-up here.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // A port that never empties must not hang the tests of other devices.
            for _ in 0..1000 {
                if io::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            io::out8(SERIAL_PORT, byte);
        }
        Ok(())
    }
}

macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::report::Serial, $($arg)*);
    }};
}
pub(crate) use println;

/// Why a test failed. Cut at its capacity: there is no heap.
pub struct Failure {
    text: [u8; 200],
    len: usize,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(why: fmt::Arguments<'_>) -> Self {
        let mut failure = Failure { text: [0; 200], len: 0 };
        let _ = fmt::write(&mut failure, why);
        failure
    }
}

impl fmt::Write for Failure {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.text.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text[..self.len].utf8_chunks().try_for_each(|chunk| f.write_str(chunk.valid()))
    }
}

macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::report::Failure::new(format_args!($($arg)*))) };
}
pub(crate) use fail;

macro_rules! ensure {
    ($condition:expr, $($arg:tt)*) => { if !$condition { $crate::report::fail!($($arg)*) } };
}
pub(crate) use ensure;

/// `ensure_eq!(found, wanted, "what")`
macro_rules! ensure_eq {
    ($found:expr, $wanted:expr, $($arg:tt)*) => {{
        let (found, wanted) = ($found, $wanted);
        if found != wanted {
            $crate::report::fail!("{}: {:x?} instead of {:x?}", format_args!($($arg)*), found, wanted)
        }
    }};
}
pub(crate) use ensure_eq;
