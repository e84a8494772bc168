//! A host of its own for each test, and a guest made of a tap queue and a small TCP/IP stack.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod packets;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_hostnet::{HostNetError, Ipv6Plan, Nic, NicPlan, Rate};
use kiln_model::security::{Member, NetworkPolicy, Rule};
use kiln_model::{InterfaceId, MacAddr, SecurityGroupId, SecurityGroupRuleId, VpcId};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

/// How long anything that shall happen may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait for what shall not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// Runs `test` on a thread with network and mount namespaces of its own: its host. Without the
/// means, says so and returns.
pub fn on_own_host(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return;
    }
    for (program, argument) in [("nft", "--version"), ("ip", "-V")] {
        if Command::new(program).arg(argument).output().is_err() {
            println!("SKIPPED: needs the program {program}");
            return;
        }
    }
    if File::open("/dev/net/tun").is_err() {
        println!("SKIPPED: needs /dev/net/tun");
        return;
    }
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            std::fs::create_dir_all("/run/netns").unwrap();
            mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            // Addresses that links of the test give themselves come and go as they like.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            sh("ip link set lo up");
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `f` on a thread inside a named namespace.
pub fn inside<R: Send>(namespace: &str, f: impl FnOnce() -> R + Send) -> R {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        });
        run.join().unwrap()
    })
}

/// Runs a command line and returns what it prints.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of the host that must be the same after the last interface is gone.
pub fn host_state() -> String {
    [
        "ip netns list",
        "ip -o link show",
        "ip -4 -o addr show",
        "ip -6 -o addr show",
        "ip -6 route show table all",
        "sysctl -n net.ipv6.conf.all.forwarding",
        "ip route show table all",
        "ip neigh show",
        "nft list ruleset",
        "sysctl -n net.ipv4.ip_forward",
        "mount | grep netns/ || true",
    ]
    .map(sh)
    .join("--\n")
}

/// An interface of the VPC 172.31.0.0/16 and fd00:31::/56 (or that of `vpc`) at 172.31.0.`last` and
/// fd00:31::`last`.
pub fn plan(vpc: u64, last: u8) -> NicPlan {
    NicPlan {
        interface: InterfaceId::from_bits(vpc << 8 | u64::from(last)),
        vpc: VpcId::from_bits(vpc),
        vpc_cidr: "172.31.0.0/16".parse().unwrap(),
        router: Ipv4Addr::new(172, 31, 0, 1),
        router_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        mac: MacAddr::new([2, 0, 0, 0, 1, last]),
        address: Ipv4Addr::new(172, 31, 0, last),
        ipv6: Some(Ipv6Plan {
            vpc_cidr: "fd00:31::/56".parse().unwrap(),
            router: ipv6(1),
            address: ipv6(last),
        }),
        queue_pairs: 1,
        mtu: 1500,
        rate: Rate::default(),
        public: None,
        more_public: Vec::new(),
    }
}

/// Where the host is in the VPC of [`plan`].
pub const HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 3);

/// As [`HOST`], over IPv6.
pub const HOST_IPV6: Ipv6Addr = ipv6(3);

/// The address fd00:31::`last`.
pub const fn ipv6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, last as u16)
}

/// The interface of a plan in the given groups, without access for the host.
pub fn member(plan: &NicPlan, groups: &[SecurityGroupId]) -> Member {
    Member {
        mac: plan.mac,
        addresses: vec![plan.address],
        ipv6: plan.ipv6.iter().map(|ipv6| ipv6.address).collect(),
        groups: groups.iter().copied().collect(),
        host: None,
        host_ipv6: None,
        source_dest_check: true,
        connections: 1000,
    }
}

/// The host may connect, nobody else; every interface may connect anywhere.
pub fn host_only(of: &NicPlan) -> NetworkPolicy {
    let group = SecurityGroupId::from_bits(1);
    let mut policy = NetworkPolicy::default();
    let id = SecurityGroupRuleId::from_bits;
    policy.groups.insert(group, vec![Rule::all_egress(id(1)), Rule::all_egress_ipv6(id(2))]);
    let vpc = u64::from_str_radix(&of.vpc.short(), 16).unwrap();
    for plan in (4..10).map(|last| plan(vpc, last)).chain([of.clone()]) {
        let member = Member { host: Some(HOST), host_ipv6: Some(HOST_IPV6), ..member(&plan, &[group]) };
        policy.interfaces.insert(plan.interface, member);
    }
    policy
}

/// Attaches with the policy [`host_only`].
pub fn attach(dir: &Path, plan: &NicPlan) -> Result<Nic, HostNetError> {
    kiln_hostnet::attach(dir, plan, &|| Ok(host_only(plan)))
}

/// A value of a named counter in a namespace.
pub fn packets(namespace: &str, family: &str, counter: &str) -> u64 {
    let text = sh(&format!("ip netns exec {namespace} nft list counter {family} kiln {counter}"));
    let after = text.split("packets ").nth(1).unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

/// Frames of a tap queue, each with a virtio-net header of zeroes.
pub struct TapDevice {
    file: File,
    mtu: usize,
}

impl TapDevice {
    pub fn new(queue: OwnedFd) -> Self {
        TapDevice { file: File::from(queue), mtu: 1500 }
    }

    pub fn write_frame(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; 12];
        bytes.extend_from_slice(frame);
        self.file.write_all(&bytes).unwrap();
    }

    pub fn read_frame(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        let len = self.file.read(&mut bytes).ok()?;
        Some(bytes[12..len].to_vec())
    }

    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Waits for a frame, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)).unwrap();
    }
}

pub struct Frame(Vec<u8>);
pub struct Slot<'a>(&'a mut TapDevice);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.write_frame(&frame);
        result
    }
}

impl Device for TapDevice {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Frame, Slot<'_>)> {
        let frame = self.read_frame()?;
        Some((Frame(frame), Slot(self)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Slot<'_>> {
        Some(Slot(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        // The tap leaves checksums to the guest, as to one with GUEST_CSUM.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// A guest with a TCP/IP stack.
pub struct Guest {
    device: TapDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Instant,
    port: u16,
}

impl Guest {
    pub fn new(plan: &NicPlan, queue: OwnedFd) -> Self {
        Guest::on(plan, TapDevice::new(queue))
    }

    pub fn on(plan: &NicPlan, mut device: TapDevice) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(plan.mac.octets()));
        let mut interface = Interface::new(Config::new(mac), &mut device, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(plan.address), 20)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(plan.router).unwrap();
        Guest { device, interface, sockets: SocketSet::new(vec![]), started: Instant::now(), port: 40_000 }
    }

    fn turn(&mut self) {
        let now =
            smoltcp::time::Instant::from_micros(i64::try_from(self.started.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        let wait = self.interface.poll_delay(now, &self.sockets);
        let wait = wait.map_or(Duration::from_millis(10), |wait| Duration::from_micros(wait.total_micros()));
        self.device.wait(wait.min(Duration::from_millis(10)));
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Connects, sends `text` and returns what the server says until it closes; `None` if nothing
    /// answers within `patience`.
    pub fn ask(&mut self, server: SocketAddrV4, text: &str, patience: Duration) -> Option<String> {
        let handle = self.socket();
        self.port += 1;
        let local = self.port;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (*server.ip(), server.port()), local).unwrap();
        let end = Instant::now() + patience;
        let (mut sent, mut answer) = (false, Vec::new());
        while Instant::now() < end {
            self.turn();
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if !sent && socket.may_send() {
                socket.send_slice(text.as_bytes()).unwrap();
                sent = true;
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            }
            if sent && !socket.may_recv() {
                socket.close();
                self.turn();
                return String::from_utf8(answer).ok();
            }
        }
        self.sockets.remove(handle);
        None
    }

    /// As [`Guest::ask`], for a server that goes on until the client has nothing more to say.
    pub fn ask_and_close(&mut self, server: SocketAddrV4, text: &str, patience: Duration) -> Option<String> {
        let handle = self.socket();
        self.port += 1;
        let local = self.port;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (*server.ip(), server.port()), local).unwrap();
        let end = Instant::now() + patience;
        let (mut sent, mut answer) = (false, Vec::new());
        while Instant::now() < end && answer.len() < text.len() {
            self.turn();
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if !sent && socket.may_send() {
                socket.send_slice(text.as_bytes()).unwrap();
                sent = true;
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            }
        }
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        self.turn();
        String::from_utf8(answer).ok()
    }

    /// Answers pings, and on `port` sends back what it gets, until the value is dropped.
    pub fn serve(self, port: u16) -> Serving {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut guest = self;
        let handle = guest.socket();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
                if !socket.is_open() {
                    socket.listen(port).unwrap();
                }
                if socket.can_recv() && socket.can_send() {
                    let bytes = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
                    socket.send_slice(&bytes).unwrap();
                }
                if socket.state() == tcp::State::CloseWait && socket.send_queue() == 0 {
                    socket.close();
                }
                guest.turn();
            }
        });
        Serving { stop, thread: Some(thread) }
    }
}

/// A guest that runs on a thread, until the value is dropped.
pub struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
