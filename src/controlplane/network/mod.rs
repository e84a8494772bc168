//! Networks of instances: address plans in the store, links through the [`NetworkFabric`].

mod addresses;
mod fabric;
mod host_fabric;

pub use addresses::{
    Interface, NetworkError, Subnet, Vpc, choose_range, ensure_default_subnet, release, reserve,
};
pub use fabric::{FabricError, NetworkFabric, NicRequest};
pub use host_fabric::HostFabric;
