//! Arguments of the commands on instances. Doc comments are the help text.

use std::path::PathBuf;

use clap::Args;

/// Options of `kiln start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Id or name.
    pub instance: String,
    /// Leave the instance to kilnd, and return when it runs. Instances of kilnd need not say so.
    #[arg(long, short, conflicts_with = "console_input")]
    pub detach: bool,
    /// Pass standard input to the console even where it is not a terminal.
    #[arg(long)]
    pub console_input: bool,
}

/// An instance.
#[derive(Debug, Args)]
pub struct InstanceArg {
    /// Id or name.
    pub instance: String,
}

/// Options of `kiln stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Id or name.
    pub instance: String,
    /// Seconds to wait for the guest.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    pub timeout: u64,
    /// End the machine at once instead of asking its guest.
    #[arg(long)]
    pub force: bool,
}

/// Options of `kiln terminate`.
#[derive(Debug, Args)]
pub struct TerminateArgs {
    /// Ids or names.
    #[arg(required = true)]
    pub instances: Vec<String>,
}

/// Options of `kiln ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Id or name.
    pub instance: String,
    /// Go on with what it prints, until it has no machine any more.
    #[arg(long, short)]
    pub follow: bool,
}

/// Options of `kiln events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Begin with what kilnd remembers of the past, after the event of this number; 0 for all of it.
    #[arg(long, value_name = "NUMBER")]
    pub since: Option<u64>,
    /// Print JSON, an object on each line.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln type`.
#[derive(Debug, Args)]
pub struct TypeArgs {
    /// Id or name.
    pub instance: String,
    /// Its new type.
    #[arg(value_name = "TYPE")]
    pub instance_type: String,
}

/// Options of `kiln ssh`.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// Id or name, with the user's name before an @ if it is to be said.
    #[arg(value_name = "[USER@]INSTANCE")]
    pub instance: String,
    /// Private key. By default one of ~/.ssh that fits the instance's public key, or what ssh would take.
    #[arg(long, short, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Port of the SSH server.
    #[arg(long, short, default_value_t = 22)]
    pub port: u16,
    /// Command to run instead of a shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
