//! The wire between a network namespace and the services: a tap in the one, [`LinkLocal`] at its other
//! end. Frames come with a virtio-net header, partial checksums and unsegmented TCP, as they come from
//! a virtio driver.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use kiln_linklocal::{Classifier, Counters, LinkLocal, Time, Verdict};
use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalSpec, MetadataSnapshot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Bytes of the header in front of each frame of a tap.
const VIRTIO_NET_HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// Largest packet.
pub const MTU: u16 = 9001;

/// `eth0` of a namespace. Goes away with this value.
pub struct Link {
    services: Arc<Mutex<LinkLocal>>,
    /// Frames that were not for the services.
    tapped: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Link {
    /// Whether this host can; says so where it cannot.
    pub fn is_possible() -> bool {
        let possible =
            rustix::process::geteuid().is_root() && File::options().write(true).open("/dev/net/tun").is_ok();
        if !possible {
            println!("SKIPPED: needs root and /dev/net/tun");
        }
        possible
    }

    /// Makes the interface in an existing namespace; it is down and has no address.
    pub fn start(namespace: &str, spec: &LinkLocalSpec, mac: MacAddr, metadata: MetadataSnapshot) -> Self {
        // Two links never share what tokens are sealed with.
        static SEEDS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
        let seed = [SEEDS.fetch_add(1, Ordering::Relaxed); 32];
        let epoch = Instant::now();
        let services = LinkLocal::new(spec, mac, MTU, Arc::new(metadata), seed, time(epoch));
        let classifier = services.classifier();
        let mut link = Link {
            services: Arc::new(Mutex::new(services)),
            tapped: Arc::default(),
            stop: Arc::default(),
            pump: None,
        };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let pump = Pump {
            namespace: namespace.to_owned(),
            services: Arc::clone(&link.services),
            tapped: Arc::clone(&link.tapped),
            stop: Arc::clone(&link.stop),
            classifier,
            epoch,
        };
        link.pump = Some(std::thread::spawn(move || pump.run(&ready)));
        is_ready.recv_timeout(Duration::from_secs(10)).expect("the tap did not come up");
        link
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

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let pumped = self.pump.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(pumped, Some(Ok(()))), "the pump panicked");
        }
    }
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
