//! The launch plan with a fabric and a launcher that fail where they are told to.

mod disks;
mod interfaces;
mod metadata;
mod supervisor;
mod uploads;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_model::{ByteSize, Clock, InstanceId, InstanceState, InterfaceId, MacAddr, VpcId};
use kiln_vmspec::{
    AttachedDisk, AttachedNic, BootSource, Command, DiskFormat, ExitReason, MetadataSnapshot, Reply, Stats,
    VmSpec,
};
use tokio::sync::mpsc;

use super::request::tests::{HOST, request};
use super::*;
use crate::host::ProcessIdentity;
use crate::images::{Drivers, ImportRequest, SourceError};
use crate::network::{Attached, Counters, FabricError, NetworkFabric, NicRequest, PolicySource};
use crate::progress::Silent;
use crate::state::dir::InstanceDir;
use crate::state::{SqliteStore, StateDir, Store};
use crate::vmm_process::{
    Commands, Pending, StartedVmm, VmmError, VmmEvent, VmmHandle, VmmLaunch, VmmLauncher,
};
use crate::volumes::Uploads;

/// What the fakes saw and what they are told to do.
#[derive(Default)]
struct World {
    fail_attach: bool,
    fail_detach: bool,
    fail_check: bool,
    fail_start: bool,
    attached: BTreeSet<InterfaceId>,
    specs: Vec<VmSpec>,
    fds: usize,
    ended: usize,
    /// Snapshots sent to the running machine.
    metadata: Vec<MetadataSnapshot>,
    events: Option<mpsc::Sender<VmmEvent>>,
    /// All machines that are connected.
    machines: BTreeMap<InstanceId, mpsc::Sender<VmmEvent>>,
    /// Commands without reply that they were sent.
    told: Vec<(InstanceId, Command)>,
    adopted: usize,
    /// Machines end when they are adopted, and cannot be reached.
    leaving: bool,
    /// What a machine's process is said to be.
    process: Option<ProcessIdentity>,
    /// Disks that came to machines, and room for more.
    disks: Vec<AttachedDisk>,
    spare: usize,
    /// Machines refuse disks.
    refuse_disks: bool,
    /// Interfaces that came to machines, and room for more.
    nics: Vec<AttachedNic>,
    spare_nics: usize,
    /// Machines refuse interfaces.
    refuse_nics: bool,
    /// Happens while a machine is being given a disk.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    fn world<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn connected(&self, id: InstanceId) -> StartedVmm {
        let (sender, events) = mpsc::channel(16);
        self.world(|w| {
            w.machines.insert(id, sender.clone());
            w.events = Some(sender);
        });
        StartedVmm { handle: Arc::new(FakeHandle(self.clone(), id)), events }
    }

    fn say(&self, event: VmmEvent) {
        self.world(|w| w.events.clone()).unwrap().blocking_send(event).unwrap();
    }
}

impl NetworkFabric for Fake {
    fn apply(&self, _vpc: VpcId, _policy: &PolicySource<'_>) -> Result<(), FabricError> {
        Ok(())
    }

    fn set_public(
        &self,
        _: InterfaceId,
        _: std::net::Ipv4Addr,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<Option<std::net::Ipv4Addr>, FabricError> {
        Ok(address)
    }

    fn counters(&self, _vpc: VpcId) -> Result<Counters, FabricError> {
        Ok(Counters::default())
    }

    fn attach(&self, nic: &NicRequest, policy: &PolicySource<'_>) -> Result<Attached, FabricError> {
        assert!(policy().unwrap().interfaces.contains_key(&nic.interface));
        self.world(|w| {
            // A failure after half of the work.
            w.attached.insert(nic.interface);
            if w.fail_attach {
                return Err(FabricError("no tap".into()));
            }
            let open = |_| std::fs::File::open("/dev/null").unwrap().into();
            Ok(Attached { taps: (0..nic.queue_pairs).map(open).collect(), public: None })
        })
    }

    fn detach(&self, interface: InterfaceId) -> Result<(), FabricError> {
        self.world(|w| {
            if w.fail_detach {
                return Err(FabricError("busy".into()));
            }
            w.attached.remove(&interface);
            Ok(())
        })
    }
}

/// What a machine does with a command about what comes to it and goes from it.
fn obey(world: &mut World, command: Command, fds: usize) -> Reply {
    match command {
        Command::AttachNic(_) | Command::DetachNic { .. } | Command::ListNics => {
            interfaces::obey(world, command, fds)
        }
        _ => disks::obey(world, command, fds),
    }
}

struct FakeHandle(Fake, InstanceId);

impl Commands for FakeHandle {
    fn send(&self, command: Command) -> Result<(), VmmError> {
        self.0.world(|w| w.told.push((self.1, command)));
        Ok(())
    }

    fn hand_over(&self, command: Command, fds: Vec<OwnedFd>) -> Pending<'_> {
        let reply = match command {
            Command::AttachDisk(_)
            | Command::DetachDisk { .. }
            | Command::ResizeDisk { .. }
            | Command::ListDisks
            | Command::AttachNic(_)
            | Command::DetachNic { .. }
            | Command::ListNics => self.0.world(|w| obey(w, command, fds.len())),
            Command::UpdateMetadata(snapshot) => {
                self.0.world(|w| w.metadata.push(*snapshot));
                Reply::Ok
            }
            Command::Stats => {
                let counters = [("metadata.generation".to_owned(), 7 << 32)].into();
                Reply::Stats(Box::new(Stats { counters }))
            }
            _ => Reply::Ok,
        };
        Box::pin(async { Ok(reply) })
    }
}

impl VmmHandle for FakeHandle {
    fn process(&self) -> Option<ProcessIdentity> {
        // Nothing that could be killed by mistake.
        self.0.world(|w| w.process).or(Some(ProcessIdentity { pid: u32::MAX, started: 0 }))
    }

    fn begin(&self, spec: VmSpec, fds: Vec<OwnedFd>) {
        self.0.world(|w| {
            w.fds = fds.len();
            w.specs.push(spec);
        });
    }

    fn end(&self, _patience: Duration) {
        self.0.world(|w| w.ended += 1);
    }
}

impl VmmLauncher for Fake {
    fn open_kvm(&self) -> Result<OwnedFd, VmmError> {
        if self.world(|w| w.fail_check) {
            return Err(VmmError::NoAnswer);
        }
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn start(&self, launch: VmmLaunch) -> Result<StartedVmm, VmmError> {
        std::fs::write(launch.dir.control_socket(), "").unwrap();
        if self.world(|w| w.fail_start) {
            return Err(VmmError::NoAnswer);
        }
        let id = launch.name.parse().unwrap();
        Ok(self.connected(id))
    }

    fn adopt(&self, dir: &InstanceDir, process: ProcessIdentity) -> Result<StartedVmm, VmmError> {
        if self.world(|w| w.leaving) {
            process.kill(std::time::Duration::ZERO).ok();
            return Err(VmmError::NoAnswer);
        }
        let id = dir.path().file_name().unwrap().to_str().unwrap().parse().unwrap();
        self.world(|w| w.adopted += 1);
        Ok(self.connected(id))
    }
}

/// Stands still until it is moved.
#[derive(Clone)]
struct MovedClock(Arc<AtomicU64>);

impl Default for MovedClock {
    fn default() -> Self {
        MovedClock(Arc::new(AtomicU64::new(1_700_000_000)))
    }
}

impl Clock for MovedClock {
    fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Fixture {
    clock: MovedClock,
    temp: tempfile::TempDir,
    fake: Fake,
    plane: ControlPlane,
}

fn plane(root: &std::path::Path, fake: &Fake, clock: &MovedClock) -> ControlPlane {
    let dir = StateDir::create(root).unwrap();
    let store = SqliteStore::open(&dir.database()).unwrap();
    ControlPlane::with_parts(Parts {
        dir,
        store: Arc::new(store),
        fabric: Arc::new(fake.clone()),
        launcher: Arc::new(fake.clone()),
        clock: Arc::new(clock.clone()),
        sts: Arc::new(crate::credentials::NoSts),
        keys: KeyRing::default(),
        notices: Notices::default(),
        uploads: Uploads::default(),
        vpc_range: "172.31.0.0/16".parse().unwrap(),
    })
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let clock = MovedClock::default();
        let plane = plane(&temp.path().join("state"), &fake, &clock);
        Fixture { clock, temp, fake, plane }
    }

    /// A raw image of one MiB.
    fn image(&self) -> String {
        let path = self.temp.path().join("base.raw");
        if !path.exists() {
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    fn launch(&self, change: impl FnOnce(&mut LaunchRequest)) -> Result<RunningInstance, LaunchError> {
        let mut request = request(&self.image());
        change(&mut request);
        self.plane.launch(&request, HOST)
    }

    /// The file of an instance's root volume.
    fn volume(&self, instance: &Instance) -> PathBuf {
        self.plane.volumes().file(instance.root.id)
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.temp.path().join("state/kiln.db")).unwrap()
    }

    fn entries(&self, sub: &str) -> Vec<PathBuf> {
        std::fs::read_dir(self.temp.path().join("state").join(sub))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    }

    /// Asserts that nothing of any instance is left.
    fn assert_nothing_left(&self, situation: &str) {
        assert_eq!(self.plane.instances().unwrap(), [], "{situation}");
        assert_eq!(self.store().list("address/").unwrap(), [], "{situation}");
        assert!(self.entries("instances").is_empty(), "{situation}: {:?}", self.entries("instances"));
        assert!(self.entries("volumes").is_empty(), "{situation}: {:?}", self.entries("volumes"));
        assert_eq!(self.store().list("volume/").unwrap(), [], "{situation}");
        let locks = self.entries("run").into_iter().filter(|p| !p.ends_with("images.lock"));
        assert_eq!(locks.count(), 0, "{situation}: {:?}", self.entries("run"));
        assert!(self.fake.world(|w| w.attached.is_empty()), "{situation}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn running() -> VmmEvent {
    VmmEvent::Running { booted: "test".into() }
}

/// Lets the machine run and end; takes all events.
fn drive(f: &Fixture, run: &mut RunningInstance, events: impl IntoIterator<Item = VmmEvent>) {
    for event in events {
        f.fake.say(event);
    }
    f.fake.world(|w| (w.events, _) = (None, w.machines.clear()));
    runtime().block_on(async { while run.next_event().await.is_some() {} });
}

#[test]
fn spec_names_every_descriptor_and_the_instance() {
    let f = Fixture::new();
    let run = f.launch(|r| r.keep = false).unwrap();
    let (spec, fds) = f.fake.world(|w| (w.specs[0].clone(), w.fds));
    let instance = run.instance();
    assert_eq!(spec.instance_id, instance.id.to_string());
    assert_eq!((spec.vcpus, spec.memory.size_mib), (2, 1024));
    assert_eq!(spec.boot, BootSource::RootVolume { cmdline: None });
    let disk = &spec.disks[0];
    assert_eq!(disk.serial.len(), 20);
    let formats: Vec<_> = disk.layers.iter().map(|l| (l.file.0, l.format)).collect();
    assert_eq!(formats, [(1, DiskFormat::Qcow2), (2, DiskFormat::Raw)]);
    assert_eq!(spec.nics[0].tap_queues.len(), 2);
    assert_eq!(fds, 1 + 2 + 2 + 1, "kvm, overlay, base, two queues, log");
    assert_eq!(spec.nics[0].mac, instance.interface.mac);
    assert_ne!(spec.nics[0].mac, MacAddr::BROADCAST);
    assert_eq!((&spec.smbios.uuid, spec.smbios.uuid.get(..3)), (&spec.smbios.serial, Some("ec2")));
    assert_eq!(spec.smbios.board_asset_tag, instance.id.to_string());
    assert_eq!(spec.metadata.check(), Ok(()));
    assert!(spec.metadata.leaves.contains_key("meta-data/instance-id"));
}

#[test]
fn overlay_lies_over_the_untouched_base_and_has_the_wanted_size() {
    let f = Fixture::new();
    let run = f.launch(|r| r.volume_size = Some(ByteSize::bytes(3 << 20))).unwrap();
    let overlay = std::fs::read(f.volume(run.instance())).unwrap();
    assert!(overlay.starts_with(b"QFI\xfb"));
    assert_eq!(overlay[24..32], (3u64 << 20).to_be_bytes());
    assert_eq!(std::fs::read(f.image()).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn failure_at_each_step_leaves_nothing() {
    type Fault = fn(&mut World);
    type Wish = fn(&mut LaunchRequest);
    let faults: [(&str, Fault, Wish); 8] = [
        ("kvm", |w| w.fail_check = true, |_| ()),
        ("attach", |w| w.fail_attach = true, |_| ()),
        ("start", |w| w.fail_start = true, |_| ()),
        ("start with keep", |w| w.fail_start = true, |r| r.keep = true),
        ("missing kernel", |_| (), |r| r.boot.kernel = Some("/nonexistent/vmlinuz".into())),
        ("kernel is a directory", |_| (), |r| r.boot.kernel = Some("/".into())),
        ("console log in no directory", |_| (), |r| r.console_log = Some("/nonexistent/log".into())),
        ("volume too small", |_| (), |r| r.volume_size = Some(ByteSize::bytes(512))),
    ];
    for (situation, fault, wish) in faults {
        let f = Fixture::new();
        f.fake.world(fault);
        assert!(f.launch(wish).is_err(), "{situation}");
        f.assert_nothing_left(situation);
    }
}

#[test]
fn undo_that_fails_keeps_the_row_and_the_next_sweep_finishes_it() {
    let f = Fixture::new();
    f.fake.world(|w| (w.fail_start, w.fail_detach) = (true, true));
    assert!(f.launch(|_| ()).is_err());
    assert_eq!(f.plane.instances().unwrap().len(), 1);
    assert!(f.entries("instances").is_empty(), "the other effects are undone all the same");
    f.fake.world(|w| w.fail_detach = false);
    f.plane.sweep();
    f.assert_nothing_left("after the sweep");
}

#[test]
fn run_ends_with_nothing_left() {
    for (last, ending) in [
        (VmmEvent::Exited(ExitReason::PowerOff), Ending::PoweredOff),
        (VmmEvent::Exited(ExitReason::Killed), Ending::Killed),
        (
            VmmEvent::Exited(ExitReason::Failed { message: "no kernel".into() }),
            Ending::Failed("no kernel".into()),
        ),
        (VmmEvent::Lost { detail: "signal 9".into() }, Ending::Failed("signal 9".into())),
    ] {
        let f = Fixture::new();
        let mut run = f.launch(|_| ()).unwrap();
        assert_eq!(f.plane.instances().unwrap()[0].state, InstanceState::Pending);
        drive(&f, &mut run, [running(), VmmEvent::Console(b"hi".to_vec()), last]);
        assert_eq!(f.plane.instances().unwrap()[0].state, InstanceState::Running);
        let (_, seen) = run.finish().unwrap();
        assert_eq!(seen, ending);
        assert_eq!(f.fake.world(|w| w.ended), 1);
        f.assert_nothing_left("after the run");
    }
}

#[test]
fn dropped_run_cleans_up() {
    let f = Fixture::new();
    drop(f.launch(|_| ()).unwrap());
    f.assert_nothing_left("after the drop");
}

#[test]
fn kept_instance_stops_starts_again_and_terminates() {
    let f = Fixture::new();
    let mut run = f.launch(|r| (r.keep, r.name) = (true, Some("web".into()))).unwrap();
    drive(&f, &mut run, [running(), VmmEvent::Exited(ExitReason::PowerOff)]);
    let (stopped, _) = run.finish().unwrap();
    assert_eq!((stopped.state, stopped.owner, stopped.vmm), (InstanceState::Stopped, None, None));
    assert!(f.volume(&stopped).exists());
    assert!(f.fake.world(|w| w.attached.is_empty()));

    let found = f.plane.find("web").unwrap();
    let mut run = f.plane.start(found.id).unwrap();
    let again = run.instance().clone();
    assert_eq!(again.interface, stopped.interface, "the address stays");
    assert_eq!((again.uuid, again.starts), (stopped.uuid, 2));
    assert!(matches!(f.plane.start(found.id), Err(InstanceError::Busy(_))));
    drive(&f, &mut run, [running(), VmmEvent::Lost { detail: "crash".into() }]);
    run.finish().unwrap();
    assert_eq!(f.plane.find("web").unwrap().state, InstanceState::Stopped, "a crash keeps it too");

    runtime().block_on(f.plane.terminate(found.id)).unwrap();
    f.assert_nothing_left("after terminate");
}

#[test]
fn start_that_fails_leaves_the_instance_stopped() {
    let f = Fixture::new();
    let mut run = f.launch(|r| r.keep = true).unwrap();
    drive(&f, &mut run, [running(), VmmEvent::Exited(ExitReason::PowerOff)]);
    let (stopped, _) = run.finish().unwrap();
    f.fake.world(|w| w.fail_attach = true);
    assert!(matches!(f.plane.start(stopped.id), Err(InstanceError::Launch(LaunchError::Fabric(_)))));
    assert_eq!(f.plane.find(&stopped.id.to_string()).unwrap().state, InstanceState::Stopped);
    assert!(f.volume(&stopped).exists());
    f.fake.world(|w| w.fail_attach = false);
    drop(f.plane.start(stopped.id).unwrap());
}

#[test]
fn kept_instance_that_never_ran_is_not_kept() {
    let f = Fixture::new();
    let mut run = f.launch(|r| r.keep = true).unwrap();
    drive(&f, &mut run, [VmmEvent::Exited(ExitReason::Failed { message: "no kernel".into() })]);
    run.finish().unwrap();
    f.assert_nothing_left("after a boot that failed");
}

#[test]
fn terminate_of_a_kept_running_instance_removes_it() {
    let f = Fixture::new();
    let mut run = f.launch(|r| r.keep = true).unwrap();
    drive(&f, &mut run, [running()]);
    f.plane.note(run.instance().id, kiln_model::InstanceEvent::TerminateRequested).unwrap();
    run.finish().unwrap();
    f.assert_nothing_left("after the owner finished");
}

#[test]
fn base_file_that_changed_refuses_a_start() {
    let f = Fixture::new();
    let mut run = f.launch(|r| r.keep = true).unwrap();
    drive(&f, &mut run, [running(), VmmEvent::Exited(ExitReason::PowerOff)]);
    let (stopped, _) = run.finish().unwrap();
    std::fs::write(f.temp.path().join("base.raw"), vec![8; 2 << 20]).unwrap();
    let error = f.plane.start(stopped.id).unwrap_err();
    assert!(
        matches!(
            &error,
            InstanceError::Launch(LaunchError::Volume(crate::volumes::VolumeError::Source(
                SourceError::Changed(_)
            )))
        ),
        "{error}"
    );
    assert_eq!(f.plane.find(&stopped.id.to_string()).unwrap().state, InstanceState::Stopped);
}

#[test]
fn image_in_use_cannot_be_removed() {
    let f = Fixture::new();
    let import = ImportRequest {
        path: f.image().into(),
        format: None,
        name: Some("base".into()),
        replace: false,
        drivers: Drivers::default(),
    };
    let image = f.plane.images().import(&import, f.plane.clock(), &Silent).unwrap();
    let run = f.launch(|r| r.image = "base".into()).unwrap();
    assert_eq!(run.instance().root.base, BaseImage::Imported { image: image.id });
    let error = f.plane.images().remove("base").unwrap_err().to_string();
    assert!(error.contains(&run.instance().id.to_string()), "{error}");
    drop(run);
    f.plane.images().remove("base").unwrap();
}

#[test]
fn sweep_leaves_living_instances_alone_and_clears_after_dead_owners() {
    let f = Fixture::new();
    let alive = f.launch(|_| ()).unwrap();
    // As a killed process leaves it: rows and files, but nobody holds the lock.
    let dead = f.launch(|_| ()).unwrap();
    let kept_dead = {
        let mut run = f.launch(|r| r.keep = true).unwrap();
        drive(&f, &mut run, [running()]);
        run
    };
    let (dead_id, kept_id) = (dead.instance().id, kept_dead.instance().id);
    dead.leave();
    kept_dead.leave();
    let orphan = kiln_model::InstanceId::from_bits(1);
    f.plane.instance_dir(orphan).create().unwrap();
    f.plane.sweep();
    assert!(f.plane.find(&dead_id.to_string()).is_err());
    assert!(!f.plane.instance_dir(dead_id).path().exists() && !f.plane.instance_dir(orphan).path().exists());
    assert_eq!(f.plane.find(&kept_id.to_string()).unwrap().state, InstanceState::Stopped);
    assert_eq!(f.fake.world(|w| w.attached.len()), 1);
    assert!(f.volume(alive.instance()).exists());
}

#[test]
fn wishes_for_missing_images_are_refused_with_a_remedy() {
    let f = Fixture::new();
    let refusal = |image: &str| f.launch(|r| r.image = image.into()).unwrap_err().to_string();
    assert!(refusal("nothing").contains("kiln image import"), "{}", refusal("nothing"));
    assert!(refusal("ami-0123456789abcdef0").contains("there is no image"));
    assert!(refusal("/nonexistent/x.raw").starts_with("cannot open image file"));
    f.assert_nothing_left("after refusals");
}
