//! Every request that botocore writes is read without loss, and every answer is read by botocore without
//! loss: all members of all operations, each side by the published model's own client.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::fmt::Write as _;

use kiln_api::query::{Parameters, decode, envelope};
use kiln_api::schema::{SERVICES, Service};
use serde_json::{Value, json};

fn run(verb: &str, path: &std::path::Path) -> bool {
    let Some(mut command) = api_support::python("shapes.py") else { return false };
    let output = command.arg(verb).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.ends_with(b"done\n"), "{verb}: {text}");
    true
}

#[test]
fn requests_and_answers_of_every_operation_survive_the_wire() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("pairs");
    let mut lines = String::new();
    for service in SERVICES {
        for operation in service.operations {
            writeln!(lines, "{}", json!({"service": service.name, "operation": operation.name})).unwrap();
        }
    }
    std::fs::write(&path, &lines).unwrap();
    if !run("write", &path) {
        return;
    }
    let mut answers = String::new();
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let mut pair: Value = serde_json::from_str(line).unwrap();
        let service = Service::find(pair["service"].as_str().unwrap()).unwrap();
        let operation = service.operation(pair["operation"].as_str().unwrap()).unwrap();
        let form: Parameters = serde_json::from_value(pair["form"].take()).unwrap();
        let read = decode(operation.input, &form, &["Action", "Version"]);
        assert_eq!(read.as_ref(), Ok(&pair["input"]), "{}", operation.name);
        pair["xml"] = envelope(service, operation, &pair["output"], "the-request").unwrap().into();
        writeln!(answers, "{pair}").unwrap();
    }
    assert_eq!(answers.lines().count(), lines.lines().count());
    std::fs::write(&path, answers).unwrap();
    run("read", &path);
}
