//! The link-local services of one NIC, shared by its queue pairs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kiln_linklocal::{Classifier, LinkLocal, Time, Verdict};
use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalSpec, MetadataSnapshot};

/// No timer runs.
const NEVER: u64 = u64::MAX;

/// One door to [`LinkLocal`] for several workers. The lock is taken for frames of the services and
/// for their timers, never for frames of the tap.
pub(super) struct Services {
    classifier: Classifier,
    epoch: Instant,
    inner: Mutex<LinkLocal>,
    /// There may be a frame for the guest. Written under the lock.
    ready: AtomicBool,
    /// When `ready` becomes true by itself, in nanoseconds since `epoch`. Written under the lock.
    timer: AtomicU64,
}

impl Services {
    /// The services of the interface `mac` that `spec` describes, on a link of `mtu`. `seed`: fresh
    /// random bytes, the same for all interfaces of one machine.
    pub(super) fn new(
        spec: &LinkLocalSpec,
        mac: MacAddr,
        mtu: u16,
        metadata: Arc<MetadataSnapshot>,
        seed: [u8; 32],
    ) -> Self {
        let epoch = Instant::now();
        let link_local = LinkLocal::new(spec, mac, mtu, metadata, seed, time(epoch, epoch));
        Services {
            classifier: link_local.classifier(),
            epoch,
            inner: Mutex::new(link_local),
            ready: AtomicBool::new(false),
            timer: AtomicU64::new(NEVER),
        }
    }

    /// Runs `f` on the services, for example to swap the metadata.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut LinkLocal) -> R) -> R {
        f(&mut self.lock())
    }

    /// Whether a frame that starts like this is for the services.
    pub(super) fn takes(&self, head: &[u8]) -> bool {
        self.classifier.classify(head) == Verdict::Ours
    }

    /// Takes a whole frame from the guest.
    pub(super) fn transmit(&self, frame: &[u8], csum_partial: bool, now: Instant) {
        let mut inner = self.lock();
        inner.transmit(time(self.epoch, now), frame, csum_partial);
        self.ready.store(true, Ordering::Release);
    }

    /// The next frame for the guest.
    pub(super) fn receive(&self, now: Instant) -> Option<Vec<u8>> {
        if !self.ready(now) {
            return None;
        }
        let mut inner = self.lock();
        let time = time(self.epoch, now);
        let frame = inner.receive(time);
        if frame.is_none() {
            let timer = inner
                .next_deadline(time)
                .and_then(|wait| u64::try_from((time.uptime + wait).as_nanos()).ok())
                .unwrap_or(NEVER);
            self.timer.store(timer, Ordering::Release);
            self.ready.store(false, Ordering::Release);
        }
        frame
    }

    /// Whether [`Services::receive`] may have something.
    pub(super) fn ready(&self, now: Instant) -> bool {
        self.ready.load(Ordering::Acquire) || self.timer_left(now) == Some(Duration::ZERO)
    }

    /// When it will, without a frame from the guest.
    pub(super) fn deadline(&self, now: Instant) -> Option<Duration> {
        if self.ready.load(Ordering::Acquire) { Some(Duration::ZERO) } else { self.timer_left(now) }
    }

    fn timer_left(&self, now: Instant) -> Option<Duration> {
        let timer = self.timer.load(Ordering::Acquire);
        let elapsed = now.saturating_duration_since(self.epoch);
        (timer != NEVER).then(|| Duration::from_nanos(timer).saturating_sub(elapsed))
    }

    fn lock(&self) -> MutexGuard<'_, LinkLocal> {
        // A panic ends the VMM in production; in tests the value is still usable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both clocks as the services want them.
fn time(epoch: Instant, now: Instant) -> Time {
    Time {
        uptime: now.saturating_duration_since(epoch),
        wall: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    }
}
