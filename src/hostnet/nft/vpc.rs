//! Filter of a VPC's namespace: what interfaces may send at all, and who may talk to whom.
//!
//! ```text
//!  tap ─▶ antispoof ─▶ (conntrack) ─▶ sg_egress: rules of the sender ─▶ sg_ingress: rules of the receiver ─▶ tap
//!                                        │ iifname ─▶ eni_…_out            │ oifname ─▶ eni_…_in
//!  up0 (gateway) ────────────────────────┘ passes                          └ to up0: passes
//! ```
//! Before the rules each packet meets the network ACLs of the subnet that it leaves and of the one that
//! it enters (`acl_egress`, `acl_ingress`), where a subnet has any: they know no conversations.
//!
//! Both base chains must accept, so traffic between two interfaces meets both ends' rules. An
//! interface that is in no map is not forwarded at all. Neighbour discovery, router advertisements and
//! DHCPv6 are answered in the VMM: the kernel knows all neighbours, takes none of these from a tap and
//! says none of them. The chains of interfaces and groups, and what
//! is in sets and maps, are in [`super::filter`].

use super::line::CONVERSATION_BUCKETS;
use crate::names::{INTERNET_UPLINK, NAT_UPLINK_PREFIX, TABLE, UPLINK};

/// Everything that does not vary. `create` makes the whole fail if any of it exists.
pub(crate) fn base() -> String {
    format!(
        "create table inet {TABLE}
table inet {TABLE} {{
  # Taps of interfaces, and which source addresses each may use.
  set enis {{ type ifname; }}
  set src4 {{ typeof iifname . ether saddr . ip saddr; }}
  set src6 {{ typeof iifname . ether saddr . ip6 saddr; }}
  # Interfaces without source/destination check.
  set nochk {{ typeof iifname . ether saddr; }}
  counter spoof {{ }}
  counter deny_out {{ }}
  counter deny_in {{ }}
  map spoof_by {{ type ifname : counter; }}
  map eni_out {{ type ifname : verdict; }}
  map eni_in {{ type ifname : verdict; }}
  # Interfaces in subnets with network ACLs.
  map acl_out {{ type ifname : verdict; }}
  map acl_in {{ type ifname : verdict; }}
  counter deny_acl {{ }}
  # Interfaces in subnets with route tables.
  map routing {{ type ifname : verdict; }}
  # Conversations of each interface, in parts by their addresses and ports.
  set conns_out {{ typeof iifname . meta mark; size 262144; flags dynamic; }}
  set conns_in {{ typeof oifname . meta mark; size 262144; flags dynamic; }}

  # Before defragmentation (-400) and conntrack (-200).
  chain antispoof {{
    type filter hook prerouting priority -450; policy accept;
    # Whoever comes from outside with an address of the VPC does not come in: groups go by addresses. For
    # IPv4 the route filter of the link sees to it.
    iifname \"{UPLINK}\" ip6 saddr != fe80::/10 fib saddr oifname != \"{UPLINK}\" counter name spoof drop
    iifname != @enis accept
    iifname . ether saddr . ip saddr @src4 accept
    iifname . ether saddr . ip6 saddr @src6 accept
    iifname . ether saddr @nochk accept
    counter name iifname map @spoof_by
    counter name spoof drop
  }}

  # Says by which table the router looks for the way out.
  chain route_tables {{
    type filter hook prerouting priority -150; policy accept;
    iifname vmap @routing
  }}

  # The router itself offers nothing: the services on the link are answered before the tap.
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
    # Neighbours on the link to the gateway.
    iifname \"{UPLINK}\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
  }}
  # Memberships of multicast groups and the like stay here.
  chain output {{
    type filter hook output priority 0; policy accept;
    oifname @enis ip6 daddr ff00::/8 drop
  }}

  chain acl_egress {{
    type filter hook forward priority -20; policy accept;
    iifname vmap @acl_out
  }}
  chain acl_ingress {{
    type filter hook forward priority -10; policy accept;
    oifname vmap @acl_in
  }}
  chain sg_egress {{
    type filter hook forward priority 0; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    meta mark set jhash ip saddr . ip daddr . th sport . th dport mod {CONVERSATION_BUCKETS}
    meta mark set jhash ip6 saddr . ip6 daddr . th sport . th dport mod {CONVERSATION_BUCKETS}
    iifname \"{UPLINK}\" accept
    ip daddr 169.254.0.0/16 counter drop
    ip6 daddr {{ fe80::/10, fd00:ec2::/32, ff00::/8 }} counter drop
    iifname vmap @eni_out
    counter name deny_out
  }}
  chain sg_ingress {{
    type filter hook forward priority 10; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    oifname \"{UPLINK}\" accept
    oifname \"{INTERNET_UPLINK}\" accept
    oifname \"{NAT_UPLINK_PREFIX}*\" accept
    oifname vmap @eni_in
    counter name deny_in
  }}
}}
create table arp {TABLE}
table arp {TABLE} {{
  set enis {{ type ifname; }}
  set arp4 {{ typeof iifname . arp saddr ether . arp saddr ip; }}
  set probe {{ typeof iifname . arp saddr ether; }}
  counter arpspoof {{ }}
  map spoof_by {{ type ifname : counter; }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname != @enis accept
    iifname . arp saddr ether . arp saddr ip @arp4 accept
    # Duplicate address detection.
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @probe accept
    counter name iifname map @spoof_by
    counter name arpspoof drop
  }}
}}
"
    )
}
