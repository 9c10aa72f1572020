//! `infogw-proxy dev`, as its reader meets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{
    Gateway, ensure, eventually,
    http::get,
    process::{Exit, Process},
};
use tokio::process::Command;

/// The clusters whose series have to arrive, by how they write.
const UPLOADING: [&str; 4] = ["upload-protobuf-1", "upload-protobuf-2", "upload-text-1", "hasty"];
const REMOTE_WRITING: [&str; 3] = ["remote-write-1", "remote-write-2", "impostor"];

#[tokio::test]
async fn the_embedded_clusters_write_what_they_may() {
    let world = World::start().await;

    eventually("series of every cluster", async || {
        for (clusters, tenant) in [(&UPLOADING[..], "dev-upload"), (&REMOTE_WRITING[..], "dev-remote-write")] {
            for cluster in clusters {
                let page = world.cluster(cluster).await;
                let head = page.lines().next().unwrap_or_default();
                ensure(head.starts_with(&format!("{cluster}  tenant {tenant}  ")), || head.to_owned())?;
                for wanted in ["cluster_version{", "apiserver_request_total{", "etcd_request_duration_seconds_bucket{"]
                {
                    ensure(page.contains(wanted), || format!("no {wanted} in {page}"))?;
                }
            }
        }
        Ok(())
    })
    .await;
    // Each of these was tried before what follows can mean anything.
    eventually("each refusal, and drops on both routes", async || {
        let metrics = get(&world.metrics).await.expect_status(200);
        for counter in [
            r#"infogw_rejections_total{layer="authorize",reason="unauthenticated",route="receive"}"#,
            r#"infogw_rejections_total{layer="enforce_labels",reason="cluster_label",route="receive"}"#,
            r#"infogw_rejections_total{layer="rate_limit",reason="rate_limited",route="upload"}"#,
            r#"infogw_series_dropped_total{route="receive"}"#,
            r#"infogw_series_dropped_total{route="upload"}"#,
        ] {
            let value = metrics.text().lines().find_map(|line| line.strip_prefix(counter)?.trim().parse::<f64>().ok());
            ensure(value.is_some_and(|value| value > 0.0), || format!("{counter} is {value:?}"))?;
        }
        Ok(())
    })
    .await;

    for cluster in [&UPLOADING[..], &REMOTE_WRITING[..]].concat() {
        let page = world.cluster(cluster).await;
        for line in page.lines().skip(1) {
            let series = line.split_whitespace().nth(5).unwrap_or_else(|| panic!("no series in {line}"));
            assert!(series.contains(&format!("_id=\"{cluster}\"")), "foreign: {line}");
            assert!(!series.contains("forged"), "foreign: {line}");
            let off = ["up{", "node_uname_info{"].iter().any(|name| series.starts_with(name));
            assert!(!off && !series.contains("alertstate=\"pending\""), "off the allowlist: {line}");
        }
    }
    let overview = get(&world.received).await.expect_status(200);
    assert!(!overview.text().contains("stranger"), "{}", overview.text());

    // What the reader sees of it, as it happens.
    for wanted in [
        "impostor was told: the upstream refused this: ",
        "stranger was told: the upstream answered 401: ",
        "hasty was told: the upstream answered 429: ",
        "remote-write: ",
        "upload: ",
        " | dropped: ",
        " | refused: ",
    ] {
        world.printed(wanted).await;
    }
    let exit = world.stop().await;
    assert_eq!(exit.code(), 0, "{exit:?}");
}

#[tokio::test]
async fn the_printed_line_pushes_by_hand() {
    let world = World::start().await;
    let line = world.printed("| curl ").await;

    let pushed = Command::new("sh").args(["-c", &line]).output().await.expect("sh runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&pushed.stdout), String::from_utf8_lossy(&pushed.stderr));
    assert_eq!((stdout.trim(), &*stderr, pushed.status.code()), ("200", "", Some(0)), "{line}");

    let page = world.cluster("by-hand").await;
    let series = page.lines().nth(1).unwrap_or_else(|| panic!("no series in {page}"));
    assert!(series.trim_start().starts_with("42 ") && series.ends_with("pushed_by_hand{_id=\"by-hand\"}"), "{page}");

    let exit = world.stop().await;
    assert_eq!(exit.code(), 0, "{exit:?}");
}

#[tokio::test]
async fn no_flag_of_the_gateway_goes_with_it() {
    for args in [&["dev", "--listen", "127.0.0.1:0"][..], &["--listen", "127.0.0.1:0", "dev"], &["dev", "x"]] {
        let exit = Gateway::run_to_exit(args).await;
        assert_eq!(exit.code(), 64, "{args:?}: {exit:?}");
        assert_eq!((exit.stderr.lines().count(), exit.stdout.as_str()), (1, ""), "{args:?}: {exit:?}");
    }
}

/// A running `infogw-proxy dev`, and where it says that things are.
struct World {
    process: Process,
    metrics: String,
    received: String,
}

impl World {
    async fn start() -> Self {
        let mut command = Gateway::command();
        command.arg("dev");
        let mut world = World { process: Process::spawn(command), metrics: String::new(), received: String::new() };
        world.metrics = world.printed_url("its metrics").await;
        world.received = world.printed_url("received series").await;
        world
    }

    /// The first line on stdout that holds `needle`.
    async fn printed(&self, needle: &str) -> String {
        eventually(&format!("{needle:?} on stdout"), async || {
            let printed = self.process.printed();
            printed.iter().find(|line| line.contains(needle)).cloned().ok_or_else(|| printed.join("\n"))
        })
        .await
    }

    async fn printed_url(&self, what: &str) -> String {
        let line = self.printed(what).await;
        line.split_whitespace().last().expect("a URL").to_owned()
    }

    /// The page of one cluster; empty while nothing of it was received.
    async fn cluster(&self, id: &str) -> String {
        let page = get(&format!("{}clusters/{id}", self.received)).await;
        if page.status == 404 { String::new() } else { page.expect_status(200).text().to_owned() }
    }

    async fn stop(mut self) -> Exit {
        self.process.signal("TERM").await;
        self.process.exit().await
    }
}
