//! `--interface` of `kiln run`: another network interface, as `KEY=VALUE` pairs separated by commas.
//!
//! ```text
//!  subnet=blue-2,ip=10.50.2.9,group=web,group=ssh,ipv6
//! ```

use std::str::FromStr;

use kiln_controlplane::network::{Ipv6Wish, Placement};

/// Where an interface besides the first is, and what it is open to.
#[derive(Debug, Clone, Default)]
pub struct InterfaceArg(pub Placement);

impl FromStr for InterfaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut placement = Placement::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            let once = |given: bool| if given { Err(format!("{key} is given twice")) } else { Ok(()) };
            match (key, value) {
                ("subnet", Some(subnet)) if !subnet.is_empty() => {
                    once(placement.subnet.is_some())?;
                    placement.subnet = Some(subnet.to_owned());
                }
                ("ip", Some(address)) => {
                    once(placement.address.is_some())?;
                    let address =
                        address.parse().map_err(|_| format!("{address:?} is not an IPv4 address"))?;
                    placement.address = Some(address);
                }
                ("group", Some(group)) if !group.is_empty() => placement.groups.push(group.to_owned()),
                ("ipv6", wish) => {
                    once(placement.ipv6 != Ipv6Wish::None)?;
                    placement.ipv6 = match wish {
                        None => Ipv6Wish::Any,
                        Some(address) => Ipv6Wish::Address(
                            address.parse().map_err(|_| format!("{address:?} is not an IPv6 address"))?,
                        ),
                    };
                }
                _ => {
                    return Err(format!(
                        "{part:?} says nothing of an interface (expected subnet=SUBNET, ip=ADDRESS, group=NAME, \
                         ipv6 or ipv6=ADDRESS)"
                    ));
                }
            }
        }
        Ok(InterfaceArg(placement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_in_any_order() {
        let read: InterfaceArg = "group=web,subnet=blue-2,group=ssh,ipv6,ip=10.50.2.9".parse().unwrap();
        assert_eq!(read.0.subnet.as_deref(), Some("blue-2"));
        assert_eq!((read.0.address, read.0.ipv6), (Some([10, 50, 2, 9].into()), Ipv6Wish::Any));
        assert_eq!(read.0.groups, ["web", "ssh"]);
        let read: InterfaceArg = "ipv6=fd00::9".parse().unwrap();
        assert_eq!(read.0.ipv6, Ipv6Wish::Address("fd00::9".parse().unwrap()));
        assert_eq!("".parse::<InterfaceArg>().unwrap().0.subnet, None);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, word) in [
            ("subnet", "expected subnet=SUBNET"),
            ("subnet=", "expected"),
            ("ip=10.0.0", "\"10.0.0\" is not an IPv4 address"),
            ("ip=10.0.0.4,ip=10.0.0.5", "ip is given twice"),
            ("ipv6=10.0.0.4", "not an IPv6 address"),
            ("public", "\"public\" says nothing"),
        ] {
            let error = text.parse::<InterfaceArg>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
