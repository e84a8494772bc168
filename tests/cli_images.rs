//! `kiln image`: import, list, inspect, remove.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use std::process::Stdio;

use cli_support::{Bench, disk, stderr};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn image_is_imported_listed_inspected_and_removed() {
    let bench = Bench::new();
    let file = bench.file("base-1.raw", &disk(3));
    let output = bench.output(&["image", "import", &file]);
    assert!(output.status.success(), "{}", stderr(&output));
    let id = String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned();
    assert!(id.starts_with("ami-"), "{id}");
    assert!(stderr(&output).contains("does not boot by itself"), "{}", stderr(&output));

    let listed = json(&bench.succeed(&["image", "ls", "--json"]));
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&id.clone().into(), &"base-1".into()));
    assert_eq!(listed[0]["virtual_bytes"], 1 << 20);
    let table = bench.succeed(&["image", "ls"]);
    assert!(table.starts_with("ID") && table.contains(&id) && table.contains("base-1"), "{table}");

    // The source may go; the copy stays and is what it was.
    std::fs::remove_file(&file).unwrap();
    let stored = bench
        .state_dir()
        .join("images")
        .join(format!("sha256-{}.raw", listed[0]["sha256"].as_str().unwrap()));
    assert!(std::fs::read(&stored).unwrap() == disk(3));
    assert!(std::fs::metadata(&stored).unwrap().permissions().readonly());

    let inspected = bench.output(&["image", "inspect", "base-1"]);
    assert!(inspected.status.success() || stderr(&inspected).contains("partition table"));

    assert_eq!(bench.succeed(&["image", "rm", "base-1"]).trim(), id);
    assert!(!cli_support::exists(&stored));
    assert_eq!(json(&bench.succeed(&["image", "ls", "--json"])), json("[]"));
}

#[test]
fn bad_imports_fail_in_one_line_and_leave_no_file() {
    let bench = Bench::new();
    let good = bench.file("a.raw", &disk(1));
    let other = bench.file("b.raw", &disk(2));
    bench.succeed(&["image", "import", &good]);
    for (args, expected) in [
        (vec!["/nonexistent.raw"], "No such file"),
        (vec![bench.file("e.raw", &[]).leak() as &str], "is empty"),
        (vec![bench.file("noformat", &disk(1)).leak() as &str], "--format"),
        (vec![&other, "--name", "a"], "--replace"),
        (vec![&other, "--name", "no/slash"], "cannot be the name"),
        (vec![&other, "--format", "qcow2"], "declared qcow2"),
    ] {
        let mut line = vec!["image", "import"];
        line.extend(args);
        let refusal = bench.fail(&line);
        assert!(refusal.contains(expected), "{line:?}: {refusal}");
    }
    assert_eq!(std::fs::read_dir(bench.state_dir().join("images")).unwrap().count(), 1);
    assert!(bench.fail(&["image", "rm", "c"]).contains("there is no image"));
    assert!(bench.fail(&["image", "inspect", "c"]).contains("there is no image"));
}

#[test]
fn many_processes_import_at_once() {
    let bench = Bench::new();
    let file = bench.file("a.raw", &disk(9));
    let children: Vec<_> = (0..4)
        .map(|n| {
            let mut command = bench.kiln(&["image", "import", &file, "--name", &format!("n{n}")]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let images = json(&bench.succeed(&["image", "ls", "--json"]));
    assert_eq!(images.as_array().unwrap().len(), 4);
    assert_eq!(std::fs::read_dir(bench.state_dir().join("images")).unwrap().count(), 1, "one file for all");
}

#[test]
fn closed_output_is_no_error() {
    let bench = Bench::new();
    let mut child = bench.kiln(&["types"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty());
}
