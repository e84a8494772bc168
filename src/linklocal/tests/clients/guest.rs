//! A guest that is the kernel of this host: a network namespace whose `eth0` is a tap, with
//! [`LinkLocal`] at its other end. Frames come with a virtio-net header, partial checksums and
//! unsegmented TCP, as they come from a virtio driver.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use kiln_linklocal::{Classifier, Counters, LinkLocal, Time, Verdict};
use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalSpec, MetadataSnapshot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const MAC: MacAddr = MacAddr::new([2, 0, 0x0a, 0, 1, 0x0a]);
pub const IMDS: &str = "169.254.169.254";

/// Bytes of the header in front of each frame of a tap.
const VIRTIO_NET_HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;

/// The interface that all tests are about.
pub fn spec() -> LinkLocalSpec {
    LinkLocalSpec {
        private_ipv4: [10, 0, 1, 10].into(),
        prefix_len: 24,
        router: [10, 0, 1, 1].into(),
        router_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        dns: vec![[10, 0, 0, 2].into()],
        resolver: Some([10, 0, 0, 2].into()),
        host_name: "ip-10-0-1-10".into(),
        domain_name: "ec2.internal".into(),
    }
}

/// The instance of `instance.json`, which is what the control plane builds.
pub fn metadata() -> MetadataSnapshot {
    let snapshot: MetadataSnapshot = serde_json::from_str(include_str!("instance.json")).unwrap();
    snapshot.check().unwrap();
    snapshot
}

/// A namespace with an interface. Both go away with it.
pub struct Guest {
    pub namespace: String,
    services: Arc<Mutex<LinkLocal>>,
    /// Frames that were not for the services.
    tapped: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    /// A guest whose interface is up and has no address; `None`, with a note, where this host cannot.
    pub fn unconfigured(metadata: MetadataSnapshot) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || File::options().write(true).open("/dev/net/tun").is_err()
        {
            println!("SKIPPED: needs root and /dev/net/tun");
            return None;
        }
        let namespace = format!("kll{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &namespace]);
        // `ip netns exec` shows this in place of the host's.
        let etc = format!("/etc/netns/{namespace}");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(format!("{etc}/resolv.conf"), "nameserver 10.0.0.2\nsearch ec2.internal\n").unwrap();
        let seed = [0x5a; 32];
        let epoch = Instant::now();
        let services = LinkLocal::new(&spec(), MAC, 9001, Arc::new(metadata), seed, time(epoch));
        let classifier = services.classifier();
        let mut guest = Guest {
            namespace,
            services: Arc::new(Mutex::new(services)),
            tapped: Arc::default(),
            stop: Arc::default(),
            pump: None,
        };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let pump = Pump {
            namespace: guest.namespace.clone(),
            services: Arc::clone(&guest.services),
            tapped: Arc::clone(&guest.tapped),
            stop: Arc::clone(&guest.stop),
            classifier,
            epoch,
        };
        guest.pump = Some(std::thread::spawn(move || pump.run(&ready)));
        is_ready.recv_timeout(Duration::from_secs(10)).expect("the tap did not come up");
        guest.ip(&["link", "set", "lo", "up"]);
        guest.ip(&["link", "set", "eth0", "address", &MAC.to_string(), "mtu", "9001", "up"]);
        Some(guest)
    }

    /// A guest with its address and its default route.
    pub fn new(metadata: MetadataSnapshot) -> Option<Self> {
        let guest = Self::unconfigured(metadata)?;
        guest.ip(&["address", "add", "10.0.1.10/24", "dev", "eth0"]);
        guest.ip(&["route", "add", "default", "via", "10.0.1.1"]);
        Some(guest)
    }

    /// Runs `ip` on the guest's interfaces.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.namespace], arguments].concat());
    }

    /// A program inside the guest, with the directories of `KILN_TEST_CLIENTS` in front of its path.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        // Nothing of this host's own configuration.
        command.env_remove("http_proxy").env_remove("HTTP_PROXY").env("LC_ALL", "C");
        if let Some(extra) = std::env::var_os("KILN_TEST_CLIENTS") {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut joined = extra;
            joined.push(":");
            joined.push(path);
            command.env("PATH", joined);
        }
        command
    }

    /// Runs a program inside the guest and gives its standard output, as far as that is text.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", report(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn counters(&self) -> Counters {
        self.services.lock().unwrap().counters()
    }

    pub fn update_metadata(&self, metadata: MetadataSnapshot) {
        self.services.lock().unwrap().update_metadata(Arc::new(metadata));
    }

    /// Holds that nothing for the link went to the tap.
    pub fn assert_nothing_leaked(&self) {
        for frame in self.tapped.lock().unwrap().iter() {
            let to_link = frame.get(12..14) == Some(&[8, 0]) && frame.get(30..32) == Some(&[169, 254]);
            let about_link = frame.get(12..14) == Some(&[8, 6]) && frame.get(38..40) == Some(&[169, 254]);
            assert!(!to_link && !about_link, "{frame:02x?}");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let pumped = self.pump.take().map(JoinHandle::join);
        ip(&["netns", "delete", &self.namespace]);
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.namespace));
        let _ = std::fs::remove_dir("/etc/netns");
        if !std::thread::panicking() {
            assert!(matches!(pumped, Some(Ok(()))), "the pump panicked");
        }
    }
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", report(&output));
}

pub fn report(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn time(epoch: Instant) -> Time {
    Time {
        uptime: epoch.elapsed(),
        wall: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    }
}

/// Carries frames between the tap and the services.
struct Pump {
    namespace: String,
    services: Arc<Mutex<LinkLocal>>,
    tapped: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    classifier: Classifier,
    epoch: Instant,
}

impl Pump {
    fn run(&self, ready: &std::sync::mpsc::Sender<()>) {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let mut tap = tap::open("eth0").unwrap();
        ready.send(()).unwrap();
        let mut buffer = vec![0; VIRTIO_NET_HEADER + 65_550];
        while !self.stop.load(Ordering::Relaxed) {
            let wait = self.services.lock().unwrap().next_deadline(time(self.epoch));
            let wait = wait.unwrap_or(Duration::MAX).min(Duration::from_millis(50));
            let mut fds = [PollFd::new(&tap, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::try_from(wait).unwrap())).unwrap();
            if fds[0].revents().contains(PollFlags::IN) {
                let length = tap.read(&mut buffer).unwrap();
                self.take(&buffer[..length]);
            }
            while let Some(frame) = self.services.lock().unwrap().receive(time(self.epoch)) {
                // The interface may be going down.
                let _ = tap.write(&[&[0; VIRTIO_NET_HEADER][..], &frame].concat());
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        let (header, frame) = bytes.split_at(VIRTIO_NET_HEADER);
        match self.classifier.classify(&frame[..frame.len().min(kiln_linklocal::CLASSIFY_PREFIX)]) {
            Verdict::Ours => {
                let partial = header[0] & NEEDS_CSUM != 0;
                self.services.lock().unwrap().transmit(time(self.epoch), frame, partial);
            }
            Verdict::Tap => self.tapped.lock().unwrap().push(frame.to_vec()),
        }
    }
}

mod tap {
    //! Two ioctls of `/dev/net/tun`.
    #![expect(unsafe_code, reason = "ioctls take raw structures")]

    use std::fs::File;
    use std::io;

    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

    const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
    const IFF_TAP: u16 = 0x0002;
    const IFF_NO_PI: u16 = 0x1000;
    const IFF_VNET_HDR: u16 = 0x4000;
    /// Partial checksums and unsegmented TCP over both families.
    const OFFLOADS: u32 = 0x01 | 0x02 | 0x04;

    /// `struct ifreq` as far as TUNSETIFF looks at it.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }

    /// Makes the tap `name` in the thread's network namespace.
    pub fn open(name: &str) -> io::Result<File> {
        let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
        let mut request =
            InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF reads one `struct ifreq` (40 bytes on 64 bit), which is what it is given.
        let set = unsafe { Setter::<TUNSETIFF, InterfaceRequest>::new(request) };
        // SAFETY: the descriptor is an open `/dev/net/tun`.
        unsafe { ioctl(&tap, set) }?;
        // SAFETY: TUNSETOFFLOAD takes a number in place of a pointer.
        let set = unsafe { rustix::ioctl::IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS as usize) };
        // SAFETY: the descriptor is an open tap.
        unsafe { ioctl(&tap, set) }?;
        Ok(tap)
    }
}
