//! Puts a machine together: a list of constructors, each device from its own part of the spec.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use kiln_devices::bus::{Bus, BusError};
use kiln_devices::interrupt::InterruptLine;
use kiln_devices::pci::hotplug::PciHotplug;
use kiln_devices::pci::{PciEcam, PciError, PciPorts, PciRoot, PciWindow};
use kiln_devices::power::{Power, PowerSink};
use kiln_devices::rtc::Rtc;
use kiln_devices::serial::{SERIAL_PORTS, Serial};
use kiln_devices::virtio::rng::Rng;
use kiln_devices::virtio::{VirtioDevice, VirtioPci, VirtioServices, WorkerHost};
use kiln_disk::throttle::{Rate, Throttle};
use kiln_vmspec::{RateLimits, VmSpec};

use super::boot_source::{self, BootSourceError};
use super::hotplug::{Ejects, block_device, net_device};
use super::{Machine, Plugged};
use crate::boot::{self, BootError};
use crate::confined::Crew;
use crate::console::Console;
use crate::cpuid::{Cpuid, CpuidError, CpuidSpec};
use crate::firmware::{FirmwareError, acpi, e820, reset_vector, smbios};
use crate::host::Host;
use crate::kvm::{KvmDoorbells, KvmError, KvmMsi, KvmWire, Vm};
use crate::vcpu::{self, Gate, MachineEvent, MachineEvents, Platform, VcpuCounters, VcpuThread};
use crate::{layout, memory};

/// A machine could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// See source.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// See source.
    #[error(transparent)]
    BootSource(#[from] BootSourceError),
    /// See source.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// See source.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// See source.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// See source.
    #[error("a device does not fit on the PCI bus")]
    Pci(#[from] PciError),
    /// See source.
    #[error("two devices want the same addresses")]
    Bus(#[from] BusError),
    /// See source.
    #[error("{action} failed")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// What outlives a machine and is shared with the rest of the process.
pub struct Surroundings<'a> {
    /// Descriptors, memory, disks.
    pub host: &'a Host,
    /// The serial console.
    pub console: &'a Console,
    /// Threads for queue workers.
    pub workers: &'a Arc<dyn WorkerHost>,
    /// Threads for vCPUs, at least as many as the machine has.
    pub vcpus: &'a Crew,
    /// Where the machine's events go.
    pub events: &'a MachineEvents,
}

impl Machine {
    /// Builds the machine of `spec` in zeroed guest memory, with its kernel loaded.
    pub fn assemble(spec: &VmSpec, around: &Surroundings<'_>) -> Result<Machine, AssembleError> {
        let memory = &around.host.memory;
        let vm = Vm::new(&around.host.kvm, spec.vcpus, memory)?;
        let board = Board::new(&vm, around)?;
        let functions = board.populate(around)?;
        let (ports, mmio) = board.buses(spec)?;

        let kernel = boot_source::find(spec, around.host)?;
        let map = e820::map(memory::total(memory));
        let generation_id = random::<16>()?;
        let tables = acpi::AcpiSpec { vcpus: spec.vcpus, pci_mmio64: None, generation_id, cmos_rtc: true };
        let rsdp = acpi::build(memory, &tables)?;
        reset_vector::build(memory)?;
        let vcpus = (0..spec.vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        let cpuid = Cpuid::new(
            &vm.supported_cpuid()?,
            &CpuidSpec {
                vcpus: spec.vcpus,
                template: spec.cpu_template,
                tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()),
                tsc_deadline_timer: vm.has_tsc_deadline_timer(),
                pmu: false,
                nested: false,
            },
        )?;
        smbios::build(memory, &spec.smbios, &cpuid.processor_info(), &map)?;
        let entry = boot::load(
            memory,
            &boot::BootImage {
                kernel: kernel.kernel.blob(),
                initrds: &kernel.initrds.iter().map(boot_source::Contents::blob).collect::<Vec<_>>(),
                cmdline: &kernel.cmdline,
                e820: &map,
                rsdp,
                rng_seed: Some(random()?),
            },
        )?;
        let cpu = boot::boot_cpu(memory, &entry)?;
        let booted = kernel.description.clone();
        // Kernel and initrd are in guest memory now.
        drop(kernel);

        let platform = Platform {
            ports: Arc::clone(&ports),
            mmio: Arc::clone(&mmio),
            memory: memory.clone(),
            events: around.events.clone(),
            gate: Arc::new(Gate::new()),
            counters: Arc::new(VcpuCounters::default()),
        };
        for (id, vcpu) in (0..).zip(&vcpus) {
            vcpu::set_up(vcpu, &cpuid.for_vcpu(id)?, (id == 0).then_some(&cpu))?;
        }
        // Threads begin last, so that no error above leaves one at work.
        let start = |(id, vcpu)| VcpuThread::start(around.vcpus, id, vcpu, platform.clone());
        let vcpus = (0..).zip(vcpus).map(start);
        let vcpus = vcpus.collect::<io::Result<_>>();
        let vcpus = vcpus.map_err(|source| {
            platform.gate.stop();
            AssembleError::Host { action: "starting a vCPU thread", source }
        })?;
        Ok(Machine {
            booted,
            gate: platform.gate,
            vcpus,
            counters: platform.counters,
            serial: board.serial,
            power: board.power,
            root: board.root,
            hotplug: board.hotplug,
            functions,
            services: board.services,
            buses: [("ports", ports), ("mmio", mmio)],
            _vm: vm,
        })
    }
}

/// The devices that every machine has, and what the others plug into.
struct Board {
    serial: Arc<Mutex<Serial>>,
    power: Arc<Mutex<Power>>,
    root: Arc<PciRoot>,
    hotplug: Arc<Mutex<PciHotplug>>,
    services: VirtioServices,
}

impl Board {
    fn new(vm: &Vm, around: &Surroundings<'_>) -> Result<Self, AssembleError> {
        let host = |action| move |source| AssembleError::Host { action, source };
        let msi = KvmMsi::new(Arc::clone(vm.fd())).map_err(host("routing interrupts"))?;
        let wire = |gsi| -> Result<Arc<dyn InterruptLine>, AssembleError> {
            Ok(Arc::new(KvmWire::new(vm.fd(), gsi).map_err(host("connecting an interrupt line"))?))
        };
        let serial = Serial::new(wire(layout::SERIAL_IRQ)?, Box::new(around.console.writer()));
        let power = Power::new(wire(layout::POWER_IRQ)?, Arc::new(PowerEvents(around.events.clone())));
        let window = layout::PCI_MMIO32_START..layout::PCI_MMIO32_START + layout::PCI_MMIO32_SIZE;
        let root = Arc::new(PciRoot::new(window));
        let ejects = Ejects { root: Arc::clone(&root), events: around.events.clone() };
        Ok(Board {
            hotplug: Arc::new(Mutex::new(PciHotplug::new(Arc::new(ejects)))),
            serial: Arc::new(Mutex::new(serial)),
            power: Arc::new(Mutex::new(power)),
            root,
            services: VirtioServices {
                mem: around.host.memory.clone(),
                msi: Arc::new(msi),
                doorbells: Arc::new(KvmDoorbells::new(Arc::clone(vm.fd()))),
                workers: Arc::clone(around.workers),
            },
        })
    }

    /// Plugs in the virtio devices: disks, interfaces, entropy. What came to an earlier machine is
    /// where it was, so that nothing else changes its place.
    fn populate(&self, around: &Surroundings<'_>) -> Result<Vec<Plugged>, AssembleError> {
        let mut functions = Vec::new();
        let mut plug = |slot, device: Box<dyn VirtioDevice>, capacity| -> Result<(), AssembleError> {
            let function = VirtioPci::new(device, self.services.clone())
                .map_err(|source| AssembleError::Host { action: "making a virtio device", source })?;
            let function = Arc::new(Mutex::new(function));
            self.root.add_at(slot, Arc::clone(&function) as _)?;
            functions.push(Plugged { slot, function, capacity });
            Ok(())
        };
        for disk in &around.host.disks {
            let blk = block_device(disk);
            let capacity = blk.capacity();
            plug(disk.slot, Box::new(blk), Some(capacity))?;
        }
        for nic in &around.host.nics {
            plug(nic.slot, Box::new(net_device(nic)), None)?;
        }
        plug(around.host.rng_slot, Box::new(Rng::new("rng0")), None)?;
        Ok(functions)
    }

    /// Ports and memory-mapped I/O.
    fn buses(&self, spec: &VmSpec) -> Result<(Arc<Bus>, Arc<Bus>), AssembleError> {
        let root = Arc::clone(&self.root);
        let ram = memory::ranges(spec.memory.size_mib);
        let len = |index: usize| ram.get(index).map_or(0, |(_, len)| *len);
        let rtc = Rtc::new(Box::new(wall_clock), len(0), len(1));

        let mut ports = Bus::new();
        ports.insert(layout::SERIAL_PORT.into(), SERIAL_PORTS, Arc::clone(&self.serial) as _)?;
        ports.insert(layout::RTC_PORT.into(), 2, Arc::new(Mutex::new(rtc)))?;
        ports.insert(
            layout::POWER_PORT.into(),
            layout::POWER_PORT_LEN.into(),
            Arc::clone(&self.power) as _,
        )?;
        ports.insert(
            layout::HOTPLUG_PORT.into(),
            layout::HOTPLUG_PORT_LEN.into(),
            Arc::clone(&self.hotplug) as _,
        )?;
        let config = PciPorts::new(Arc::clone(&root));
        ports.insert(layout::PCI_CONFIG_PORT.into(), 8, Arc::new(Mutex::new(config)))?;

        let mut mmio = Bus::new();
        mmio.insert(layout::ECAM_START, layout::ECAM_SIZE, Arc::new(PciEcam(Arc::clone(&root))))?;
        mmio.insert(layout::PCI_MMIO32_START, layout::PCI_MMIO32_SIZE, Arc::new(PciWindow(root)))?;
        Ok((Arc::new(ports), Arc::new(mmio)))
    }
}

/// A throttle for limits, if there are any. A machine that restarts begins with full bursts.
pub(super) fn throttle(limits: &RateLimits) -> Option<Throttle> {
    let rate = |rate: Option<kiln_vmspec::Rate>| {
        rate.map(|rate| Rate { per_second: rate.per_second, burst: rate.burst })
    };
    let (operations, bytes) = (rate(limits.operations), rate(limits.bytes));
    (operations.is_some() || bytes.is_some()).then(|| Throttle::new(operations, bytes))
}

/// Turns what the guest asks of its power block into events of the machine.
struct PowerEvents(MachineEvents);

impl PowerSink for PowerEvents {
    fn power_off(&self) {
        self.0.report(MachineEvent::PowerOff);
    }

    fn reset(&self) {
        self.0.report(MachineEvent::Reset);
    }
}

/// Time since 1970, UTC.
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn random<const N: usize>() -> Result<[u8; N], AssembleError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| AssembleError::Host { action: "reading random bytes", source: io::Error::other(e) })?;
    Ok(bytes)
}
