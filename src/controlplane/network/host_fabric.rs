//! The real fabric: namespaces, taps and packet filter of this host.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use kiln_hostnet::{Counters, HostNetError, NicPlan, PolicySource, Rate};
use kiln_model::{InterfaceId, VpcId};

use super::{Attached, FabricError, NetworkFabric, NicRequest};

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
    fn attach(&self, nic: &NicRequest, policy: &PolicySource<'_>) -> Result<Attached, FabricError> {
        let plan = NicPlan {
            interface: nic.interface,
            vpc: nic.vpc,
            vpc_cidr: nic.vpc_cidr,
            router: nic.router,
            router_mac: nic.router_mac,
            mac: nic.mac,
            address: nic.address,
            ipv6: nic.ipv6,
            queue_pairs: nic.queue_pairs,
            mtu: nic.mtu,
            rate: Rate::default(),
            public: nic.public.clone(),
            more_public: nic.more_public.clone(),
        };
        let nic = kiln_hostnet::attach(&self.records, &plan, policy).map_err(|e| FabricError(e.into()))?;
        Ok(Attached { taps: nic.queues, public: nic.public })
    }

    fn apply(&self, vpc: VpcId, policy: &PolicySource<'_>) -> Result<(), FabricError> {
        match kiln_hostnet::apply(&self.records, vpc, policy) {
            Err(e) if !means_nothing_there(&e) => Err(FabricError(e.into())),
            _ => Ok(()),
        }
    }

    fn set_public(
        &self,
        interface: InterfaceId,
        private: Ipv4Addr,
        address: Option<Ipv4Addr>,
    ) -> Result<Option<Ipv4Addr>, FabricError> {
        match kiln_hostnet::set_public(&self.records, interface, private, address) {
            Err(e) if means_nothing_there(&e) => Ok(None),
            result => result.map_err(|e| FabricError(e.into())),
        }
    }

    fn counters(&self, vpc: VpcId) -> Result<Counters, FabricError> {
        match kiln_hostnet::counters(&self.records, vpc) {
            Err(e) if means_nothing_there(&e) => Ok(Counters::default()),
            result => result.map_err(|e| FabricError(e.into())),
        }
    }

    fn detach(&self, interface: InterfaceId) -> Result<(), FabricError> {
        match kiln_hostnet::detach(&self.records, interface) {
            Err(e) if !means_nothing_there(&e) => Err(FabricError(e.into())),
            _ => Ok(()),
        }
    }
}
