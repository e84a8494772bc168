//! `kiln interface` and `kiln prefix-list`.
//!
//! Interfaces are attached and detached by `kilnd` where it runs, and otherwise here; machines are spoken to by
//! their own control sockets.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_controlplane::network::{Membership, PrefixList, Secondary};
use kiln_model::{InstanceId, InterfaceId};

use crate::daemon::{Daemon, Parameters};
use crate::error::Failure;
use crate::network_args::{InterfaceCommand, PrefixListCommand};
use crate::table::Table;
use crate::{open, print_json};

/// `kiln interface`.
pub fn interface(state_dir: &Path, command: &InterfaceCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    match command {
        InterfaceCommand::Ls(args) => {
            let rows = networks.memberships()?;
            if args.json {
                return print_json(&rows);
            }
            let mut table = Table::new(["ID", "INSTANCE", "SUBNET", "ADDRESSES", "CHECK"]);
            for row in rows {
                let mut addresses: Vec<_> = row.addresses().iter().map(ToString::to_string).collect();
                addresses.extend(row.interface.ipv6.map(|address| address.to_string()));
                table.row([
                    row.interface.id.to_string(),
                    row.held_by(),
                    row.interface.subnet.id.to_string(),
                    addresses.join(" "),
                    if row.forwards { "off" } else { "on" }.to_owned(),
                ]);
            }
            crate::print(&table.render())
        }
        InterfaceCommand::Create { placement } => {
            let placement = placement.clone().unwrap_or_default().0;
            let made = networks.create_interface(&placement, &mut |_, _| Ok(()))?;
            crate::print(&format!("{}\n", made.interface.id))
        }
        InterfaceCommand::Attach { interface, instance, device_index } => {
            let instance = plane.find(instance)?.id;
            let device = match device_index {
                Some(device) => *device,
                None => first_free(&networks.memberships()?, instance),
            };
            match Daemon::find(&plane)? {
                Some(daemon) => {
                    let parameters = Parameters::default().with("NetworkInterfaceId", interface);
                    let parameters = parameters.with("InstanceId", instance).with("DeviceIndex", device);
                    daemon.call("AttachNetworkInterface", parameters)?;
                }
                None => {
                    plane.attach_interface(instance, *interface, device)?;
                }
            }
            Ok(())
        }
        InterfaceCommand::Detach { interface, force } => {
            match Daemon::find(&plane)? {
                Some(daemon) => {
                    // It has one attachment at most, whose id follows from its own.
                    let attachment = interface.to_string().replacen(InterfaceId::PREFIX, "eni-attach-", 1);
                    let parameters = Parameters::default().with("AttachmentId", attachment);
                    daemon.call("DetachNetworkInterface", parameters.with("Force", force))?;
                }
                None => {
                    plane.detach_interface(*interface, *force)?;
                }
            }
            Ok(())
        }
        InterfaceCommand::Rm { interfaces } => {
            Ok(interfaces.iter().try_for_each(|id| networks.delete_interface(*id))?)
        }
        InterfaceCommand::Assign { instance, addresses, reassign } => {
            let interface = plane.find(instance)?.interface.id;
            let wanted = match addresses.as_slice() {
                [] => Secondary::Any(1),
                these => Secondary::These(these.to_vec()),
            };
            for address in networks.assign_addresses(interface, &wanted, *reassign)? {
                crate::print(&format!("{address}\n"))?;
            }
            Ok(())
        }
        InterfaceCommand::Unassign { instance, addresses } => {
            Ok(networks.unassign_addresses(plane.find(instance)?.interface.id, addresses)?)
        }
        InterfaceCommand::SourceDestCheck { instance, check } => {
            Ok(networks.set_source_dest_check(plane.find(instance)?.interface.id, *check)?)
        }
    }
}

/// The first place behind its first interface that an instance has free.
fn first_free(all: &[Membership], instance: InstanceId) -> u32 {
    let taken: BTreeSet<_> =
        all.iter().filter(|own| own.instance == Some(instance)).map(|own| own.device).collect();
    (1..).find(|device| !taken.contains(device)).unwrap_or(u32::MAX)
}

/// `kiln prefix-list`.
pub fn prefix_list(state_dir: &Path, command: &PrefixListCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    let find = |wanted: &str| -> Result<PrefixList, Failure> {
        let id = wanted.parse().ok();
        let mut all = networks.prefix_lists()?.into_iter();
        all.find(|list| Some(list.id) == id || list.name == wanted).ok_or_else(|| {
            Failure::new(format!("there is no prefix list {wanted} (see kiln prefix-list ls)"))
        })
    };
    match command {
        PrefixListCommand::Create { name, ranges, max_entries } => {
            let list = networks.create_prefix_list(name, *max_entries, ranges)?;
            crate::print(&format!("{}\n", list.id))
        }
        PrefixListCommand::Set { list, ranges } => Ok(networks.set_prefix_list(find(list)?.id, ranges)?),
        PrefixListCommand::Ls(args) => {
            let lists = networks.prefix_lists()?;
            if args.json {
                return print_json(&lists);
            }
            let mut table = Table::new(["ID", "NAME", "RANGES", "MOST"]);
            for list in lists {
                let ranges: Vec<_> = list.ranges.iter().map(ToString::to_string).collect();
                table.row([list.id.to_string(), list.name, ranges.join(" "), list.max_entries.to_string()]);
            }
            crate::print(&table.render())
        }
        PrefixListCommand::Rm { list } => Ok(networks.delete_prefix_list(find(list)?.id)?),
    }
}
