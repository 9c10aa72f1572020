//! The MSRV that we declare holds for what we depend on, too.

#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, process::Command};

use serde_json::Value;

fn version(text: &str) -> (u64, u64) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap_or(0))
}

#[test]
fn no_dependency_needs_a_newer_compiler() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features", "--filter-platform"])
        .arg("x86_64-unknown-linux-gnu")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));

    // What our crates need to build, not to be tested.
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut wanted: Vec<&str> =
        metadata["workspace_members"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let mut seen = HashSet::new();
    while let Some(id) = wanted.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = nodes.iter().find(|node| node["id"] == id).unwrap();
        for dep in node["deps"].as_array().unwrap() {
            if dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev") {
                wanted.push(dep["pkg"].as_str().unwrap());
            }
        }
    }
    assert!(seen.len() > 100, "the graph was walked");

    let newer: Vec<_> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| seen.contains(package["id"].as_str().unwrap()))
        .filter(|package| package["rust_version"].as_str().is_some_and(|needs| version(needs) > ours))
        .map(|package| format!("{} needs {}", package["name"], package["rust_version"]))
        .collect();
    assert!(newer.is_empty(), "{newer:?}");
}
