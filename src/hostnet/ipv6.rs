//! IPv6 of a VPC: the same way as IPv4's, beside it.
//!
//! ```text
//!  host                    gateway namespace            VPC namespace                 VMM
//!  kg… ──────── veth ───── wan0  (no NAT)  vpc0 ─ veth ─ up0  router, filter  kt… ──── tap queues
//!  fe80::1                 fe80::2  fe80::1              fe80::2   <router>/128
//!  <VPC base+3>/128                                      blackhole <VPC range>
//!  route <ip>/128 via fe80::2                            <ip>/128 dev kt…, neighbour fixed
//! ```
//! Links between namespaces have link-local addresses alone, which are the same in every VPC. A tap has
//! none: the guest's router is what its VMM says it is, and the kernel needs no neighbour discovery there.
//!
//! Beyond the host, unique local addresses mean nothing, so what leaves it gets the host's own address.
//! Other ranges belong to whoever routes them here, and are neither translated nor shut off from outside:
//! as in EC2, groups decide who comes in.

use std::fs;
use std::net::Ipv6Addr;

use crate::error::HostNetError;
use crate::names;
use crate::netlink::{Netlink, Via};
use crate::nft;
use crate::plan::{Ipv6Plan, NicPlan};
use crate::record::{Record, Records};
use crate::sysctl;

/// The end of a link that is nearer to the host.
const OUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The end that is nearer to the instances.
const INNER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// All addresses.
const ANYWHERE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// Where the kernel keeps the settings of each link.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// Whether a link listens to router advertisements: while it forwards nothing, and in any case.
const LISTENS: &str = "1";
const LISTENS_ALWAYS: &str = "2";

/// An interface's IPv6, with the host's address in its VPC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DualStack {
    pub plan: Ipv6Plan,
    pub host: Ipv6Addr,
}

/// Lets a link carry IPv6, with no address but those that it is given.
pub(crate) fn enable(link: &str) -> Result<(), HostNetError> {
    // "None": no address is made of the hardware address.
    sysctl::set(&format!("ipv6/conf/{link}/addr_gen_mode"), "1")?;
    sysctl::set(&format!("ipv6/conf/{link}/accept_ra"), "0")?;
    sysctl::set(&format!("ipv6/conf/{link}/accept_redirects"), "0")?;
    sysctl::set(&format!("ipv6/conf/{link}/disable_ipv6"), "0")
}

/// Host: addresses of the link to the gateway.
pub(crate) fn join_host(link: &str, dual: DualStack) -> Result<(), HostNetError> {
    enable(link)?;
    let netlink = Netlink::open()?;
    let link = netlink.require(link)?;
    netlink.ensure_address(link, OUTER, 64)?;
    netlink.ensure_address(link, dual.host, 128)
}

/// Gateway namespace: a router with a filter.
pub(crate) fn set_up_gateway(records: &Records, dual: DualStack) -> Result<(), HostNetError> {
    let DualStack { plan: Ipv6Plan { vpc_cidr, .. }, host } = dual;
    let routed = !vpc_cidr.is_unique_local();
    nft::ensure(Some(records.held()), &nft::gateway_base_ipv6(host, routed), "the gateway")?;
    sysctl::set("ipv6/conf/all/forwarding", "1")?;
    let netlink = Netlink::open()?;
    let [wan, inside] = [names::GATEWAY_WAN, names::GATEWAY_VPC].map(|name| {
        enable(name)?;
        netlink.require(name)
    });
    let (wan, inside) = (wan?, inside?);
    netlink.ensure_address(wan, INNER, 64)?;
    netlink.ensure_address(inside, OUTER, 64)?;
    let to_host = Via::Router { link: wan, router: OUTER.into(), source: None };
    netlink.ensure_route(ANYWHERE, 0, to_host)?;
    netlink.ensure_route(host, 128, to_host)?;
    let to_vpc = Via::Router { link: inside, router: INNER.into(), source: None };
    netlink.ensure_route(vpc_cidr.network(), vpc_cidr.prefix_len(), to_vpc)
}

/// VPC namespace: the router of the subnet.
pub(crate) fn set_up_router(netlink: &Netlink, dual: DualStack) -> Result<(), HostNetError> {
    let DualStack { plan: Ipv6Plan { vpc_cidr, router, .. }, host } = dual;
    sysctl::set("ipv6/conf/all/forwarding", "1")?;
    sysctl::set("ipv6/conf/lo/disable_ipv6", "0")?;
    enable(names::UPLINK)?;
    let up = netlink.require(names::UPLINK)?;
    netlink.ensure_address(netlink.require("lo")?, router, 128)?;
    netlink.ensure_address(up, INNER, 64)?;
    let outside = Via::Router { link: up, router: OUTER.into(), source: None };
    // What no interface has goes nowhere, instead of out and back in.
    netlink.ensure_route(vpc_cidr.network(), vpc_cidr.prefix_len(), Via::Blackhole)?;
    netlink.ensure_route(host, 128, outside)?;
    netlink.ensure_route(ANYWHERE, 0, outside)
}

/// Host: forwarding, and the way to the instance.
pub(crate) fn open_host(records: &Records, plan: &NicPlan, dual: DualStack) -> Result<(), HostNetError> {
    let held = Some(records.held());
    let DualStack { plan: Ipv6Plan { vpc_cidr, address, .. }, host } = dual;
    let off = sysctl::get("ipv6/conf/all/forwarding")? == "0";
    let only_ours = off || records.forwarding_ipv6_noted()?.is_some();
    nft::ensure(held, &nft::host_base_ipv6(only_ours), "the host")?;
    if off {
        // Filter first: what was not forwarded before is not forwarded now.
        start_forwarding(records)?;
    }
    if !vpc_cidr.is_unique_local() {
        nft::apply(held, &nft::host_routed(address, &["add"]), "the host")?;
    }
    let netlink = Netlink::open()?;
    let link = netlink.require(&names::host_link(plan.vpc))?;
    let via = Via::Router { link, router: INNER.into(), source: Some(host.into()) };
    if !netlink.add_route(address, 128, via)? {
        tracing::warn!(%address, "the host already has a route to this address; it will not reach the instance");
    }
    Ok(())
}

/// A host that forwards does not listen to its own routers any more, and forgets what they have told it,
/// unless its links are told to go on.
fn start_forwarding(records: &Records) -> Result<(), HostNetError> {
    let mut listening = records.forwarding_ipv6_noted()?.unwrap_or_default();
    let links = fs::read_dir(SETTINGS)
        .map_err(|source| HostNetError::Sysctl { path: SETTINGS.to_owned(), source })?;
    for link in links.flatten().filter_map(|link| link.file_name().into_string().ok()) {
        let own = ["all", "default"].contains(&link.as_str()) || link.starts_with(names::HOST_LINK_PREFIX);
        // Links come and go meanwhile.
        let listens = sysctl::get(&accept_ra(&link)).is_ok_and(|value| value == LISTENS);
        if !own && listens && !listening.contains(&link) {
            listening.push(link);
        }
    }
    records.note_forwarding_ipv6(&listening)?;
    for link in &listening {
        sysctl::set_if_there(&accept_ra(link), LISTENS_ALWAYS)?;
    }
    sysctl::set("ipv6/conf/all/forwarding", "1")
}

/// Undoes [`start_forwarding`], if it was done.
pub(crate) fn stop_forwarding(records: &Records) -> Result<(), HostNetError> {
    let Some(listening) = records.forwarding_ipv6_noted()? else { return Ok(()) };
    sysctl::set("ipv6/conf/all/forwarding", "0")?;
    for link in listening {
        sysctl::set_if_there(&accept_ra(&link), LISTENS)?;
    }
    records.forget_forwarding_ipv6()
}

fn accept_ra(link: &str) -> String {
    format!("ipv6/conf/{link}/accept_ra")
}

/// Host: takes the way to an instance away, whether or not it is there.
pub(crate) fn close_host(records: &Records, record: &Record) -> Result<(), HostNetError> {
    let Some(address) = record.ipv6 else { return Ok(()) };
    let netlink = Netlink::open()?;
    if let Some(link) = netlink.find(&names::host_link(record.vpc))? {
        netlink.remove_route(address, 128, link)?;
    }
    // Without a table there is nothing to take out of it.
    nft::run(Some(records.held()), &nft::host_routed(address, &["add", "delete"]), "the host").map(drop)
}
