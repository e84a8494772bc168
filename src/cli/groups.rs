//! `kiln sg`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use kiln_controlplane::instances::{ControlPlane, Instance};
use kiln_controlplane::network::{Count, Membership, Reason, SecurityGroup};
use kiln_model::security::{AclDecision, Decision, Direction, Message, Peer, Rule};
use kiln_model::{SecurityGroupId, VpcId};
use serde::Serialize;

use crate::error::Failure;
use crate::network_args::{SgCommand, SgExplainArgs, SgRulesArgs, SgShowArgs};
use crate::table::Table;
use crate::{open, print_json};

/// `kiln sg`.
pub fn sg(state_dir: &Path, command: &SgCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let networks = plane.networks();
    let find = |vpc: &Option<String>, wanted: &str| -> Result<SecurityGroup, Failure> {
        let vpc = networks.find_vpc(vpc.as_deref())?;
        Ok(networks.find_group(vpc.id, wanted)?)
    };
    match command {
        SgCommand::Create(args) => {
            let vpc = networks.find_vpc(args.vpc.as_deref())?;
            let group = networks.create_group(vpc.id, &args.name, &args.description)?;
            crate::print(&format!("{}\n", group.id))
        }
        SgCommand::Authorize(args) => authorize(&plane, &find(&args.vpc, &args.group)?, args),
        SgCommand::Revoke(args) => {
            let group = find(&args.vpc, &args.group)?;
            if args.rule.is_empty() {
                networks.revoke(group.id, direction(args.egress), &args.allow)?;
            } else {
                networks.revoke_ids(group.id, &args.rule)?;
            }
            Ok(())
        }
        SgCommand::Describe { group, rule, description, vpc } => {
            let group = find(vpc, group)?;
            Ok(networks.describe_rules(group.id, &[(*rule, description.clone())])?)
        }
        SgCommand::Ls(args) => list(&plane, args.json),
        SgCommand::Show(args) => show(&plane, &find(&args.vpc, &args.group)?, args),
        SgCommand::Rm(args) => {
            for wanted in &args.groups {
                networks.delete_group(find(&args.vpc, wanted)?.id)?;
            }
            Ok(())
        }
        SgCommand::Assign(args) => {
            let instance = plane.find(&args.instance)?;
            Ok(networks.set_groups(instance.interface.id, &args.groups)?)
        }
        SgCommand::Explain(args) => explain(&plane, args),
    }
}

fn direction(egress: bool) -> Direction {
    if egress { Direction::Egress } else { Direction::Ingress }
}

fn authorize(plane: &ControlPlane, group: &SecurityGroup, args: &SgRulesArgs) -> Result<(), Failure> {
    let mut rules = args.allow.clone();
    for rule in &mut rules {
        rule.description.clone_from(&args.description);
    }
    for rule in plane.networks().authorize(group.id, direction(args.egress), &rules)? {
        crate::print(&format!("{}\n", rule.id))?;
    }
    Ok(())
}

/// How many interfaces are in each group.
fn sizes(memberships: &[Membership]) -> BTreeMap<SecurityGroupId, usize> {
    let mut sizes = BTreeMap::new();
    for group in memberships.iter().flat_map(|row| &row.groups) {
        *sizes.entry(*group).or_default() += 1;
    }
    sizes
}

fn list(plane: &ControlPlane, json: bool) -> Result<(), Failure> {
    // The first look makes the default VPC, so that its default group is seen.
    plane.networks().default_subnet()?;
    let groups = plane.networks().groups()?;
    if json {
        return print_json(&groups);
    }
    let sizes = sizes(&plane.networks().memberships()?);
    let mut table = Table::new(["ID", "NAME", "VPC", "RULES", "INSTANCES", "DESCRIPTION"]);
    for group in groups {
        let members = sizes.get(&group.id).copied().unwrap_or(0);
        table.row([
            group.id.to_string(),
            group.name,
            group.vpc.to_string(),
            group.rules.len().to_string(),
            members.to_string(),
            group.description,
        ]);
    }
    crate::print(&table.render())
}

/// A group as `--json` shows it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    group: &'a SecurityGroup,
    /// First packets of conversations that each rule has let pass; absent where no instance is in
    /// the group.
    packets: BTreeMap<String, u64>,
    instances: Vec<String>,
}

fn show(plane: &ControlPlane, group: &SecurityGroup, args: &SgShowArgs) -> Result<(), Failure> {
    let networks = plane.networks();
    let counters = networks.counters(group.vpc)?;
    let members: Vec<_> =
        networks.memberships()?.into_iter().filter(|row| row.groups.contains(&group.id)).collect();
    if args.json {
        let count = |rule: &Rule| Some((rule.id.to_string(), counters.rule(rule)?.packets));
        return print_json(&Shown {
            group,
            packets: group.rules.iter().filter_map(count).collect(),
            instances: members.iter().map(|row| row.held_by()).collect(),
        });
    }
    let names = Names::new(plane)?;
    let mut text = format!("{} {} in {}: {}\n", group.id, group.name, group.vpc, group.description);
    let mut table = Table::new(["RULE", "DIRECTION", "ALLOWS", "STARTED", "DESCRIPTION"]);
    for rule in &group.rules {
        table.row([
            rule.id.to_string(),
            rule.direction.to_string(),
            names.rule(rule),
            counters.rule(rule).map_or_else(|| "-".to_owned(), |count| count.packets.to_string()),
            rule.description.clone().unwrap_or_default(),
        ]);
    }
    text += &table.render();
    for member in &members {
        text += &format!("{} {}\n", member.held_by(), member.interface.address);
    }
    crate::print(&text)
}

/// Names of groups, for rules that refer to them.
struct Names(BTreeMap<SecurityGroupId, String>);

impl Names {
    fn new(plane: &ControlPlane) -> Result<Self, Failure> {
        Ok(Names(plane.networks().groups()?.into_iter().map(|group| (group.id, group.name)).collect()))
    }

    fn rule(&self, rule: &Rule) -> String {
        match rule.peer {
            Peer::Group(id) => match self.0.get(&id) {
                Some(name) => format!("{}:{name}", rule.traffic),
                None => format!("{rule} (stale: the group is gone)"),
            },
            _ => rule.to_string(),
        }
    }
}

fn explain(plane: &ControlPlane, args: &SgExplainArgs) -> Result<(), Failure> {
    let instance = plane.find(&args.instance)?;
    let vpc = instance.interface.subnet.vpc;
    let peer = peer_address(plane, vpc, args)?;
    let own = if peer.is_ipv4() { IpAddr::V4(instance.interface.address) } else { ipv6_of(&instance)? };
    let message = match message(&args.port)? {
        Message::ECHO_REQUEST if peer.is_ipv6() => Message::ECHO_REQUEST_V6,
        message => message,
    };
    let (from, to) = if args.egress { (own, peer) } else { (peer, own) };
    let told = plane.networks().explain(vpc, from, to, message)?;
    let names = Names::new(plane)?;
    let verdict = if told.passes() { "allowed" } else { "denied" };
    let mut text = format!("{from} -> {to} {}: {verdict}\n", message.traffic());
    let [out, into] = told.acls;
    for (end, reason, acl) in [("sender", &told.egress, out), ("receiver", &told.ingress, into)] {
        text += &format!("  {end:8}  {}\n", reason_text(&names, reason));
        match acl {
            AclDecision::NotAsked => {}
            AclDecision::Entry { number, allow } => {
                let verb = if allow { "allows" } else { "denies" };
                text += &format!("            entry {number} of its subnet's network ACL {verb} it\n");
            }
            AclDecision::Denied => text += "            no entry of its subnet's network ACL allows it\n",
        }
    }
    crate::print(&text)
}

fn reason_text(names: &Names, reason: &Reason) -> String {
    let started = |count: &Option<Count>| match count {
        Some(count) => format!("{} started so far", count.packets),
        None => "not in force: the instance is not running".to_owned(),
    };
    match (reason.decision, &reason.rule) {
        (_, Some((group, rule, count))) => {
            format!("{} of {} ({}), {}", names.rule(rule), group.name, rule.id, started(count))
        }
        (Decision::Rule(..), None) => "a rule that has just gone".to_owned(),
        (Decision::Host, _) => "this host, which may (the instance was run without groups)".to_owned(),
        (Decision::Denied, _) => "no rule allows it".to_owned(),
        (Decision::Elsewhere, _) => "not in this VPC: has no groups".to_owned(),
    }
}

fn ipv6_of(instance: &Instance) -> Result<IpAddr, Failure> {
    let none = || Failure::new(format!("{} has no IPv6 address (see kiln run --ipv6)", instance.id));
    Ok(IpAddr::V6(instance.interface.ipv6.ok_or_else(none)?))
}

fn peer_address(plane: &ControlPlane, vpc: VpcId, args: &SgExplainArgs) -> Result<IpAddr, Failure> {
    if let Ok(address) = args.peer.parse() {
        return Ok(address);
    }
    let instance: Instance = plane.find(&args.peer)?;
    if instance.interface.subnet.vpc != vpc {
        return Err(Failure::new(format!("{} is in another VPC: the two never meet", instance.id)));
    }
    if args.ipv6 { ipv6_of(&instance) } else { Ok(instance.interface.address.into()) }
}

/// `22`, `tcp:22`, `udp:53`, `icmp` (a ping), or the number of a protocol after `proto:`.
fn message(text: &str) -> Result<Message, Failure> {
    let bad = || {
        Failure::new(format!(
            "{text:?} is nothing to connect to (expected 22, tcp:22, udp:53, icmp or proto:47)"
        ))
    };
    let port = |port: &str| port.parse::<u16>().map_err(|_| bad());
    match text.split_once(':') {
        Some(("tcp", number)) => Ok(Message::Tcp { port: port(number)? }),
        Some(("udp", number)) => Ok(Message::Udp { port: port(number)? }),
        Some(("proto", number)) => {
            number.parse().map(|protocol| Message::Other { protocol }).map_err(|_| bad())
        }
        None if text == "icmp" => Ok(Message::ECHO_REQUEST),
        None => Ok(Message::Tcp { port: port(text)? }),
        Some(_) => Err(bad()),
    }
}
