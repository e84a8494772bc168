//! Virtio 1.2 devices over PCI.

mod device;
pub mod net;

pub use device::{
    ActivateError, Activation, DEADLINE, DeviceFault, Placement, QueueWorker, VirtioDevice, Virtqueue, Wake,
    WakeSource, WorkerHandle, WorkerHost,
};
