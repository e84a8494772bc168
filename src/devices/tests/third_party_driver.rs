//! The devices under drivers that somebody else wrote: the `virtio-drivers` crate, over the PCI
//! registers and rings that a guest would use.

#![expect(unsafe_code, reason = "the crate's memory interface is made of raw pointers")]
#![allow(clippy::unwrap_used, reason = "test")]

mod support;

use std::cell::RefCell;
use std::fmt::Debug;
use std::ptr::NonNull;
use std::rc::Rc;

use kiln_devices::virtio::VirtioDevice;
use kiln_devices::virtio::rng::Rng;
use kiln_devices::virtio::testing::{GuestDriver, TestMachine, common, status};
use support::{MAC, echo_net, scratch_disk};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr, Result};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

thread_local! {
    /// Memory that the drivers of this thread use.
    static DMA: RefCell<Option<Dma>> = const { RefCell::new(None) };
}

/// Hands out guest memory from the start on. Tests are short: nothing is taken back.
struct Dma {
    mem: GuestMemoryMmap,
    next: u64,
}

fn allocate(len: usize) -> (GuestMemoryMmap, GuestAddress) {
    DMA.with_borrow_mut(|dma| {
        let dma = dma.as_mut().expect("set up by the test");
        let at = dma.next;
        dma.next = (at + len as u64).next_multiple_of(PAGE_SIZE as u64);
        assert!(dma.next <= kiln_devices::virtio::testing::MEM_LEN as u64, "out of guest memory");
        (dma.mem.clone(), GuestAddress(at))
    })
}

struct GuestHal;

// SAFETY: `dma_alloc` returns whole pages of guest memory, handed out once and zero since they were
// mapped; the mapping lives as long as the thread's `DMA`, which outlives the drivers of a test.
// No MMIO pointers exist: `mmio_phys_to_virt` panics, and the transport below never asks for one.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let (mem, at) = allocate(pages * PAGE_SIZE);
        (at.0, NonNull::new(mem.get_host_address(at).unwrap()).unwrap())
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("registers are reached through the bus")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let (mem, at) = allocate(buffer.len());
        // SAFETY: the caller passes a valid buffer that nobody else accesses during this call.
        mem.write_slice(unsafe { buffer.as_ref() }, at).unwrap();
        at.0
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let mem = DMA.with_borrow(|dma| dma.as_ref().map(|dma| dma.mem.clone())).unwrap();
            // SAFETY: as in `share`.
            mem.read_slice(unsafe { buffer.as_mut() }, GuestAddress(paddr)).unwrap();
        }
    }
}

/// The crate's transport on our registers.
struct BarTransport {
    machine: Rc<TestMachine>,
    driver: GuestDriver,
    /// Queues whose notification returns only when the device has used everything.
    synchronous: fn(u16) -> bool,
    rings: Vec<(u16, PhysAddr, PhysAddr)>,
}

impl BarTransport {
    fn new(
        device: impl FnOnce(&GuestMemoryMmap) -> Box<dyn VirtioDevice>,
        synchronous: fn(u16) -> bool,
    ) -> Self {
        let mem = TestMachine::memory();
        DMA.set(Some(Dma { mem: mem.clone(), next: 0x10_0000 }));
        let device = device(&mem);
        let machine = Rc::new(TestMachine::assemble(mem, vec![device]));
        let driver = GuestDriver::probe(&machine, 1);
        Self { machine, driver, synchronous, rings: Vec::new() }
    }

    fn select(&self, queue: u16) {
        self.driver.write_common::<2>(&self.machine, common::QUEUE_SELECT, queue.into());
    }

    /// Whether the device has used every chain that the driver made available.
    fn idle(&self, queue: u16) -> bool {
        let index = |at: PhysAddr| -> u16 { self.machine.mem.read_obj(GuestAddress(at + 2)).unwrap() };
        self.rings.iter().filter(|(q, ..)| *q == queue).all(|(_, avail, used)| index(*avail) == index(*used))
    }
}

impl Transport for BarTransport {
    fn device_type(&self) -> DeviceType {
        let id = self.machine.config_read(1, 0) >> 16;
        DeviceType::try_from((id - 0x1040) as u8).unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        self.driver.device_features(&self.machine)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.driver.set_driver_features(&self.machine, driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.driver.queue_max_size(&self.machine, queue).into()
    }

    fn notify(&mut self, queue: u16) {
        self.driver.kick(&self.machine, queue);
        if (self.synchronous)(queue) {
            self.machine.workers.run_until(|| self.idle(queue));
        }
        self.machine.run();
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.driver.status(&self.machine).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.driver.set_status(&self.machine, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let (machine, driver) = (&self.machine, &self.driver);
        self.select(queue);
        driver.write_common::<2>(machine, common::QUEUE_SIZE, size.into());
        driver.write_common::<8>(machine, common::QUEUE_DESC, descriptors);
        driver.write_common::<8>(machine, common::QUEUE_DRIVER, driver_area);
        driver.write_common::<8>(machine, common::QUEUE_DEVICE, device_area);
        driver.write_common::<2>(machine, common::QUEUE_ENABLE, 1);
        self.rings.push((queue, driver_area, device_area));
    }

    fn queue_unset(&mut self, _queue: u16) {
        // One queue alone cannot be taken back; the driver that goes away resets the device.
        self.driver.set_status(&self.machine, 0);
        self.rings.clear();
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.driver.read_common::<2>(&self.machine, common::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let mut isr = [0];
        self.machine.mmio_read(self.driver.isr, &mut isr);
        InterruptStatus::from_bits_truncate(isr[0].into())
    }

    fn read_config_generation(&self) -> u32 {
        self.driver.read_common::<1>(&self.machine, common::CONFIG_GENERATION) as u32
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        self.machine.mmio_read(self.driver.device + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.machine.mmio_write(self.driver.device + offset as u64, value.as_bytes());
        Ok(())
    }
}

fn ok<T, E: Debug>(result: std::result::Result<T, E>) -> T {
    result.unwrap()
}

#[test]
fn entropy_driver_gets_what_it_asks_for() {
    let transport = BarTransport::new(|_| Box::new(Rng::new("rng0")), |_| true);
    let machine = transport.machine.clone();
    let mut rng = ok(VirtIORng::<GuestHal, _>::new(transport));
    let mut bytes = [0; 4099];
    assert_eq!(rng.request_entropy(&mut bytes), Ok(4099));
    // Each value 16 times on average; that one is missing has odds of 1 : 30 000.
    let distinct = bytes.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct > 200, "{distinct}");
    // A request is cut, not refused, and the driver is told.
    assert_eq!(rng.request_entropy(&mut vec![0; 100_000]), Ok(65_536));
    assert!(rng.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    for _ in 0..100 {
        assert_eq!(rng.request_entropy(&mut bytes[..8]), Ok(8));
    }
    drop(rng);
    assert_eq!(GuestDriver::probe(&machine, 1).status(&machine), 0);
    assert_eq!(machine.workers.running(), 0);
}

#[test]
fn block_driver_writes_flushes_and_reads_back() {
    let transport = BarTransport::new(|mem| Box::new(scratch_disk(mem, 2048, 1)), |_| true);
    let mut blk = ok(VirtIOBlk::<GuestHal, _>::new(transport));
    assert_eq!((blk.capacity(), blk.readonly()), (2048, false));
    let mut id = [0; 20];
    let len = ok(blk.device_id(&mut id));
    assert_eq!(&id[..len], b"vol-0123");
    for round in 0..40u8 {
        let data: Vec<u8> = (0..4096u32).map(|i| (i as u8).wrapping_mul(round)).collect();
        let sector = usize::from(round) * 8;
        ok(blk.write_blocks(sector, &data));
        ok(blk.flush());
        let mut back = vec![0; 4096];
        ok(blk.read_blocks(sector, &mut back));
        assert_eq!(back, data, "round {round}");
    }
    blk.write_blocks(2041, &[0; 4096]).unwrap_err();
    blk.read_blocks(usize::MAX / 1024, &mut [0; 512]).unwrap_err();
}

#[test]
fn network_driver_sends_and_receives() {
    // Buffers for receiving wait for frames.
    let transport = BarTransport::new(|_| Box::new(echo_net(1)), |queue| queue % 2 == 1);
    let machine = transport.machine.clone();
    let mut net = ok(VirtIONet::<GuestHal, _, 16>::new(transport, 2048));
    assert_eq!(net.mac_address(), MAC);
    for len in [60usize, 64, 1514, 200] {
        let mut frame = net.new_tx_buffer(len);
        frame.packet_mut().iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = i as u8);
        ok(net.send(frame));
        machine.run();
        assert!(net.can_recv(), "{len}");
        let received = ok(net.receive());
        assert_eq!(received.packet().len(), len);
        assert!(received.packet().iter().zip(0u32..).all(|(byte, i)| *byte == i as u8));
        ok(net.recycle_rx_buffer(received));
    }
    let driver = GuestDriver::probe(&machine, 1);
    assert_eq!(driver.status(&machine) & status::DEVICE_NEEDS_RESET, 0);
}
