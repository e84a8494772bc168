//! `kiln vpc` and `kiln subnet`.

use std::path::Path;

use crate::args::{SubnetCommand, VpcCommand};
use crate::error::Failure;
use crate::table::Table;
use crate::{open, print_json};

/// `kiln vpc`.
pub fn vpc(state_dir: &Path, command: &VpcCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        VpcCommand::Create(args) => {
            let vpc = networks.create_vpc(args.cidr, args.name.as_deref())?;
            crate::print(&format!("{}\n", vpc.id))
        }
        VpcCommand::Ls(args) => {
            let vpcs = networks.vpcs()?;
            if args.json {
                return print_json(&vpcs);
            }
            let mut table = Table::new(["ID", "NAME", "RANGE"]);
            for vpc in vpcs {
                table.row([vpc.id.to_string(), vpc.name.unwrap_or_default(), vpc.cidr.to_string()]);
            }
            crate::print(&table.render())
        }
        VpcCommand::Rm { vpc } => {
            let vpc = networks.find_vpc(Some(vpc))?;
            Ok(networks.delete_vpc(vpc.id)?)
        }
    }
}

/// `kiln subnet`.
pub fn subnet(state_dir: &Path, command: &SubnetCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        SubnetCommand::Create(args) => {
            let vpc = networks.find_vpc(Some(&args.vpc))?;
            let subnet = networks.create_subnet(vpc.id, args.cidr, args.name.as_deref())?;
            crate::print(&format!("{}\n", subnet.id))
        }
        SubnetCommand::Ls(args) => {
            let subnets = networks.subnets()?;
            if args.json {
                return print_json(&subnets);
            }
            let mut table = Table::new(["ID", "NAME", "VPC", "RANGE"]);
            for subnet in subnets {
                table.row([
                    subnet.id.to_string(),
                    subnet.name.unwrap_or_default(),
                    subnet.vpc.to_string(),
                    subnet.cidr.to_string(),
                ]);
            }
            crate::print(&table.render())
        }
        SubnetCommand::Rm { subnet } => Ok(networks.delete_subnet(subnet)?),
    }
}
