//! The metadata service over a TCP of the simplest kind: one request per connection, nothing lost.

use super::net::{METADATA, lease, resolve};
use super::packet::{ACK, FIN, Frame, Ip, Mac, PSH, RST, SYN, Segment, tcp_segment};
use crate::clock;
use crate::memory;
use crate::report::{Outcome, ensure, ensure_eq, fail, println};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN};
use crate::virtio::net::Net;

const HTTP: u16 = 80;
const TRIES: usize = 5;
const WAIT_MS: u64 = 2000;
const MAX_RESPONSE: usize = 4096;
const TOKEN_REQUEST: &[u8] =
    b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 0\r\n\
    X-aws-ec2-metadata-token-ttl-seconds: 60\r\nConnection: close\r\n\r\n";

/// Both ends of the connections.
struct Peer {
    mac: Mac,
    own: Ip,
    next_port: u16,
}

/// An HTTP response.
struct Response {
    bytes: [u8; MAX_RESPONSE],
    len: usize,
}

impl Response {
    fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }

    fn status(&self) -> u16 {
        self.text().split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    fn body(&self) -> &str {
        self.text().split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// One connection: opens it, sends `request`, reads until the service closes it.
fn exchange(net: &mut Net, peer: &mut Peer, request: &[u8]) -> Outcome<Response> {
    const START: u32 = 0x1000_0000;
    let port = peer.next_port;
    peer.next_port += 1;
    let (from, to) = ((net.mac, peer.own, port), (peer.mac, METADATA, HTTP));
    let send = |net: &mut Net, seq: u32, ack: u32, flags: u8, payload: &[u8]| {
        net.send(Frame::tcp(from, to, &Segment { seq, ack, flags, payload }).bytes())
    };
    let mut opened = None;
    for _ in 0..TRIES {
        send(net, START, 0, SYN, &[])?;
        opened = net.receive(WAIT_MS, |frame| tcp_segment(frame, port).map(|s| (s.flags, s.seq)));
        if opened.is_some() {
            break;
        }
    }
    let Some((flags, seq)) = opened else { fail!("no answer to SYN") };
    ensure_eq!(flags & (SYN | ACK | RST), SYN | ACK, "flags of the answer to SYN");

    let mut received = seq.wrapping_add(1);
    let own = START + 1 + request.len() as u32;
    send(net, START + 1, received, ACK | PSH, request)?;
    let mut response = Response { bytes: [0; MAX_RESPONSE], len: 0 };
    loop {
        let step = net.receive(WAIT_MS, |frame| {
            let segment = tcp_segment(frame, port)?;
            if segment.seq == received {
                let room = &mut response.bytes[response.len..];
                let len = segment.payload.len().min(room.len());
                room[..len].copy_from_slice(&segment.payload[..len]);
                response.len += len;
                received = received.wrapping_add(segment.payload.len() as u32);
            }
            Some((segment.flags, segment.payload.len()))
        });
        let Some((flags, len)) = step else { fail!("{} bytes of response, then silence", response.len) };
        ensure!(flags & RST == 0, "the connection was reset after {} bytes", response.len);
        if flags & FIN != 0 {
            send(net, own, received.wrapping_add(1), ACK | FIN, &[])?;
            return Ok(response);
        }
        if len > 0 {
            send(net, own, received, ACK, &[])?;
        }
    }
}

/// On the first network device.
pub fn imds() -> Outcome {
    ask(&mut Net::start(0)?)
}

/// A session token, then the instance id with it; without it 401 or, where allowed, the same id.
pub fn ask(net: &mut Net) -> Outcome {
    let lease = lease(net)?;
    let mac = resolve(net, lease.ip, METADATA)?;
    let mut peer = Peer { mac, own: lease.ip, next_port: 40_000 };

    let token = exchange(net, &mut peer, TOKEN_REQUEST)?;
    ensure_eq!(token.status(), 200, "status of the token request");
    ensure!(!token.body().is_empty(), "the token is empty");

    const PATH: &[u8] = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n";
    const CLOSE: &[u8] = b"Connection: close\r\n\r\n";
    let mut request = [0; 512];
    let mut len = 0;
    for part in [PATH, b"X-aws-ec2-metadata-token: ", token.body().as_bytes(), b"\r\n", CLOSE] {
        ensure!(len + part.len() <= request.len(), "the token has {} bytes", token.body().len());
        request[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    let id = exchange(net, &mut peer, &request[..len])?;
    ensure_eq!(id.status(), 200, "status of the instance id");
    println!("  instance-id {}", id.body());
    ensure!(id.body().starts_with("i-"), "the instance id is {:?}", id.body());

    let mut bare = [0; 128];
    bare[..PATH.len()].copy_from_slice(PATH);
    bare[PATH.len()..PATH.len() + CLOSE.len()].copy_from_slice(CLOSE);
    let without = exchange(net, &mut peer, &bare[..PATH.len() + CLOSE.len()])?;
    println!("  without token {}", without.status());
    ensure!(
        without.status() == 401 || without.status() == 200 && without.body() == id.body(),
        "status without token is {}",
        without.status()
    );
    Ok(())
}

/// Connections that never open, segments of no connection, noise in flags and payload, far above the
/// allowance. The disk answers after each burst, and the service when the allowance is back.
pub fn flood() -> Outcome {
    const BURSTS: u32 = 24;
    const FRAMES: u32 = 256;
    const ALLOWANCE_BACK_MS: u64 = 3000;
    let noise = [0xa5; 1024];
    let mut blk = Blk::start(0)?;
    let (first, again) = (memory::allocate(SECTOR), memory::allocate(SECTOR));
    ensure_eq!(blk.request(T_IN, 0, Some(first))?, S_OK, "reading before");
    let mut net = Net::start(0)?;
    let lease = lease(&mut net)?;
    let mac = resolve(&mut net, lease.ip, METADATA)?;
    for n in 0..BURSTS * FRAMES {
        // An odd step visits all ports and numbers in no order.
        let any = n.wrapping_mul(0x9e37_79b1);
        let flags = if n % 3 == 0 { (any >> 24) as u8 } else { SYN };
        let payload = &noise[..any as usize % noise.len()];
        let segment = Segment { seq: any, ack: !any, flags, payload: if n % 3 == 0 { payload } else { &[] } };
        let port = 1024 + (any >> 17) as u16;
        net.send(Frame::tcp((net.mac, lease.ip, port), (mac, METADATA, HTTP), &segment).bytes())?;
        if n % FRAMES == 0 {
            ensure_eq!(blk.request(T_IN, 0, Some(again))?, S_OK, "reading after {n} frames");
            ensure!(first.bytes() == again.bytes(), "the sector holds something else after {n} frames");
        }
    }
    clock::poll(ALLOWANCE_BACK_MS, || None::<()>);
    let mut peer = Peer { mac, own: lease.ip, next_port: 50_000 };
    let token = exchange(&mut net, &mut peer, TOKEN_REQUEST)?;
    ensure_eq!(token.status(), 200, "status of a token request after the flood");
    Ok(())
}
