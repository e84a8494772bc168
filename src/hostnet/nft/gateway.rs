//! Filter and address translation of a VPC's gateway namespace.
//!
//! Translation is here and not in the VPC's namespace, so that the rules of interfaces see what the
//! guest sees: an instance that talks to another through a public address is seen with its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::names::{GATEWAY_INTERNET, GATEWAY_VPC, GATEWAY_WAN, TABLE};

/// Everything of the gateway. `host`: the host's address in the VPC.
pub(crate) fn base(host: Ipv4Addr) -> String {
    format!(
        "create table ip {TABLE}
table ip {TABLE} {{
  # Public addresses, one to one.
  map public_in {{ type ipv4_addr : ipv4_addr; }}
  map public_out {{ type ipv4_addr : ipv4_addr; }}
  # Private addresses that have a public one.
  set public_of {{ type ipv4_addr; }}
  # NAT gateways by their links, with their addresses.
  set nat_links {{ type ifname; }}
  map nat_out {{ type ifname : ipv4_addr; }}
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept;
    dnat to ip daddr map @public_in
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname \"{GATEWAY_VPC}\" snat to ip saddr map @public_out
    iifname \"{GATEWAY_VPC}\" oifname \"{GATEWAY_WAN}\" masquerade
    iifname \"{GATEWAY_INTERNET}\" snat to ip saddr map @public_out
    snat to iifname map @nat_out
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
  }}
  chain forwarding {{
    type filter hook forward priority 0; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    ct status dnat accept
    iifname \"{GATEWAY_VPC}\" oifname \"{GATEWAY_WAN}\" accept
    iifname \"{GATEWAY_INTERNET}\" oifname \"{GATEWAY_WAN}\" ip saddr @public_of accept
    iifname @nat_links oifname \"{GATEWAY_WAN}\" accept
    # Only the host itself: what it forwards for others has other sources, and its own filter drops it.
    iifname \"{GATEWAY_WAN}\" oifname \"{GATEWAY_VPC}\" ip saddr {host} accept
  }}
}}
"
    )
}

/// As [`base`], over IPv6: nothing is translated. `host`: the host's address in the VPC. `routed`: other
/// networks have a route to the VPC, so that what the host lets through comes in.
pub(crate) fn base_ipv6(host: Ipv6Addr, routed: bool) -> String {
    let from = if routed { String::new() } else { format!("ip6 saddr {host} ") };
    format!(
        "create table ip6 {TABLE}
table ip6 {TABLE} {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
  }}
  chain forwarding {{
    type filter hook forward priority 0; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    iifname \"{GATEWAY_VPC}\" oifname \"{GATEWAY_WAN}\" accept
    iifname \"{GATEWAY_WAN}\" oifname \"{GATEWAY_VPC}\" {from}accept
  }}
}}
"
    )
}
