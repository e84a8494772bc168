//! Ways out of a VPC by the subnet that a packet comes from.
//!
//! ```text
//!  tap ─▶ rt_<subnet>: mark ─▶ rule 100: main table but its default route (the VPC itself, the host)
//!                             rule 1000+n: table of the mark ─┬─ igw0 ──▶ vpc1: public addresses alone
//!                                                             ├─ nt… ──▶ vn…: address of the NAT gateway
//!                                                             ├─ up0 ──▶ vpc0: the open way
//!                                                             ├─ kt…: an interface that forwards
//!                                                             └─ blackhole
//! ```
//! A packet without a mark, from a subnet without a table, finds the main table's default route: the open way.
//! What a packet pays is one look-up by its tap and a walk along the rules, one for each table in use.
//!
//! Each way to the gateway is a link of its own, by which the gateway knows what to do with the source. What
//! comes back, and what comes in, is always by `up0`.
//!
//! Links, routes and rules are made before the first packet is marked for them, and go when the last is not
//! any more. All of it is done again without harm.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kiln_model::security::{NetworkPolicy, Route, TableNumber, Way};
use kiln_model::{InterfaceId, Ipv4Cidr, NatGatewayId, VpcId};

use crate::change::Change;
use crate::enforce::forget_connections;
use crate::error::HostNetError;
use crate::fabric::{GATEWAY_INSIDE, LINK_MTU, host_of};
use crate::names::{self, TABLE};
use crate::netlink::{Entry, Hop, Netlink, Policy, Via};
use crate::netns::NetNs;
use crate::nft;
use crate::record::Records;

/// Rule by which the VPC itself is reached, before any table.
const MAIN_RULE: u32 = 100;
/// Id of table 0, and its rule; marks are the same. Above the ids that the kernel has names for.
const FIRST_TABLE: u32 = 1000;
/// Of a route that is taken. Not 0, which stands for any when a route is removed.
const TAKEN: u32 = 1;
/// Of one that is there for when the other is gone, with a tap.
const FALLBACK: u32 = u32::MAX;

/// Id of a table, its rule and its mark.
pub(crate) fn table_id(table: TableNumber) -> u32 {
    FIRST_TABLE + u32::from(table.0)
}

/// The namespaces around that of a VPC.
pub(crate) struct Surroundings<'a> {
    pub records: &'a Records,
    pub vpc: VpcId,
    pub host: &'a NetNs,
}

/// Whether a change is about ways at all.
pub(crate) fn concerns(change: &Change) -> bool {
    !change.tables.is_empty()
}

/// Makes everything that `new` needs, in the calling thread's namespace, which is that of the VPC, and around
/// it. What `old` had and `new` has not stays: packets may be on their way by it.
pub(crate) fn open(
    around: &Surroundings<'_>,
    new: &NetworkPolicy,
    change: &Change,
) -> Result<(), HostNetError> {
    if !concerns(change) {
        return Ok(());
    }
    let ways: Vec<_> = ways(new).into_iter().collect();
    around.open(&ways)?;
    let netlink = Netlink::open()?;
    for way in &ways {
        if let Some(link) = link(*way) {
            netlink.up(netlink.require(&link)?)?;
        }
    }
    if !new.tables.is_empty() {
        netlink.ensure_rule(MAIN_RULE, Policy::MainButDefault)?;
    }
    for number in change.tables.keys() {
        let Some(routes) = new.tables.get(number) else { continue };
        let table = table_id(*number);
        netlink.ensure_table_route(Entry { table, to: ANYWHERE, priority: FALLBACK }, Hop::Blackhole)?;
        for route in routes {
            place(&netlink, new, table, route)?;
        }
        netlink.ensure_rule(table, Policy::Marked(table))?;
    }
    Ok(())
}

/// Takes away what `old` had and `new` has not.
pub(crate) fn close(
    around: &Surroundings<'_>,
    old: &NetworkPolicy,
    new: &NetworkPolicy,
    change: &Change,
) -> Result<(), HostNetError> {
    if !concerns(change) {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    for number in change.tables.keys() {
        let (table, after) = (table_id(*number), new.tables.get(number));
        if after.is_none() {
            netlink.remove_rule(table, Policy::Marked(table))?;
            netlink.remove_table_route(Entry { table, to: ANYWHERE, priority: FALLBACK })?;
        }
        let stays = |to: Ipv4Cidr| after.into_iter().flatten().any(|route| route.destination == to);
        for Route { destination: to, .. } in old.tables.get(number).into_iter().flatten() {
            if !stays(*to) {
                netlink.remove_table_route(Entry { table, to: *to, priority: TAKEN })?;
                if *to != ANYWHERE {
                    netlink.remove_table_route(Entry { table, to: *to, priority: FALLBACK })?;
                }
            }
        }
    }
    if new.tables.is_empty() {
        netlink.remove_rule(MAIN_RULE, Policy::MainButDefault)?;
    }
    let (before, after) = (ways(old), ways(new));
    around.close(before.difference(&after).copied())
}

/// Leads routes to an interface whose tap has come.
pub(crate) fn place_interface(
    netlink: &Netlink,
    policy: &NetworkPolicy,
    interface: InterfaceId,
) -> Result<(), HostNetError> {
    for (number, routes) in &policy.tables {
        for route in routes.iter().filter(|route| route.way == Way::Interface(interface)) {
            place(netlink, policy, table_id(*number), route)?;
        }
    }
    Ok(())
}

/// All addresses.
const ANYWHERE: Ipv4Cidr = Ipv4Cidr::ANYWHERE;

fn place(netlink: &Netlink, policy: &NetworkPolicy, table: u32, route: &Route) -> Result<(), HostNetError> {
    let entry = Entry { table, to: route.destination, priority: TAKEN };
    let hop = match route.way {
        Way::Nowhere => Some(Hop::Blackhole),
        Way::Interface(interface) => {
            // The kernel takes the route away with the tap, and must not look further then.
            netlink.ensure_table_route(Entry { priority: FALLBACK, ..entry }, Hop::Blackhole)?;
            let address = policy.interfaces.get(&interface).and_then(|member| member.addresses.first());
            match (netlink.find(&names::tap(interface))?, address) {
                (Some(link), Some(address)) => Some(Hop::Router(link, *address)),
                _ => None,
            }
        }
        Way::Open | Way::Internet | Way::Nat { .. } => {
            let link = link(route.way).unwrap_or_else(|| names::UPLINK.to_owned());
            Some(Hop::Router(netlink.require(&link)?, GATEWAY_INSIDE))
        }
    };
    match hop {
        Some(hop) => netlink.ensure_table_route(entry, hop),
        None => netlink.remove_table_route(entry),
    }
}

/// The ways that tables lead by.
fn ways(policy: &NetworkPolicy) -> BTreeSet<Way> {
    policy.tables.values().flatten().map(|route| route.way).collect()
}

/// The VPC's end of the link that a way has of its own.
fn link(way: Way) -> Option<String> {
    match way {
        Way::Internet => Some(names::INTERNET_UPLINK.to_owned()),
        Way::Nat { gateway, .. } => Some(names::nat_uplink(gateway)),
        Way::Open | Way::Interface(_) | Way::Nowhere => None,
    }
}

impl Surroundings<'_> {
    fn gateway(&self) -> Result<Option<NetNs>, HostNetError> {
        NetNs::open(&names::gateway_namespace(self.vpc))
    }

    /// Links to the gateway, its translation, and the host's route to addresses of NAT gateways.
    fn open(&self, ways: &[Way]) -> Result<(), HostNetError> {
        let Some(gateway) = self.gateway()? else { return Ok(()) };
        let Some(vpc) = NetNs::open(&names::vpc_namespace(self.vpc))? else { return Ok(()) };
        let held = Some(self.records.held());
        gateway.run(|| {
            let netlink = Netlink::open()?;
            for way in ways {
                let (own, peer) = match way {
                    Way::Internet => (names::GATEWAY_INTERNET.to_owned(), names::INTERNET_UPLINK.to_owned()),
                    Way::Nat { gateway, .. } => (names::gateway_nat(*gateway), names::nat_uplink(*gateway)),
                    Way::Open | Way::Interface(_) | Way::Nowhere => continue,
                };
                netlink.up(netlink.ensure_veth(&own, &peer, &vpc, LINK_MTU)?)?;
            }
            nft::apply(held, &translation(ways, &["add"]), "the gateway")
        })?;
        let addresses: Vec<_> = ways.iter().filter_map(|way| nat(*way)).map(|(_, address)| address).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        self.host.run(|| {
            let Some((host, transit)) = host_of(self.vpc)? else { return Ok(()) };
            let netlink = Netlink::open()?;
            let link = netlink.require(&names::host_link(self.vpc))?;
            let via = Via::Router { link, router: transit.gateway.into(), source: Some(host.into()) };
            addresses.iter().try_for_each(|address| netlink.ensure_route(*address, 32, via))
        })
    }

    fn close(&self, ways: impl Iterator<Item = Way>) -> Result<(), HostNetError> {
        let ways: Vec<_> = ways.filter(|way| link(*way).is_some()).collect();
        if ways.is_empty() {
            return Ok(());
        }
        let held = Some(self.records.held());
        let addresses: Vec<_> = ways.iter().filter_map(|way| nat(*way)).map(|(_, address)| address).collect();
        self.host.run(|| {
            let netlink = Netlink::open()?;
            if let Some(link) = netlink.find(&names::host_link(self.vpc))? {
                addresses.iter().try_for_each(|address| netlink.remove_route(*address, 32, link))?;
            }
            addresses.iter().for_each(|address| forget_connections(*address));
            Ok(())
        })?;
        let Some(gateway) = self.gateway()? else { return Ok(()) };
        gateway.run(|| {
            let script = translation(&ways, &["add", "delete"]);
            nft::run(held, &script, "the gateway")?;
            let netlink = Netlink::open()?;
            for way in &ways {
                match way {
                    Way::Nat { gateway, address } => {
                        netlink.remove(&names::gateway_nat(*gateway))?;
                        forget_connections(*address);
                    }
                    Way::Internet => netlink.remove(names::GATEWAY_INTERNET)?,
                    Way::Open | Way::Interface(_) | Way::Nowhere => {}
                }
            }
            Ok(())
        })
    }
}

fn nat(way: Way) -> Option<(NatGatewayId, Ipv4Addr)> {
    match way {
        Way::Nat { gateway, address } => Some((gateway, address)),
        _ => None,
    }
}

/// Elements of the gateway's set and map of NAT gateways, with each of the verbs.
fn translation(ways: &[Way], verbs: &[&str]) -> String {
    let line = |verb: &&str| {
        let element = |(gateway, address): (NatGatewayId, Ipv4Addr)| {
            let link = names::gateway_nat(gateway);
            format!(
                "{verb} element ip {TABLE} nat_links {{ \"{link}\" }}
{verb} element ip {TABLE} nat_out {{ \"{link}\" : {address} }}
"
            )
        };
        ways.iter().filter_map(|way| nat(*way)).map(element).collect::<String>()
    };
    verbs.iter().map(line).collect()
}
