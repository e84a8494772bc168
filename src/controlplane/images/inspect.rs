//! What is on an image.

use std::fs::File;
use std::io;

use kiln_disk::bootable::{self, Inspection, Limits};
use kiln_disk::partition::PartitionError;
use kiln_disk::{DiskError, Format, Layer};
use kiln_model::ByteSize;
use kiln_vmspec::DiskFormat;

/// Why an image cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read as its declared format.
    #[error("the image cannot be read")]
    Disk(#[from] DiskError),
    /// It has no partition table.
    #[error("the image has no usable partition table")]
    Table(#[from] PartitionError),
    /// The host failed.
    #[error("the image file cannot be opened again")]
    Io(#[from] io::Error),
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// All of it.
    pub json: serde_json::Value,
    /// Why nothing boots, when nothing does.
    pub problem: Option<String>,
    inspection: Inspection,
}

/// Looks at an image, within limits on time and memory: it may be hostile. Reads only; blocks.
pub fn inspect(file: &File, format: DiskFormat) -> Result<Report, InspectError> {
    let format = match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    };
    let disk = kiln_disk::open(vec![Layer { file: file.try_clone()?, format }], true)?;
    let inspection = bootable::inspect(&disk, &Limits::default())?;
    let json = serde_json::to_value(&inspection).unwrap_or_default();
    Ok(Report { json, problem: inspection.problem.clone(), inspection })
}

impl Report {
    /// For people. Every text in it is printable already.
    pub fn render(&self) -> String {
        let found = &self.inspection;
        let mut lines = vec![
            format!("disk       {}", ByteSize::bytes(found.size)),
            format!("table      {}", name(&found.table)),
            format!("system     {}", found.os.as_deref().unwrap_or("unknown")),
        ];
        for partition in &found.partitions {
            let filesystem = partition.filesystem.as_ref().map_or("-".to_owned(), name);
            let label = partition.label.as_deref().filter(|l| !l.is_empty());
            let mut line = format!(
                "partition  {:<3} {:>10}  {:<8} {}",
                partition.number,
                ByteSize::bytes(partition.size).to_string(),
                filesystem,
                partition.description.unwrap_or(&partition.kind),
            );
            if let Some(label) = label {
                line.push_str(&format!(" \"{label}\""));
            }
            if let Some(problem) = &partition.problem {
                line.push_str(&format!(" (unreadable: {problem})"));
            }
            lines.push(line);
        }
        for (place, entry) in found.entries.iter().enumerate() {
            let mark = if found.default == Some(place) { "boots" } else { "entry" };
            lines.push(format!("{mark:<10} {} ({})", entry.title, entry.origin));
            lines.push(format!("           kernel {}", entry.kernel));
            for initrd in &entry.initrds {
                lines.push(format!("           initrd {initrd}"));
            }
            lines.push(format!("           {}", entry.cmdline));
            if let Some(problem) = &entry.problem {
                lines.push(format!("           cannot boot: {problem}"));
            }
        }
        if let Some(problem) = &self.problem {
            lines.push(format!("boots      nothing: {problem}"));
        }
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// The name that a value has in JSON.
fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}
