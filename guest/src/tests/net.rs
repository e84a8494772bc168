//! The first network device: who answers on its link.

use super::packet::{ANY, BROADCAST, Frame, Ip, Mac, arp_reply, udp_payload};
use crate::report::{Outcome, ensure, fail, println};
use crate::virtio::net::Net;

pub const METADATA: Ip = [169, 254, 169, 254];
const DHCP_CLIENT: u16 = 68;
const DHCP_SERVER: u16 = 67;
const TRIES: usize = 5;
const WAIT_MS: u64 = 1000;

/// What DHCP handed out.
pub struct Lease {
    pub ip: Ip,
    pub router: Ip,
    pub mask: Ip,
}

/// MAC address of `ip`.
pub fn resolve(net: &mut Net, own: Ip, ip: Ip) -> Outcome<Mac> {
    let request = Frame::arp_request(net.mac, own, ip);
    for _ in 0..TRIES {
        net.send(request.bytes())?;
        if let Some(mac) = net.receive(WAIT_MS, |frame| arp_reply(frame, ip)) {
            return Ok(mac);
        }
    }
    fail!("nobody answers for {ip:?}")
}

/// A DHCP message with the options that every client sends.
fn dhcp_message(mac: Mac, kind: u8, options: &[u8]) -> ([u8; 300], usize) {
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    let mut message = [0; 300];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0x6b, 0x69, 0x6c, 0x6e]); // request, Ethernet, xid "kiln"
    message[28..34].copy_from_slice(&mac);
    message[236..240].copy_from_slice(&COOKIE);
    let mut at = 240;
    for part in [&[53, 1, kind][..], options, &[55, 3, 1, 3, 6], &[255]] {
        message[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    (message, 300)
}

/// An option of a DHCP message.
fn dhcp_option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    loop {
        let (code, after) = rest.split_first()?;
        match code {
            0 => rest = after,
            255 => return None,
            _ => {
                let (len, after) = after.split_first()?;
                let value = after.get(..usize::from(*len))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = &after[value.len()..];
            }
        }
    }
}

fn ip_option(message: &[u8], wanted: u8) -> Option<Ip> {
    dhcp_option(message, wanted)?.get(..4)?.try_into().ok()
}

/// Sends a message until an answer of type `expected` comes; returns lease and server.
fn dhcp_exchange(net: &mut Net, kind: u8, options: &[u8], expected: u8) -> Outcome<(Lease, Ip)> {
    let (message, len) = dhcp_message(net.mac, kind, options);
    let frame = Frame::udp((net.mac, ANY, DHCP_CLIENT), (BROADCAST, [255; 4], DHCP_SERVER), &message[..len]);
    for _ in 0..TRIES {
        net.send(frame.bytes())?;
        let answer = net.receive(WAIT_MS, |frame| {
            let (_, message) = udp_payload(frame, DHCP_CLIENT)?;
            if dhcp_option(message, 53)? != [expected] || message[4..8] != *b"kiln" {
                return None;
            }
            let ip = message[16..20].try_into().ok()?;
            let lease = Lease { ip, router: ip_option(message, 3)?, mask: ip_option(message, 1)? };
            Some((lease, ip_option(message, 54)?))
        });
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
    fail!("no answer to DHCP message {kind}")
}

/// DISCOVER, OFFER, REQUEST, ACK.
pub fn lease(net: &mut Net) -> Outcome<Lease> {
    let (offer, server) = dhcp_exchange(net, 1, &[], 2)?;
    let mut options = [0; 12];
    options[..2].copy_from_slice(&[50, 4]);
    options[2..6].copy_from_slice(&offer.ip);
    options[6..8].copy_from_slice(&[54, 4]);
    options[8..].copy_from_slice(&server);
    let (lease, _) = dhcp_exchange(net, 3, &options, 5)?;
    ensure!(lease.ip == offer.ip, "offered {:?} and gave {:?}", offer.ip, lease.ip);
    Ok(lease)
}

/// An address by DHCP.
pub fn dhcp() -> Outcome {
    let mut net = Net::start(0)?;
    let Lease { ip, router, mask } = lease(&mut net)?;
    println!("  address {ip:?}, mask {mask:?}, router {router:?}");
    Ok(())
}

/// The metadata service's and the router's MAC address.
pub fn arp() -> Outcome {
    let mut net = Net::start(0)?;
    println!("  own {:02x?}", net.mac);
    let lease = lease(&mut net)?;
    for ip in [METADATA, lease.router] {
        let mac = resolve(&mut net, lease.ip, ip)?;
        println!("  {ip:?} is at {mac:02x?}");
        ensure!(mac != net.mac && mac[0] & 1 == 0, "{mac:02x?} is no address of a neighbour");
    }
    Ok(())
}
