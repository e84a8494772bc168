//! `kiln doctor` and `kiln types`.

use std::path::Path;

use kiln_controlplane::host::doctor::{Verdict, examine};
use kiln_controlplane::printable;
use kiln_model::InstanceType;

use crate::args::JsonArg;
use crate::error::Failure;
use crate::print_json;
use crate::table::Table;

/// `kiln doctor`. Fails when `kiln run` cannot work.
pub fn doctor(state_dir: &Path, args: &JsonArg) -> Result<(), Failure> {
    let findings = examine(state_dir);
    if args.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            let mark = match finding.verdict {
                Verdict::Good => "ok",
                Verdict::Info => "--",
                Verdict::Limited => "!!",
                Verdict::Bad => "XX",
            };
            crate::print(&format!("{mark}  {:12} {}\n", finding.subject, printable(&finding.detail)))?;
            if let Some(remedy) = finding.remedy {
                crate::print(&format!("    {:12} -> {remedy}\n", ""))?;
            }
        }
    }
    let bad: Vec<_> = findings.iter().filter(|f| f.verdict == Verdict::Bad).map(|f| f.subject).collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("instances cannot run on this host yet: see {} above", bad.join(", "))))
}

/// `kiln types`.
pub fn types(args: &JsonArg) -> Result<(), Failure> {
    if args.json {
        let row = |t: InstanceType| serde_json::json!({ "name": t.name, "vcpus": t.vcpus, "memory_bytes": t.memory.as_bytes(), "cpu_template": t.cpu_template().name() });
        return print_json(&InstanceType::all().map(row).collect::<Vec<_>>());
    }
    let mut table = Table::new(["TYPE", "VCPUS", "MEMORY", "CPU"]);
    for t in InstanceType::all() {
        table.row([
            t.name.to_owned(),
            t.vcpus.to_string(),
            t.memory.to_string(),
            t.cpu_template().name().to_owned(),
        ]);
    }
    crate::print(&table.render())
}
