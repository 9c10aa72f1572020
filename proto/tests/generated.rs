//! The types under `src/gen` are checked in, so that building the crate needs neither protoc nor a build script. This keeps
//! them equal to what the `.proto` files generate.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const UPDATE: &str = "UPDATE_GENERATED";

#[test]
fn checked_in_types_are_what_the_proto_files_generate() -> Result<(), Box<dyn Error>> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = crate_dir.join("src/gen");
    let fresh = tempfile::tempdir()?;
    generate(&crate_dir.join("proto"), fresh.path())?;
    let want = files(fresh.path())?;

    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        overwrite(&checked_in, &want)?;
    }

    let have = files(&checked_in)?;
    // By name rather than by content: a diff of two thousand bytes as numbers would bury the message.
    let names = have.keys().chain(want.keys().filter(|name| !have.contains_key(*name)));
    let stale: Vec<_> = names.filter(|name| have.get(*name) != want.get(*name)).collect();
    assert!(
        stale.is_empty(),
        "{stale:?} in proto/src/gen: not what proto/proto/**/*.proto generates; \
         update with `{UPDATE}=1 cargo test -p infogw-proto --test generated` and commit the result"
    );
    Ok(())
}

fn generate(protos: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["prometheus/remote.proto", "io/prometheus/client/metrics.proto"], [protos])?;
    prost_build::Config::new().out_dir(out).compile_fds(descriptors)?;
    Ok(())
}

fn overwrite(dir: &Path, want: &BTreeMap<OsString, Vec<u8>>) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    for name in files(dir)?.keys().filter(|name| !want.contains_key(*name)) {
        fs::remove_file(dir.join(name))?;
    }
    for (name, content) in want {
        fs::write(dir.join(name), content)?;
    }
    Ok(())
}

/// The files of a flat directory, by name.
fn files(dir: &Path) -> Result<BTreeMap<OsString, Vec<u8>>, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files.insert(entry.file_name(), fs::read(entry.path())?);
    }
    Ok(files)
}
