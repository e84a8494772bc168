//! Progress on standard error, where that is a terminal; silence elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kiln_controlplane::progress::{Progress, Reporter};

/// Shows a bar per task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bars;

struct Bar(ProgressBar);

impl Progress for Bar {
    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A template of ours; what indicatif cannot parse would show as a plain bar.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Reporter for Bars {
    fn task(&self, what: &str, total_bytes: u64) -> Box<dyn Progress> {
        // Draws to standard error, and nothing where that is not a terminal.
        let bar = ProgressBar::new(total_bytes);
        bar.set_style(style("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Box::new(Bar(bar))
    }
}

/// Something that takes a while and has no measure. Vanishes when dropped.
#[derive(Debug)]
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Starts turning.
    pub fn new(what: impl Into<String>) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message(what.into());
        bar.enable_steady_tick(Duration::from_millis(120));
        Spinner(bar)
    }
}

impl Spinner {
    /// Says something else.
    pub fn say(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
