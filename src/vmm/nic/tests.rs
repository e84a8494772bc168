//! A NIC with a real tap, in a network namespace of the test's own.
#![expect(unsafe_code, reason = "a tap must be made before it can be used")]

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_devices::virtio::net::{
    FRAME_HEAD, HEADER_LEN, NetHeader, NicBackend, NicQueue, Offloads, Received, TxFrame, TxOutcome,
};
use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalSpec, MetadataSnapshot, NicSpec};
use vm_memory::VolatileSlice;

use super::{NicError, TapBackend};

const GUEST: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 4]);
const ROUTER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

fn spec() -> NicSpec {
    NicSpec {
        limits: Default::default(),
        mac: GUEST,
        tap_queues: Vec::new(),
        mtu: 1500,
        link_local: LinkLocalSpec {
            private_ipv4: Ipv4Addr::new(10, 9, 0, 4),
            prefix_len: 24,
            router: Ipv4Addr::new(10, 9, 0, 1),
            router_mac: ROUTER,
            dns: Vec::new(),
            resolver: None,
            host_name: "ip-10-9-0-4".into(),
            domain_name: "internal".into(),
            ipv6: None,
        },
    }
}

fn backend(taps: Vec<OwnedFd>) -> TapBackend {
    TapBackend::new(&spec(), taps, Arc::new(MetadataSnapshot::default()), [7; 32]).unwrap()
}

fn sh(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).output().is_ok_and(|output| output.status.success())
}

const VNET: u16 = 0x4000;
const MULTI_QUEUE: u16 = 0x0100;

/// One more queue of the tap `kt0`.
fn open_tap(flags: u16) -> OwnedFd {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..3].copy_from_slice(b"kt0");
    request[16..18].copy_from_slice(&(0x1002 | flags).to_ne_bytes());
    // SAFETY: TUNSETIFF reads 40 bytes, and `request` has them.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_ptr()) }, 0);
    if flags & VNET != 0 {
        let header = libc::c_int::try_from(HEADER_LEN).unwrap();
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54d8, &raw const header) }, 0);
    }
    file.into()
}

/// Runs `test` in a network namespace of its own where `queues` queues of the tap `kt0` are open.
fn with_tap(queues: usize, test: impl FnOnce(Vec<OwnedFd>) + Send) {
    if File::open("/dev/net/tun").is_err() || !sh("ip -V") {
        println!("SKIPPED: needs root, /dev/net/tun and the program ip");
        return;
    }
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            // SAFETY: takes no pointers; only this thread changes its namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                println!("SKIPPED: network namespaces are not permitted");
                return;
            }
            let flags = if queues > 1 { VNET | MULTI_QUEUE } else { VNET };
            let taps = (0..queues).map(|_| open_tap(flags)).collect();
            assert!(
                queues == 0
                    || sh("sysctl -qw net.ipv6.conf.kt0.disable_ipv6=1
                        ip link set kt0 address 02:00:00:00:00:01 up
                        ip addr add 10.9.0.1/24 dev kt0
                        ip neigh add 10.9.0.4 lladdr 02:00:00:00:00:04 nud permanent dev kt0")
            );
            test(taps);
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Hands a frame to the queue as the device would.
fn send(queue: &mut dyn NicQueue, header: NetHeader, frame: &[u8]) -> TxOutcome {
    let (head, rest) = frame.split_at(frame.len().min(FRAME_HEAD));
    let mut copy = header.to_bytes().to_vec();
    copy.extend_from_slice(head);
    let mut rest = rest.to_vec();
    let rest = [VolatileSlice::from(rest.as_mut_slice())];
    queue.transmit(&TxFrame { header, copy: &copy, rest: &rest, len: frame.len() }, Instant::now())
}

/// Receives into buffers of odd lengths.
fn receive(queue: &mut dyn NicQueue) -> Option<(NetHeader, Vec<u8>, bool)> {
    let mut memory = [vec![0u8; 7], vec![0; 100], vec![0; 70_000]];
    let buffers: Vec<_> = memory.iter_mut().map(|part| VolatileSlice::from(part.as_mut_slice())).collect();
    match queue.receive(&buffers, Instant::now()) {
        Received::Frame { header, len, local } => {
            drop(buffers);
            Some((header, memory.concat()[..len].to_vec(), local))
        }
        Received::Nothing | Received::Lost => None,
    }
}

/// Waits until the tap is readable.
fn wait(queue: &dyn NicQueue) {
    let mut poll = libc::pollfd { fd: queue.readable_fd().unwrap(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is passed and counted.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()).to_be_bytes()
}

/// An echo request of `len` bytes from the guest.
fn ping(to: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0, 1, 0, 1];
    icmp.resize(8 + len, 0x61);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let total = u16::try_from(20 + icmp.len()).unwrap().to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 1, 0, 0, 10, 9, 0, 4];
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut frame = ROUTER.octets().to_vec();
    frame.extend(GUEST.octets());
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(icmp);
    frame
}

/// Frames that the kernel has received from the tap.
fn frames_on_tap() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find(|line| line.trim_start().starts_with("kt0:")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn kernel_answers_a_ping_through_the_tap() {
    with_tap(1, |taps| {
        let backend = backend(taps);
        assert_eq!(backend.offloads(), Offloads::all());
        backend.configure(Offloads::empty()).unwrap();
        let mut queue = backend.open(0).unwrap();
        for len in [10, 56, 1400] {
            let request = ping(Ipv4Addr::new(10, 9, 0, 1), len);
            assert_eq!(send(queue.as_mut(), NetHeader::default(), &request), TxOutcome::Sent);
            wait(queue.as_ref());
            let (header, reply, local) = receive(queue.as_mut()).unwrap();
            assert_eq!((header, local), (NetHeader::default(), false));
            assert_eq!(reply.len(), request.len());
            assert_eq!(reply[34], 0, "an echo reply");
            assert_eq!(reply[42..], request[42..]);
        }
        assert_eq!(receive(queue.as_mut()), None);
    });
}

#[test]
fn frames_for_the_services_never_reach_the_tap() {
    with_tap(1, |taps| {
        let backend = backend(taps);
        let mut queue = backend.open(0).unwrap();
        let service = Ipv4Addr::new(169, 254, 169, 254);
        let mut frames = vec![ping(service, 56), ping(service, 1400), ping(Ipv4Addr::new(169, 254, 1, 1), 0)];
        let mut broken = ping(service, 56);
        broken[14] = 0xff;
        frames.push(broken);
        frames.push(ping(service, 56)[..34].to_vec());
        let before = frames_on_tap();
        for frame in &frames {
            assert_eq!(send(queue.as_mut(), NetHeader::default(), frame), TxOutcome::Local);
        }
        assert_eq!(frames_on_tap(), before);
        assert!(queue.has_reply(Instant::now()));
        assert_eq!(queue.deadline(Instant::now()), Some(Duration::ZERO));
        let (_, reply, local) = receive(queue.as_mut()).unwrap();
        assert!(local);
        assert_eq!(reply[..6], GUEST.octets());
        while receive(queue.as_mut()).is_some() {}
        assert!(!queue.has_reply(Instant::now()));
    });
}

#[test]
fn nic_without_a_tap_has_services_and_nothing_else() {
    let backend = backend(Vec::new());
    assert_eq!(backend.queue_pairs(), 1);
    backend.configure(Offloads::all()).unwrap();
    backend.set_active_pairs(1).unwrap();
    let mut queue = backend.open(0).unwrap();
    assert_eq!(queue.readable_fd(), None);
    let to = |address| ping(address, 56);
    assert_eq!(
        send(queue.as_mut(), NetHeader::default(), &to(Ipv4Addr::new(10, 9, 0, 9))),
        TxOutcome::Dropped
    );
    let local = to(Ipv4Addr::new(169, 254, 169, 254));
    assert_eq!(send(queue.as_mut(), NetHeader::default(), &local), TxOutcome::Local);
    assert!(receive(queue.as_mut()).is_some_and(|(_, _, local)| local));
    let mut stats = std::collections::BTreeMap::new();
    backend.stats("net0", &mut stats);
    assert_eq!(stats.get("net0.local_frames_in"), Some(&1));
    assert_eq!(stats.get("net0.local_echo_replies"), Some(&1));
}

#[test]
fn tap_that_is_deleted_is_given_up() {
    with_tap(1, |taps| {
        let backend = backend(taps);
        let mut queue = backend.open(0).unwrap();
        assert!(queue.readable_fd().is_some());
        assert!(sh("ip link del kt0"));
        let request = ping(Ipv4Addr::new(10, 9, 0, 1), 56);
        assert_eq!(send(queue.as_mut(), NetHeader::default(), &request), TxOutcome::Dropped);
        assert_eq!(queue.readable_fd(), None, "nobody must wait on it: it would always be ready");
        assert_eq!(receive(queue.as_mut()), None);
        backend.configure(Offloads::CSUM).unwrap();
    });
}

#[test]
fn tap_that_came_later_carries_frames_until_it_is_cut_and_is_gone_then() {
    with_tap(1, |taps| {
        let metadata = Arc::new(MetadataSnapshot::default());
        let backend = TapBackend::adopt(&spec(), taps, "net1", metadata, [7; 32]).unwrap();
        assert_eq!((backend.offloads(), backend.link_up()), (Offloads::all(), true));
        backend.configure(Offloads::empty()).unwrap();
        let mut queue = backend.open(0).unwrap();
        assert_eq!(receive(queue.as_mut()), None, "it does not wait for a frame");
        let request = ping(Ipv4Addr::new(10, 9, 0, 1), 56);
        assert_eq!(send(queue.as_mut(), NetHeader::default(), &request), TxOutcome::Sent);
        wait(queue.as_ref());
        assert!(receive(queue.as_mut()).is_some());

        backend.cut();
        assert!(!backend.link_up());
        assert!(sh("ip link show kt0"), "a queue that was open holds it");
        drop(queue);
        assert!(!sh("ip link show kt0"));
        backend.configure(Offloads::CSUM).unwrap();
        backend.set_active_pairs(1).unwrap();
        let mut queue = backend.open(0).unwrap();
        let service = ping(Ipv4Addr::new(169, 254, 169, 254), 56);
        for frame in [request, service] {
            assert_eq!(send(queue.as_mut(), NetHeader::default(), &frame), TxOutcome::Dropped);
        }
        assert_eq!((receive(queue.as_mut()), queue.readable_fd()), (None, None));
        assert!(!queue.has_reply(Instant::now()) && queue.deadline(Instant::now()).is_none());
    });
}

#[test]
fn header_that_the_kernel_refuses_loses_the_frame_only() {
    with_tap(1, |taps| {
        let backend = backend(taps);
        let mut queue = backend.open(0).unwrap();
        let request = ping(Ipv4Addr::new(10, 9, 0, 1), 56);
        let bad = NetHeader { flags: 1, csum_start: 60_000, ..NetHeader::default() };
        assert_eq!(send(queue.as_mut(), bad, &request), TxOutcome::Dropped);
        assert_eq!(send(queue.as_mut(), NetHeader::default(), &request), TxOutcome::Sent);
    });
}

#[test]
fn queues_out_of_use_are_left_out_by_the_kernel() {
    with_tap(2, |taps| {
        let backend = backend(taps);
        assert_eq!(backend.queue_pairs(), 2);
        backend.set_active_pairs(1).unwrap();
        backend.set_active_pairs(1).unwrap();
        let mut first = backend.open(0).unwrap();
        let mut second = backend.open(1).unwrap();
        assert_eq!(second.readable_fd(), None);
        let request = ping(Ipv4Addr::new(10, 9, 0, 1), 56);
        assert_eq!(receive(second.as_mut()), None);
        assert_eq!(send(first.as_mut(), NetHeader::default(), &request), TxOutcome::Sent);
        wait(first.as_ref());
        assert!(receive(first.as_mut()).is_some());

        backend.set_active_pairs(2).unwrap();
        assert!(second.readable_fd().is_some(), "an error while out of use is not the end");
        assert_eq!(send(second.as_mut(), NetHeader::default(), &request), TxOutcome::Sent);
    });
}

#[test]
fn descriptors_that_are_not_such_taps_are_refused() {
    let error = |fd: OwnedFd| {
        TapBackend::new(&spec(), vec![fd], Arc::new(MetadataSnapshot::default()), [0; 32]).err().unwrap()
    };
    assert!(matches!(error(File::open("/dev/null").unwrap().into()), NicError::NotATap(_)));
    let later = vec![File::open("/dev/null").unwrap().into()];
    let later = TapBackend::adopt(&spec(), later, "net1", Arc::new(MetadataSnapshot::default()), [0; 32]);
    assert!(matches!(later.err().unwrap(), NicError::NotATap(_)));
    with_tap(0, |_| {
        assert!(matches!(error(open_tap(0)), NicError::WrongKind { .. }));
    });
}
