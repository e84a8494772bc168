//! `kiln role …`.

use std::path::Path;

use kiln_controlplane::credentials::{CredentialStatus, NewRole, Role, SourceSpec};
use kiln_controlplane::instances::{ControlPlane, Instance};
use kiln_controlplane::printable;
use kiln_model::Utc;
use serde::Serialize;

use crate::args::JsonArg;
use crate::error::Failure;
use crate::instance_args::InstanceArg;
use crate::metadata::until_applied;
use crate::metadata_args::{RoleAttachArgs, RoleCommand, RoleCreateArgs, RoleShowArgs};
use crate::table::{Table, ago};
use crate::{open, print_json};

/// A role as `--json` shows it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: String,
    id: &'a str,
    arn: &'a str,
    description: &'a str,
    source: String,
    lifetime_seconds: u64,
    created: u64,
    instances: Vec<ShownInstance<'a>>,
}

/// An instance that has it.
#[derive(Debug, Serialize)]
struct ShownInstance<'a> {
    id: String,
    name: Option<&'a str>,
    association: Option<&'a str>,
    /// Absent while it does not run.
    credentials: Option<&'a CredentialStatus>,
}

/// Roles with the instances that have them.
struct Overview {
    instances: Vec<(Instance, Option<String>)>,
    status: Vec<CredentialStatus>,
}

impl Overview {
    fn new(plane: &ControlPlane) -> Result<Self, Failure> {
        let profiles = plane.roles().profiles()?;
        let role_of = |instance: &Instance| {
            let profile = &instance.profile.as_ref()?.profile;
            let found = profiles.iter().find(|p| p.name == *profile)?;
            found.role.as_ref().map(ToString::to_string)
        };
        let instances = plane.instances()?.into_iter().map(|instance| {
            let role = role_of(&instance);
            (instance, role)
        });
        Ok(Overview { instances: instances.collect(), status: plane.credential_status()? })
    }

    fn shown<'a>(&'a self, role: &'a Role) -> Shown<'a> {
        let name = role.name.to_string();
        let having = self.instances.iter().filter(|(_, has)| has.as_ref() == Some(&name));
        let instances = having.map(|(instance, _)| ShownInstance {
            id: instance.id.to_string(),
            name: instance.name(),
            association: instance.profile.as_ref().map(|a| a.id.as_str()),
            credentials: self.status.iter().find(|s| s.instance == instance.id && s.role == name),
        });
        Shown {
            id: &role.id,
            arn: &role.arn,
            description: &role.description,
            source: role.source.to_string(),
            lifetime_seconds: role.lifetime.seconds(),
            created: role.created,
            instances: instances.collect(),
            name,
        }
    }
}

/// Dispatches.
pub fn role(state_dir: &Path, command: &RoleCommand) -> Result<(), Failure> {
    match command {
        RoleCommand::Create(args) => create(state_dir, args),
        RoleCommand::Ls(args) => list(state_dir, args),
        RoleCommand::Show(args) => show(state_dir, args),
        RoleCommand::Rm(args) => {
            let plane = open(state_dir)?;
            args.names.iter().try_for_each(|name| Ok(plane.roles().delete_with_profile(name)?))
        }
        RoleCommand::Attach(args) => attach(state_dir, args),
        RoleCommand::Detach(args) => detach(state_dir, args),
    }
}

fn source(args: &RoleCreateArgs) -> Result<SourceSpec, Failure> {
    let mut spec = args.source.clone();
    let options = [&args.sts_endpoint, &args.sts_region, &args.sts_profile, &args.sts_external_id];
    match &mut spec {
        SourceSpec::Sts(sts) => {
            sts.endpoint.clone_from(&args.sts_endpoint);
            sts.region.clone_from(&args.sts_region);
            sts.profile.clone_from(&args.sts_profile);
            sts.external_id.clone_from(&args.sts_external_id);
        }
        _ if options.iter().any(|option| option.is_some()) => {
            return Err(Failure::new("options that start with --sts- need --source sts:ROLE-ARN"));
        }
        _ => {}
    }
    Ok(spec)
}

fn create(state_dir: &Path, args: &RoleCreateArgs) -> Result<(), Failure> {
    let wish = NewRole {
        name: args.name.clone(),
        description: args.description.clone(),
        source: source(args)?,
        lifetime: args.lifetime,
    };
    wish.check()?;
    let role = open(state_dir)?.roles().create_with_profile(&wish)?;
    crate::print(&format!("{}\n", role.arn))
}

fn list(state_dir: &Path, args: &JsonArg) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let (roles, overview) = (plane.roles().list()?, Overview::new(&plane)?);
    let shown: Vec<Shown<'_>> = roles.iter().map(|role| overview.shown(role)).collect();
    if args.json {
        return print_json(&shown);
    }
    let now = plane.clock().unix_seconds();
    let mut table = Table::new(["NAME", "SOURCE", "LIFETIME", "INSTANCES", "CREATED", "STATE"]);
    for role in &shown {
        let failing = role.instances.iter().filter_map(|i| i.credentials?.error.as_ref()).count();
        table.row([
            role.name.clone(),
            printable(&role.source),
            duration(role.lifetime_seconds),
            role.instances.len().to_string(),
            ago(role.created, now),
            if failing == 0 { "ok".to_owned() } else { format!("{failing} failing") },
        ]);
    }
    crate::print(&table.render())
}

fn show(state_dir: &Path, args: &RoleShowArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let (role, overview) = (plane.roles().get(&args.name)?, Overview::new(&plane)?);
    let shown = overview.shown(&role);
    if args.json {
        return print_json(&shown);
    }
    let mut text = format!(
        "Role      {} ({})\nARN       {}\nSource    {}\nLifetime  {}\n",
        shown.name,
        shown.id,
        shown.arn,
        printable(&shown.source),
        duration(shown.lifetime_seconds)
    );
    if !shown.description.is_empty() {
        text.push_str(&format!("About     {}\n", printable(shown.description)));
    }
    for instance in &shown.instances {
        let title = match instance.name {
            Some(name) => format!("{name} ({})", instance.id),
            None => instance.id.clone(),
        };
        text.push_str(&format!("\n{title}\n{}", instance.credentials.map_or_else(not_running, state)));
    }
    crate::print(&text)
}

fn not_running() -> String {
    "  does not run\n".to_owned()
}

/// What of a set of credentials is not secret.
fn state(status: &CredentialStatus) -> String {
    let time = |unix| Utc::from_unix(unix).rfc3339();
    let mut text = format!("  Code    {}\n", status.code);
    if let (Some(key), Some(end)) = (&status.access_key_id, status.expiration) {
        text.push_str(&format!("  Key     {} until {}\n", printable(key), time(end)));
    }
    text.push_str(&format!(
        "  Next    {} ({} sets so far, {} failures)\n",
        time(status.next_fetch),
        status.rotations,
        status.failures
    ));
    if let Some(error) = &status.error {
        text.push_str(&format!("  Error   {}\n", printable(error)));
    }
    text
}

fn duration(seconds: u64) -> String {
    match seconds {
        s if s.is_multiple_of(3600) => format!("{} h", s / 3600),
        s if s.is_multiple_of(60) => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn attach(state_dir: &Path, args: &RoleAttachArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    // Says what is meant where the role is misspelt.
    let role = plane.roles().get(&args.role)?;
    if args.replace {
        plane.replace_profile(instance.id, role.name.as_str())?;
    } else {
        plane.associate_profile(instance.id, role.name.as_str())?;
    }
    until_applied(&plane, &instance)
}

fn detach(state_dir: &Path, args: &InstanceArg) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    plane.disassociate_profile(instance.id)?;
    until_applied(&plane, &instance)
}
