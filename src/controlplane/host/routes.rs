//! Address ranges that the host itself uses.

use std::fs;
use std::net::Ipv4Addr;

use kiln_model::Ipv4Cidr;

use super::host_nameservers;

/// The IPv4 routes of the main table and the name servers, as far as they can be read.
pub fn host_ranges() -> Vec<Ipv4Cidr> {
    let mut ranges = fs::read_to_string("/proc/net/route").map(|text| parse(&text)).unwrap_or_default();
    // Usually behind the default route, and not to be hidden from guests by their own network.
    ranges.extend(host_nameservers().into_iter().filter_map(|server| Ipv4Cidr::containing(server, 32)));
    ranges
}

/// Reads the text of `/proc/net/route`: addresses are hexadecimal words in host byte order.
fn parse(text: &str) -> Vec<Ipv4Cidr> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::from_be);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let destination = address(fields.get(1)?)?;
            let mask = address(fields.get(7)?)?;
            let prefix_len = u8::try_from(mask.leading_ones()).ok()?;
            Ipv4Cidr::containing(Ipv4Addr::from_bits(destination), prefix_len)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_host_order_become_networks() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                    eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t00A8C0\nx\n\
                    eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let routes: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["0.0.0.0/0", "192.168.0.0/24"]);
    }
}
