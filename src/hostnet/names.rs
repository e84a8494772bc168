//! Names of everything that is made on the host. All derive from ids, so that what a crash left
//! behind can be found and told from what belongs to others.

use kiln_model::{InterfaceId, NatGatewayId, VpcId};

/// Start of all namespace names.
pub const NAMESPACE_PREFIX: &str = "kiln-";
/// End of the name of a gateway namespace.
pub const GATEWAY_SUFFIX: &str = "-gw";
/// Start of the names of host links.
pub const HOST_LINK_PREFIX: &str = "kg";
/// Name of all tables.
pub const TABLE: &str = "kiln";
/// Link of the VPC namespace to its gateway.
pub const UPLINK: &str = "up0";
/// Link of the gateway namespace to its VPC.
pub const GATEWAY_VPC: &str = "vpc0";
/// Link of the gateway namespace to the host.
pub const GATEWAY_WAN: &str = "wan0";

/// Link of the VPC namespace to its gateway, for what goes out by public addresses alone.
pub const INTERNET_UPLINK: &str = "igw0";
/// Its other end, in the gateway namespace.
pub const GATEWAY_INTERNET: &str = "vpc1";
/// Start of the names of links of the VPC namespace to NAT gateways.
pub const NAT_UPLINK_PREFIX: &str = "nt";

/// Link of the VPC namespace to a NAT gateway.
pub fn nat_uplink(gateway: NatGatewayId) -> String {
    format!("{NAT_UPLINK_PREFIX}{}", gateway.short())
}

/// Its other end, in the gateway namespace.
pub fn gateway_nat(gateway: NatGatewayId) -> String {
    format!("vn{}", gateway.short())
}

/// Tap of an interface: 14 characters of the 15 that a name may have.
pub fn tap(interface: InterfaceId) -> String {
    format!("kt{}", interface.short())
}

/// The host's link to the gateway of a VPC.
pub fn host_link(vpc: VpcId) -> String {
    format!("{HOST_LINK_PREFIX}{}", vpc.short())
}

/// The namespace of a VPC: its router and packet filter.
pub fn vpc_namespace(vpc: VpcId) -> String {
    format!("{NAMESPACE_PREFIX}{}", vpc.short())
}

/// The namespace of a VPC's gateway: address translation.
pub fn gateway_namespace(vpc: VpcId) -> String {
    format!("{NAMESPACE_PREFIX}{}{GATEWAY_SUFFIX}", vpc.short())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel() {
        let vpc = VpcId::from_bits(u64::MAX);
        assert_eq!(host_link(vpc), "kgffffffffffff");
        assert_eq!(tap(InterfaceId::from_bits(1)), "kt000000000001");
        assert!(host_link(vpc).len() <= 15);
        assert_eq!(gateway_namespace(vpc), "kiln-ffffffffffff-gw");
    }
}
