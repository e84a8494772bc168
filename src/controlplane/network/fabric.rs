//! The seam to the host's network.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use kiln_hostnet::{Counters, Ipv6Plan, OneToOne, PolicySource, Public};
use kiln_model::{InterfaceId, Ipv4Cidr, MacAddr, VpcId};

/// What an interface needs from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicRequest {
    /// Names of links, chains and namespaces derive from it.
    pub interface: InterfaceId,
    /// The network it belongs to.
    pub vpc: VpcId,
    /// Address range of the network.
    pub vpc_cidr: Ipv4Cidr,
    /// Router of its subnet.
    pub router: Ipv4Addr,
    /// Hardware address of the guest's side.
    pub mac: MacAddr,
    /// Address of the guest's side.
    pub address: Ipv4Addr,
    /// IPv6 of the interface, if it has any.
    pub ipv6: Option<Ipv6Plan>,
    /// Hardware address of the router's side.
    pub router_mac: MacAddr,
    /// Number of queue pairs, 1 or more.
    pub queue_pairs: u16,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// A public address, and ports of the host that lead to it.
    pub public: Option<Public>,
    /// Public addresses of its secondary private addresses.
    pub more_public: Vec<OneToOne>,
}

/// The host's side of a connected interface.
#[derive(Debug)]
pub struct Attached {
    /// Open tap queues, one per queue pair.
    pub taps: Vec<OwnedFd>,
    /// Its public address, if it was to have one.
    pub public: Option<Ipv4Addr>,
}

/// The host's network could not be set up.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot connect the instance to the network (run as root with /dev/net/tun and nft, or use --no-network)"
)]
pub struct FabricError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Connects interfaces. All methods are idempotent: a crashed launch is undone by `detach` alone.
/// They may block.
pub trait NetworkFabric: Send + Sync {
    /// Sets up the host's side.
    /// `policy` tells what holds in its VPC.
    fn attach(&self, nic: &NicRequest, policy: &PolicySource<'_>) -> Result<Attached, FabricError>;

    /// Makes the policy of a VPC hold for what is attached of it.
    fn apply(&self, vpc: VpcId, policy: &PolicySource<'_>) -> Result<(), FabricError>;

    /// Gives `private`, an address of an attached interface, another public address; without one, the primary
    /// gets its own again if ports lead to it. Answers the address that it has then; none where the interface is
    /// not attached.
    fn set_public(
        &self,
        interface: InterfaceId,
        private: Ipv4Addr,
        address: Option<Ipv4Addr>,
    ) -> Result<Option<Ipv4Addr>, FabricError>;

    /// What the filter of a VPC has counted.
    fn counters(&self, vpc: VpcId) -> Result<Counters, FabricError>;

    /// Removes everything that `attach` made for this interface; succeeds when nothing is there.
    fn detach(&self, interface: InterfaceId) -> Result<(), FabricError>;
}
