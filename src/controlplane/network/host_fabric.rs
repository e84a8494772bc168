//! The real fabric: namespaces, taps and packet filter of this host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kiln_hostnet::{HostNetError, NicPlan, Policy};
use kiln_model::InterfaceId;

use super::{FabricError, NetworkFabric, NicRequest};

/// Locks and records of all state directories: they share one host. Gone after a reboot, as the
/// links are.
const RECORDS: &str = "/run/kiln/network";

/// See the module.
#[derive(Debug, Clone)]
pub struct HostFabric {
    records: PathBuf,
}

impl Default for HostFabric {
    fn default() -> Self {
        HostFabric { records: Path::new(RECORDS).to_owned() }
    }
}

/// Who may not even open the records has nothing in them.
fn means_nothing_there(error: &HostNetError) -> bool {
    let absent =
        [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound, io::ErrorKind::ReadOnlyFilesystem];
    matches!(error, HostNetError::Record { source, .. } if absent.contains(&source.kind()))
}

impl NetworkFabric for HostFabric {
    fn attach(&self, nic: &NicRequest) -> Result<Vec<OwnedFd>, FabricError> {
        let plan = NicPlan {
            interface: nic.interface,
            vpc: nic.vpc,
            vpc_cidr: nic.vpc_cidr,
            router: nic.router,
            router_mac: nic.router_mac,
            mac: nic.mac,
            address: nic.address,
            queue_pairs: nic.queue_pairs,
            mtu: nic.mtu,
            policy: Policy::from_host_only(),
        };
        kiln_hostnet::attach(&self.records, &plan).map(|nic| nic.queues).map_err(|e| FabricError(e.into()))
    }

    fn detach(&self, interface: InterfaceId) -> Result<(), FabricError> {
        match kiln_hostnet::detach(&self.records, interface) {
            Err(e) if !means_nothing_there(&e) => Err(FabricError(e.into())),
            _ => Ok(()),
        }
    }
}
