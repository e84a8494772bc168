//! The launch plan: steps in order, each with its undo.
//!
//! ```text
//!   reserve ─▶ files ─▶ network ─▶ process          an error at any arrow undoes all before it
//!   (rows,     (dir,    (taps)     (socket, spawn,
//!    address)  overlay)             send spec)
//! ```

use std::fs::{self, File};
use std::path::Path;

use kiln_hostnet::OneToOne;
use kiln_model::{ByteSize, InstanceId, InstanceState, ReservationId, VolumeId};
use kiln_sandbox::jail;
use kiln_vmspec::DiskFormat;

use super::effects::{Effect, undo};
use super::keeper::Held;
use super::lifecycle::chain;
use super::modify::associate;
use super::request::HostMemory;
use super::spec::{self, OpenError, Opened, OpenedDisk};
use super::{
    BaseImage, Instance, LaunchRequest, MetadataState, NetworkMode, NoticeEvent, Parts, RequestError,
    RootVolume, RunningInstance, StateReason, bounds, facts, smbios,
};
use crate::credentials::RoleError;
use crate::host::ProcessIdentity;
use crate::identity::KeyError;
use crate::images::{Image, ImageError, Source, SourceError};
use crate::metadata::BuildError;
use crate::network::{
    Attached, FabricError, Interface, Ipv6Plan, NetworkError, Networks, NicRequest, Public, elastic_of,
    ensure_default_subnet, policy_source,
};
use crate::state::dir::Lock;
use crate::state::{StoreError, Transaction, transact};
use crate::vmm_process::{StartedVmm, VmmError, VmmLaunch};
use crate::volumes::{
    Attachment, AttachmentState, BlockDevice, Layer, MAX_BELOW, NewVolume, Progress, Volume, VolumeError,
    VolumeState, attached, make_volume, open_volume, plan_volume, resolve, try_open_volume,
};

/// Largest root volume, as in EC2's largest volume type.
const MAX_VOLUME: u64 = 64 << 40;

/// Why an instance cannot be launched or started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The wish makes no sense.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The root volume would be smaller than what is on it.
    #[error("a root volume of {wanted} is smaller than the image, which needs {image} (raise --volume-size)")]
    VolumeTooSmall {
        /// Asked for.
        wanted: ByteSize,
        /// Size of the disk in the image.
        image: ByteSize,
    },
    /// The root volume would be larger than any disk.
    #[error("a root volume of {0} is too large (at most 64 TiB)")]
    VolumeTooLarge(ByteSize),
    /// A volume cannot be made or opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No address.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No link.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The metadata tree cannot be built from what was given.
    #[error("the instance's metadata cannot be served")]
    Metadata(#[from] BuildError),
    /// The wished-for profile cannot be used.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// Its identity cannot be signed.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// No VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SourceError> for LaunchError {
    fn from(error: SourceError) -> Self {
        LaunchError::Image(error.into())
    }
}

/// A base image found.
struct Base {
    image: BaseImage,
    layers: Vec<Layer>,
    virtual_size: ByteSize,
    root: BlockDevice,
    devices: Vec<BlockDevice>,
}

fn imported(image: &Image) -> Result<Base, ImageError> {
    if image.progress != Progress::Complete {
        return Err(ImageError::NotReady(image.id));
    }
    Ok(Base {
        image: BaseImage::Imported { image: image.id },
        layers: image.layers(),
        virtual_size: image.virtual_size,
        root: image.root_volume(),
        devices: image.devices.clone(),
    })
}

fn in_place(path: &Path, format: Option<DiskFormat>) -> Result<Base, SourceError> {
    let Source { path, identity, format, virtual_size, .. } = Source::open(path, format)?;
    Ok(Base {
        image: BaseImage::InPlace { path: path.clone(), identity },
        layers: vec![Layer::InPlace { path, identity, format }],
        virtual_size,
        root: BlockDevice::plain_root(),
        devices: Vec::new(),
    })
}

/// Finds what a person means: an imported image first, then a file.
fn find_base(parts: &Parts, wanted: &str, format: Option<DiskFormat>) -> Result<Base, LaunchError> {
    let images = parts.images();
    // Image names hold no slash, so with one a file is meant.
    if wanted.contains('/') {
        return Ok(in_place(Path::new(wanted), format)?);
    }
    match images.find(wanted) {
        Ok(image) => Ok(imported(&image)?),
        Err(ImageError::NotFound { .. }) if fs::symlink_metadata(wanted).is_ok() => {
            Ok(in_place(Path::new(wanted), format)?)
        }
        Err(e) => Err(e.into()),
    }
}

fn volume_size(wanted: Option<ByteSize>, image: ByteSize) -> Result<ByteSize, LaunchError> {
    let size = wanted.unwrap_or(image);
    if size < image {
        return Err(LaunchError::VolumeTooSmall { wanted: size, image });
    }
    if size.as_bytes() > MAX_VOLUME {
        return Err(LaunchError::VolumeTooLarge(size));
    }
    // Whole sectors; the unit of --volume-size is a GiB, so only odd byte counts are rounded.
    Ok(ByteSize::bytes(size.as_bytes().next_multiple_of(512)))
}

/// What else a transaction shall write that makes instances and their volumes, such as a client's token. It may
/// run several times; its error undoes all.
pub type Also<'a> = dyn FnMut(&mut Transaction<'_>, &[Instance], &[Volume]) -> Result<(), StoreError> + 'a;

/// How many instances of a wish, and for whom.
pub(super) struct Admission<'a> {
    pub(super) count: u32,
    /// They belong to a daemon.
    pub(super) supervised: bool,
    /// What else shall be written with their rows, or not at all.
    pub(super) also: &'a mut Also<'a>,
}

/// Checks a wish and writes the rows of its instances, all or none. Nothing else of them exists yet.
pub(super) fn admit(
    parts: &Parts,
    request: &LaunchRequest,
    host: HostMemory,
    admission: Admission<'_>,
) -> Result<Vec<(Instance, Lock)>, LaunchError> {
    request.check(host)?;
    let base = find_base(parts, &request.image, request.format)?;
    let size = volume_size(request.volume_size.or(base.root.size), base.virtual_size)?;
    if let Some(kind) = request.root_kind {
        kind.check()?;
    }
    let devices = resolve(&request.volumes, &base.devices)?;
    // Looked at before anything is made, so that the message is about the file.
    open_kernel_files(&request.boot)?;
    drop(parts.launcher.open_kvm()?);
    let mut ids = Vec::new();
    let mut locks = Vec::new();
    for _ in 0..admission.count {
        let id = new_id(parts, &ids)?;
        // Before the row: a sweep takes a row without a locked lock for a leftover.
        locks.push(parts.dir.lock_instance(id)?.ok_or(StoreError::Contended)?);
        ids.push(id);
    }
    match insert_rows(parts, &ids, request, host, &base, &WantedVolumes { root: size, devices }, admission) {
        Ok(instances) => Ok(instances.into_iter().zip(locks).collect()),
        Err(e) => {
            locks.into_iter().for_each(Lock::remove);
            Err(e)
        }
    }
}

/// Launches a new instance that this process runs.
pub(super) fn launch(
    parts: &std::sync::Arc<Parts>,
    request: &LaunchRequest,
    host: HostMemory,
) -> Result<RunningInstance, LaunchError> {
    let admission = Admission { count: 1, supervised: false, also: &mut |_, _, _| Ok(()) };
    let mut admitted = admit(parts, request, host, admission)?;
    let (instance, lock) = admitted.pop().ok_or(StoreError::Contended)?;
    run(parts, &instance, lock)
}

/// Makes the machine of an instance whose row says `pending`, as a whole or not at all.
pub(super) fn run(
    parts: &std::sync::Arc<Parts>,
    instance: &Instance,
    lock: Lock,
) -> Result<RunningInstance, LaunchError> {
    // One that has never run has nothing on its volume that could be lost.
    Plan { parts, done: vec![Effect::Rows], fresh: !instance.has_run }.run(instance, lock)
}

/// A fresh id whose user id no instance here has.
fn new_id(parts: &Parts, others: &[InstanceId]) -> Result<InstanceId, StoreError> {
    let uid = |id: InstanceId| jail::uid_of(id.low_bits());
    let taken: std::collections::BTreeSet<u32> = transact(parts.store.as_ref(), |tx| {
        let rows = tx.rows::<Instance>()?;
        Ok::<_, StoreError>(
            rows.iter().map(|instance| instance.id).chain(others.iter().copied()).map(uid).collect(),
        )
    })?;
    loop {
        let id = InstanceId::from_bits(rand::random());
        // There are 2^28 of them, so this ends.
        if !taken.contains(&uid(id)) {
            return Ok(id);
        }
    }
}

/// Notes that a stopped instance starts again, in the hands of a daemon or not.
pub(super) fn note_start(parts: &Parts, id: InstanceId, supervised: bool) -> Result<Instance, StoreError> {
    let now = parts.clock.unix_seconds();
    parts.update(id, |row| begin(row, supervised, now))
}

/// What a row says of an instance that starts again.
pub(super) fn begin(row: &mut Instance, supervised: bool, now: u64) {
    row.state = InstanceState::Pending;
    row.launched = now;
    row.starts += 1;
    // Signed anew below: it says when the instance was started.
    row.identity = None;
    row.reason = None;
    row.owner = ProcessIdentity::current();
    row.supervised = supervised;
}

/// What can be found out without starting a stopped instance.
pub(super) fn check_start(parts: &Parts, instance: &Instance) -> Result<(), LaunchError> {
    for volume in transact(parts.store.as_ref(), |tx| attached(tx, instance.id))? {
        try_open_volume(&parts.dir, &volume)?;
    }
    drop(parts.launcher.open_kvm()?);
    Ok(())
}

/// Starts a stopped instance again in this process.
pub(super) fn start(
    parts: &std::sync::Arc<Parts>,
    instance: &Instance,
    lock: Lock,
) -> Result<RunningInstance, LaunchError> {
    check_start(parts, instance)?;
    run(parts, &note_start(parts, instance.id, false)?, lock)
}

fn open_kernel_files(boot: &super::BootOverride) -> Result<(Option<File>, Option<File>), OpenError> {
    let open = |what, path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| spec::open_to_read(what, path)).transpose()
    };
    Ok((open("kernel", &boot.kernel)?, open("initial RAM disk", &boot.initrd)?))
}

fn insert_rows(
    parts: &Parts,
    ids: &[InstanceId],
    request: &LaunchRequest,
    host: HostMemory,
    base: &Base,
    volumes: &WantedVolumes,
    admission: Admission<'_>,
) -> Result<Vec<Instance>, LaunchError> {
    let size = request.size(host)?;
    let tags = request.tags()?;
    let subnet = ensure_default_subnet(parts.store.as_ref(), parts.vpc_range)?;
    let now = parts.clock.unix_seconds();
    let reservation = ReservationId::from_bits(rand::random());
    let Admission { supervised, also, .. } = admission;
    let (instances, made) = transact(parts.store.as_ref(), |tx| {
        if let BaseImage::Imported { image } = base.image {
            let missing = || ImageError::NotFound { wanted: request.image.clone(), suggestions: Vec::new() };
            let mut row = tx.get::<Image>(&image)?.ok_or_else(missing)?;
            row.launches += 1;
            tx.put(&row)?;
        }
        let mut instances = Vec::new();
        let mut all_volumes = Vec::new();
        for (launch_index, id) in (0..).zip(ids) {
            let own = put_volumes(tx, *id, request, base, volumes, now)?;
            let root = own.first().map(|root| root.id).ok_or(StoreError::Contended)?;
            all_volumes.extend(own);
            let profile =
                request.profile.as_ref().map(|name| associate(tx, name.as_str(), now)).transpose()?;
            let (interface, more_interfaces) =
                Networks::place_all(tx, &subnet, *id, &request.placement, &request.more_interfaces)?;
            let instance = Instance {
                id: *id,
                reservation,
                tags: tags.clone(),
                state: InstanceState::Pending,
                instance_type: size.instance_type.clone(),
                vcpus: size.vcpus,
                memory: size.memory,
                hugepages: request.hugepages,
                root: RootVolume {
                    id: root,
                    size: volumes.root,
                    base: base.image.clone(),
                    device: base.root.device.clone(),
                },
                interface,
                more_interfaces,
                network: request.network,
                public_ip: request.placement.public_ip,
                publish: request.placement.publish.clone(),
                public_address: None,
                user_data: request.user_data.clone(),
                ssh_key: request.ssh_key.clone(),
                metadata_options: request.metadata_options,
                profile,
                identity: None,
                metadata: MetadataState::default(),
                boot: request.boot.clone(),
                console_log: request.console_log.clone(),
                uuid: smbios::new_uuid(rand::random()),
                keep: request.keep || supervised,
                has_run: false,
                created: now,
                launched: now,
                starts: 1,
                owner: ProcessIdentity::current(),
                vmm: None,
                supervised,
                shutdown: request.shutdown,
                protected: request.protected,
                remembered: request.remembered.clone(),
                reason: None,
                launch_index,
                key_name: request.key_name.clone(),
                launch_template: request.launch_template,
            };
            // 64 random bits: a second instance with this id would be a fault of the random source.
            if !tx.insert(&instance)? {
                return Err(StoreError::Contended.into());
            }
            instances.push(instance);
        }
        also(tx, &instances, &all_volumes)?;
        Ok::<_, LaunchError>((instances, all_volumes))
    })?;
    for volume in made {
        let instance = volume.attachment.map(|attachment| attachment.instance);
        let event = NoticeEvent::Volume { volume: volume.id, state: VolumeState::InUse, instance };
        parts.notices.tell(now, event);
    }
    Ok(instances)
}

/// Volumes of each new instance: size of the root volume, and the others.
struct WantedVolumes {
    root: ByteSize,
    devices: Vec<BlockDevice>,
}

/// Writes the rows of a new instance's volumes; answers them, the root volume first.
fn put_volumes(
    tx: &mut Transaction<'_>,
    instance: InstanceId,
    request: &LaunchRequest,
    base: &Base,
    wanted: &WantedVolumes,
    now: u64,
) -> Result<Vec<Volume>, LaunchError> {
    let attachment = |device: &str, delete_on_termination| {
        let (device, state) = (device.to_owned(), AttachmentState::Attached);
        Some(Attachment { instance, device, delete_on_termination, since: now, state })
    };
    let goes = request.keep_root.map_or(base.root.delete_on_termination, |keep| !keep);
    let root = Volume {
        id: VolumeId::from_bits(rand::random()),
        size: wanted.root,
        below: base.layers.clone(),
        snapshot: base.root.snapshot,
        attachment: attachment(&base.root.device, goes),
        kind: request.root_kind.unwrap_or(base.root.kind),
        progress: Progress::Complete,
        modification: None,
        tags: Vec::new(),
        created: now,
    };
    if root.below.len() > MAX_BELOW {
        return Err(VolumeError::TooDeep(root.id).into());
    }
    tx.put(&root)?;
    let mut volumes = vec![root];
    for wish in &wanted.devices {
        let new = NewVolume { size: wish.size, snapshot: wish.snapshot, kind: wish.kind, tags: Vec::new() };
        let mut volume = plan_volume(tx, &new, now)?;
        volume.attachment = attachment(&wish.device, wish.delete_on_termination);
        tx.put(&volume)?;
        volumes.push(volume);
    }
    Ok(volumes)
}

/// Steps of a launch that were done so far.
struct Plan<'a> {
    parts: &'a std::sync::Arc<Parts>,
    done: Vec<Effect>,
    /// The instance is new: its volume is still to be made, and goes with it if the launch fails.
    fresh: bool,
}

impl Plan<'_> {
    fn run(mut self, instance: &Instance, lock: Lock) -> Result<RunningInstance, LaunchError> {
        match self.steps(instance) {
            Ok((instance, vmm, held)) => Ok(RunningInstance::new(self.parts, instance, vmm, held, lock)),
            Err(e) => {
                tracing::debug!(instance = %instance.id, done = ?self.done, "launch failed, undoing");
                let reason = StateReason::internal(&chain(&e), self.parts.clock.unix_seconds());
                // Before the undo, which changes the state.
                let noted = self.parts.update(instance.id, |row| {
                    row.reason.get_or_insert_with(|| reason.clone());
                });
                if let Err(e) = noted {
                    tracing::warn!(instance = %instance.id, "the reason could not be noted: {e}");
                }
                // What cannot be undone now was logged; the rows are left for the next sweep.
                if undo(self.parts, instance, &self.done, !self.fresh).is_ok() {
                    lock.remove();
                }
                Err(e)
            }
        }
    }

    fn steps(&mut self, instance: &Instance) -> Result<(Instance, StartedVmm, Held), LaunchError> {
        let volumes = transact(self.parts.store.as_ref(), |tx| attached(tx, instance.id))?;
        let kvm = self.parts.launcher.open_kvm()?;
        let dir = self.parts.dir.instance(instance.id);
        let mut instance = instance.clone();
        // Noted before the step: an undo takes care of a step that was done in part.
        self.done.push(Effect::Files);
        if self.fresh {
            dir.create()?;
            volumes.iter().try_for_each(|volume| make_volume(&self.parts.dir, volume))?;
        } else {
            dir.remove_run_files()?;
        }
        let (kernel, initrd) = open_kernel_files(&instance.boot)?;
        let mut opened = Opened {
            kvm,
            disks: open_disks(self.parts, volumes)?,
            kernel,
            initrd,
            console_log: spec::open_console_log(&instance, &dir)?,
            ending: instance.supervised.then(|| spec::create_ending(&dir)).transpose()?,
            taps: Vec::new(),
        };
        if instance.network == NetworkMode::Vpc {
            self.done.push(Effect::Network);
            let policy = policy_source(self.parts.store.as_ref(), instance.interface.subnet.vpc);
            let elastic = elastic_of(self.parts.store.as_ref(), &instance.interface)?;
            let address = elastic.primary;
            let public = (instance.public_ip || address.is_some() || !instance.publish.is_empty())
                .then(|| Public { address, ports: instance.publish.clone() });
            let request = nic_request(&instance, &instance.interface, public, elastic.secondary);
            let attached = self.parts.fabric.attach(&request, &policy)?;
            opened.taps.push(attached.taps);
            instance.public_address = attached.public;
            for interface in &instance.more_interfaces {
                opened.taps.push(connect::<LaunchError>(self.parts, &instance, interface)?.taps);
            }
        }
        let bounds = bounds::of(&instance, &self.parts.dir.volumes(), &opened);
        let document = facts::identity_document(&instance);
        let identity = self.parts.keys()?.sign_identity(document)?;
        let instance = &self.parts.update(instance.id, |row| {
            row.identity = Some(identity.clone());
            row.public_address = instance.public_address;
        })?;
        let held = Held::new(self.parts, instance)?;
        let (spec, fds) = spec::build(instance, held.published().clone(), opened);
        self.done.push(Effect::Process);
        let launch = VmmLaunch { dir, name: instance.id.to_string(), bounds, outlives: instance.supervised };
        let vmm = self.parts.launcher.start(launch)?;
        let process = vmm.handle.process();
        // Noted before it begins: a process that nobody knows of ends with this one.
        match self.parts.update(instance.id, |row| row.vmm = process) {
            Ok(instance) => {
                vmm.handle.begin(spec, fds);
                Ok((instance, vmm, held))
            }
            Err(e) => {
                vmm.handle.end(std::time::Duration::ZERO);
                Err(e.into())
            }
        }
    }
}

/// Sets up the host's side of an interface besides the first.
pub(super) fn connect<E: From<StoreError> + From<FabricError>>(
    parts: &Parts,
    instance: &Instance,
    interface: &Interface,
) -> Result<Attached, E> {
    let policy = policy_source(parts.store.as_ref(), interface.subnet.vpc);
    let elastic = elastic_of(parts.store.as_ref(), interface)?;
    let public = elastic.primary.map(|address| Public { address: Some(address), ports: Vec::new() });
    Ok(parts.fabric.attach(&nic_request(instance, interface, public, elastic.secondary), &policy)?)
}

fn nic_request(
    instance: &Instance,
    interface: &Interface,
    public: Option<Public>,
    more_public: Vec<OneToOne>,
) -> NicRequest {
    let subnet = &interface.subnet;
    let ipv6 = || {
        let router = subnet.ipv6?.router()?;
        Some(Ipv6Plan { vpc_cidr: subnet.vpc_ipv6?, router, address: interface.ipv6? })
    };
    NicRequest {
        interface: interface.id,
        vpc: interface.subnet.vpc,
        vpc_cidr: interface.subnet.vpc_cidr,
        router: interface.subnet.router(),
        mac: interface.mac,
        address: interface.address,
        ipv6: ipv6(),
        router_mac: spec::ROUTER_MAC,
        queue_pairs: spec::queues(instance),
        mtu: spec::MTU,
        public,
        more_public,
    }
}

fn open_disks(parts: &Parts, volumes: Vec<Volume>) -> Result<Vec<OpenedDisk>, VolumeError> {
    let open = |volume| Ok(OpenedDisk { files: open_volume(&parts.dir, &volume)?, volume });
    volumes.into_iter().map(open).collect()
}
