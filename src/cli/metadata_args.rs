//! The part of the command line that is about roles, metadata and identity. Doc comments are the help
//! text.

use clap::{Args, Subcommand};
use kiln_controlplane::credentials::{InvalidRole, Lifetime, RoleName, SourceSpec};
use kiln_model::Tag;

use crate::args::JsonArg;
use crate::instance_args::InstanceArg;

/// Commands on roles.
#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Make a role, with an instance profile of the same name around it.
    Create(Box<RoleCreateArgs>),
    /// List roles.
    Ls(JsonArg),
    /// Show a role and the instances that have it.
    Show(RoleShowArgs),
    /// Remove roles that no instance has.
    Rm(RoleRemoveArgs),
    /// Give an instance a role; while it runs, too.
    Attach(RoleAttachArgs),
    /// Take the role from an instance. Credentials it holds already live until they expire.
    Detach(InstanceArg),
}

/// Options of `kiln role create`.
#[derive(Debug, Args)]
pub struct RoleCreateArgs {
    /// Name of the role.
    #[arg(value_parser = role_name)]
    pub name: RoleName,
    /// Where credentials come from: issuer (Kiln's own), process:COMMAND (the AWS CLI's
    /// credential_process convention), file:PATH (same format, watched), sts:ROLE-ARN.
    #[arg(long, default_value = "issuer", value_parser = str::parse::<SourceSpec>)]
    pub source: SourceSpec,
    /// How long credentials last, 1h to 12h; seconds without a unit.
    #[arg(long, default_value = "6h", value_name = "TIME", value_parser = lifetime)]
    pub lifetime: Lifetime,
    /// For people.
    #[arg(long, default_value = "")]
    pub description: String,
    /// Endpoint for --source sts instead of AWS's.
    #[arg(long, value_name = "URL")]
    pub sts_endpoint: Option<String>,
    /// Region for --source sts instead of the configured one.
    #[arg(long, value_name = "REGION")]
    pub sts_region: Option<String>,
    /// Profile of this host's AWS configuration for --source sts.
    #[arg(long, value_name = "NAME")]
    pub sts_profile: Option<String>,
    /// External id for --source sts.
    #[arg(long, value_name = "ID")]
    pub sts_external_id: Option<String>,
}

/// Options of `kiln role show`.
#[derive(Debug, Args)]
pub struct RoleShowArgs {
    /// Name of the role.
    pub name: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln role rm`.
#[derive(Debug, Args)]
pub struct RoleRemoveArgs {
    /// Names.
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Options of `kiln role attach`.
#[derive(Debug, Args)]
pub struct RoleAttachArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Name of the role.
    pub role: String,
    /// Replace the role that it has.
    #[arg(long)]
    pub replace: bool,
}

/// Options of `kiln metadata`.
#[derive(Debug, Args)]
pub struct MetadataArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Path below the version, such as meta-data/instance-id, or with one, such as
    /// /2021-03-23/dynamic/; the whole tree without.
    pub path: Option<String>,
    /// Change metadata options, while it runs, too: see `kiln run --help`.
    #[arg(long, value_name = "OPTIONS", conflicts_with = "path")]
    pub set: Option<String>,
}

/// Options of `kiln tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Tags to set.
    #[arg(value_name = "KEY=VALUE", value_parser = tag, required_unless_present = "remove")]
    pub tags: Vec<Tag>,
    /// Key of a tag to remove; may be given again.
    #[arg(long, value_name = "KEY")]
    pub remove: Vec<String>,
}

/// Options of `kiln password`.
#[derive(Debug, Args)]
pub struct PasswordArgs {
    /// Id or name of the instance.
    pub instance: String,
}

/// Commands on the identity of this installation.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum IdentityCommand {
    /// Print the certificate that identity documents of instances are checked with, in PEM.
    Certificate,
    /// Print the public key that signs session tokens, as a JSON Web Key Set.
    Keys,
}

/// A tag as people write it.
pub fn tag(text: &str) -> Result<Tag, String> {
    let (key, value) = text.split_once('=').ok_or("a tag is written KEY=VALUE")?;
    Tag::new(key, value).map_err(|e| e.to_string())
}

/// The name of a role.
pub fn role_name(text: &str) -> Result<RoleName, InvalidRole> {
    text.parse()
}

/// Seconds, or a number with s, m or h.
fn lifetime(text: &str) -> Result<Lifetime, String> {
    let digits = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err("a time is written like 90m or 6h".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a time is written like 90m or 6h".to_owned())?;
    Lifetime::try_from(number.saturating_mul(unit)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_have_units() {
        for (text, seconds) in [("3600", 3600), ("3600s", 3600), ("90m", 5400), ("6h", 21_600)] {
            assert_eq!(lifetime(text).unwrap().seconds(), seconds);
        }
        for text in
            ["", "h", "6d", "6hh", "-1h", "13h", "10", "99999999999999999999h", "9999999999999999999h"]
        {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
