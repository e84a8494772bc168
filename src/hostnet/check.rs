//! Can this host carry instance networks? For `kiln doctor`.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use kiln_model::security::{
    AclEntry, Member, NetworkPolicy, Peer, Rule, SubnetAcl, SubnetRouting, TableNumber, Traffic,
};
use kiln_model::{InterfaceId, Ipv4Cidr, MacAddr, SecurityGroupId, SecurityGroupRuleId, SubnetId};
use nix::sched::{CloneFlags, unshare};

use crate::error::HostNetError;
use crate::netns::on_thread;
use crate::nft::{self, Filter, Outcome, Rate};
use crate::plan::MAX_QUEUES;
use crate::{conntrack, sysctl, tap};

/// Empties the filter of a namespace.
const FLUSH: &str = "flush ruleset\n";
/// What the packet filter needs.
const NEEDS: &str = "needed are nftables 1.0 or later and a kernel with its conntrack, NAT and ARP parts (nft_ct, nft_masq, nf_tables)";

/// A host's address for trying.
const HOST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

/// What the filter on taps needs.
const NEEDS_INGRESS: &str =
    "needed is a kernel with the ingress hook and limits of nf_tables (nf_tables, nft_limit)";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, such as `packet filter`.
    pub subject: &'static str,
    /// How it is.
    pub state: State,
}

/// How a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It works.
    Good,
    /// It works, but may surprise. One line.
    Doubtful(String),
    /// It does not work: what is wrong and what to do, one line.
    Bad(String),
}

/// Tries, in a network namespace that vanishes afterwards, everything that [`crate::attach`] needs.
/// Changes nothing on the host.
pub fn check() -> Vec<Finding> {
    let finding = |subject, state| Finding { subject, state };
    if !nix::unistd::geteuid().is_root() {
        let what = "not permitted for this user; run kiln as root to connect instances to a network";
        return vec![finding("network privileges", State::Bad(what.to_owned()))];
    }
    let tun = match OpenOptions::new().read(true).write(true).open(tap::TUN_DEVICE) {
        Ok(_) => State::Good,
        Err(error) => {
            State::Bad(format!("{} cannot be opened ({error}); load the kernel module tun", tap::TUN_DEVICE))
        }
    };
    let mut findings = vec![finding("tap device", tun)];
    findings.push(finding("filters of others", other_filters()));
    findings.extend(on_thread(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => vec![
            finding("taps", taps()),
            finding("packet filter", filter()),
            finding("filter on taps", port_filter()),
            finding("connection tracking", tracking()),
            finding("IPv4 forwarding", forwarding()),
            finding("IPv6", ipv6()),
        ],
        Err(error) => vec![finding(
            "network namespaces",
            State::Bad(format!(
                "cannot be made ({error}); the kernel needs CONFIG_NET_NS and kiln CAP_SYS_ADMIN"
            )),
        )],
    }));
    findings
}

fn taps() -> State {
    match tap::create("ktcheck", MAX_QUEUES) {
        Ok(_) => State::Good,
        Err(error) => {
            State::Bad(format!("{}; the kernel needs CONFIG_TUN with several queues", told(&error)))
        }
    }
}

fn filter() -> State {
    let host = Ipv4Addr::new(172, 31, 0, 3);
    let filter = Filter::of(&trial_policy(host));
    let nothing = Filter::default();
    // They belong to different namespaces; here they are tried one after the other in the same.
    let scripts = [
        nft::vpc_base(),
        nothing.script(&filter),
        filter.script(&nothing),
        FLUSH.to_owned(),
        nft::gateway_base(host),
        FLUSH.to_owned(),
        nft::host_base(true),
    ];
    for script in &scripts {
        match nft::run(None, script, "a namespace for trying") {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Exists | Outcome::Missing) => {
                return State::Bad(NEEDS.to_owned());
            }
            Err(error @ HostNetError::NoNft(_)) => return State::Bad(error.to_string()),
            Err(error) => return State::Bad(format!("{}; {NEEDS}", told(&error))),
        }
    }
    State::Good
}

/// A policy with one of everything.
fn trial_policy(host: Ipv4Addr) -> NetworkPolicy {
    let group = SecurityGroupId::from_bits(0);
    let id = SecurityGroupRuleId::from_bits;
    let list = kiln_model::PrefixListId::from_bits(0);
    let member = Member {
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        addresses: vec![Ipv4Addr::new(172, 31, 0, 4)],
        ipv6: vec![Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 4)],
        groups: [group].into(),
        host: Some(host),
        host_ipv6: Some(HOST_IPV6),
        source_dest_check: true,
        connections: 1,
    };
    let listed =
        Rule { peer: Peer::PrefixList(list), traffic: Traffic::Protocol(47), ..Rule::all_egress(id(2)) };
    let subnet = Ipv4Cidr::containing(host, 24)
        .map(|cidr| (SubnetId::from_bits(0), SubnetAcl { cidr, ipv6: None, entries: AclEntry::all_pass() }));
    let routing = Ipv4Cidr::containing(host, 24)
        .map(|cidr| (SubnetId::from_bits(0), SubnetRouting { cidr, table: TableNumber(1) }));
    NetworkPolicy {
        interfaces: [(InterfaceId::from_bits(0), member)].into(),
        groups: [(group, vec![Rule::from_itself(id(0), group), Rule::all_egress(id(1)), listed])].into(),
        prefix_lists: [(list, vec![])].into(),
        subnets: subnet.into_iter().collect(),
        routing: routing.into_iter().collect(),
        ..NetworkPolicy::default()
    }
}

/// Frames are filtered on the tap itself, before all else.
fn port_filter() -> State {
    let interface = InterfaceId::from_bits(0);
    let tried = tap::create(&crate::names::tap(interface), 1).and_then(|_queues| {
        nft::run(None, &nft::make_port(interface, true, Rate::default()), "a tap for trying")
    });
    match tried {
        Ok(Outcome::Done) => State::Good,
        Ok(Outcome::Exists | Outcome::Missing) => State::Bad(NEEDS_INGRESS.to_owned()),
        Err(error) => State::Bad(format!("{}; {NEEDS_INGRESS}", told(&error))),
    }
}

/// Connections are listed and deleted when an address moves or a rule goes.
fn tracking() -> State {
    match conntrack::forget(Ipv4Addr::UNSPECIFIED.into()) {
        Ok(_) => State::Good,
        Err(error) => State::Bad(format!("{}; load the kernel module nf_conntrack_netlink", told(&error))),
    }
}

/// Looks for a filter that drops what the host forwards, as Docker and some firewalls set it up. No
/// rule of ours can let through what another chain drops.
fn other_filters() -> State {
    let chain = Command::new("nft").args(["list", "chain", "ip", "filter", "FORWARD"]).output();
    match chain {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("policy drop") => State::Doubtful(
            "the host's own filter drops forwarded packets (chain ip filter FORWARD): instances reach the host \
             but nothing beyond it; allow the links kg*, for example with `iptables -I FORWARD -i kg+ -j ACCEPT` \
             and `iptables -I FORWARD -o kg+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`"
                .to_owned(),
        ),
        _ => State::Good,
    }
}

fn forwarding() -> State {
    match sysctl::set("ipv4/ip_forward", "1") {
        Ok(()) => State::Good,
        Err(error) => State::Bad(format!("{}; /proc/sys must be writable", told(&error))),
    }
}

/// What instances with IPv6 need besides; those without run where there is none.
fn ipv6() -> State {
    let missing = |what: String| {
        State::Doubtful(format!(
            "{what}; instances get no IPv6 (needed are a kernel with IPv6 and its NAT, booted without ipv6.disable=1)"
        ))
    };
    if let Err(error) = sysctl::set("ipv6/conf/all/forwarding", "1") {
        return missing(told(&error));
    }
    // The tables of gateway and host are of different namespaces, and tried one after the other.
    for script in [FLUSH, &nft::gateway_base_ipv6(HOST_IPV6, false), FLUSH, &nft::host_base_ipv6(true)] {
        match nft::run(None, script, "a namespace for trying") {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Exists | Outcome::Missing) => return missing("nft refuses it".to_owned()),
            Err(error) => return missing(told(&error)),
        }
    }
    State::Good
}

/// An error with its cause on one line.
fn told(error: &HostNetError) -> String {
    match std::error::Error::source(error).map(ToString::to_string) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
