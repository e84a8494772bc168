//! The serial console between the guest, the control clients and the log.
//!
//! ```text
//!  vCPU ─▶ ConsoleWriter ─▶ scroll-back (last 64 KiB) ─▶ clients that attach later
//!                      └──▶ fresh bytes ─ wake ─▶ control thread ─▶ log file, attached clients
//!  control thread ─▶ Console::type_in ─▶ waiting input ─▶ serial port
//! ```
//!
//! A vCPU never waits here: all buffers are bounded, and what does not fit is counted and dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_devices::serial::ConsoleSink;
use vmm_sys_util::eventfd::EventFd;

/// What a late client still sees; EC2's `GetConsoleOutput` shows as much.
const SCROLLBACK: usize = 64 << 10;
/// Output the control thread has not taken yet.
const MOST_FRESH: usize = 1 << 20;
/// Input the guest has not taken yet.
const MOST_INPUT: usize = 64 << 10;

/// The console of one VMM; lives through restarts of its machine.
#[derive(Clone)]
pub struct Console {
    state: Arc<Mutex<State>>,
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    scrollback: VecDeque<u8>,
    fresh: Vec<u8>,
    input: VecDeque<u8>,
    /// The guest made room for more input.
    wanted: bool,
    dropped: u64,
}

impl Console {
    /// An empty console. `wake` is signalled when there is something for [`Console::take_output`]
    /// or [`Console::feed`] to do.
    pub fn new(wake: Arc<EventFd>) -> Self {
        Console { state: Arc::default(), wake }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end for the serial port.
    pub fn writer(&self) -> ConsoleWriter {
        ConsoleWriter { console: self.clone() }
    }

    /// Everything printed since the last call.
    pub fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().fresh)
    }

    /// The last bytes printed, oldest first.
    pub fn scrollback(&self) -> Vec<u8> {
        self.state().scrollback.iter().copied().collect()
    }

    /// Output bytes lost because nobody took them in time.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Queues what a user typed, as far as it fits, for [`Console::feed`].
    pub fn type_in(&self, bytes: &[u8]) {
        let mut state = self.state();
        let room = MOST_INPUT.saturating_sub(state.input.len());
        state.input.extend(bytes.iter().take(room));
    }

    /// Offers the waiting input to `port`, which returns how many bytes it took.
    pub fn feed(&self, mut port: impl FnMut(&[u8]) -> usize) {
        loop {
            // The port calls back into `ConsoleWriter`, so our lock must not be held over the call.
            let piece: Vec<u8> = {
                let mut state = self.state();
                state.wanted = false;
                state.input.iter().take(256).copied().collect()
            };
            let taken = if piece.is_empty() { 0 } else { port(&piece) };
            let mut state = self.state();
            state.input.drain(..taken.min(piece.len()));
            if taken < piece.len() || state.input.is_empty() {
                return;
            }
        }
    }
}

/// The serial port's view of the console.
pub struct ConsoleWriter {
    console: Console,
}

impl ConsoleWriter {
    fn signal(&self) {
        // Fails only when the counter is full, and then the control thread is awake already.
        let _: io::Result<()> = self.console.wake.write(1);
    }
}

impl ConsoleSink for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) {
        let mut state = self.console.state();
        let quiet = state.fresh.is_empty();
        let room = MOST_FRESH.saturating_sub(state.fresh.len());
        let (taken, lost) = bytes.split_at(bytes.len().min(room));
        state.fresh.extend_from_slice(taken);
        state.dropped = state.dropped.saturating_add(lost.len() as u64);
        state.scrollback.extend(bytes);
        let excess = state.scrollback.len().saturating_sub(SCROLLBACK);
        state.scrollback.drain(..excess);
        drop(state);
        if quiet {
            self.signal();
        }
    }

    fn input_wanted(&mut self) {
        let mut state = self.console.state();
        let ask = !state.wanted && !state.input.is_empty();
        state.wanted |= ask;
        drop(state);
        if ask {
            self.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> Console {
        Console::new(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()))
    }

    #[test]
    fn output_is_taken_once_and_kept_for_late_clients() {
        let console = console();
        let mut writer = console.writer();
        writer.write(b"Linux ");
        writer.write(b"version");
        assert_eq!(console.wake.read().unwrap(), 1, "one wake for a burst");
        assert_eq!(console.take_output(), b"Linux version");
        assert_eq!(console.take_output(), b"");
        assert_eq!(console.scrollback(), b"Linux version");
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let console = console();
        let mut writer = console.writer();
        let line = [b'x'; 4096];
        for _ in 0..(MOST_FRESH / line.len() + 3) {
            writer.write(&line);
        }
        assert_eq!(console.take_output().len(), MOST_FRESH);
        assert_eq!(console.dropped(), 3 * 4096);
        assert_eq!(console.scrollback().len(), SCROLLBACK);
    }

    #[test]
    fn input_waits_until_the_guest_takes_it() {
        let console = console();
        console.type_in(b"poweroff\n");
        let mut seen = Vec::new();
        console.feed(|bytes| {
            seen.extend_from_slice(&bytes[..4]);
            4
        });
        assert_eq!(seen, b"powe");
        console.writer().input_wanted();
        assert_eq!(console.wake.read().unwrap(), 1);
        console.feed(|bytes| {
            seen.extend_from_slice(bytes);
            bytes.len()
        });
        assert_eq!(seen, b"poweroff\n");
        console.type_in(&vec![0; 2 * MOST_INPUT]);
        assert_eq!(console.state().input.len(), MOST_INPUT);
    }
}
