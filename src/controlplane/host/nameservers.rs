//! Name servers that the host itself uses.

use std::fs;
use std::net::Ipv4Addr;

/// Where they stand: systemd-resolved keeps the real ones apart from its own stub.
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
/// As many as a resolver looks at.
const MOST: usize = 3;

/// Those that a guest can reach too: IPv4 and not on the host's own loopback.
pub fn host_nameservers() -> Vec<Ipv4Addr> {
    let texts = FILES.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.map(|text| parse(&text)).find(|servers| !servers.is_empty()).unwrap_or_default()
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        if fields.next() != Some("nameserver") {
            return None;
        }
        fields.next()?.parse::<Ipv4Addr>().ok()
    });
    servers.filter(|a| !a.is_loopback() && !a.is_link_local() && !a.is_unspecified()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_a_guest_can_reach_count() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver\n\
                    nameserver 10.0.0.2\nnameserver\t192.0.2.1 trailing\nnameserver 169.254.1.1\nnameserver x\n\
                    nameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let servers = parse(text);
        assert_eq!(servers, ["10.0.0.2", "192.0.2.1", "192.0.2.2"].map(|a| a.parse::<Ipv4Addr>().unwrap()));
        assert!(parse("").is_empty());
    }
}
