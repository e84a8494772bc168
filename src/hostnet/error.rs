//! What can go wrong on the host's side of a network.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The host's network could not be changed. Each variant names the step.
#[derive(Debug, thiserror::Error)]
pub enum HostNetError {
    /// The directory for locks and records.
    #[error("{action} {path} failed")]
    Record {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A network namespace.
    #[error("{action} network namespace {name} failed")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// Which one.
        name: String,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A link, address, route or neighbour.
    #[error("{action} failed")]
    Netlink {
        /// What was tried, with names.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A kernel setting.
    #[error("setting {path} failed")]
    Sysctl {
        /// File of the setting.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A tap.
    #[error("{action} {tap} failed")]
    Tap {
        /// What was tried.
        action: &'static str,
        /// Name of the tap.
        tap: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The tap is held open by a running VMM.
    #[error("interface {0} is in use by a running instance")]
    InUse(String),
    /// There is no `nft`.
    #[error("nft was not found; install the nftables package")]
    NoNft(#[source] io::Error),
    /// The packet filter was refused.
    #[error("packet filter of {place} was refused: {message}")]
    Filter {
        /// Whose filter.
        place: String,
        /// What nft said, on one line.
        message: String,
    },
    /// Nobody could tell what the filter shall be.
    #[error("the rules of the network could not be read")]
    Policy(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody has the public address.
    #[error("the public address {0} is in use")]
    PublicInUse(Ipv4Addr),
    /// No public addresses are left.
    #[error("all public addresses are in use")]
    NoPublic,
    /// Somebody has the port.
    #[error("port {0}/{1} of this host is in use")]
    PortInUse(u16, &'static str),
    /// No transit addresses are left.
    #[error("all {0} addresses between host and gateways are in use")]
    NoTransit(u32),
    /// A request that cannot be carried out.
    #[error("{0}")]
    Plan(String),
}
