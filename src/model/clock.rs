//! Time is an argument.

/// Where the present comes from. The real one is given at the edge of the program; tests give their
/// own.
pub trait Clock: Send + Sync {
    /// Seconds since the Unix epoch.
    fn unix_seconds(&self) -> u64;
}

impl<T: Clock + ?Sized> Clock for std::sync::Arc<T> {
    fn unix_seconds(&self) -> u64 {
        (**self).unix_seconds()
    }
}
