//! One PCI bus of single-function devices with MSI-X and no wired interrupts.

pub mod config;
pub mod hotplug;
pub mod msix;
mod root;

pub use root::{PCI_CONFIG_PORTS, PciEcam, PciError, PciFunction, PciPorts, PciRoot, PciWindow, SLOT_COUNT};
