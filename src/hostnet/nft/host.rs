//! What the host's own namespace needs: translation for what instances send out, and no way in for
//! what the host would forward to them.

use std::net::Ipv6Addr;

use crate::names::{HOST_LINK_PREFIX, TABLE};

/// Everything of the host. `only_ours`: forwarding was off before us, so it stays off for all others.
pub(crate) fn base(only_ours: bool) -> String {
    let links = format!("\"{HOST_LINK_PREFIX}*\"");
    let others = if only_ours {
        format!(
            "    iifname != {links} ct state vmap {{ established : accept, related : accept }}\n    iifname != {links} meta nfproto ipv4 counter drop\n"
        )
    } else {
        String::new()
    };
    format!(
        "create table inet {TABLE}
table inet {TABLE} {{
  # Public addresses of instances, and ports that lead to them.
  set public {{ type ipv4_addr; }}
  map publish_tcp {{ type inet_service : ipv4_addr . inet_service; }}
  map publish_udp {{ type inet_service : ipv4_addr . inet_service; }}
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local dnat ip to tcp dport map @publish_tcp
    fib daddr type local dnat ip to udp dport map @publish_udp
  }}
  # The host's own packets to itself, but for loopback addresses, which stay.
  chain own {{
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @publish_tcp
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to udp dport map @publish_udp
  }}
  chain forwarding {{
    type filter hook forward priority 0; policy accept;
    oifname {links} ct state vmap {{ established : accept, related : accept }}
    oifname {links} ip daddr @public accept
    oifname {links} meta nfproto ipv4 counter drop
{others}  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {links} oifname != {links} meta nfproto ipv4 masquerade
  }}
}}
"
    )
}

/// What is added to the above for VPCs with IPv6. `only_ours`: as above, for IPv6. Unique local addresses
/// mean nothing beyond this host, so they leave it under the host's own; others are routed as they are.
pub(crate) fn base_ipv6(only_ours: bool) -> String {
    let links = format!("\"{HOST_LINK_PREFIX}*\"");
    let others = if only_ours { format!("    iifname != {links} counter drop\n") } else { String::new() };
    format!(
        "create table ip6 {TABLE}
table ip6 {TABLE} {{
  # Addresses of instances that other networks have a route to.
  set routed {{ type ipv6_addr; }}
  chain forwarding {{
    type filter hook forward priority 0; policy accept;
    ct state vmap {{ established : accept, related : accept }}
    oifname {links} ip6 daddr @routed accept
    oifname {links} counter drop
{others}  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {links} oifname != {links} ip6 saddr fc00::/7 masquerade
  }}
}}
"
    )
}

/// An instance's address that other networks have a route to comes or, with `add` and `delete`, goes.
pub(crate) fn routed(address: Ipv6Addr, verbs: &[&str]) -> String {
    verbs.iter().map(|verb| format!("{verb} element ip6 {TABLE} routed {{ {address} }}\n")).collect()
}

/// Removes it, whether or not it is there.
pub(crate) fn remove() -> String {
    ["inet", "ip6"].map(|family| format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")).concat()
}
