//! Serves one queue pair; the worker of pair 0 also serves the control queue.
//!
//! ```text
//!  rx kick ──▶ ┌────────┐ ◀── tap readable (only while there are receive buffers)
//!  tx kick ──▶ │ worker │ ◀── deadline: replies of link-local services, work left over
//!  control ──▶ └────────┘ ◀── poke: the number of pairs in use has changed
//! ```

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{NicBackend, NicQueue};
use super::chain::Malformed;
use super::control::{Command, Control};
use super::counters::Counters;
use super::rx::Rx;
use super::tx::Tx;
use crate::virtio::{DEADLINE, DeviceFault, Placement, QueueWorker, Wake, WakeSource};

const TOKEN_RX: u32 = 0;
const TOKEN_TX: u32 = 1;
const TOKEN_CONTROL: u32 = 2;
const TOKEN_BACKEND: u32 = 3;
const TOKEN_POKE: u32 = 4;

/// What the workers of one device share while it is active.
pub(super) struct Shared {
    /// Guest memory.
    pub mem: GuestMemoryMmap,
    /// The host side.
    pub backend: Arc<dyn NicBackend>,
    /// Counters of the device.
    pub counters: Arc<Counters>,
    /// Pairs 0 to here are in use.
    pub active_pairs: Arc<AtomicU16>,
    /// Written to wake each pair after `active_pairs` has changed.
    pub pokes: Vec<EventFd>,
    /// Most pairs the driver may use.
    pub max_pairs: u16,
    /// Reports an unusable driver.
    pub fault: DeviceFault,
}

impl Shared {
    /// Carries out a command of the driver; false if it is refused.
    fn execute(&self, command: Command) -> bool {
        let Command::SetPairs(pairs) = command else { return false };
        if pairs == 0 || pairs > self.max_pairs {
            return false;
        }
        if let Err(error) = self.backend.set_active_pairs(pairs) {
            tracing::warn!(%error, pairs, "could not change the number of queue pairs");
            return false;
        }
        self.active_pairs.store(pairs, Ordering::Release);
        for poke in &self.pokes {
            // A full counter already wakes.
            let _ = poke.write(1);
        }
        true
    }
}

/// The worker of one queue pair.
pub(super) struct PairWorker {
    pub name: String,
    pub pair: u16,
    pub shared: Arc<Shared>,
    pub rx: Rx,
    pub tx: Tx,
    pub control: Option<Control>,
    pub queue: Box<dyn NicQueue>,
    pub poke: EventFd,
    /// The backend's descriptor as last told to whoever waits.
    pub waits_on: Option<RawFd>,
    /// The driver has broken the rules; nothing is served until reset.
    pub dead: bool,
}

impl PairWorker {
    fn active(&self) -> bool {
        self.pair < self.shared.active_pairs.load(Ordering::Acquire)
    }

    /// What of the backend to wait for: nothing while a frame would have nowhere to go.
    fn wanted_fd(&self, now: Instant) -> Option<RawFd> {
        let closed = self.dead || self.rx.starved() || self.rx.throttled(now).is_some() || !self.active();
        if closed { None } else { self.queue.readable_fd() }
    }

    fn receive(&mut self, now: Instant) -> Result<(), Malformed> {
        if !self.active() {
            return Ok(());
        }
        self.rx.pump(&self.shared.mem, self.queue.as_mut(), &self.shared.counters, now)
    }

    fn transmit(&mut self, now: Instant) -> Result<(), Malformed> {
        let active = self.active();
        let backend = active.then_some(self.queue.as_mut() as &mut dyn NicQueue);
        self.tx.pump(&self.shared.mem, backend, &self.shared.counters, now)?;
        if active && self.queue.has_reply(now) { self.receive(now) } else { Ok(()) }
    }

    fn command(&mut self) -> Result<(), Malformed> {
        let Some(control) = self.control.as_mut() else { return Ok(()) };
        let shared = &self.shared;
        control.pump(&shared.mem, &shared.counters, |command| shared.execute(command))
    }

    fn serve(&mut self, token: u32, now: Instant) -> Result<(), Malformed> {
        match token {
            TOKEN_RX => {
                self.rx.ring().clear_kick();
                self.receive(now)
            }
            TOKEN_TX => {
                self.tx.ring().clear_kick();
                self.transmit(now)
            }
            TOKEN_CONTROL => {
                if let Some(control) = &self.control {
                    control.ring().clear_kick();
                }
                self.command()
            }
            TOKEN_POKE => {
                let _ = self.poke.read();
                self.receive(now)
            }
            DEADLINE => {
                if self.control.as_ref().is_some_and(Control::backlog) {
                    self.command()?;
                }
                if self.tx.backlog() || self.tx.held() {
                    self.transmit(now)?;
                }
                self.receive(now)
            }
            _ => self.receive(now),
        }
    }

    fn fail(&mut self, error: Malformed) {
        self.dead = true;
        tracing::warn!(queue = %self.name, %error, "driver broke the rules of its ring; device needs reset");
        self.shared.fault.raise();
    }
}

impl QueueWorker for PairWorker {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn placement(&self) -> Placement {
        Placement::EventLoop
    }

    fn wake_sources(&self) -> Vec<WakeSource> {
        if self.dead {
            return Vec::new();
        }
        let source = |fd, token| WakeSource { fd, writable: false, token };
        let mut sources = vec![
            source(self.rx.ring().kick_fd(), TOKEN_RX),
            source(self.tx.ring().kick_fd(), TOKEN_TX),
            source(self.poke.as_raw_fd(), TOKEN_POKE),
        ];
        sources.extend(self.control.as_ref().map(|control| source(control.ring().kick_fd(), TOKEN_CONTROL)));
        sources.extend(self.waits_on.map(|fd| source(fd, TOKEN_BACKEND)));
        sources
    }

    fn started(&mut self, now: Instant) {
        let result = self.command().and_then(|()| self.transmit(now)).and_then(|()| self.receive(now));
        if let Err(error) = result {
            self.fail(error);
        }
        self.waits_on = self.wanted_fd(now);
    }

    fn wake(&mut self, token: u32, now: Instant) -> Wake {
        if self.dead {
            return Wake::SourcesChanged;
        }
        if let Err(error) = self.serve(token, now) {
            self.fail(error);
            self.waits_on = None;
            return Wake::SourcesChanged;
        }
        let wanted = self.wanted_fd(now);
        if wanted == self.waits_on {
            return Wake::Continue;
        }
        self.waits_on = wanted;
        Wake::SourcesChanged
    }

    fn deadline(&self, now: Instant) -> Option<Duration> {
        if self.dead {
            return None;
        }
        if self.tx.backlog() || self.control.as_ref().is_some_and(Control::backlog) {
            return Some(Duration::ZERO);
        }
        let outward = self.tx.throttled(now);
        let inward = if !self.active() || self.rx.starved() {
            // Nothing could be delivered; a poke or the driver's next notification wakes us.
            None
        } else if self.rx.backlog() {
            Some(Duration::ZERO)
        } else {
            self.rx.throttled(now).or_else(|| self.queue.deadline(now))
        };
        outward.into_iter().chain(inward).min()
    }

    fn drain(self: Box<Self>) -> Vec<(u16, QueueState)> {
        let this = *self;
        let mut states =
            vec![this.rx.into_ring(&this.shared.counters).into_state(), this.tx.into_ring().into_state()];
        states.extend(this.control.map(|control| control.into_ring().into_state()));
        states
    }
}
