//! The borders between the crates, held against what cargo says.
//!
//! An undeclared dependency does not compile, so it is enough to look at what each crate declares,
//! and at what reaches the VMM through others: no async runtime and no HTTP server may.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crates of this workspace that each may use.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("kiln-model", &[]),
    ("kiln-vmspec", &["kiln-model"]),
    ("kiln-disk", &[]),
    ("kiln-devices", &["kiln-disk", "kiln-model"]),
    ("kiln-linklocal", &["kiln-model", "kiln-vmspec"]),
    ("kiln-sandbox", &[]),
    (
        "kiln-vmm",
        &["kiln-devices", "kiln-disk", "kiln-linklocal", "kiln-model", "kiln-sandbox", "kiln-vmspec"],
    ),
    ("kiln-hostnet", &["kiln-model"]),
    ("kiln-controlplane", &["kiln-disk", "kiln-hostnet", "kiln-model", "kiln-sandbox", "kiln-vmspec"]),
    ("kiln-sts", &["kiln-controlplane", "kiln-model"]),
    ("kiln-api", &["kiln-controlplane", "kiln-model"]),
    ("kiln-cli", &["kiln-controlplane", "kiln-disk", "kiln-model", "kiln-sts", "kiln-vmspec"]),
    ("kiln", &["kiln-api", "kiln-cli", "kiln-disk", "kiln-sandbox", "kiln-sts", "kiln-vmm", "kiln-vmspec"]),
];

/// What must not be linked into the process that a guest may break into.
const BANNED_UNDER_VMM: [&str; 7] =
    ["tokio", "axum", "hyper", "reqwest", "rusqlite", "aws-lc-rs", "kiln-controlplane"];

/// Direct dependencies of every workspace member, and of every package in the tree, by name. Only
/// what is linked into the product: no dependencies of tests or build scripts.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        // What other platforms need was never downloaded here.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeMap<_, _> = packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let linked = |dep: &&serde_json::Value| {
        dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
    };
    nodes
        .iter()
        .map(|node| {
            let deps = node["deps"].as_array().unwrap().iter().filter(linked);
            (names[&text(&node["id"])].clone(), deps.map(|dep| names[&text(&dep["pkg"])].clone()).collect())
        })
        .collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let dependencies = dependencies();
    for (name, used) in dependencies.iter().filter(|(name, _)| name.starts_with("kiln")) {
        let allowed = ALLOWED.iter().find(|(member, _)| member == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} is not in the table"));
        for dependency in used.iter().filter(|dependency| dependency.starts_with("kiln")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not use {dependency}");
        }
    }
}

#[test]
fn nothing_async_reaches_the_vmm() {
    let dependencies = dependencies();
    let mut reached = BTreeSet::new();
    let mut next = vec!["kiln-vmm".to_owned()];
    while let Some(name) = next.pop() {
        if reached.insert(name.clone()) {
            next.extend(dependencies[&name].iter().cloned());
        }
    }
    for banned in BANNED_UNDER_VMM {
        assert!(!reached.contains(banned), "{banned} is linked into the VMM");
    }
}
