//! Options of the commands on images.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_vmspec::DiskFormat;

use crate::args::JsonArg;

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make an image of an instance, as it is at this moment.
    Create(CreateImageArgs),
    /// Copy a disk image into the state directory, where it never changes.
    Import(ImportArgs),
    /// List images.
    Ls(JsonArg),
    /// Show what is on an image: partitions, file systems, what it boots.
    Inspect(InspectArgs),
    /// Remove images that no instance needs.
    Rm(RemoveArgs),
}

/// Options of `kiln image create`.
#[derive(Debug, Args)]
pub struct CreateImageArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Name of the image.
    pub name: String,
    /// What it is for.
    #[arg(long)]
    pub description: Option<String>,
    /// Let a running guest power off and start again for it, so that its file systems are put away.
    #[arg(long)]
    pub reboot: bool,
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
