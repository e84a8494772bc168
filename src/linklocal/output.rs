//! Frames that wait for the guest to take them.

use std::collections::VecDeque;

/// TCP sends nothing while this many bytes wait: its segments stay in the sockets' buffers.
const TCP_STOPS_AT: usize = 128 * 1024;

/// Answers of all kinds are dropped while this many bytes wait.
const FULL_AT: usize = 256 * 1024;

/// A bounded queue.
#[derive(Debug, Default)]
pub(crate) struct Output {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Frames dropped for want of room.
    pub(crate) dropped: u64,
}

impl Output {
    pub(crate) fn push(&mut self, frame: Vec<u8>) {
        if self.bytes >= FULL_AT {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.bytes = self.bytes.saturating_add(frame.len());
        self.frames.push_back(frame);
    }

    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.len());
        Some(frame)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether TCP may send another segment.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < TCP_STOPS_AT
    }
}
