//! Keeps the doorbells of a device's queues where its BAR is.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_MULTIPLIER};
use crate::interrupt::DoorbellRegistry;

/// Doorbells of one device. Unbinds them when dropped.
pub(super) struct Doorbells {
    registry: Arc<dyn DoorbellRegistry>,
    kicks: Vec<Arc<EventFd>>,
    bound: Vec<(u64, u16)>,
}

impl Doorbells {
    pub(super) fn new(registry: Arc<dyn DoorbellRegistry>, kicks: Vec<Arc<EventFd>>) -> Self {
        Self { registry, kicks, bound: Vec::new() }
    }

    /// The doorbell of `queue`.
    pub(super) fn kick(&self, queue: u16) -> Option<&Arc<EventFd>> {
        self.kicks.get(usize::from(queue))
    }

    /// Makes the doorbells of `queues`, and no others, answer in a BAR at `bar`. On failure they are
    /// where they were before.
    pub(super) fn place(&mut self, bar: Option<u64>, queues: &[u16]) -> io::Result<()> {
        let address = |bar: u64, queue: u16| bar + NOTIFY + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
        let wanted = bar.map_or(Vec::new(), |bar| queues.iter().map(|q| (address(bar, *q), *q)).collect());
        if wanted == self.bound {
            return Ok(());
        }
        let before = self.bound.clone();
        self.clear();
        self.bind(&wanted).inspect_err(|_| {
            self.clear();
            if let Err(error) = self.bind(&before) {
                // Notifications then leave the kernel: slower, not lost.
                tracing::warn!(%error, "doorbells could not be bound again");
            }
        })
    }

    /// Forgets notifications that nobody will serve.
    pub(super) fn drain(&self) {
        for kick in &self.kicks {
            let _ = kick.read();
        }
    }

    fn bind(&mut self, wanted: &[(u64, u16)]) -> io::Result<()> {
        for &(address, queue) in wanted {
            if let Some(kick) = self.kick(queue) {
                self.registry.bind(address, kick)?;
                self.bound.push((address, queue));
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        for (address, queue) in std::mem::take(&mut self.bound) {
            if let Some(kick) = self.kick(queue)
                && let Err(error) = self.registry.unbind(address, kick)
            {
                tracing::warn!(%error, address, "doorbell could not be unbound");
            }
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.clear();
    }
}
