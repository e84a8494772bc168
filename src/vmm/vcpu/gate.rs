//! Where vCPU threads wait while the guest must not run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Starts, pauses and stops all vCPUs of a machine together.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a thread has to look at `state` before entering the guest.
    attention: AtomicBool,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Threads waiting at the gate.
    parked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Closed,
    Open,
    Stopped,
}

/// What a thread does after the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Enter the guest.
    Enter,
    /// Enter the guest after having been held up.
    Resumed,
    /// End the thread.
    End,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        let state = Mutex::new(State { mode: Mode::Closed, parked: 0 });
        Gate { state, changed: Condvar::new(), attention: AtomicBool::new(true) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mode: Mode) {
        let mut state = self.state();
        if state.mode != Mode::Stopped {
            state.mode = mode;
        }
        self.attention.store(state.mode != Mode::Open, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Lets the vCPUs run.
    pub fn open(&self) {
        self.set(Mode::Open);
    }

    /// Holds vCPUs up from their next look on; the caller kicks them out of the guest.
    pub fn close(&self) {
        self.set(Mode::Closed);
    }

    /// Ends all vCPU threads from their next look on; cannot be undone.
    pub fn stop(&self) {
        self.set(Mode::Stopped);
    }

    /// Waits until `threads` threads are held up here, or the gate was stopped meanwhile.
    pub fn wait_parked(&self, threads: usize) {
        let mut state = self.state();
        while state.parked < threads && state.mode == Mode::Closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Called by a vCPU thread before each entry.
    pub(super) fn pass(&self) -> Pass {
        if !self.attention.load(Ordering::SeqCst) {
            return Pass::Enter;
        }
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.mode == Mode::Closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        if state.mode == Mode::Open { Pass::Resumed } else { Pass::End }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Gate::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn threads_are_held_released_and_ended() {
        let gate = Arc::new(Gate::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    let mut resumed = 0;
                    loop {
                        match gate.pass() {
                            Pass::Enter => std::thread::yield_now(),
                            Pass::Resumed => resumed += 1,
                            Pass::End => return resumed,
                        }
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            gate.wait_parked(4);
            gate.open();
            gate.close();
        }
        gate.wait_parked(4);
        gate.stop();
        gate.open();
        for thread in threads {
            assert!(thread.join().unwrap() <= 3);
        }
        assert_eq!(gate.pass(), Pass::End, "a stopped gate stays stopped");
    }
}
