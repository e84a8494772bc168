//! Raw mode of the terminal, and the promise to undo it.
//!
//! The mode is restored when [`RawMode`] is dropped, by the panic hook (release builds abort on a
//! panic and drop nothing), and around a stop of this process. Signals that end a program are turned
//! into an orderly end elsewhere; only SIGKILL leaves a raw terminal behind.

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

/// How the terminal was before.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, saved);
    }
}

/// Makes a panic restore the terminal before it prints anything.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// The terminal passes every key on, unechoed, until this is dropped.
#[derive(Debug)]
pub struct RawMode {
    raw: Termios,
}

impl RawMode {
    /// Whether standard input is a terminal that listens to us. A background job that changed its
    /// mode would be stopped by it.
    pub fn is_possible() -> bool {
        isatty(stdin()) && tcgetpgrp(stdin()).is_ok_and(|foreground| foreground == getpgrp())
    }

    /// Enters raw mode.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let mode = RawMode { raw };
        mode.set()?;
        Ok(mode)
    }

    fn set(&self) -> io::Result<()> {
        Ok(tcsetattr(stdin(), OptionalActions::Flush, &self.raw)?)
    }

    /// Stops this process as Ctrl-Z would, with the terminal as it was; returns when it goes on.
    pub fn stop_process(&self) {
        restore();
        // Returns after SIGCONT.
        let _ = kill_process(getpid(), Signal::STOP);
        let _ = self.set();
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
