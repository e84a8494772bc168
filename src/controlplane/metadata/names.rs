//! Host names as EC2 derives them from addresses.

use std::net::Ipv4Addr;

/// The region whose names are older than the scheme of the others.
const FIRST_REGION: &str = "us-east-1";

/// There are no accounts on a host of one's own; twelve digits are what tools expect.
pub const ACCOUNT: &str = "000000000000";

/// Where this host is said to be. SDKs in the guest need some region they know.
pub const REGION: &str = "us-east-1";
/// The one zone of that region.
pub const ZONE: &str = "us-east-1a";
/// Its id.
pub const ZONE_ID: &str = "use1-az1";

/// Domain of private host names, which DHCP hands out: `ec2.internal` in `us-east-1`, elsewhere
/// `<region>.compute.internal`.
pub fn private_domain(region: &str) -> String {
    if region == FIRST_REGION { "ec2.internal".to_owned() } else { format!("{region}.compute.internal") }
}

/// `ip-10-0-1-10`, with the domain where `region` is given.
pub fn private_host_name(address: Ipv4Addr, region: Option<&str>) -> String {
    let [a, b, c, d] = address.octets();
    let host = format!("ip-{a}-{b}-{c}-{d}");
    region.map_or(host.clone(), |region| format!("{host}.{}", private_domain(region)))
}

/// `ec2-198-51-100-7.compute-1.amazonaws.com`.
pub fn public_host_name(address: Ipv4Addr, region: &str) -> String {
    let [a, b, c, d] = address.octets();
    let zone = if region == FIRST_REGION { "compute-1".to_owned() } else { format!("{region}.compute") };
    format!("ec2-{a}-{b}-{c}-{d}.{zone}.amazonaws.com")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_region() {
        let address = Ipv4Addr::new(10, 0, 1, 10);
        assert_eq!(private_host_name(address, None), "ip-10-0-1-10");
        assert_eq!(private_host_name(address, Some("us-east-1")), "ip-10-0-1-10.ec2.internal");
        assert_eq!(
            private_host_name(address, Some("eu-central-1")),
            "ip-10-0-1-10.eu-central-1.compute.internal"
        );
        assert_eq!(public_host_name(address, "us-east-1"), "ec2-10-0-1-10.compute-1.amazonaws.com");
        assert_eq!(public_host_name(address, "eu-west-1"), "ec2-10-0-1-10.eu-west-1.compute.amazonaws.com");
    }
}
