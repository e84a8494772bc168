//! Taps and services together, as the network device sees them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_devices::virtio::net::{
    HEADER_LEN, MAX_QUEUE_PAIRS, NetHeader, NicBackend, NicQueue, Offloads, Received, TxFrame, TxOutcome,
};
use kiln_vmspec::{MetadataSnapshot, NicSpec};
use vm_memory::VolatileSlice;

use super::services::Services;
use super::tap::{Io, NicError, TapQueue};

/// The host side of one NIC.
pub struct TapBackend {
    /// Held for a moment when a queue is opened or the driver changes what it uses, never for a frame.
    ends: Mutex<Ends>,
    queue_pairs: u16,
    offloads: Offloads,
    cut: AtomicBool,
}

/// What frames come from and go to.
#[derive(Clone)]
struct Ends {
    taps: Vec<Arc<TapQueue>>,
    services: Option<Arc<Services>>,
}

impl TapBackend {
    /// The interface that `spec` describes. `taps`: open queues of one tap, at most
    /// [`MAX_QUEUE_PAIRS`] are used; without any, the NIC reaches nothing but the services. `seed`:
    /// fresh random bytes, the same for all interfaces of one machine.
    pub fn new(
        spec: &NicSpec,
        taps: Vec<OwnedFd>,
        metadata: Arc<MetadataSnapshot>,
        seed: [u8; 32],
    ) -> Result<Self, NicError> {
        Self::of(spec, taps.into_iter().map(TapQueue::new), metadata, seed)
    }

    /// The same for an interface that comes to a running machine: asks of the taps only what a confined thread
    /// may ask. `name` is for logs.
    pub fn adopt(
        spec: &NicSpec,
        taps: Vec<OwnedFd>,
        name: &str,
        metadata: Arc<MetadataSnapshot>,
        seed: [u8; 32],
    ) -> Result<Self, NicError> {
        Self::of(spec, taps.into_iter().map(|fd| TapQueue::adopt(fd, name)), metadata, seed)
    }

    fn of(
        spec: &NicSpec,
        taps: impl Iterator<Item = Result<TapQueue, NicError>>,
        metadata: Arc<MetadataSnapshot>,
        seed: [u8; 32],
    ) -> Result<Self, NicError> {
        let taps = taps
            .take(usize::from(MAX_QUEUE_PAIRS))
            .map(|tap| tap.map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let offloads = match taps.first() {
            Some(tap) => supported(tap),
            // The services take partial checksums and long segments as they are.
            None => Offloads::all(),
        };
        let queue_pairs = u16::try_from(taps.len()).unwrap_or(MAX_QUEUE_PAIRS).max(1);
        let services = Services::new(&spec.link_local, spec.mac, spec.mtu, metadata, seed);
        let ends = Mutex::new(Ends { taps, services: Some(Arc::new(services)) });
        Ok(TapBackend { ends, queue_pairs, offloads, cut: AtomicBool::new(false) })
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the tap and ends the services; from now on there is no link. The tap is closed when no queue
    /// that was opened before is left.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        *self.ends() = Ends { taps: Vec::new(), services: None };
    }

    /// Swaps the metadata that the services answer from.
    pub fn update_metadata(&self, metadata: Arc<MetadataSnapshot>) {
        let services = self.ends().services.clone();
        if let Some(services) = services {
            services.with(|link_local| link_local.update_metadata(metadata));
        }
    }

    /// Adds the counters of the services as `{prefix}.local_…`.
    pub fn stats(&self, prefix: &str, out: &mut BTreeMap<String, u64>) {
        let Some(services) = self.ends().services.clone() else { return };
        let counters = services.with(|link_local| link_local.counters());
        out.extend(counters.iter().map(|(name, value)| (format!("{prefix}.local_{name}"), value)));
    }
}

/// What this kernel's tap can do; UDP segmentation is there since Linux 6.2.
fn supported(tap: &TapQueue) -> Offloads {
    let without_uso = Offloads::all().difference(Offloads::USO);
    [Offloads::all(), without_uso, Offloads::CSUM]
        .into_iter()
        .find(|offloads| tap.set_offloads(*offloads).is_ok())
        .unwrap_or(Offloads::empty())
}

impl NicBackend for TapBackend {
    fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn link_up(&self) -> bool {
        !self.cut.load(Ordering::Acquire)
    }

    fn configure(&self, accepted: Offloads) -> io::Result<()> {
        match self.ends().taps.first() {
            Some(tap) if !tap.gone() => tap.set_offloads(accepted & self.offloads),
            // A tap that is gone brings no frames.
            _ => Ok(()),
        }
    }

    fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        let Ends { taps, .. } = &*self.ends();
        if taps.len() < 2 {
            return Ok(());
        }
        for (index, tap) in (0u16..).zip(taps) {
            tap.set_attached(index < pairs)?;
        }
        Ok(())
    }

    fn open(&self, pair: u16) -> io::Result<Box<dyn NicQueue>> {
        let Ends { taps, services } = &*self.ends();
        Ok(Box::new(PairQueue {
            pair,
            tap: taps.get(usize::from(pair)).cloned(),
            services: services.clone(),
            whole: Vec::new(),
        }))
    }
}

/// The data path of one queue pair.
struct PairQueue {
    pair: u16,
    tap: Option<Arc<TapQueue>>,
    /// None when the link has been cut.
    services: Option<Arc<Services>>,
    /// A frame for the services, copied as a whole.
    whole: Vec<u8>,
}

/// Copies a whole frame, whose length is bounded.
fn copy_whole(frame: &TxFrame<'_>, whole: &mut Vec<u8>) {
    whole.clear();
    whole.extend_from_slice(frame.head());
    for part in frame.rest {
        let at = whole.len();
        whole.resize(at + part.len(), 0);
        if let Some(room) = whole.get_mut(at..) {
            part.copy_to(room);
        }
    }
}

impl NicQueue for PairQueue {
    fn transmit(&mut self, frame: &TxFrame<'_>, now: Instant) -> TxOutcome {
        if let Some(services) = &self.services
            && services.takes(frame.head())
        {
            copy_whole(frame, &mut self.whole);
            services.transmit(&self.whole, frame.header.needs_csum(), now);
            return TxOutcome::Local;
        }
        let Some(tap) = self.tap.as_ref().filter(|tap| !tap.gone()) else { return TxOutcome::Dropped };
        match tap.write(frame.copy, frame.rest) {
            Io::Done(_) => TxOutcome::Sent,
            // A tap takes frames until its socket buffer, unlimited by default, is full. As with a
            // full transmit queue of real hardware, waiting would only move the loss.
            Io::WouldBlock | Io::Refused => TxOutcome::Dropped,
        }
    }

    fn receive(&mut self, bufs: &[VolatileSlice<'_>], now: Instant) -> Received {
        if let Some(frame) = self.services.as_ref().and_then(|services| services.receive(now)) {
            let mut left = frame.as_slice();
            for buf in bufs {
                let (part, later) = left.split_at(left.len().min(buf.len()));
                buf.copy_from(part);
                left = later;
            }
            return Received::Frame { header: NetHeader::default(), len: frame.len(), local: true };
        }
        let Some(tap) = &self.tap else { return Received::Nothing };
        if tap.readable_fd().is_none() {
            return Received::Nothing;
        }
        let mut header = [0u8; HEADER_LEN];
        match tap.read(&mut header, bufs) {
            Io::Done(bytes) => match bytes.checked_sub(HEADER_LEN) {
                Some(len) => Received::Frame { header: NetHeader::from_bytes(header), len, local: false },
                None => Received::Lost,
            },
            Io::WouldBlock => Received::Nothing,
            Io::Refused => Received::Lost,
        }
    }

    fn readable_fd(&self) -> Option<RawFd> {
        self.tap.as_ref()?.readable_fd()
    }

    fn has_reply(&self, now: Instant) -> bool {
        self.services.as_ref().is_some_and(|services| services.ready(now))
    }

    fn deadline(&self, now: Instant) -> Option<Duration> {
        // One worker keeps the timers of the services for all.
        self.services.as_ref().filter(|_| self.pair == 0)?.deadline(now)
    }
}
