//! Instances whose guest is the kernel of this host: the real control plane and the real link-local
//! services around a network namespace, and no machine in between.
//!
//! ```text
//!   ControlPlane ── launch ──▶ NamespaceLauncher ── snapshots ──▶ Link (LinkLocal, tap) ── eth0 ── programs
//!       └── keeper, credential sources, store                                             in the namespace
//! ```

#[path = "../../src/linklocal/tests/clients/link.rs"]
pub mod link;
#[path = "../../src/linklocal/tests/clients/programs.rs"]
mod programs;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use kiln_controlplane::host::ProcessIdentity;
use kiln_controlplane::instances::{
    ControlPlane, HostMemory, KeyRing, LaunchRequest, NetworkMode, Notices, Parts, RunningInstance,
};
use kiln_controlplane::network::{Attached, Counters, FabricError, NetworkFabric, NicRequest, PolicySource};
use kiln_controlplane::state::dir::InstanceDir;
use kiln_controlplane::state::{SqliteStore, StateDir};
use kiln_controlplane::vmm_process::{
    Commands, Pending, StartedVmm, VmmError, VmmEvent, VmmHandle, VmmLaunch, VmmLauncher,
};
use kiln_model::{ByteSize, Clock, InstanceId, InterfaceId, VpcId};
use kiln_vmspec::{Command as VmmCommand, HttpTokens, Reply, VmSpec};
use link::{Link, MTU};
use programs::ip;
pub use programs::report;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::mpsc;

pub const IMDS: &str = "169.254.169.254";

/// The present, plus what a file says: libfaketime reads the same file for the programs of a test.
#[derive(Clone)]
pub struct MovedClock {
    offset: Arc<AtomicI64>,
    file: PathBuf,
}

impl MovedClock {
    fn new(file: PathBuf) -> Self {
        std::fs::write(&file, "+0").unwrap();
        MovedClock { offset: Arc::default(), file }
    }

    /// Moves on.
    pub fn pass(&self, seconds: i64) {
        let offset = self.offset.fetch_add(seconds, Ordering::Relaxed) + seconds;
        // Replaced whole: a program may be reading it.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, format!("+{offset}")).unwrap();
        std::fs::rename(&fresh, &self.file).unwrap();
    }

    /// What makes a program live by this clock, where the library is installed.
    pub fn environment(&self) -> Option<Vec<(&'static str, String)>> {
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        if !Path::new(library).exists() {
            println!("SKIPPED: no libfaketime");
            return None;
        }
        Some(vec![
            ("LD_PRELOAD", library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ])
    }
}

impl Clock for MovedClock {
    fn unix_seconds(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        now.saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }
}

/// A network that is never asked for anything: nothing but the link is connected.
struct NoFabric;

impl NetworkFabric for NoFabric {
    fn attach(&self, _: &NicRequest, _: &PolicySource<'_>) -> Result<Attached, FabricError> {
        Ok(Attached { taps: Vec::new(), public: None })
    }

    fn apply(&self, _: VpcId, _: &PolicySource<'_>) -> Result<(), FabricError> {
        Ok(())
    }

    fn set_public(
        &self,
        _: InterfaceId,
        _: Ipv4Addr,
        _: Option<Ipv4Addr>,
    ) -> Result<Option<Ipv4Addr>, FabricError> {
        Ok(None)
    }

    fn counters(&self, _: VpcId) -> Result<Counters, FabricError> {
        Ok(Counters::default())
    }

    fn detach(&self, _: InterfaceId) -> Result<(), FabricError> {
        Ok(())
    }
}

/// A namespace with the interface of an instance.
struct Namespace {
    name: String,
    link: Option<Link>,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.link = None;
        ip(&["netns", "delete", &self.name]);
    }
}

/// Makes a namespace in place of a machine.
#[derive(Clone, Default)]
struct NamespaceLauncher(Arc<Mutex<BTreeMap<String, Arc<Namespace>>>>);

struct Handle {
    launcher: NamespaceLauncher,
    namespace: Mutex<Option<Arc<Namespace>>>,
    _events: mpsc::Sender<VmmEvent>,
}

impl Commands for Handle {
    fn send(&self, _command: VmmCommand) -> Result<(), VmmError> {
        Ok(())
    }

    fn hand_over(&self, command: VmmCommand, _fds: Vec<OwnedFd>) -> Pending<'_> {
        if let VmmCommand::UpdateMetadata(snapshot) = command {
            // A VMM checks what it is given too.
            snapshot.check().unwrap();
            let namespace = self.namespace.lock().unwrap().clone();
            if let Some(link) = namespace.as_ref().and_then(|namespace| namespace.link.as_ref()) {
                link.update_metadata(*snapshot);
            }
        }
        Box::pin(async { Ok(Reply::Ok) })
    }
}

impl VmmHandle for Handle {
    fn process(&self) -> Option<ProcessIdentity> {
        None
    }

    fn begin(&self, spec: VmSpec, _fds: Vec<OwnedFd>) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("klm{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let nic = &spec.nics[0];
        ip(&["netns", "add", &name]);
        let mut namespace = Namespace { name: name.clone(), link: None };
        namespace.link = Some(Link::start(&name, &nic.link_local, nic.mac, spec.metadata.clone()));
        let address = format!("{}/{}", nic.link_local.private_ipv4, nic.link_local.prefix_len);
        let inside = |arguments: &[&str]| ip(&[&["-n", &name], arguments].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "set", "eth0", "address", &nic.mac.to_string(), "mtu", &MTU.to_string(), "up"]);
        inside(&["address", "add", &address, "dev", "eth0"]);
        inside(&["route", "add", "default", "via", &nic.link_local.router.to_string()]);
        let namespace = Arc::new(namespace);
        self.launcher.0.lock().unwrap().insert(spec.instance_id, Arc::clone(&namespace));
        *self.namespace.lock().unwrap() = Some(namespace);
    }

    fn end(&self, _patience: Duration) {
        *self.namespace.lock().unwrap() = None;
    }
}

impl VmmLauncher for NamespaceLauncher {
    fn open_kvm(&self) -> Result<OwnedFd, VmmError> {
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn start(&self, _launch: VmmLaunch) -> Result<StartedVmm, VmmError> {
        let (sender, events) = mpsc::channel(4);
        let handle = Handle { launcher: self.clone(), namespace: Mutex::default(), _events: sender };
        Ok(StartedVmm { handle: Arc::new(handle), events })
    }

    fn adopt(&self, _dir: &InstanceDir, _process: ProcessIdentity) -> Result<StartedVmm, VmmError> {
        Err(VmmError::NoAnswer)
    }
}

/// A control plane with a state directory and a clock of its own.
pub struct World {
    pub plane: ControlPlane,
    pub clock: MovedClock,
    launcher: NamespaceLauncher,
    temp: tempfile::TempDir,
}

impl World {
    /// `None`, with a note, where this host has no namespaces to give.
    pub fn new() -> Option<Self> {
        if !Link::is_possible() {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&temp.path().join("state")).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        let clock = MovedClock::new(temp.path().join("clock"));
        let launcher = NamespaceLauncher::default();
        let plane = ControlPlane::with_parts(Parts {
            dir,
            store: Arc::new(store),
            fabric: Arc::new(NoFabric),
            launcher: Arc::new(launcher.clone()),
            clock: Arc::new(clock.clone()),
            sts: Arc::new(kiln_sts::Sts),
            keys: KeyRing::default(),
            notices: Notices::default(),
            uploads: kiln_controlplane::volumes::Uploads::default(),
            vpc_range: "172.31.0.0/16".parse().unwrap(),
        });
        Some(World { plane, clock, launcher, temp })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Launches an instance with tokens required, and starts its keeper.
    pub fn launch(
        &self,
        runtime: &tokio::runtime::Runtime,
        change: impl FnOnce(&mut LaunchRequest),
    ) -> Instance {
        let image = self.path("disk.raw");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let mut request = LaunchRequest::new(image.to_str().unwrap(), "t3.micro");
        request.network = NetworkMode::LinkLocalOnly;
        request.metadata_options.tokens = HttpTokens::Required;
        change(&mut request);
        let memory = HostMemory { available: ByteSize::bytes(64 << 30), free_hugepages: ByteSize::bytes(0) };
        let mut run = self.plane.launch(&request, memory).unwrap();
        runtime.spawn(run.keeper().unwrap().run());
        let id = run.instance().id;
        let namespace = self.launcher.0.lock().unwrap().remove(&id.to_string()).unwrap();
        Instance { run, id, namespace }
    }
}

/// A running instance. Its namespace goes with it.
pub struct Instance {
    pub run: RunningInstance,
    pub id: InstanceId,
    namespace: Arc<Namespace>,
}

impl Instance {
    pub fn address(&self) -> Ipv4Addr {
        self.run.instance().interface.address
    }

    fn link(&self) -> &Link {
        self.namespace.link.as_ref().unwrap()
    }

    pub fn counters(&self) -> kiln_linklocal::Counters {
        self.link().counters()
    }

    pub fn assert_nothing_leaked(&self) {
        self.link().assert_nothing_leaked();
    }

    /// Moves this thread into the instance: what it connects to is what the instance can reach. Threads
    /// that it starts are there too.
    pub fn enter(&self) {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace.name)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// A program inside, without anything of this host's AWS configuration.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.name]).arg(program.as_ref());
        for name in ["http_proxy", "HTTP_PROXY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"]
        {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("AWS_EC2_METADATA_V1_DISABLED", "true");
        // On a busy host the default of one try of one second is not enough.
        command.env("AWS_METADATA_SERVICE_TIMEOUT", "10").env("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "3");
        command.env("AWS_CONFIG_FILE", "/nonexistent").env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
        command
    }

    /// Runs a shell script inside, with `imds PATH` and `status PATH` as commands.
    pub fn sh(&self, script: &str) -> String {
        let prelude = format!(
            "set -e\nTOKEN=$(curl -sSf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://{IMDS}/latest/api/token)\n\
             imds() {{ curl -sSf -m 5 -H \"X-aws-ec2-metadata-token: $TOKEN\" http://{IMDS}/latest/$1; }}\n\
             status() {{ curl -s -m 5 -o /dev/null -w '%{{http_code}}' -H \"X-aws-ec2-metadata-token: $TOKEN\" http://{IMDS}/latest/$1; }}\n"
        );
        let output = self.command("sh").arg("-c").arg(prelude + script).output().unwrap();
        assert!(output.status.success(), "{script}: {}", report(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits, with the keeper at work, until `done`.
#[track_caller]
pub fn until(runtime: &tokio::runtime::Runtime, what: &str, mut done: impl FnMut() -> bool) {
    runtime.block_on(async {
        for _ in 0..600 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never seen: {what}");
    });
}

/// The Python that has the AWS clients and the S3-compatible server, where `scripts/test` has made it.
pub fn python() -> Option<PathBuf> {
    let python = std::env::var_os("KILN_TEST_PYTHON").map(PathBuf::from);
    let works = |path: &PathBuf| {
        Command::new(path)
            .args(["-c", "import boto3, moto.server"])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let python = python.filter(works);
    if python.is_none() {
        println!("SKIPPED: no Python with boto3 and moto (KILN_TEST_PYTHON)");
    }
    python
}
