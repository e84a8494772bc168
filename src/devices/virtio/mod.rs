//! Virtio 1.2 devices over PCI.

pub mod blk;
mod device;
pub mod net;
pub mod rng;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod transport;

pub use device::{
    ActivateError, Activation, DEADLINE, DeviceFault, Placement, QueueWorker, VirtioDevice, Virtqueue, Wake,
    WakeSource, WorkerHandle, WorkerHost,
};
pub use transport::{QueueError, StartError, VirtioPci, VirtioServices};
