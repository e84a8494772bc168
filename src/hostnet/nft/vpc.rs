//! Filter of a VPC's namespace: what interfaces may send at all, and who may talk to whom.
//!
//! ```text
//!  tap ─▶ antispoof ─▶ (conntrack) ─▶ sg_egress: rules of the sender ─▶ sg_ingress: rules of the receiver ─▶ tap
//!                                        │ iifname ─▶ eni_…_out            │ oifname ─▶ eni_…_in
//!  up0 (gateway) ────────────────────────┘ passes                          └ to up0: passes
//! ```
//! Both base chains must accept, so traffic between two interfaces meets both ends' rules. An
//! interface that is in no map is not forwarded at all.

use std::fmt::Write;
use std::net::Ipv4Addr;

use kiln_model::{InterfaceId, MacAddr};

use crate::names::{self, TABLE, UPLINK};
use crate::policy::{Match, Policy};

/// What the filter knows of one interface.
pub(crate) struct Member<'a> {
    /// Which interface.
    pub interface: InterfaceId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// The host's address in this VPC.
    pub host: Ipv4Addr,
    /// Its rules.
    pub policy: &'a Policy,
}

/// Everything that is there before the first interface. `create` makes the whole fail if any of it
/// exists.
pub(crate) fn base() -> String {
    format!(
        "create table inet {TABLE}
table inet {TABLE} {{
  # Taps of interfaces, and which source addresses each may use.
  set enis {{ type ifname; }}
  set src4 {{ typeof iifname . ether saddr . ip saddr; }}
  # Interfaces without source/destination check.
  set nochk {{ typeof iifname . ether saddr; }}
  counter spoof {{ }}
  counter deny_out {{ }}
  counter deny_in {{ }}
  map spoof_by {{ type ifname : counter; }}
  map eni_out {{ type ifname : verdict; }}
  map eni_in {{ type ifname : verdict; }}

  # Before defragmentation (-400) and conntrack (-200).
  chain antispoof {{
    type filter hook prerouting priority -450; policy accept;
    iifname != @enis accept
    iifname . ether saddr . ip saddr @src4 accept
    iifname . ether saddr @nochk accept
    counter name iifname map @spoof_by
    counter name spoof drop
  }}

  # The router itself offers nothing: the services on the link are answered before the tap.
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
  }}

  chain sg_egress {{
    type filter hook forward priority 0; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    iifname \"{UPLINK}\" accept
    ip daddr 169.254.0.0/16 counter drop
    iifname vmap @eni_out
    counter name deny_out
  }}
  chain sg_ingress {{
    type filter hook forward priority 10; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    oifname \"{UPLINK}\" accept
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
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname != @enis accept
    iifname . arp saddr ether . arp saddr ip @arp4 accept
    # Duplicate address detection.
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @probe accept
    counter name arpspoof drop
  }}
}}
"
    )
}

/// Lets an interface in: its rules first, then what makes them apply.
pub(crate) fn attach(member: &Member<'_>) -> String {
    let tap = names::tap(member.interface);
    let mut script = String::new();
    for (side, rules, peer_field) in
        [("in", &member.policy.ingress, "ip saddr"), ("out", &member.policy.egress, "ip daddr")]
    {
        let chain = chain(member.interface, side);
        line(&mut script, format_args!("add chain inet {TABLE} {chain}"));
        line(&mut script, format_args!("flush chain inet {TABLE} {chain}"));
        for allow in rules.iter().filter(|allow| !allow.is_empty()) {
            let matching = Match { allow, peer_field, host: member.host };
            line(&mut script, format_args!("add rule inet {TABLE} {chain} {matching} counter accept"));
        }
    }
    line(&mut script, format_args!("add counter inet {TABLE} {}", spoof_counter(member.interface)));
    for (kind, table, set, element) in elements(member.interface, member.mac, member.address, &tap) {
        line(&mut script, format_args!("add element {kind} {table} {set} {{ {element} }}"));
    }
    script
}

/// Takes an interface out, whether or not all of it is there: each thing is added before it is
/// deleted, in one transaction, because deleting what is not there would fail the whole.
pub(crate) fn detach(interface: InterfaceId, mac: MacAddr, address: Ipv4Addr) -> String {
    let tap = names::tap(interface);
    let mut script = String::new();
    let chains = ["in", "out"].map(|side| chain(interface, side));
    for chain in &chains {
        line(&mut script, format_args!("add chain inet {TABLE} {chain}"));
    }
    line(&mut script, format_args!("add counter inet {TABLE} {}", spoof_counter(interface)));
    for (kind, table, set, element) in elements(interface, mac, address, &tap) {
        line(&mut script, format_args!("add element {kind} {table} {set} {{ {element} }}"));
        line(&mut script, format_args!("delete element {kind} {table} {set} {{ {element} }}"));
    }
    line(&mut script, format_args!("delete counter inet {TABLE} {}", spoof_counter(interface)));
    for chain in &chains {
        line(&mut script, format_args!("flush chain inet {TABLE} {chain}"));
        line(&mut script, format_args!("delete chain inet {TABLE} {chain}"));
    }
    script
}

/// Set elements of one interface. The verdict maps come last, so that in reading order nothing
/// passes before all else is there.
fn elements(
    interface: InterfaceId,
    mac: MacAddr,
    address: Ipv4Addr,
    tap: &str,
) -> [(&'static str, &'static str, &'static str, String); 8] {
    let spoof = spoof_counter(interface);
    let verdict = |side| format!("\"{tap}\" : jump {}", chain(interface, side));
    [
        ("inet", TABLE, "enis", format!("\"{tap}\"")),
        ("inet", TABLE, "src4", format!("\"{tap}\" . {mac} . {address}")),
        ("inet", TABLE, "spoof_by", format!("\"{tap}\" : \"{spoof}\"")),
        ("arp", TABLE, "enis", format!("\"{tap}\"")),
        ("arp", TABLE, "arp4", format!("\"{tap}\" . {mac} . {address}")),
        ("arp", TABLE, "probe", format!("\"{tap}\" . {mac}")),
        ("inet", TABLE, "eni_out", verdict("out")),
        ("inet", TABLE, "eni_in", verdict("in")),
    ]
}

fn chain(interface: InterfaceId, side: &str) -> String {
    format!("eni_{}_{side}", interface.short())
}

fn spoof_counter(interface: InterfaceId) -> String {
    format!("spoof_{}", interface.short())
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(script, "{text}");
}
