//! `kiln acl`.

use std::path::Path;

use kiln_controlplane::network::{NetworkAcl, PeerSpec};
use kiln_model::security::{AclEntry, Direction, Peer};
use serde::Serialize;

use crate::error::Failure;
use crate::network_args::{AclAction, AclAddArgs, AclCommand};
use crate::table::Table;
use crate::{open, print_json};

/// `kiln acl`.
pub fn acl(state_dir: &Path, command: &AclCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    let find = |vpc: &Option<String>, wanted: &str| -> Result<NetworkAcl, Failure> {
        let vpc = networks.find_vpc(vpc.as_deref())?;
        Ok(networks.find_acl(vpc.id, wanted)?)
    };
    match command {
        AclCommand::Create { name, vpc } => {
            let vpc = networks.find_vpc(vpc.as_deref())?;
            crate::print(&format!("{}\n", networks.create_acl(vpc.id, Some(name), &mut |_, _| Ok(()))?.id))
        }
        AclCommand::Add(args) => {
            let acl = find(&args.vpc, &args.acl)?;
            Ok(networks.set_acl_entry(acl.id, &entry(args)?, args.replace)?)
        }
        AclCommand::Remove { acl, number, egress, vpc } => {
            let direction = if *egress { Direction::Egress } else { Direction::Ingress };
            Ok(networks.remove_acl_entry(find(vpc, acl)?.id, direction, *number)?)
        }
        AclCommand::Associate { acl, subnet, vpc } => {
            networks.associate_acl(find(vpc, acl)?.id, subnet)?;
            Ok(())
        }
        AclCommand::Ls(args) => {
            // The first look makes the default VPC, so that its ACL is seen.
            networks.default_subnet()?;
            let associations = networks.acl_associations()?;
            let shown = networks.network_acls()?.into_iter().map(|acl| {
                let subnets = associations.iter().filter(|row| row.acl == acl.id);
                Shown { subnets: subnets.map(|row| row.subnet.to_string()).collect(), acl }
            });
            let shown: Vec<_> = shown.collect();
            if args.json { print_json(&shown) } else { crate::print(&text(&shown)) }
        }
        AclCommand::Rm { acl, vpc } => Ok(networks.delete_acl(find(vpc, acl)?.id)?),
    }
}

fn entry(args: &AclAddArgs) -> Result<AclEntry, Failure> {
    let range = match args.rule.peer {
        PeerSpec::Known(Peer::Ipv4(range)) => range.into(),
        PeerSpec::Known(Peer::Ipv6(range)) => range.into(),
        _ => {
            let text = "an entry of a network ACL is about a range, such as 10.0.0.0/8 or 2001:db8::/32";
            return Err(Failure::new(text.to_owned()));
        }
    };
    Ok(AclEntry {
        number: args.number,
        direction: if args.egress { Direction::Egress } else { Direction::Ingress },
        allow: args.action == AclAction::Allow,
        traffic: args.rule.traffic,
        range,
    })
}

/// An ACL as it is listed.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    acl: NetworkAcl,
    /// Subnets that have it in place of the default one.
    subnets: Vec<String>,
}

fn text(all: &[Shown]) -> String {
    let mut text = String::new();
    for Shown { acl, subnets } in all {
        let of = if acl.default { "all other subnets".to_owned() } else { subnets.join(" ") };
        text += &format!("{} {} in {}: {of}\n", acl.id, acl.name, acl.vpc);
        let mut table = Table::new(["DIRECTION", "NUMBER", "ACTION", "PACKETS"]);
        for entry in &acl.entries {
            let action = if entry.allow { "allow" } else { "deny" };
            let packets = format!("{}:{}", entry.traffic, entry.range);
            table.row([entry.direction.to_string(), entry.number.to_string(), action.to_owned(), packets]);
        }
        text += &table.render();
    }
    text
}
