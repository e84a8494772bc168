//! Attaching and detaching interfaces: the steps and their order.
//!
//! ```text
//!  host                    gateway namespace            VPC namespace                 VMM
//!  kg… ──────── veth ───── wan0   (NAT)   vpc0 ─ veth ─ up0  router, filter  kt… ──── tap queues
//!  169.254.208.2k/31       …2k+1   169.254.255.1/30     …255.2/30   <router>/32
//!  <VPC base+3>/32                                      blackhole <VPC range>
//!  route <ip>/32 via …2k+1                              <ip>/32 dev kt…, neighbour fixed
//! ```
//! Link-local addresses stay between routers: guests see the host as the fourth address of the VPC.
//! IPv6 is beside it: see [`crate::ipv6`].
//!
//! Everything is made only if it is not there, and removed whether or not it is there. An interface
//! is recorded before its first effect and forgotten after its last, so that whatever a crash
//! interrupts, `detach` or `sweep` finishes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use kiln_model::security::NetworkPolicy;
use kiln_model::{InterfaceId, Ipv4Cidr, VpcId};

use crate::enforce::{Enforced, forget_connections, place_addresses};
use crate::error::HostNetError;
use crate::ipv6::{self, DualStack};
use crate::names;
use crate::netlink::{Link, Netlink, Via};
use crate::netns::{NetNs, on_thread};
use crate::nft::{self, Outcome};
use crate::plan::{HostAddresses, MTU_RANGE, Nic, NicPlan};
use crate::publish;
use crate::record::{Record, Records};
use crate::{routing, sysctl, tap};

/// Gateway's end of its link to the VPC.
pub(crate) const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 1);
/// The VPC's end.
const VPC_OUTSIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 2);
/// First of the addresses between host and gateways, in pairs.
const TRANSIT: Ipv4Addr = Ipv4Addr::new(169, 254, 208, 0);
/// Number of pairs: up to 169.254.223.255.
const TRANSIT_PAIRS: u32 = 2048;
/// MTU of links between namespaces: that of the largest interface, so that only taps are a bottleneck.
pub(crate) const LINK_MTU: u16 = *MTU_RANGE.end();
/// All addresses.
const ANYWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Tells the policy of a VPC as it is now. Called under the lock of the host's network, so that of
/// two processes that change something the later one applies what both have changed.
pub type PolicySource<'a> =
    dyn Fn() -> Result<NetworkPolicy, Box<dyn std::error::Error + Send + Sync>> + Sync + 'a;

/// Connects an interface and opens its tap queues. What an earlier attempt left is replaced; a tap
/// that a running VMM holds open is refused with [`HostNetError::InUse`].
///
/// Blocks, for some tens of milliseconds and while another process attaches or detaches; the calling
/// thread's network namespace is the host. `dir` keeps the lock and the records and must be the same
/// for all processes of a host.
pub fn attach(dir: &Path, plan: &NicPlan, policy: &PolicySource<'_>) -> Result<Nic, HostNetError> {
    let host = plan.check()?;
    let records = Records::lock(dir)?;
    if let Some(left_over) = records.get(plan.interface)? {
        if is_up(&left_over)? {
            return Err(HostNetError::InUse(names::tap(plan.interface)));
        }
        remove_interface(&records, &left_over)?;
    }
    let mut record = Record {
        interface: plan.interface,
        vpc: plan.vpc,
        address: plan.address,
        ipv6: plan.ipv6.map(|ipv6| ipv6.address),
        mac: plan.mac,
        public: None,
        ports: Vec::new(),
        more_public: plan.more_public.clone(),
    };
    let others = records.list()?;
    publish::settle_more(&plan.more_public, &others)?;
    if let Some(wanted) = &plan.public {
        let (public, ports) = publish::settle(wanted, &others, publish::start_of(&record))?;
        (record.public, record.ports) = (Some(public), ports);
    }
    records.put(&record)?;
    let result = connect(&records, plan, &record, host, policy);
    if let Err(error) = &result
        && let Err(second) = remove_interface(&records, &record)
    {
        tracing::warn!(interface = %plan.interface, %error, %second, "what was made before the error stays");
    }
    result
}

/// Removes everything that [`attach`] made for this interface, and what it shares with none that is
/// left. Succeeds when nothing is there. Blocks like [`attach`].
pub fn detach(dir: &Path, interface: InterfaceId) -> Result<(), HostNetError> {
    let records = Records::lock(dir)?;
    match records.get(interface)? {
        Some(record) => remove_interface(&records, &record),
        None => Ok(()),
    }
}

/// Gives `private`, an address of an attached interface, another public address; without one, the primary gets
/// a free one if ports of the host lead to it, else none. Answers the address that it has then. Conversations by
/// way of the old one end.
pub fn set_public(
    dir: &Path,
    interface: InterfaceId,
    private: Ipv4Addr,
    address: Option<Ipv4Addr>,
) -> Result<Option<Ipv4Addr>, HostNetError> {
    let records = Records::lock(dir)?;
    match records.get(interface)? {
        Some(record) => publish::replace(&records, &record, private, address),
        None => Ok(None),
    }
}

/// Makes the policy of a VPC hold for those of its interfaces that are attached. False if there was
/// nothing to do. What is allowed before and after passes all the while; what was allowed without
/// tracking, and is not any more, ends.
pub fn apply(dir: &Path, vpc: VpcId, policy: &PolicySource<'_>) -> Result<bool, HostNetError> {
    let records = Records::lock(dir)?;
    let Some(namespace) = NetNs::open(&names::vpc_namespace(vpc))? else { return Ok(false) };
    let mut enforced = Enforced::open(&records, vpc)?;
    let target = attached(&records, &enforced, vpc, None, policy)?;
    namespace.run(|| enforced.change(target))
}

/// The policy of a VPC as far as it is about interfaces that are here, and one that comes.
fn attached(
    records: &Records,
    enforced: &Enforced<'_>,
    vpc: VpcId,
    coming: Option<InterfaceId>,
    policy: &PolicySource<'_>,
) -> Result<NetworkPolicy, HostNetError> {
    let mut policy = policy().map_err(HostNetError::Policy)?;
    let here = match enforced.interfaces() {
        Some(here) => here,
        None => records.list()?.into_iter().filter(|r| r.vpc == vpc).map(|r| r.interface).collect(),
    };
    policy.interfaces.retain(|id, _| here.contains(id) || coming == Some(*id));
    Ok(policy)
}

/// Removes all interfaces that are not in `known`, and namespaces that no interface uses. Returns
/// how many interfaces were removed; carries on after an error and tells the first.
pub fn sweep(dir: &Path, known: &[InterfaceId]) -> Result<usize, HostNetError> {
    let records = Records::lock(dir)?;
    let mut removed = 0;
    let mut first_error = None;
    for record in records.list()? {
        if known.contains(&record.interface) {
            continue;
        }
        match remove_interface(&records, &record) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(interface = %record.interface, %error, "orphan could not be removed");
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(removed),
    }
}

/// Whether the tap is there, which means that somebody holds it open.
fn is_up(record: &Record) -> Result<bool, HostNetError> {
    match NetNs::open(&names::vpc_namespace(record.vpc))? {
        Some(vpc) => vpc.run(|| Ok(Netlink::open()?.find(&names::tap(record.interface))?.is_some())),
        None => Ok(false),
    }
}

fn connect(
    records: &Records,
    plan: &NicPlan,
    record: &Record,
    HostAddresses { ipv4: host, ipv6: host_ipv6 }: HostAddresses,
    policy: &PolicySource<'_>,
) -> Result<Nic, HostNetError> {
    let dual = plan.ipv6.zip(host_ipv6).map(|(plan, host)| DualStack { plan, host });
    let mut enforced = Enforced::open(records, plan.vpc)?;
    let policy = attached(records, &enforced, plan.vpc, Some(plan.interface), policy)?;
    let vpc = ensure_namespace(&names::vpc_namespace(plan.vpc))?;
    let gateway = ensure_namespace(&names::gateway_namespace(plan.vpc))?;
    let transit = on_thread(|| join_host(plan.vpc, &gateway, host))?;
    gateway.run(|| set_up_gateway(records, plan, &vpc, transit, host))?;
    if let Some(dual) = dual {
        on_thread(|| ipv6::join_host(&names::host_link(plan.vpc), dual))?;
        gateway.run(|| ipv6::set_up_gateway(records, dual))?;
    }
    let queues = vpc.run(|| set_up_interface(&mut enforced, records, plan, host, dual, policy))?;
    on_thread(|| open_host(records, plan, transit, host))?;
    if let Some(dual) = dual {
        on_thread(|| ipv6::open_host(records, plan, dual))?;
    }
    publish::publish(records, record, host, transit)?;
    Ok(Nic { tap: names::tap(plan.interface), queues, public: record.public })
}

fn ensure_namespace(name: &str) -> Result<NetNs, HostNetError> {
    match NetNs::open(name)? {
        Some(namespace) => Ok(namespace),
        None => NetNs::create(name),
    }
}

/// A link between host and gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transit {
    host: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
}

/// The host's address in a VPC and its link to the gateway, if they are there, looked for in the host's
/// namespace.
pub(crate) fn host_of(vpc: VpcId) -> Result<Option<(Ipv4Addr, Transit)>, HostNetError> {
    let netlink = Netlink::open()?;
    let Some(link) = netlink.find(&names::host_link(vpc))? else { return Ok(None) };
    let addresses = netlink.addresses()?;
    let transit = Transit::choose(&addresses, link, 0)?;
    let mut own = addresses.into_iter().filter(|(on, address)| *on == link && !Transit::contains(*address));
    Ok(own.next().map(|(_, host)| (host, transit)))
}

impl Transit {
    fn pair(index: u32) -> Self {
        let base = TRANSIT.to_bits() + 2 * (index % TRANSIT_PAIRS);
        Transit { host: Ipv4Addr::from_bits(base), gateway: Ipv4Addr::from_bits(base + 1) }
    }

    fn contains(address: Ipv4Addr) -> bool {
        address.to_bits().checked_sub(TRANSIT.to_bits()).is_some_and(|offset| offset < 2 * TRANSIT_PAIRS)
    }

    /// The pair whose host side is on `link`, or one that nobody uses, looking from `start` on.
    fn choose(addresses: &[(Link, Ipv4Addr)], link: Link, start: u32) -> Result<Self, HostNetError> {
        let own = addresses.iter().find(|(on, address)| *on == link && Self::contains(*address));
        if let Some((_, address)) = own {
            return Ok(Self::pair((address.to_bits() - TRANSIT.to_bits()) / 2));
        }
        let used = |pair: &Transit| addresses.iter().any(|(_, a)| *a == pair.host || *a == pair.gateway);
        (0..TRANSIT_PAIRS)
            .map(|step| Self::pair(start.wrapping_add(step)))
            .find(|pair| !used(pair))
            .ok_or(HostNetError::NoTransit(TRANSIT_PAIRS))
    }
}

/// Host: the link to the gateway with its addresses.
fn join_host(vpc: VpcId, gateway: &NetNs, host: Ipv4Addr) -> Result<Transit, HostNetError> {
    let netlink = Netlink::open()?;
    let name = names::host_link(vpc);
    let link = netlink.ensure_veth(&name, names::GATEWAY_WAN, gateway, LINK_MTU)?;
    quiet(&name)?;
    // The same VPC gets the same pair again if it is free: from its id.
    let start = u32::from_str_radix(&vpc.short()[4..], 16).unwrap_or(0);
    let transit = Transit::choose(&netlink.addresses()?, link, start)?;
    netlink.ensure_address(link, transit.host, 31)?;
    netlink.ensure_address(link, host, 32)?;
    netlink.up(link)?;
    Ok(transit)
}

/// Gateway namespace: router with address translation.
fn set_up_gateway(
    records: &Records,
    plan: &NicPlan,
    vpc: &NetNs,
    transit: Transit,
    host: Ipv4Addr,
) -> Result<(), HostNetError> {
    let netlink = Netlink::open()?;
    if netlink.find(names::GATEWAY_VPC)?.is_none() {
        router_settings()?;
        nft::ensure(Some(records.held()), &nft::gateway_base(host), "the gateway")?;
    }
    netlink.up(netlink.require("lo")?)?;
    let wan = netlink.require(names::GATEWAY_WAN)?;
    let inside = netlink.ensure_veth(names::GATEWAY_VPC, names::UPLINK, vpc, LINK_MTU)?;
    netlink.ensure_address(wan, transit.gateway, 31)?;
    netlink.ensure_address(inside, GATEWAY_INSIDE, 30)?;
    netlink.up(wan)?;
    netlink.up(inside)?;
    let to_host = Via::Router { link: wan, router: transit.host.into(), source: None };
    netlink.ensure_route(ANYWHERE, 0, to_host)?;
    netlink.ensure_route(host, 32, to_host)?;
    let cidr = plan.vpc_cidr;
    let to_vpc = Via::Router { link: inside, router: VPC_OUTSIDE.into(), source: None };
    netlink.ensure_route(cidr.network(), cidr.prefix_len(), to_vpc)
}

/// VPC namespace: router, filter, and the tap of this interface.
fn set_up_interface(
    enforced: &mut Enforced<'_>,
    records: &Records,
    plan: &NicPlan,
    host: Ipv4Addr,
    dual: Option<DualStack>,
    policy: NetworkPolicy,
) -> Result<Vec<std::os::fd::OwnedFd>, HostNetError> {
    let netlink = Netlink::open()?;
    let Some(member) = policy.interfaces.get(&plan.interface).cloned() else {
        return Err(HostNetError::Plan(format!("the policy knows nothing of {}", plan.interface)));
    };
    let ipv6 = plan.ipv6.map(|ipv6| ipv6.address);
    if (member.mac, member.addresses.first()) != (plan.mac, Some(&plan.address))
        || member.ipv6.first() != ipv6.as_ref()
    {
        return Err(HostNetError::Plan(format!("the policy has other addresses for {}", plan.interface)));
    }
    set_up_router(&netlink, plan.vpc_cidr, plan.router, host)?;
    // The filter stands before there is anything to filter.
    enforced.change(policy)?;
    if let Some(dual) = dual {
        ipv6::set_up_router(&netlink, dual)?;
    }

    let name = names::tap(plan.interface);
    let queues = tap::create(&name, plan.queue_pairs)?;
    let link = netlink.require(&name)?;
    netlink.set(link, plan.router_mac, plan.mtu)?;
    quiet(&name)?;
    if dual.is_some() {
        ipv6::enable(&name)?;
    }
    nft::apply(Some(records.held()), &nft::make_port(plan.interface, dual.is_some(), plan.rate), "the tap")?;
    // Answers ARP for neighbours, which are reached through this router.
    sysctl::set(&format!("ipv4/conf/{name}/proxy_arp"), "1")?;
    sysctl::set(&format!("ipv4/neigh/{name}/proxy_delay"), "0")?;
    netlink.up(link)?;
    place_addresses(&netlink, plan.interface, &member)?;
    routing::place_interface(&netlink, enforced.policy(), plan.interface)?;
    Ok(queues)
}

fn set_up_router(
    netlink: &Netlink,
    cidr: Ipv4Cidr,
    router: Ipv4Addr,
    host: Ipv4Addr,
) -> Result<(), HostNetError> {
    let lo = netlink.require("lo")?;
    let up = netlink.require(names::UPLINK)?;
    router_settings()?;
    netlink.up(lo)?;
    netlink.ensure_address(lo, router, 32)?;
    // Whoever comes from outside with an address of the VPC does not come in: groups go by addresses.
    sysctl::set(&format!("ipv4/conf/{}/rp_filter", names::UPLINK), "1")?;
    netlink.ensure_address(up, VPC_OUTSIDE, 30)?;
    netlink.up(up)?;
    let outside = Via::Router { link: up, router: GATEWAY_INSIDE.into(), source: None };
    // What no interface has goes nowhere, instead of out and back in.
    netlink.ensure_route(cidr.network(), cidr.prefix_len(), Via::Blackhole)?;
    netlink.ensure_route(host, 32, outside)?;
    netlink.ensure_route(ANYWHERE, 0, outside)
}

/// Host: forwarding, translation, and the way to the instance.
fn open_host(
    records: &Records,
    plan: &NicPlan,
    transit: Transit,
    host: Ipv4Addr,
) -> Result<(), HostNetError> {
    let off = sysctl::get("ipv4/ip_forward")? == "0";
    let only_ours = off || records.forwarding_noted();
    nft::ensure(Some(records.held()), &nft::host_base(only_ours), "the host")?;
    if off {
        // Filter first: what was not forwarded before is not forwarded now.
        records.note_forwarding()?;
        sysctl::set("ipv4/ip_forward", "1")?;
    }
    let netlink = Netlink::open()?;
    let link = netlink.require(&names::host_link(plan.vpc))?;
    let via = Via::Router { link, router: transit.gateway.into(), source: Some(host.into()) };
    if !netlink.add_route(plan.address, 32, via)? {
        tracing::warn!(
            address = %plan.address,
            "the host already has a route to this address; it will not reach the instance"
        );
    }
    Ok(())
}

/// Undoes what one interface needs, and its VPC's part if it was the last.
fn remove_interface(records: &Records, record: &Record) -> Result<(), HostNetError> {
    let others: Vec<_> =
        records.list()?.into_iter().filter(|other| other.interface != record.interface).collect();
    let last_of_vpc = !others.iter().any(|other| other.vpc == record.vpc);
    publish::retract(records, record)?;
    let mut enforced = Enforced::open(records, record.vpc)?;
    if let Some(vpc) = NetNs::open(&names::vpc_namespace(record.vpc))? {
        vpc.run(|| {
            remove_port(records, record.interface)?;
            // By name and not by closing descriptors: a VMM may have kept its tap alive.
            Netlink::open()?.remove(&names::tap(record.interface))?;
            if !last_of_vpc {
                let member = enforced.change_interface(record.interface, None)?;
                let own = || own_addresses(record).collect::<Vec<_>>();
                let addresses = member.map_or_else(own, |member| member.all_addresses().collect());
                addresses.into_iter().for_each(forget_connections);
            }
            Ok(())
        })?;
    }
    if !last_of_vpc && let Some(gateway) = NetNs::open(&names::gateway_namespace(record.vpc))? {
        gateway.run(|| {
            own_addresses(record).for_each(forget_connections);
            Ok(())
        })?;
    }
    on_thread(|| {
        let netlink = Netlink::open()?;
        if let Some(link) = netlink.find(&names::host_link(record.vpc))? {
            netlink.remove_route(record.address, 32, link)?;
        }
        ipv6::close_host(records, record)
    })?;
    if last_of_vpc {
        remove_vpc(record.vpc)?;
        enforced.forget()?;
    }
    if others.is_empty() {
        on_thread(|| close_host(records))?;
    }
    // The record goes last: what fails before is tried again by whoever finds it.
    records.remove(record.interface)
}

/// Removes the filter on the tap. Older kernels have removed it with a tap that is gone, and so may
/// an earlier attempt.
fn remove_port(records: &Records, interface: InterfaceId) -> Result<(), HostNetError> {
    let chain = nft::remove_chain(interface);
    let counters = nft::remove_counters(interface);
    let held = Some(records.held());
    if nft::run(held, &(chain + &counters), "the tap")? == Outcome::Missing {
        nft::run(held, &counters, "the tap")?;
    }
    Ok(())
}

/// Removes a VPC's namespaces and its link to the host.
fn remove_vpc(vpc: VpcId) -> Result<(), HostNetError> {
    on_thread(|| Netlink::open()?.remove(&names::host_link(vpc)))?;
    NetNs::remove(&names::gateway_namespace(vpc))?;
    NetNs::remove(&names::vpc_namespace(vpc))
}

/// Gives the host back as it was.
fn close_host(records: &Records) -> Result<(), HostNetError> {
    let ours = |name: &String| name.starts_with(names::HOST_LINK_PREFIX);
    if Netlink::open()?.links()?.iter().any(ours) {
        // Of processes that keep their records elsewhere.
        return Ok(());
    }
    if records.forwarding_noted() {
        sysctl::set("ipv4/ip_forward", "0")?;
        records.forget_forwarding()?;
    }
    ipv6::stop_forwarding(records)?;
    nft::run(Some(records.held()), &nft::host_remove(), "the host").map(drop)
}

fn own_addresses(record: &Record) -> impl Iterator<Item = IpAddr> {
    [IpAddr::V4(record.address)].into_iter().chain(record.ipv6.map(IpAddr::V6))
}

/// Settings of a namespace that only routes.
fn router_settings() -> Result<(), HostNetError> {
    sysctl::set("ipv4/ip_forward", "1")?;
    // The effective value is the larger of `all` and the link's own.
    sysctl::set("ipv4/conf/all/rp_filter", "0")?;
    for scope in ["all", "default"] {
        sysctl::set(&format!("ipv4/conf/{scope}/accept_redirects"), "0")?;
        sysctl::set(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    // Once: it would switch off the links that have IPv6.
    if sysctl::get("ipv6/conf/default/disable_ipv6").is_ok_and(|value| value != "1") {
        sysctl::set("ipv6/conf/all/disable_ipv6", "1")?;
        sysctl::set("ipv6/conf/default/disable_ipv6", "1")?;
    }
    // A connection that was not seen from its start is not let through (EC2: untracked is dropped).
    sysctl::set_if_there("netfilter/nf_conntrack_tcp_loose", "0")?;
    sysctl::set_if_there("netfilter/nf_conntrack_udp_timeout_stream", "180")
}

/// Keeps the kernel from talking on a link by itself.
fn quiet(link: &str) -> Result<(), HostNetError> {
    sysctl::set_if_there(&format!("ipv6/conf/{link}/disable_ipv6"), "1")?;
    sysctl::set(&format!("ipv4/conf/{link}/send_redirects"), "0")?;
    sysctl::set(&format!("ipv4/conf/{link}/accept_redirects"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transit_pairs_stay_in_their_range() {
        for index in [0, 1, TRANSIT_PAIRS - 1, TRANSIT_PAIRS, u32::MAX] {
            let pair = Transit::pair(index);
            assert_eq!(pair.gateway.to_bits(), pair.host.to_bits() + 1);
            assert!(Transit::contains(pair.host) && Transit::contains(pair.gateway));
        }
        assert!(!Transit::contains(Ipv4Addr::new(169, 254, 224, 0)));
        assert!(!Transit::contains(Ipv4Addr::new(169, 254, 207, 255)));
    }
}
