//! One TCP connection of the guest and what happens on it.
//!
//! ```text
//!   Handshake ──▶ Waiting ──bytes──▶ Reading ──whole request──▶ Replying
//!      5 s          60 s (10 s for     20 s                  ▲     │ 30 s
//!                   the first)                               │     ├─ keep-alive ─▶ Waiting, or Reading
//!                                        DNS: Pending ───────┘     └─ close ──────▶ Lingering ─▶ gone
//! ```
//!
//! Requests of one connection are answered one after the other; while an answer is on its way the
//! next request stays in the receive buffer, whose window is what bounds the guest.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use crate::time::Time;

/// Receive buffer, which is the window offered to the guest.
const RECEIVE_BUFFER: usize = 4 * 1024;
/// Send buffer: bytes of an answer that may be under way.
const SEND_BUFFER: usize = 8 * 1024;

const HANDSHAKE: Duration = Duration::from_secs(5);
const FIRST_REQUEST: Duration = Duration::from_secs(10);
const NEXT_REQUEST: Duration = Duration::from_secs(60);
const READING: Duration = Duration::from_secs(20);
const REPLYING: Duration = Duration::from_secs(30);
const LINGERING: Duration = Duration::from_secs(5);

/// Bytes thrown away after the last answer before the connection is reset.
const MAX_LINGERING_BYTES: usize = 64 * 1024;

/// What happens on a connection, in the order in which connections are given up for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Closed, or only waiting for stray segments.
    Over,
    /// The guest has not acknowledged our SYN.
    Handshake,
    /// The last answer is out; what still comes is thrown away.
    Lingering,
    /// Between requests.
    Waiting,
    /// Part of a request is here.
    Reading,
    /// A request waits for an answer from elsewhere.
    Pending,
    /// An answer is under way.
    Replying,
}

/// What a service says to the bytes received so far.
pub(crate) enum Outcome {
    /// Not a whole request.
    Incomplete,
    /// The answer.
    Answer(Answer),
    /// The answer to a whole request of this many bytes will come through [`Connection::resume`].
    Later { consumed: usize },
    /// There will be no answer.
    Close,
}

/// An answer on its way.
pub(crate) struct Answer {
    /// Bytes of the request.
    pub(crate) consumed: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) hop_limit: Option<u8>,
    pub(crate) close: bool,
}

/// One connection. Its socket is alone in its set, so that a segment goes straight to it.
pub(crate) struct Connection {
    /// Never repeats during the life of the table.
    pub(crate) id: u64,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) sockets: SocketSet<'static>,
    handle: SocketHandle,
    phase: Phase,
    /// When the phase began.
    since: Duration,
    answered: bool,
    received: Vec<u8>,
    /// Set when bytes came that may complete a request.
    attempt: bool,
    reply: Vec<u8>,
    sent: usize,
    close_after: bool,
    hop_limited: bool,
    lingered: usize,
}

impl Connection {
    /// A socket that waits for the SYN from `peer` to `local`.
    pub(crate) fn listen(id: u64, local: SocketAddr, peer: SocketAddr, now: Time) -> Option<Self> {
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; RECEIVE_BUFFER]), SocketBuffer::new(vec![0; SEND_BUFFER]));
        // An answer is written as a whole; holding back its last segment would only wait for the
        // guest's delayed acknowledgement.
        socket.set_nagle_enabled(false);
        socket.listen(local).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Connection {
            id,
            local,
            peer,
            sockets,
            handle,
            phase: Phase::Handshake,
            since: now.uptime,
            answered: false,
            received: Vec::new(),
            attempt: false,
            reply: Vec::new(),
            sent: 0,
            close_after: false,
            hop_limited: false,
            lingered: 0,
        })
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket>(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    /// Whether nothing will ever be sent on it again.
    pub(crate) fn is_gone(&self) -> bool {
        self.state() == State::Closed && self.sockets.get::<Socket>(self.handle).remote_endpoint().is_none()
    }

    /// Place in the order of giving up: lower goes first, among equals the older.
    pub(crate) fn worth(&self) -> (Phase, Duration) {
        let phase = match self.state() {
            State::Closed | State::Listen | State::TimeWait => Phase::Over,
            _ => self.phase,
        };
        (phase, self.since)
    }

    /// When it will be given up unless something happens.
    pub(crate) fn deadline(&self) -> Duration {
        let patience = match self.phase {
            Phase::Over | Phase::Lingering => LINGERING,
            Phase::Handshake => HANDSHAKE,
            Phase::Waiting if self.answered => NEXT_REQUEST,
            Phase::Waiting => FIRST_REQUEST,
            Phase::Reading => READING,
            Phase::Pending | Phase::Replying => REPLYING,
        };
        self.since.saturating_add(patience)
    }

    /// Resets the connection.
    pub(crate) fn abort(&mut self) {
        self.socket().abort();
        self.phase = Phase::Over;
        self.received = Vec::new();
        self.reply = Vec::new();
    }

    /// Ends a connection on which nothing happened in time: politely between requests.
    pub(crate) fn give_up(&mut self, now: Time) {
        if self.phase == Phase::Waiting && self.answered { self.close(now) } else { self.abort() }
    }

    fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.since = now.uptime;
    }

    /// Hands over the answer to the request that was left [`Outcome::Later`].
    pub(crate) fn resume(&mut self, now: Time, bytes: Vec<u8>) {
        if self.phase == Phase::Pending {
            self.begin(now, Answer { consumed: 0, bytes, hop_limit: None, close: false });
        }
    }

    fn begin(&mut self, now: Time, answer: Answer) {
        self.received.drain(..answer.consumed.min(self.received.len()));
        self.attempt = !self.received.is_empty();
        self.reply = answer.bytes;
        self.sent = 0;
        self.close_after = answer.close;
        if let Some(limit) = answer.hop_limit {
            self.hop_limited = true;
            self.socket().set_hop_limit(Some(limit.max(1)));
        }
        self.answered = true;
        self.enter(Phase::Replying, now);
    }

    /// Moves bytes between the socket and the service as far as they go. `limit` is the longest
    /// request; `serve` is called with what has been received.
    pub(crate) fn pump(&mut self, now: Time, limit: usize, mut serve: impl FnMut(&[u8]) -> Outcome) {
        loop {
            match self.state() {
                State::Listen | State::SynReceived | State::SynSent => return,
                State::Closed | State::TimeWait => {
                    self.phase = Phase::Over;
                    return;
                }
                _ => {}
            }
            // A hop limit ends when the guest has all bytes that it was for.
            if self.hop_limited && self.sent == self.reply.len() && self.socket().send_queue() == 0 {
                self.socket().set_hop_limit(None);
                self.hop_limited = false;
            }
            match self.phase {
                Phase::Over => return,
                Phase::Handshake => self.enter(Phase::Waiting, now),
                Phase::Pending => return self.fail_if_peer_left(),
                Phase::Replying => {
                    if !self.write(now) {
                        return;
                    }
                }
                Phase::Lingering => return self.discard(),
                Phase::Waiting | Phase::Reading => {
                    self.read(now, limit);
                    if !std::mem::take(&mut self.attempt) {
                        return self.finish_if_peer_left(now);
                    }
                    match serve(&self.received) {
                        Outcome::Incomplete => return self.finish_if_peer_left(now),
                        Outcome::Answer(answer) => self.begin(now, answer),
                        Outcome::Later { consumed } => {
                            self.received.drain(..consumed.min(self.received.len()));
                            self.enter(Phase::Pending, now);
                        }
                        Outcome::Close => self.close(now),
                    }
                }
            }
        }
    }

    /// Writes what is left of the answer; true when the phase has changed.
    fn write(&mut self, now: Time) -> bool {
        if self.sent < self.reply.len() {
            let rest = self.reply.get(self.sent..).unwrap_or_default();
            let written = match self.sockets.get_mut::<Socket>(self.handle).send_slice(rest) {
                Ok(written) => written,
                Err(_) => {
                    self.abort();
                    return false;
                }
            };
            self.sent = self.sent.saturating_add(written);
        }
        // The next request waits until a confined answer has arrived: its own is not confined.
        if self.sent < self.reply.len() || (self.hop_limited && !self.close_after) {
            return false;
        }
        self.reply = Vec::new();
        self.sent = 0;
        if self.close_after {
            self.close(now);
        } else {
            self.attempt = !self.received.is_empty();
            self.enter(if self.attempt { Phase::Reading } else { Phase::Waiting }, now);
        }
        true
    }

    /// Takes received bytes out of the socket, `limit` in all.
    fn read(&mut self, now: Time, limit: usize) {
        let before = self.received.len();
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        while self.received.len() < limit && socket.can_recv() {
            let received = &mut self.received;
            let taken = socket.recv(|bytes| {
                let fitting = bytes.get(..limit.saturating_sub(received.len())).unwrap_or(bytes);
                received.extend_from_slice(fitting);
                (fitting.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        if self.received.len() > before {
            self.attempt = true;
            if self.phase == Phase::Waiting {
                self.enter(Phase::Reading, now);
            }
        }
    }

    fn finish_if_peer_left(&mut self, now: Time) {
        if !self.socket().may_recv() {
            self.close(now);
        }
    }

    fn close(&mut self, now: Time) {
        self.received = Vec::new();
        self.socket().close();
        self.enter(Phase::Lingering, now);
    }

    fn fail_if_peer_left(&mut self) {
        if !self.socket().may_send() {
            self.abort();
        }
    }

    /// Throws away what still comes, so that closing does not turn into a reset that takes the
    /// answer with it (RFC 9112 §9.6).
    fn discard(&mut self) {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        while socket.can_recv() {
            let Ok(taken) = socket.recv(|bytes| (bytes.len(), bytes.len())) else { break };
            self.lingered = self.lingered.saturating_add(taken);
        }
        if self.lingered > MAX_LINGERING_BYTES {
            self.abort();
        }
    }
}
