//! The command line as types. Doc comments are the help text.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kiln_controlplane::state::dir;
use kiln_model::size::{GIB, MIB};
use kiln_model::{ByteSize, InstanceType};
use kiln_vmspec::DiskFormat;

/// Run AMI-style images as isolated microVMs on your own Linux host.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Where images, volumes and state live.
    #[arg(long, global = true, env = "KILN_STATE_DIR", value_name = "DIR", default_value = dir::DEFAULT)]
    pub state_dir: PathBuf,
    /// Say what is done, on standard error. Twice: everything. RUST_LOG is finer.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image as an instance, with its serial console on this terminal.
    Run(Box<RunArgs>),
    /// Work with images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// List instances.
    Ps(PsArgs),
    /// Attach this terminal to the serial console of a running instance.
    Console(InstanceArg),
    /// Start a stopped instance again, with its console on this terminal.
    Start(StartArgs),
    /// Press the power button of an instance and wait until it is off.
    Stop(StopArgs),
    /// End an instance for good: its machine, its volume, its address.
    Terminate(TerminateArgs),
    /// List instance types.
    Types(JsonArg),
    /// Say what this host offers, and what to do about each gap.
    Doctor(JsonArg),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `kiln run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name or id of an imported image, or path of a disk image or block device. A path is used
    /// where it is and never written.
    pub image: String,
    /// Size of the machine (see `kiln types`).
    #[arg(long, value_name = "TYPE", default_value = InstanceType::DEFAULT)]
    pub instance_type: String,
    /// Number of vCPUs instead of the type's.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u8>,
    /// Memory instead of the type's, such as 512M or 4G; MiB without a unit.
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub memory: Option<ByteSize>,
    /// Size of the root volume, such as 20G; GiB without a unit. By default that of the image.
    #[arg(long, value_name = "SIZE", value_parser = gibibytes)]
    pub volume_size: Option<ByteSize>,
    /// File given to the instance as user data, at most 16384 bytes.
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Public key that may log in, an OpenSSH .pub file.
    #[arg(long, value_name = "FILE.pub")]
    pub ssh_key: Option<PathBuf>,
    /// Name of the instance.
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the instance when it powers off: `kiln start` runs it again.
    #[arg(long)]
    pub keep: bool,
    /// Format of the image file where its name does not say it (.raw, .img, .qcow2).
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Boot this kernel instead of the image's.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line instead of the image's.
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Append what the guest prints to this file.
    #[arg(long, value_name = "FILE")]
    pub console_log: Option<PathBuf>,
    /// No way to other machines; DHCP, metadata, DNS and time still answer.
    #[arg(long)]
    pub no_network: bool,
    /// Take the memory from the host's pool of 2 MiB pages.
    #[arg(long)]
    pub hugepages: bool,
    /// Metadata options: http-tokens=required|optional, hop-limit=1..64, http-endpoint=enabled|disabled,
    /// instance-metadata-tags=enabled|disabled; separated by commas.
    #[arg(long, value_name = "OPTIONS", default_value = "http-tokens=required,hop-limit=2")]
    pub metadata_options: String,
    /// Pass standard input to the console even where it is not a terminal.
    #[arg(long)]
    pub console_input: bool,
}

/// Options of `kiln start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Id or name.
    pub instance: String,
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

/// Output for programs.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Copy a disk image into the state directory, where it never changes.
    Import(ImportArgs),
    /// List images.
    Ls(JsonArg),
    /// Show what is on an image: partitions, file systems, what it boots.
    Inspect(InspectArgs),
    /// Remove images that no instance needs.
    Rm(RemoveArgs),
}

/// Options of `kiln image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Disk image or block device.
    pub file: PathBuf,
    /// Name of the image; by default that of the file without its end.
    #[arg(long)]
    pub name: Option<String>,
    /// Format where the name does not say it (.raw, .img, .qcow2).
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Move the name here if it stands for another image.
    #[arg(long)]
    pub replace: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln image inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name or id of an imported image, or path of a disk image.
    pub image: String,
    /// Format of a file whose name does not say it.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln image rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Names or ids.
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// Image formats.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// Flat bytes.
    Raw,
    /// QEMU copy-on-write.
    Qcow2,
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => DiskFormat::Raw,
            Format::Qcow2 => DiskFormat::Qcow2,
        }
    }
}

fn mebibytes(text: &str) -> Result<ByteSize, kiln_model::ParseSizeError> {
    ByteSize::parse(text, MIB)
}

fn gibibytes(text: &str) -> Result<ByteSize, kiln_model::ParseSizeError> {
    ByteSize::parse(text, GIB)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_their_default_units() {
        let cli = Cli::try_parse_from(["kiln", "run", "x", "--memory", "512", "--volume-size", "8"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.memory.unwrap().as_bytes(), 512 * MIB);
        assert_eq!(run.volume_size.unwrap().as_bytes(), 8 * GIB);
    }
}
