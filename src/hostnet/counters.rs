//! What the filter has counted.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_model::security::Rule;
use kiln_model::{InterfaceId, VpcId};
use serde::Deserialize;

use crate::error::HostNetError;
use crate::netns::NetNs;
use crate::record::Records;
use crate::{names, nft};

/// Packets and bytes. For rules these are the first packets of conversations: what belongs to one
/// that was allowed is not looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What was refused of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterfaceCounters {
    /// Packets with a source address that is not its own.
    pub spoofed: Count,
    /// ARP with addresses that are not its own.
    pub arp_spoofed: Count,
    /// Frames that are neither IPv4 nor ARP.
    pub other_kinds: Count,
    /// Frames beyond the rate.
    pub over_rate: Count,
    /// Conversations beyond the allowance.
    pub over_allowance: Count,
    /// What the host began, which was let pass.
    pub from_host: Count,
}

/// All counters of a VPC at one moment.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    inet: BTreeMap<String, Count>,
    arp: BTreeMap<String, Count>,
    netdev: BTreeMap<String, Count>,
}

impl Counters {
    /// What a rule has let pass; `None` if it is not in force anywhere.
    pub fn rule(&self, rule: &Rule) -> Option<Count> {
        self.inet.get(&nft::rule_counter(rule)).copied()
    }

    /// What was refused of an interface; zeroes if it is not attached.
    pub fn interface(&self, id: InterfaceId) -> InterfaceCounters {
        let of =
            |table: &BTreeMap<String, Count>, name: String| table.get(&name).copied().unwrap_or_default();
        InterfaceCounters {
            spoofed: of(&self.inet, nft::spoof_counter(id)),
            arp_spoofed: of(&self.arp, nft::spoof_counter(id)),
            other_kinds: of(&self.netdev, nft::kind_counter(id)),
            over_rate: of(&self.netdev, nft::rate_counter(id)),
            over_allowance: of(&self.inet, nft::allowance_counter(id)),
            from_host: of(&self.inet, nft::host_counter(id)),
        }
    }
}

/// Reads all counters of a VPC; none if nothing of it is attached.
pub fn counters(dir: &Path, vpc: VpcId) -> Result<Counters, HostNetError> {
    let _lock = Records::lock(dir)?;
    let Some(namespace) = NetNs::open(&names::vpc_namespace(vpc))? else { return Ok(Counters::default()) };
    namespace.run(|| Ok(Counters { inet: read("inet")?, arp: read("arp")?, netdev: read("netdev")? }))
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    counter: Option<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    packets: u64,
    bytes: u64,
}

fn read(family: &str) -> Result<BTreeMap<String, Count>, HostNetError> {
    parse(&nft::list_counters(family)?)
        .map_err(|error| HostNetError::Filter { place: "the VPC".to_owned(), message: error.to_string() })
}

fn parse(json: &[u8]) -> serde_json::Result<BTreeMap<String, Count>> {
    if json.is_empty() {
        return Ok(BTreeMap::new());
    }
    let listing: Listing = serde_json::from_slice(json)?;
    let counters = listing.nftables.into_iter().filter_map(|item| item.counter);
    Ok(counters.map(|c| (c.name, Count { packets: c.packets, bytes: c.bytes })).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_of_nft_is_read() {
        let json = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "r_1", "table": "kiln", "handle": 7, "packets": 3, "bytes": 180}}]}"#;
        assert_eq!(parse(json).unwrap(), [("r_1".to_owned(), Count { packets: 3, bytes: 180 })].into());
        assert!(parse(b"").unwrap().is_empty());
        assert!(parse(b"{").is_err());
    }
}
