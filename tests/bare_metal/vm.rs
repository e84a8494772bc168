//! A `kiln-vmm` process with the bare-metal guest in it, as its control plane would run it.
//!
//! Boot, act, observe: [`Setup::boot`], then [`Guest::control`] and [`Guest::wait_for`], and at the
//! end [`Guest::finish`], which says what the guest printed and how the machine ended.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kiln_model::MacAddr;
use kiln_vmspec::frame::Connection;
use kiln_vmspec::{
    BootSource, Command as Ask, ConsoleSpec, DiskFormat, DiskSpec, Event, ExitReason, FdIndex, ImageLayer,
    LinkLocalSpec, MemorySpec, Message, MetadataSnapshot, NicSpec, Reply, Request, SmbiosSpec, VmSpec,
};

use crate::support::{binary, skip};

/// Longest that any single thing may take, on a loaded machine without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(120);
pub const INSTANCE_ID: &str = "i-0123456789abcdef0";
const UUID: &str = "ec2e1916-9099-7caf-fd21-012345abcdef";

/// The host's KVM. `None` where there is none, which is told.
fn kvm() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            skip(&format!("/dev/kvm cannot be opened: {e}"));
            None
        }
    }
}

/// Builds the guest, which takes no time when it is up to date.
fn guest_kernel() -> File {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "guest/build.sh failed");
    File::open(String::from_utf8(output.stdout).unwrap().trim()).unwrap()
}

/// What the machine is made of.
pub struct Setup {
    pub vcpus: u8,
    pub memory_mib: u64,
    /// Raw disks.
    pub disks: Vec<File>,
    /// A network interface that reaches only the link-local services.
    pub nic: bool,
    pub initrd: Option<File>,
    /// Instead of the bare-metal guest.
    pub kernel: Option<File>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { vcpus: 1, memory_mib: 64, disks: Vec::new(), nic: false, initrd: None, kernel: None }
    }
}

/// A disk image of `mib` MiB in which every sector tells its number.
pub fn disk(mib: u64) -> File {
    let mut content = vec![0; (mib << 20) as usize];
    for (n, sector) in content.chunks_mut(512).enumerate() {
        sector[..8].copy_from_slice(&(n as u64).to_le_bytes());
        sector[8..].fill(n as u8);
    }
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &content).unwrap();
    file
}

impl Setup {
    /// With a disk and a network interface: what most tests want.
    pub fn with_devices() -> Self {
        Setup { disks: vec![disk(4)], nic: true, ..Setup::default() }
    }

    /// Runs the guest's `tests` (separated by commas). `None` where there is no KVM, which is told.
    pub fn boot(self, tests: &str) -> Option<Guest> {
        Some(self.start(kvm()?, &format!("test={tests}")))
    }

    fn start(self, kvm: File, cmdline: &str) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        // Should another test's VMM inherit it too, that one never looks at it.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(binary("kiln-vmm"))
            .args(["--control-fd", &listener.as_raw_fd().to_string()])
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let connection = Connection::new(UnixStream::connect(&socket).unwrap());
        let incoming = connection.try_clone().unwrap();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            while let Ok((message, _)) = incoming.receive::<Message>() {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut guest = Guest {
            child,
            connection,
            messages,
            dir,
            console: String::new(),
            next_id: 0,
            ended: None,
            reboots: 0,
        };
        let mut fds = Fds::default();
        let spec = self.spec(cmdline, &mut fds, kvm);
        guest.send(Ask::Start(Box::new(spec)), &fds.borrowed());
        guest.send(Ask::AttachConsole { replay: true }, &[]);
        guest
    }

    fn spec(self, cmdline: &str, fds: &mut Fds, kvm: File) -> VmSpec {
        let disk = |(n, file): (usize, File)| DiskSpec {
            serial: format!("vol{n}"),
            layers: vec![ImageLayer { file: fds.add(file), format: DiskFormat::Raw }],
            read_only: false,
            queues: 1,
        };
        let disks = self.disks.into_iter().enumerate().map(disk).collect();
        let initrd = self.initrd.map(|file| fds.add(file));
        VmSpec {
            kvm: fds.add(kvm),
            instance_id: INSTANCE_ID.into(),
            vcpus: self.vcpus,
            memory: MemorySpec { size_mib: self.memory_mib, hugepages: false },
            boot: BootSource::Files {
                kernel: fds.add(self.kernel.unwrap_or_else(guest_kernel)),
                initrd,
                cmdline: Some(cmdline.into()),
            },
            disks,
            nics: if self.nic { vec![nic()] } else { Vec::new() },
            smbios: SmbiosSpec {
                manufacturer: "Amazon EC2".into(),
                product_name: "t3.micro".into(),
                uuid: UUID.into(),
                serial: UUID.into(),
                board_asset_tag: INSTANCE_ID.into(),
                chassis_asset_tag: "Amazon EC2".into(),
                bios_version: "1.0".into(),
                bios_date: "10/16/2017".into(),
            },
            console: ConsoleSpec::default(),
            metadata: metadata(),
        }
    }
}

fn mac(last: u8) -> MacAddr {
    format!("02:00:00:00:00:{last:02x}").parse().unwrap()
}

fn nic() -> NicSpec {
    NicSpec {
        mac: mac(1),
        tap_queues: Vec::new(),
        mtu: 1500,
        link_local: LinkLocalSpec {
            private_ipv4: Ipv4Addr::new(10, 0, 1, 10),
            prefix_len: 24,
            router: Ipv4Addr::new(10, 0, 1, 1),
            router_mac: mac(0xfe),
            dns: vec![Ipv4Addr::new(169, 254, 169, 253)],
            resolver: None,
            host_name: "ip-10-0-1-10".into(),
            domain_name: "ec2.internal".into(),
        },
    }
}

fn metadata() -> MetadataSnapshot {
    let mut snapshot =
        MetadataSnapshot { generation: 1, instance_id: INSTANCE_ID.into(), ..MetadataSnapshot::default() };
    snapshot.leaves.insert("meta-data/instance-id".into(), INSTANCE_ID.into());
    snapshot
}

/// Descriptors of one message, in the order in which the spec names them.
#[derive(Default)]
struct Fds(Vec<File>);

impl Fds {
    fn add(&mut self, file: File) -> FdIndex {
        self.0.push(file);
        FdIndex(self.0.len() as u32 - 1)
    }

    fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// A running machine.
pub struct Guest {
    child: Child,
    connection: Connection,
    messages: Receiver<Message>,
    dir: tempfile::TempDir,
    console: String,
    next_id: u64,
    ended: Option<ExitReason>,
    reboots: u32,
}

/// A machine that has ended.
pub struct Finished {
    /// All that the guest printed.
    pub console: String,
    pub reason: ExitReason,
    pub reboots: u32,
}

impl Guest {
    fn send(&mut self, command: Ask, fds: &[BorrowedFd<'_>]) -> u64 {
        self.next_id += 1;
        let request = Request { id: self.next_id, command };
        self.connection.send(&request, fds).expect("the VMM listens");
        self.next_id
    }

    /// Asks for something and waits for the answer.
    pub fn control(&mut self, command: Ask) -> Reply {
        let wanted = self.send(command, &[]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive(deadline) {
                Some(Message::Reply { id, reply }) if id == wanted => return reply,
                Some(_) => {}
                None => self.give_up("an answer"),
            }
        }
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.console.contains(text) {
            if self.receive(deadline).is_none() {
                self.give_up(text);
            }
        }
    }

    /// So that [`Guest::wait_for`] waits for what is printed from now on.
    pub fn forget_console(&mut self) {
        self.console.clear();
    }

    /// Waits until the machine has ended and its process with it.
    pub fn finish(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        while self.ended.is_none() {
            if self.receive(deadline).is_none() {
                self.give_up("the end");
            }
        }
        let status = self.child.wait().unwrap();
        let reason = self.ended.take().unwrap();
        let failed = matches!(reason, ExitReason::Failed { .. });
        assert_eq!(status.success(), !failed, "{status} after {reason:?}\n{}", self.log());
        Finished { console: std::mem::take(&mut self.console), reason, reboots: self.reboots }
    }

    /// The next message; what it says is also noted. `None` at the deadline or when the VMM is gone.
    fn receive(&mut self, deadline: Instant) -> Option<Message> {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = match self.messages.recv_timeout(left) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        match &message {
            Message::Event(Event::Console { bytes }) => {
                self.console.push_str(&String::from_utf8_lossy(bytes))
            }
            Message::Event(Event::Exited(reason)) => self.ended = Some(reason.clone()),
            Message::Event(Event::Rebooting) => self.reboots += 1,
            _ => {}
        }
        Some(message)
    }

    fn log(&self) -> String {
        let mut log = String::new();
        let _ = File::open(self.dir.path().join("log")).and_then(|mut f| f.read_to_string(&mut log));
        log
    }

    fn give_up(&mut self, wanted: &str) -> ! {
        let _ = self.child.kill();
        panic!("waited in vain for {wanted:?}\n--- console\n{}\n--- log\n{}", self.console, self.log());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Asserts that each of `tests` passed and that the guest turned itself off.
    pub fn assert_passed(&self, tests: &str) {
        for name in tests.split(',') {
            let passed = self.console.lines().any(|line| line.trim() == format!("PASS {name}"));
            assert!(passed, "{name} did not pass\n{}", self.console);
        }
        assert_eq!(self.reason, ExitReason::PowerOff, "{}", self.console);
    }
}
