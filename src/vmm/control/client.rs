//! One connected client.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use kiln_vmspec::frame::{Decoder, FrameError, MAX_FDS, encode, receive_piece};
use kiln_vmspec::{Event, Message, Request};

/// Unsent bytes above which console output to this client is dropped.
const CONSOLE_BACKLOG: usize = 1 << 20;
/// Unsent bytes above which the client is given up.
const MOST_BACKLOG: usize = 4 << 20;
/// Bytes read per wake, so that one client cannot keep the thread busy.
const READ_PIECE: usize = 64 << 10;

/// A non-blocking connection with what is still to be sent.
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    /// Descriptors that came with what the decoder holds.
    fds: Vec<OwnedFd>,
    unsent: Vec<u8>,
    /// Whether it wants console output.
    pub attached: bool,
}

/// The connection is over.
#[derive(Debug)]
pub struct Gone;

impl Client {
    /// Takes over a connection.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let decoder = Decoder::default();
        Ok(Client { stream, decoder, fds: Vec::new(), unsent: Vec::new(), attached: false })
    }

    /// For epoll.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether to wait for room in the socket.
    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what has arrived: requests, each with the descriptors that it names.
    pub fn read(&mut self) -> Result<Vec<(Request, Vec<OwnedFd>)>, Gone> {
        let mut piece = vec![0u8; READ_PIECE];
        match receive_piece(&self.stream, &mut piece, &mut self.fds) {
            Ok(0) => return Err(Gone),
            Ok(n) => self.decoder.push(piece.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Err(Gone),
        }
        if self.fds.len() > MAX_FDS {
            return Err(Gone);
        }
        let mut requests = Vec::new();
        loop {
            match self.decoder.next_message::<Request>() {
                Ok(Some(request)) => {
                    let named = request.command.descriptors();
                    if named > self.fds.len() {
                        tracing::warn!("a control client named {named} descriptors and sent fewer");
                        return Err(Gone);
                    }
                    let fds = self.fds.drain(..named).collect();
                    requests.push((request, fds));
                }
                Ok(None) => break,
                Err(FrameError::Malformed(e)) => {
                    tracing::warn!("a control client sent a message that does not make sense: {e}");
                    return Err(Gone);
                }
                Err(_) => return Err(Gone),
            }
        }
        if self.decoder.is_empty() {
            // Nothing is left that could name them.
            self.fds.clear();
        }
        Ok(requests)
    }

    /// Queues a message and sends what the socket takes.
    pub fn send(&mut self, message: &Message) -> Result<(), Gone> {
        let console = matches!(message, Message::Event(Event::Console { .. }));
        if console && self.unsent.len() > CONSOLE_BACKLOG {
            return Ok(());
        }
        self.unsent.extend(encode(message, 0).map_err(|_| Gone)?);
        if self.unsent.len() > MOST_BACKLOG {
            return Err(Gone);
        }
        self.flush()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(Gone),
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Sends the rest, waiting a little: the process is about to end.
    pub fn finish(mut self) {
        let limit = Some(std::time::Duration::from_secs(1));
        if self.stream.set_nonblocking(false).is_ok() && self.stream.set_write_timeout(limit).is_ok() {
            let _ = self.stream.write_all(&self.unsent);
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
