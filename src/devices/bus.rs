//! Port and memory-mapped I/O dispatch.

/// A device on a bus. `offset` counts from the start of the registered range.
///
/// `data` has 1, 2, 4 or 8 bytes for a single access, and may be of any length for a string
/// instruction. A device must accept every offset and length of its range: what does not exist
/// reads as all ones and ignores writes.
pub trait BusDevice: Send {
    /// Fills `data`, which the bus has preset to all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}
