//! What the control plane handed over, opened once per process. Machines come and go with each
//! restart of the guest; this stays.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_devices::virtio::blk::Engines;
use kiln_disk::{Disk, DiskError, Format, Layer};
use kiln_vmspec::{BootSource, DiskFormat, DiskSpec, FdIndex, VmSpec};
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

/// A disk, and what its queues will need.
pub struct OpenDisk {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Handed on from one machine to the next.
    pub engines: Arc<Engines>,
}

/// Opened resources.
pub struct Host {
    /// The hypervisor.
    pub kvm: Arc<Kvm>,
    /// Guest memory, all zeroes.
    pub memory: GuestMemoryMmap,
    /// Disks in the order of the spec.
    pub disks: Vec<OpenDisk>,
    /// Interfaces in the order of the spec.
    pub nics: Vec<Arc<TapBackend>>,
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
        let mut nics = Vec::new();
        let metadata = Arc::new(spec.metadata.clone());
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|source| HostError::Random(std::io::Error::other(source)))?;
        for (index, nic) in spec.nics.iter().enumerate() {
            let queues = nic.tap_queues.iter().map(|fd| fds.take(*fd)).collect::<Result<Vec<_>, _>>()?;
            let backend = TapBackend::new(nic, queues, Arc::clone(&metadata), seed);
            nics.push(Arc::new(backend.map_err(|source| HostError::Nic { index, source })?));
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
        let equip = |(index, (disk, spec)): (usize, (Arc<dyn Disk>, &DiskSpec))| {
            let engines = Engines::new(&disk, &memory, spec.queues);
            let engines = engines.map_err(|source| HostError::Disk { index, source })?;
            Ok(OpenDisk { disk, engines })
        };
        let disks = disks.into_iter().zip(&spec.disks).enumerate().map(equip);
        let disks = disks.collect::<Result<_, HostError>>()?;
        Ok(Host { kvm, memory, disks, nics, kernel, initrd, console_log, ending })
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
