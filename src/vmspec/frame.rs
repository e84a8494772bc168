//! Framing on the control socket: a little-endian `u32` length, then that many bytes of JSON.
//! Descriptors travel with the first byte of the frame that names them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame in bytes. A spec with 16 KiB of user data and a full metadata tree stays far below.
pub const MAX_FRAME: usize = 4 << 20;

/// Most descriptors one frame may carry (the kernel's own limit, `SCM_MAX_FD`, is 253).
pub const MAX_FDS: usize = 128;

const HEADER: usize = 4;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection between two frames.
    #[error("the peer closed the control connection")]
    Closed,
    /// The frame is above [`MAX_FRAME`] or carries more than [`MAX_FDS`] descriptors.
    #[error("a control frame of {bytes} bytes with {fds} descriptors is too large")]
    TooLarge {
        /// Length of the JSON text.
        bytes: usize,
        /// Number of descriptors.
        fds: usize,
    },
    /// Not the JSON that was expected.
    #[error("a control frame does not make sense")]
    Malformed(#[source] serde_json::Error),
    /// The socket failed.
    #[error("the control connection failed")]
    Io(#[from] io::Error),
}

/// A connection that carries whole messages with descriptors. Blocking; each direction may be used
/// by one thread at a time (see [`Connection::try_clone`]).
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Wraps a connected stream socket.
    pub fn new(stream: UnixStream) -> Self {
        Connection { stream }
    }

    /// Another handle on the same connection, for a second thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Connection { stream: self.stream.try_clone()? })
    }

    /// The socket, to wait for readiness or set time limits.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message. The descriptors are duplicated by the kernel; the caller keeps its own.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        let frame = encode(message, fds.len())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(FrameError::TooLarge { bytes: frame.len(), fds: fds.len() });
        }
        let mut sent = 0;
        while let Some(rest) = frame.get(sent..).filter(|r| !r.is_empty()) {
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    sent = sent.saturating_add(n);
                    // The descriptors went with the first byte.
                    ancillary.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(FrameError::Io(e.into())),
            }
        }
        Ok(())
    }

    /// Waits for one message and the descriptors that came with it.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), FrameError> {
        let mut fds = Vec::new();
        let mut header = [0u8; HEADER];
        self.fill(&mut header, &mut fds, true)?;
        let len = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
        if len > MAX_FRAME {
            return Err(FrameError::TooLarge { bytes: len, fds: fds.len() });
        }
        let mut body = vec![0u8; len];
        self.fill(&mut body, &mut fds, false)?;
        Ok((serde_json::from_slice(&body).map_err(FrameError::Malformed)?, fds))
    }

    /// Reads exactly `buf`, collecting descriptors on the way.
    fn fill(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>, at_boundary: bool) -> Result<(), FrameError> {
        let mut filled = 0;
        while filled < buf.len() {
            let got = match receive_piece(&self.stream, buf.get_mut(filled..).unwrap_or_default(), fds) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(FrameError::Io(e)),
            };
            if fds.len() > MAX_FDS {
                return Err(FrameError::TooLarge { bytes: buf.len(), fds: fds.len() });
            }
            if got == 0 {
                return if filled == 0 && at_boundary {
                    Err(FrameError::Closed)
                } else {
                    Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))
                };
            }
            filled = filled.saturating_add(got);
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads what has arrived, up to the length of `buf`, and the descriptors that came with it. 0 is the end.
pub fn receive_piece(socket: impl AsFd, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(received.bytes)
}

/// The bytes of one frame without descriptors, for callers that do their own (non-blocking) I/O.
pub fn encode<T: Serialize>(message: &T, fds: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0u8; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Malformed)?;
    let len = frame.len() - HEADER;
    if len > MAX_FRAME || fds > MAX_FDS {
        return Err(FrameError::TooLarge { bytes: len, fds });
    }
    let prefix = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    frame.iter_mut().zip(prefix).for_each(|(slot, byte)| *slot = byte);
    Ok(frame)
}

/// Collects bytes of a non-blocking connection into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Takes received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Whether no part of a message waits for the rest of it.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next whole message, if it has arrived.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((header, rest)) = self.pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        if len > MAX_FRAME {
            return Err(FrameError::TooLarge { bytes: len, fds: 0 });
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(FrameError::Malformed)?;
        self.pending.drain(..HEADER + len);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::{Command, Request};

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (Connection::new(a), Connection::new(b))
    }

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (a, b) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kernel").unwrap();
        let request = Request { id: 7, command: Command::ConsoleInput { bytes: vec![1; 100_000] } };
        let sender = std::thread::spawn({
            let request = request.clone();
            move || a.send(&request, &[file.as_fd()]).unwrap()
        });
        let (received, mut fds) = b.receive::<Request>().unwrap();
        sender.join().unwrap();
        assert_eq!(received, request);
        let mut file = std::fs::File::from(fds.remove(0));
        assert!(fds.is_empty());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kernel");
    }

    #[test]
    fn closed_peer_is_told_from_a_torn_frame() {
        let (a, b) = pair();
        drop(a);
        assert!(matches!(b.receive::<Request>(), Err(FrameError::Closed)));

        let (a, b) = pair();
        a.stream().write_all(&[9, 0, 0, 0, b'{']).unwrap();
        drop(a);
        assert!(matches!(b.receive::<Request>(), Err(FrameError::Io(_))));
    }

    #[test]
    fn oversized_length_is_refused_before_any_allocation() {
        let (a, b) = pair();
        a.stream().write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(b.receive::<Request>(), Err(FrameError::TooLarge { .. })));
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(decoder.next_message::<Request>().is_err());
    }

    #[test]
    fn decoder_yields_messages_whatever_the_split() {
        let request = Request { id: 1, command: Command::Stats };
        let mut bytes = encode(&request, 0).unwrap();
        bytes.extend(encode(&request, 0).unwrap());
        let mut decoder = Decoder::default();
        let mut seen = 0;
        for byte in bytes {
            decoder.push(&[byte]);
            while let Some(message) = decoder.next_message::<Request>().unwrap() {
                assert_eq!(message, request);
                seen += 1;
            }
        }
        assert_eq!(seen, 2);
    }
}
