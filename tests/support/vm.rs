//! A `kiln-vmm` process with a guest in it, as its control plane would run it.
//!
//! Boot, act, observe: [`Setup::boot`] or [`Setup::boot_root_volume`], then [`Guest::control`] and [`Guest::wait_for`], and at the
//! end [`Guest::finish`], which says what the guest printed and how the machine ended.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kiln_model::MacAddr;
use kiln_vmspec::frame::Connection;
use kiln_vmspec::{
    BootSource, Command as Ask, ConsoleSpec, DiskFormat, DiskSpec, Event, ExitReason, FdIndex, ImageLayer,
    LinkLocalSpec, MemorySpec, Message, MetadataSnapshot, NicSpec, RateLimits, Reply, Request, SmbiosSpec,
    VmSpec,
};

use super::{binary, skip};

/// Longest that any single thing may take, on a loaded machine without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(120);
/// No file of a machine grows beyond.
pub const LARGEST_FILE: u64 = 1 << 40;
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

/// Every machine of these tests is in a jail, as those of a control plane are.
fn jail_uid() -> u32 {
    let own = rustix::process::geteuid();
    if own.is_root() { kiln_sandbox::jail::uid_of(u64::from(std::process::id())) } else { own.as_raw() }
}

/// What the machine is made of.
pub struct Setup {
    pub vcpus: u8,
    pub memory_mib: u64,
    pub disks: Vec<Disk>,
    /// A network interface that reaches only the link-local services.
    pub nic: bool,
    pub initrd: Option<File>,
    /// Instead of the bare-metal guest.
    pub kernel: Option<File>,
    /// Of each disk.
    pub disk_limits: RateLimits,
    /// Have strace write down all system calls of the VMM in this file.
    pub trace: Option<PathBuf>,
    /// How many disks can come while it runs.
    pub spare_disks: u8,
    /// How many network interfaces can.
    pub spare_nics: u8,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            vcpus: 1,
            memory_mib: 64,
            disks: Vec::new(),
            nic: false,
            initrd: None,
            kernel: None,
            disk_limits: RateLimits::default(),
            trace: None,
            spare_disks: 0,
            spare_nics: 0,
        }
    }
}

/// A disk: its layers, top first.
pub struct Disk {
    pub layers: Vec<(File, DiskFormat)>,
    pub queues: u16,
}

impl Disk {
    /// A raw file or device, with one queue.
    pub fn raw(file: File) -> Self {
        Disk { layers: vec![(file, DiskFormat::Raw)], queues: 1 }
    }

    /// The same under a copy-on-write layer of its own.
    pub fn overlaid(base: File) -> Self {
        let file = tempfile::tempfile().unwrap();
        let backing = kiln_disk::Backing { path: "base".into(), format: kiln_disk::Format::Raw };
        let size = base.metadata().unwrap().len();
        kiln_disk::create_overlay(file.try_clone().unwrap(), size, Some(&backing)).unwrap();
        Disk { layers: vec![(file, DiskFormat::Qcow2), (base, DiskFormat::Raw)], queues: 1 }
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
        Setup { disks: vec![Disk::raw(disk(4))], nic: true, ..Setup::default() }
    }

    /// Runs the guest's `tests` (separated by commas). `None` where there is no KVM, which is told.
    pub fn boot(self, tests: &str) -> Option<Guest> {
        Some(self.start(kvm()?, Boot::Files { cmdline: format!("test={tests}") }))
    }

    /// Boots what is on the first disk; the metadata service has `user_data` for it. `None` where
    /// there is no KVM, which is told.
    pub fn boot_root_volume(self, user_data: &str) -> Option<Guest> {
        Some(self.start(kvm()?, Boot::RootVolume { user_data: user_data.into() }))
    }

    fn start(self, kvm: File, boot: Boot) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        // Should another test's VMM inherit it too, that one never looks at it.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = self
            .program()
            .args(["--control-fd", &listener.as_raw_fd().to_string()])
            .args(["--jail", &jail_uid().to_string(), "--largest-file", &LARGEST_FILE.to_string()])
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
            detached: Vec::new(),
            detached_nics: Vec::new(),
        };
        let mut fds = Fds::default();
        let spec = self.spec(boot, &mut fds, kvm);
        guest.send(Ask::Start(Box::new(spec)), &fds.borrowed());
        guest
    }

    fn program(&self) -> Command {
        let vmm = binary("kiln-vmm");
        let Some(trace) = &self.trace else { return Command::new(vmm) };
        let mut command = Command::new("strace");
        // Thread names beside their ids, and numbers as numbers.
        command.args(["-f", "-qq", "--decode-pids=comm", "-X", "raw", "-s", "0"]);
        // Structures have commas of their own.
        command.args(["-e", "raw=recvmsg", "-o"]).arg(trace).arg(vmm);
        command
    }

    fn spec(self, boot: Boot, fds: &mut Fds, kvm: File) -> VmSpec {
        let disk = |(n, disk): (usize, Disk)| DiskSpec {
            serial: format!("vol{n}"),
            layers: disk
                .layers
                .into_iter()
                .map(|(file, format)| ImageLayer { file: fds.add(file), format })
                .collect(),
            read_only: false,
            queues: disk.queues,
            limits: self.disk_limits,
        };
        let disks = self.disks.into_iter().enumerate().map(disk).collect();
        let mut metadata = metadata();
        let boot = match boot {
            Boot::Files { cmdline } => BootSource::Files {
                kernel: fds.add(self.kernel.unwrap_or_else(guest_kernel)),
                initrd: self.initrd.map(|file| fds.add(file)),
                cmdline: Some(cmdline),
            },
            Boot::RootVolume { user_data } => {
                metadata.leaves.insert("user-data".into(), user_data.into());
                BootSource::RootVolume { cmdline: None }
            }
        };
        VmSpec {
            ending: None,
            kvm: fds.add(kvm),
            instance_id: INSTANCE_ID.into(),
            vcpus: self.vcpus,
            cpu_template: Default::default(),
            memory: MemorySpec { size_mib: self.memory_mib, hugepages: false },
            boot,
            disks,
            spare_disks: self.spare_disks,
            nics: if self.nic { vec![nic(1)] } else { Vec::new() },
            spare_nics: self.spare_nics,
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
            console: ConsoleSpec { to_starter: true, ..ConsoleSpec::default() },
            metadata,
        }
    }
}

/// Where the kernel comes from.
enum Boot {
    Files { cmdline: String },
    RootVolume { user_data: String },
}

/// Hardware address of an interface.
pub fn mac(last: u8) -> MacAddr {
    format!("02:00:00:00:00:{last:02x}").parse().unwrap()
}

/// An interface that reaches only the link-local services.
fn nic(last: u8) -> NicSpec {
    NicSpec {
        limits: RateLimits::default(),
        mac: mac(last),
        tap_queues: Vec::new(),
        mtu: 1500,
        link_local: LinkLocalSpec {
            private_ipv4: Ipv4Addr::new(10, 0, 1, 9 + last),
            prefix_len: 24,
            router: Ipv4Addr::new(10, 0, 1, 1),
            router_mac: mac(0xfe),
            dns: vec![Ipv4Addr::new(169, 254, 169, 253)],
            resolver: None,
            host_name: "ip-10-0-1-10".into(),
            domain_name: "ec2.internal".into(),
            ipv6: None,
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
    detached: Vec<String>,
    detached_nics: Vec<MacAddr>,
}

/// A machine that has ended.
pub struct Finished {
    /// All that the guest printed.
    pub console: String,
    /// All that the VMM logged.
    pub log: String,
    pub reason: ExitReason,
    pub reboots: u32,
}

impl Guest {
    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn send(&mut self, command: Ask, fds: &[BorrowedFd<'_>]) -> u64 {
        self.next_id += 1;
        let request = Request { id: self.next_id, command };
        self.connection.send(&request, fds).expect("the VMM listens");
        self.next_id
    }

    /// Asks for something and waits for the answer.
    pub fn control(&mut self, command: Ask) -> Reply {
        self.ask(command, &[])
    }

    fn ask(&mut self, command: Ask, fds: &[BorrowedFd<'_>]) -> Reply {
        let wanted = self.send(command, fds);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive(deadline) {
                Some(Message::Reply { id, reply }) if id == wanted => return reply,
                Some(_) => {}
                None => self.give_up("an answer"),
            }
        }
    }

    /// Attaches a disk, whatever the answer.
    pub fn attach(&mut self, serial: &str, disk: Disk) -> Reply {
        let mut fds = Fds::default();
        let layers = disk.layers.into_iter();
        let layers = layers.map(|(file, format)| ImageLayer { file: fds.add(file), format }).collect();
        let (serial, queues) = (serial.to_owned(), disk.queues);
        let spec = DiskSpec { serial, layers, read_only: false, queues, limits: RateLimits::default() };
        self.ask(Ask::AttachDisk(Box::new(spec)), &fds.borrowed())
    }

    /// The serial numbers of its disks, and how many more can come.
    pub fn disks(&mut self) -> (Vec<String>, usize) {
        match self.control(Ask::ListDisks) {
            Reply::Disks { disks, spare } => (disks.into_iter().map(|disk| disk.serial).collect(), spare),
            other => panic!("{other:?}"),
        }
    }

    /// Attaches the interface `mac(last)`, whatever the answer.
    pub fn attach_nic(&mut self, last: u8) -> Reply {
        self.attach_nic_with(last, Vec::new())
    }

    /// The same with the queues of a tap.
    pub fn attach_nic_with(&mut self, last: u8, queues: Vec<File>) -> Reply {
        let mut fds = Fds::default();
        let tap_queues = queues.into_iter().map(|queue| fds.add(queue)).collect();
        let spec = NicSpec { tap_queues, ..nic(last) };
        self.ask(Ask::AttachNic(Box::new(spec)), &fds.borrowed())
    }

    /// The hardware addresses of its interfaces, and how many more can come.
    pub fn nics(&mut self) -> (Vec<MacAddr>, usize) {
        match self.control(Ask::ListNics) {
            Reply::Nics { nics, spare } => (nics.into_iter().map(|nic| nic.mac).collect(), spare),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the VMM has let go of the interface `mac(last)`, once for each time that it has come.
    pub fn wait_for_nic_detached(&mut self, last: u8) {
        loop {
            if let Some(at) = self.detached_nics.iter().position(|gone| *gone == mac(last)) {
                self.detached_nics.remove(at);
                return;
            }
            let deadline = Instant::now() + PATIENCE;
            if self.receive(deadline).is_none() {
                self.give_up("an interface to be let go of");
            }
        }
    }

    /// Waits until the VMM has closed the disk.
    pub fn wait_for_detached(&mut self, serial: &str) {
        while !self.detached.iter().any(|gone| gone == serial) {
            let deadline = Instant::now() + PATIENCE;
            if self.receive(deadline).is_none() {
                self.give_up(serial);
            }
        }
    }

    /// Waits until the guest has printed `text`, as long as it goes on printing something.
    pub fn wait_for(&mut self, text: &str) {
        while !self.console.contains(text) {
            let deadline = Instant::now() + PATIENCE;
            if self.receive(deadline).is_none() {
                self.give_up(text);
            }
        }
    }

    /// What the guest has printed.
    pub fn console(&self) -> &str {
        &self.console
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
        Finished {
            console: std::mem::take(&mut self.console),
            log: self.log(),
            reason,
            reboots: self.reboots,
        }
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
            Message::Event(Event::DiskDetached { serial }) => self.detached.push(serial.clone()),
            Message::Event(Event::NicDetached { mac }) => self.detached_nics.push(*mac),
            _ => {}
        }
        Some(message)
    }

    /// What the VMM logged.
    pub fn log(&self) -> String {
        let mut log = String::new();
        let _ = File::open(self.dir.path().join("log")).and_then(|mut f| f.read_to_string(&mut log));
        log
    }

    fn give_up(&mut self, wanted: &str) -> ! {
        let threads = self.threads();
        // It may be gone.
        self.next_id += 1;
        let asked = self.next_id;
        let sent = self.connection.send(&Request { id: asked, command: Ask::Stats }, &[]);
        let soon = Instant::now() + Duration::from_secs(5);
        let stats = sent.ok().and_then(|()| {
            std::iter::from_fn(|| self.receive(soon))
                .find(|message| matches!(message, Message::Reply { id, .. } if *id == asked))
        });
        let _ = self.child.kill();
        panic!(
            "waited in vain for {wanted:?}\n--- console\n{}\n--- log\n{}\n--- threads\n{threads}\n--- counters\n{stats:#?}",
            self.console,
            self.log()
        );
    }

    /// Where each thread of the VMM is, and what its descriptors wait for.
    fn threads(&self) -> String {
        let process = format!("/proc/{}", self.child.id());
        let script = "cd \"$0\" && for t in task/*; do echo \"$(cat $t/comm): $(cut -d' ' -f3 $t/stat) $(cat $t/wchan)\"; cat $t/stack; done; \
             for f in fdinfo/*; do echo \"$f $(readlink fd/${f#*/})\"; grep -v -e '^pos' -e '^flags' -e '^mnt_id' -e '^ino' $f; done";
        let output = Command::new("sh").args(["-c", script, &process]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
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
