//! What the control plane handed over, opened once per process. Machines come and go with each
//! restart of the guest; this stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_devices::virtio::blk::{Engines, QUEUE_SIZE};
use kiln_disk::engine::{self, Engine};
use kiln_disk::{Disk, DiskError, Format, Layer};
use kiln_model::MacAddr;
use kiln_vmspec::{BootSource, DiskFormat, DiskSpec, FdIndex, MetadataSnapshot, NicSpec, VmSpec};
use kvm_ioctls::Kvm;
use vm_memory::GuestMemoryMmap;

use crate::kvm::{self, KvmError};
use crate::memory::{self, MemoryError};
use crate::nic::{NicError, TapBackend};

/// Something of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The spec names a descriptor that was not sent, or names one twice.
    #[error("the machine's description names descriptor {0}, which did not come with it")]
    NoDescriptor(u32),
    /// See source.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// See source.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// See source.
    #[error("disk {index} cannot be opened")]
    Disk {
        /// Place among the instance's disks, from 0.
        index: usize,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// See source.
    #[error("the rings of disks to come cannot be made")]
    Spares(#[source] DiskError),
    /// See source.
    #[error("reading random bytes failed")]
    Random(#[source] std::io::Error),
    /// See source.
    #[error("network interface {index} cannot be used")]
    Nic {
        /// Place among the instance's interfaces, from 0.
        index: usize,
        /// Why.
        #[source]
        source: NicError,
    },
}

/// A disk or an interface of a running machine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// One with this serial number is there.
    #[error("the machine has a disk {0} already")]
    Taken(String),
    /// One with this hardware address is there.
    #[error("the machine has a network interface {0} already")]
    NicTaken(MacAddr),
    /// As many as there may be.
    #[error("the machine has no room for another network interface while it runs")]
    NoNicRoom,
    /// All engines serve a disk.
    #[error("the machine has no room for another disk while it runs")]
    NoSpare,
    /// See source.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A disk, and what its queues will need.
pub struct OpenDisk {
    /// What it is made of. The descriptors that it names have been taken.
    pub spec: DiskSpec,
    /// For logs and counters, such as `blk0`.
    pub name: String,
    /// Its place on the PCI bus, the same in each machine.
    pub slot: u8,
    /// The guest has been asked to let go of it.
    pub leaving: bool,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Handed on from one machine to the next.
    pub engines: Arc<Engines>,
}

/// A network interface.
pub struct OpenNic {
    /// What it is. The descriptors that it names have been taken.
    pub spec: NicSpec,
    /// For logs and counters, such as `net0`.
    pub name: String,
    /// Its place on the PCI bus, the same in each machine.
    pub slot: u8,
    /// The guest has been asked to let go of it.
    pub leaving: bool,
    /// It was taken by force: only its device is left, until the guest lets go of that.
    pub cut: bool,
    /// Tap and services.
    pub backend: Arc<TapBackend>,
}

/// What has been closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detached {
    /// The disk with this serial number.
    Disk(String),
    /// The interface with this hardware address.
    Nic(MacAddr),
}

/// Opened resources.
pub struct Host {
    /// The hypervisor.
    pub kvm: Arc<Kvm>,
    /// Guest memory, all zeroes.
    pub memory: GuestMemoryMmap,
    /// Disks: those of the spec in its order, then those that came later.
    pub disks: Vec<OpenDisk>,
    /// Engines of disks to come.
    pub spares: Vec<Box<dyn Engine>>,
    /// Engines of devices whose disks were taken, by their places on the PCI bus.
    hollow: BTreeMap<u8, Arc<Engines>>,
    /// Interfaces: those of the spec in its order, then those that came later.
    pub nics: Vec<OpenNic>,
    /// How many of them there may be.
    nic_room: usize,
    /// Place of the first interface of the spec on the PCI bus; others of the spec follow, then what every
    /// machine has.
    first_nic_slot: u8,
    /// Place of the entropy device.
    pub rng_slot: u8,
    /// What is secret to the services of all interfaces.
    seed: [u8; 32],
    /// Kernel and initrd given by the user.
    pub kernel: Option<File>,
    /// See `kernel`.
    pub initrd: Option<File>,
    /// Where the console log goes.
    pub console_log: Option<File>,
    /// Where the reason of the end goes.
    pub ending: Option<File>,
}

impl Host {
    /// Takes over the descriptors that came with `spec`.
    pub fn open(spec: &VmSpec, fds: Vec<OwnedFd>) -> Result<Self, HostError> {
        let mut fds = Descriptors(fds.into_iter().map(Some).collect());
        let kvm = kvm::adopt(fds.take(spec.kvm)?)?;
        let disks = spec.disks.iter().enumerate().map(|(index, disk)| open_disk(index, disk, &mut fds));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let mut backends = Vec::new();
        let metadata = Arc::new(spec.metadata.clone());
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|source| HostError::Random(std::io::Error::other(source)))?;
        for (index, nic) in spec.nics.iter().enumerate() {
            let queues = nic.tap_queues.iter().map(|fd| fds.take(*fd)).collect::<Result<Vec<_>, _>>()?;
            let backend = TapBackend::new(nic, queues, Arc::clone(&metadata), seed);
            backends.push(Arc::new(backend.map_err(|source| HostError::Nic { index, source })?));
        }
        let (kernel, initrd) = match &spec.boot {
            BootSource::RootVolume { .. } => (None, None),
            BootSource::Files { kernel, initrd, .. } => (Some(*kernel), *initrd),
        };
        let mut file = |fd: Option<FdIndex>| fd.map(|fd| fds.take(fd).map(File::from)).transpose();
        let (kernel, initrd, console_log) = (file(kernel)?, file(initrd)?, file(spec.console.log)?);
        let ending = file(spec.ending)?;
        // Last, because it is the only thing that costs the host something.
        let memory = memory::allocate(spec.memory)?;
        let equip = |((slot, disk), spec): ((u8, Arc<dyn Disk>), &DiskSpec)| {
            let index = usize::from(slot).saturating_sub(1);
            let engines = Engines::new(&disk, &memory, spec.queues);
            let engines = engines.map_err(|source| HostError::Disk { index, source })?;
            let (spec, name) = (spec.clone(), format!("blk{index}"));
            Ok(OpenDisk { spec, name, slot, leaving: false, disk, engines })
        };
        let disks = (1..).zip(disks).zip(&spec.disks).map(equip).collect::<Result<Vec<_>, HostError>>()?;
        let spare = |_| engine::new_spare_engine(memory.clone(), QUEUE_SIZE);
        let spares = (0..spec.spare_disks).map(spare).collect::<Result<_, _>>().map_err(HostError::Spares)?;
        let first_nic_slot = u8::try_from(disks.len()).unwrap_or(u8::MAX).saturating_add(1);
        let mut nics = Vec::new();
        for ((index, slot), (backend, spec)) in
            (0u32..).zip(first_nic_slot..=u8::MAX).zip(backends.into_iter().zip(&spec.nics))
        {
            let (spec, name) = (spec.clone(), format!("net{index}"));
            nics.push(OpenNic { spec, name, slot, leaving: false, cut: false, backend });
        }
        let nic_room = nics.len().saturating_add(spec.spare_nics.into());
        let rng_slot = u8::try_from(nics.len()).unwrap_or(u8::MAX).saturating_add(first_nic_slot);
        let hollow = BTreeMap::new();
        Ok(Host {
            kvm,
            memory,
            disks,
            spares,
            hollow,
            nics,
            nic_room,
            first_nic_slot,
            rng_slot,
            seed,
            kernel,
            initrd,
            console_log,
            ending,
        })
    }

    /// Opens another disk, whose descriptors are `fds`, for `slot` of the PCI bus. Makes nothing that would
    /// need more than the control thread may do.
    pub fn attach(&mut self, spec: DiskSpec, fds: Vec<OwnedFd>, slot: u8) -> Result<&OpenDisk, AttachError> {
        if self.disks.iter().any(|disk| disk.spec.serial == spec.serial) {
            return Err(AttachError::Taken(spec.serial));
        }
        if self.spares.is_empty() {
            return Err(AttachError::NoSpare);
        }
        let free = |name: &String| self.disks.iter().all(|disk| disk.name != *name);
        let name = (0..).map(|n: u32| format!("blk{n}")).find(free).unwrap_or_default();
        let mut fds = Descriptors(fds.into_iter().map(Some).collect());
        let disk = open_disk(self.disks.len(), &spec, &mut fds)?;
        let mut engine = self.spares.pop().ok_or(AttachError::NoSpare)?;
        engine.serve(Arc::clone(&disk));
        let engines = Engines::of(vec![engine]);
        let disk = OpenDisk { spec, name, slot, leaving: false, disk, engines };
        Ok(self.disks.push_mut(disk))
    }

    /// Takes over the taps `fds` of another interface, for `slot` of the PCI bus. Makes nothing that would need
    /// more than the control thread may do.
    pub fn attach_nic(
        &mut self,
        spec: NicSpec,
        fds: Vec<OwnedFd>,
        slot: u8,
        metadata: Arc<MetadataSnapshot>,
    ) -> Result<&OpenNic, AttachError> {
        if self.nics.iter().any(|nic| nic.spec.mac == spec.mac && !nic.cut) {
            return Err(AttachError::NicTaken(spec.mac));
        }
        if self.spare_nics() == 0 {
            return Err(AttachError::NoNicRoom);
        }
        let free = |name: &String| self.nics.iter().all(|nic| nic.name != *name);
        let name = (0..).map(|n: u32| format!("net{n}")).find(free).unwrap_or_default();
        let mut fds = Descriptors(fds.into_iter().map(Some).collect());
        let queues = spec.tap_queues.iter().map(|fd| fds.take(*fd)).collect::<Result<Vec<_>, _>>()?;
        let index = self.nics.len();
        let backend = TapBackend::adopt(&spec, queues, &name, metadata, self.seed)
            .map_err(|source| HostError::Nic { index, source })?;
        let backend = Arc::new(backend);
        Ok(self.nics.push_mut(OpenNic { spec, name, slot, leaving: false, cut: false, backend }))
    }

    /// How many more interfaces there may be.
    pub fn spare_nics(&self) -> usize {
        self.nic_room.saturating_sub(self.nics.len())
    }

    /// Whether this is the interface that the guest has had from the start and keeps.
    pub fn is_primary(&self, nic: &OpenNic) -> bool {
        // Without one at the start, the entropy device is there.
        nic.slot == self.first_nic_slot
    }

    /// Closes what no device in `slot` uses any more. Of a disk the files are whole, and its engines wait for
    /// another. Answers what it was, unless it was taken before.
    pub fn detach(&mut self, slot: u8) -> Option<Detached> {
        if let Some(place) = self.nics.iter().position(|nic| nic.slot == slot) {
            let nic = self.nics.remove(place);
            return (!nic.cut).then_some(Detached::Nic(nic.spec.mac));
        }
        let disk = self.take_disk(slot);
        for mut engine in self.hollow.remove(&slot).map(|engines| engines.take()).unwrap_or_default() {
            engine::park(&mut *engine);
            self.spares.push(engine);
        }
        disk
    }

    /// Closes a disk whose device stays without it. Answers what it was.
    pub fn take_disk(&mut self, slot: u8) -> Option<Detached> {
        let place = self.disks.iter().position(|disk| disk.slot == slot)?;
        let OpenDisk { spec, name, disk, engines, .. } = self.disks.remove(place);
        if let Err(e) = disk.flush() {
            tracing::warn!("{name} could not be flushed: {e}");
        }
        engines.park();
        self.hollow.insert(slot, engines);
        Some(Detached::Disk(spec.serial))
    }

    /// Places on the PCI bus whose devices do not come back with a restart of the guest.
    pub fn leaving(&self) -> Vec<u8> {
        let disks = self.disks.iter().filter(|disk| disk.leaving).map(|disk| disk.slot);
        let nics = self.nics.iter().filter(|nic| nic.leaving).map(|nic| nic.slot);
        disks.chain(self.hollow.keys().copied()).chain(nics).collect()
    }
}

fn open_disk(index: usize, spec: &DiskSpec, fds: &mut Descriptors) -> Result<Arc<dyn Disk>, HostError> {
    let mut layers = Vec::new();
    for layer in &spec.layers {
        let format = match layer.format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        };
        layers.push(Layer { file: File::from(fds.take(layer.file)?), format });
    }
    kiln_disk::open(layers, spec.read_only).map_err(|source| HostError::Disk { index, source })
}

/// Received descriptors, each taken once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn take(&mut self, index: FdIndex) -> Result<OwnedFd, HostError> {
        let slot = usize::try_from(index.0).ok().and_then(|place| self.0.get_mut(place));
        slot.and_then(Option::take).ok_or(HostError::NoDescriptor(index.0))
    }
}
