//! Counters of one network device, shared by its workers.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened since the device was made. Directions are the guest's.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Frames put into receive buffers.
    pub rx_packets: Counter,
    /// Their bytes, without headers.
    pub rx_bytes: Counter,
    /// Those that came from services on the link.
    pub rx_local: Counter,
    /// Frames for the guest that were lost: too long for its buffers, or an error of the host.
    pub rx_dropped: Counter,
    /// Times that frames had to wait because the guest offered no buffer.
    pub rx_starved: Counter,
    /// Frames taken by the backend.
    pub tx_packets: Counter,
    /// Their bytes, without headers.
    pub tx_bytes: Counter,
    /// Those that went to services on the link.
    pub tx_local: Counter,
    /// Frames that the backend could not take.
    pub tx_dropped: Counter,
    /// Frames with a bad header or length.
    pub tx_malformed: Counter,
    /// Commands on the control queue.
    pub control_commands: Counter,
    /// Interrupts raised.
    pub interrupts: Counter,
}

impl Counters {
    /// Appends all of them by name.
    pub fn list(&self, out: &mut Vec<(&'static str, u64)>) {
        out.extend([
            ("rx_packets", self.rx_packets.get()),
            ("rx_bytes", self.rx_bytes.get()),
            ("rx_local", self.rx_local.get()),
            ("rx_dropped", self.rx_dropped.get()),
            ("rx_starved", self.rx_starved.get()),
            ("tx_packets", self.tx_packets.get()),
            ("tx_bytes", self.tx_bytes.get()),
            ("tx_local", self.tx_local.get()),
            ("tx_dropped", self.tx_dropped.get()),
            ("tx_malformed", self.tx_malformed.get()),
            ("control_commands", self.control_commands.get()),
            ("interrupts", self.interrupts.get()),
        ]);
    }
}
