//! What is on an image, found out by a process that has nothing to lose.
//!
//! ```text
//!   kiln (root) ── open file as descriptor ──▶ kiln-vmm --inspect (nobody, bounded) ── JSON ──▶ Report
//! ```
//!
//! The image is hostile and this process may be root, so another one reads it. Its answer is taken
//! as hostile too: bounded, parsed, and shown only through [`printable`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use kiln_model::ByteSize;
use kiln_sandbox::spawn::{Inherit, spawn};
use kiln_vmspec::DiskFormat;
use serde::Deserialize;

use super::format_name;
use crate::printable;
use crate::vmm_process::{VmmError, find_vmm};

/// Longest answer. That of a usual image has 4 KiB.
const MAX_ANSWER: u64 = 4 << 20;

/// Why an image cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no program to look with.
    #[error(transparent)]
    Program(#[from] VmmError),
    /// The program cannot be started or heard.
    #[error("the image inspection cannot be run")]
    Io(#[from] io::Error),
    /// The image is none.
    #[error("the image cannot be used: {0}")]
    Image(String),
    /// The program was ended, by its limits or by a fault.
    #[error("the inspection of the image did not end well, it may be damaged on purpose ({0})")]
    Ended(std::process::ExitStatus),
    /// It did not answer in our form.
    #[error("the inspection of the image gave no sensible answer")]
    Answer(#[from] serde_json::Error),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Report {
    /// All of it.
    #[serde(skip)]
    pub json: serde_json::Value,
    /// Why nothing boots, when nothing does.
    pub problem: Option<String>,
    size: u64,
    table: String,
    os: Option<String>,
    partitions: Vec<Partition>,
    entries: Vec<Entry>,
    default: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Partition {
    number: u32,
    size: u64,
    #[serde(rename = "type")]
    kind: String,
    description: Option<String>,
    filesystem: Option<String>,
    label: Option<String>,
    problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Entry {
    title: String,
    origin: String,
    kernel: String,
    initrds: Vec<String>,
    cmdline: String,
    problem: Option<String>,
}

/// Looks at an image. Reads only; blocks for as long as the image makes it, which is bounded.
pub fn inspect(file: &File, format: DiskFormat) -> Result<Report, InspectError> {
    let mut command = Command::new(find_vmm()?);
    command.args(["--inspect", &file.as_raw_fd().to_string(), "--format", format_name(format)]);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let inherit = Inherit { fd: file.as_fd(), die_with_thread: true, new_pid_namespace: false, cgroups: &[] };
    let child = spawn(command, inherit)?;
    let (status, answer, complaint) = listen(child)?;
    if !status.success() {
        return Err(match (status.code(), complaint.lines().next()) {
            (Some(_), Some(line)) => InspectError::Image(printable(line)),
            _ => InspectError::Ended(status),
        });
    }
    Report::parse(&answer)
}

/// Both streams up to the limit, and the end of the child.
fn listen(mut child: Child) -> io::Result<(std::process::ExitStatus, String, String)> {
    let read = |stream: Option<Box<dyn Read + Send>>| {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
        }
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let stdout = child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>);
    let stderr = child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>);
    // The complaint fits into a pipe unless the child means harm; then its limits end it.
    let answer = read(stdout)?;
    let complaint = read(stderr)?;
    Ok((child.wait()?, answer, complaint))
}

impl Report {
    fn parse(answer: &str) -> Result<Self, InspectError> {
        let json: serde_json::Value = serde_json::from_str(answer)?;
        let mut report: Report = serde_json::from_value(json.clone())?;
        report.json = json;
        Ok(report)
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut lines = vec![
            format!("disk       {}", ByteSize::bytes(self.size)),
            format!("table      {}", self.table),
            format!("system     {}", self.os.as_deref().unwrap_or("unknown")),
        ];
        lines.extend(self.partitions.iter().map(Partition::line));
        for (place, entry) in self.entries.iter().enumerate() {
            let mark = if self.default == Some(place) { "boots" } else { "entry" };
            lines.push(format!("{mark:<10} {} ({})", entry.title, entry.origin));
            lines.push(format!("           kernel {}", entry.kernel));
            lines.extend(entry.initrds.iter().map(|initrd| format!("           initrd {initrd}")));
            lines.push(format!("           {}", entry.cmdline));
            lines.extend(entry.problem.iter().map(|problem| format!("           cannot boot: {problem}")));
        }
        if let Some(problem) = &self.problem {
            lines.push(format!("boots      nothing: {problem}"));
        }
        lines.iter().map(|line| format!("{}\n", printable(line.trim_end()))).collect()
    }
}

impl Partition {
    fn line(&self) -> String {
        let mut line = format!(
            "partition  {:<3} {:>10}  {:<8} {}",
            self.number,
            ByteSize::bytes(self.size).to_string(),
            self.filesystem.as_deref().unwrap_or("-"),
            self.description.as_deref().unwrap_or(&self.kind),
        );
        if let Some(label) = self.label.as_deref().filter(|label| !label.is_empty()) {
            line.push_str(&format!(" \"{label}\""));
        }
        if let Some(problem) = &self.problem {
            line.push_str(&format!(" (unreadable: {problem})"));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_shown_line_by_line_and_made_printable() {
        let answer = serde_json::json!({
            "size": 4 << 20, "table": "gpt", "sector_size": 512, "os": "Bad\u{1b}[31m OS", "default": 0,
            "problem": null,
            "partitions": [{
                "number": 1, "start": 1, "size": 1 << 20, "type": "x", "description": "Linux", "name": "",
                "partuuid": null, "filesystem": "ext4", "label": "root", "uuid": null, "problem": null,
            }],
            "entries": [{
                "title": "T", "origin": "o", "kernel": "/vmlinuz", "initrds": ["/initrd"], "cmdline": "quiet",
                "problem": null,
            }],
        });
        let report = Report::parse(&answer.to_string()).unwrap();
        assert_eq!(report.json, answer);
        let text = report.render();
        assert!(text.contains("partition  1        1 MiB  ext4     Linux \"root\"\n"), "{text}");
        assert!(text.contains("boots      T (o)\n           kernel /vmlinuz\n"), "{text}");
        assert!(text.contains("Bad?[31m OS"), "{text}");
    }

    #[test]
    fn answer_of_another_form_is_an_error() {
        for answer in ["", "{}", "[]", "{\"size\": -1}"] {
            assert!(matches!(Report::parse(answer), Err(InspectError::Answer(_))), "{answer}");
        }
    }
}
