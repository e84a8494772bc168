//! What the host's own namespace needs: translation for what instances send out, and no way in for
//! what the host would forward to them.

use crate::names::{HOST_LINK_PREFIX, TABLE};

/// Everything of the host. `only_ours`: forwarding was off before us, so it stays off for all others.
pub(crate) fn base(only_ours: bool) -> String {
    let links = format!("\"{HOST_LINK_PREFIX}*\"");
    let others = if only_ours {
        format!(
            "    iifname != {links} ct state vmap {{ established : accept, related : accept }}\n    iifname != {links} counter drop\n"
        )
    } else {
        String::new()
    };
    format!(
        "create table inet {TABLE}
table inet {TABLE} {{
  chain forwarding {{
    type filter hook forward priority 0; policy accept;
    oifname {links} ct state vmap {{ established : accept, related : accept }}
    oifname {links} counter drop
{others}  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {links} oifname != {links} masquerade
  }}
}}
"
    )
}

/// Removes it, whether or not it is there.
pub(crate) fn remove() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}
