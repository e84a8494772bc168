//! Telling a person how far long work has come. The terminal is at the other end.

/// One running task. Calls come from the thread that does the work and must be cheap.
pub trait Progress: Send + Sync {
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
}

/// Starts tasks.
pub trait Reporter: Send + Sync {
    /// A task of `total_bytes`, which ends when the returned value is dropped.
    fn task(&self, what: &str, total_bytes: u64) -> Box<dyn Progress>;
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn advance(&self, _bytes: u64) {}
}

impl Reporter for Silent {
    fn task(&self, _what: &str, _total_bytes: u64) -> Box<dyn Progress> {
        Box::new(Silent)
    }
}
