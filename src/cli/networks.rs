//! `kiln vpc`, `kiln subnet` and `kiln address`.

use std::path::Path;

use kiln_model::Ipv6Cidr;

use crate::error::Failure;
use crate::network_args::{AddressCommand, SubnetCommand, VpcCommand};
use crate::table::Table;
use crate::{open, print_json};

/// `kiln vpc`.
pub fn vpc(state_dir: &Path, command: &VpcCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        VpcCommand::Create(args) => {
            let vpc = networks.create_vpc(args.cidr, args.ipv6, args.name.as_deref())?;
            crate::print(&format!("{}\n", vpc.id))
        }
        VpcCommand::AddIpv6 { vpc, range } => {
            let vpc = networks.add_ipv6_to_vpc(networks.find_vpc(Some(vpc))?.id, *range)?;
            crate::print(&format!("{}\n", range_text(vpc.ipv6)))
        }
        VpcCommand::Ls(args) => {
            let vpcs = networks.vpcs()?;
            if args.json {
                return print_json(&vpcs);
            }
            let mut table = Table::new(["ID", "NAME", "RANGE", "IPV6"]);
            for vpc in vpcs {
                let ipv6 = range_text(vpc.ipv6);
                table.row([vpc.id.to_string(), vpc.name.unwrap_or_default(), vpc.cidr.to_string(), ipv6]);
            }
            crate::print(&table.render())
        }
        VpcCommand::Rm { vpc } => {
            let vpc = networks.find_vpc(Some(vpc))?;
            Ok(networks.delete_vpc(vpc.id)?)
        }
    }
}

fn range_text(range: Option<Ipv6Cidr>) -> String {
    range.map_or_else(|| "-".to_owned(), |range| range.to_string())
}

/// `kiln subnet`.
pub fn subnet(state_dir: &Path, command: &SubnetCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        SubnetCommand::Create(args) => {
            let vpc = networks.find_vpc(Some(&args.vpc))?;
            let subnet = networks.create_subnet(vpc.id, args.cidr, args.ipv6, args.name.as_deref())?;
            crate::print(&format!("{}\n", subnet.id))
        }
        SubnetCommand::AddIpv6 { subnet, range } => {
            let subnet = networks.add_ipv6_to_subnet(subnet, *range)?;
            crate::print(&format!("{}\n", range_text(subnet.ipv6)))
        }
        SubnetCommand::Ls(args) => {
            let subnets = networks.subnets()?;
            if args.json {
                return print_json(&subnets);
            }
            let mut table = Table::new(["ID", "NAME", "VPC", "RANGE", "IPV6"]);
            for subnet in subnets {
                table.row([
                    subnet.id.to_string(),
                    subnet.name.unwrap_or_default(),
                    subnet.vpc.to_string(),
                    subnet.cidr.to_string(),
                    range_text(subnet.ipv6),
                ]);
            }
            crate::print(&table.render())
        }
        SubnetCommand::Rm { subnet } => Ok(networks.delete_subnet(subnet)?),
    }
}

/// `kiln address`.
pub fn address(state_dir: &Path, command: &AddressCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        AddressCommand::Allocate => crate::print(&format!("{}\n", networks.allocate_address()?.address)),
        AddressCommand::Ls(args) => {
            let addresses = networks.elastic_addresses()?;
            if args.json {
                return print_json(&addresses);
            }
            let mut table = Table::new(["ADDRESS", "ID", "INSTANCE", "SECONDARY"]);
            for row in addresses {
                let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let instance = or_none(row.association.map(|there| there.target()));
                let secondary = or_none(row.association.and_then(|there| Some(there.secondary?.to_string())));
                table.row([row.address.to_string(), row.id.to_string(), instance, secondary]);
            }
            crate::print(&table.render())
        }
        AddressCommand::Associate { address, instance, private, reassociate } => {
            let address = networks.find_elastic(address)?.address;
            let interface = plane.find(instance)?.interface.id;
            let (_, moved) = networks.associate_address(address, interface, *private, *reassociate)?;
            Ok(plane.note_moved(&moved)?)
        }
        AddressCommand::Disassociate { address } => {
            let moved = networks.disassociate_address(networks.find_elastic(address)?.address)?;
            Ok(plane.note_moved(&moved)?)
        }
        AddressCommand::Release { address } => {
            Ok(networks.release_address(networks.find_elastic(address)?.address)?)
        }
    }
}
