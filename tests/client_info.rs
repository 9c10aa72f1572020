//! Clusters named in headers by a TLS-terminating balancer: `--client-info-data-file`, as rhelemeter-server takes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use hyper::Request;
use infogw_proto::prometheus::TimeSeries;
use support::{
    Gateway, Reply, Upstream, World,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tempfile::NamedTempFile;

const SECRET: &str = "between-balancer-and-gateway";

/// What a manual of rhelemeter-server would have one write.
fn data(secret: &str) -> String {
    let config = r#"{"secret_header":"x-secret","common_name_header":"X-Common-Name","issuer_header":"x-issuer"}"#;
    format!(r#"{{"secret":"{secret}","config":{config}}}"#)
}

fn file(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

/// A gateway that knows clusters by these headers alone.
async fn gateway(data: &Path, flags: &[&str]) -> (Gateway, Upstream) {
    let upstream = Upstream::accepting().await;
    let url = upstream.url();
    let args = ["--forward-url", url.as_str(), "--client-info-data-file", data.to_str().unwrap()];
    (Gateway::start(args.iter().chain(flags)).await, upstream)
}

/// Remote-writes with these headers.
async fn push(gateway: &Gateway, headers: &[(&str, &str)], series: Vec<TimeSeries>) -> Reply {
    let mut request = Request::post(gateway.public("/metrics/v1/receive"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    support::http::send(request, write_body(series)).await
}

fn of(cluster: &str) -> TimeSeries {
    series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])
}

#[tokio::test]
async fn a_balancer_says_which_cluster_it_is() {
    let data = file(&data(SECRET));
    let (gateway, upstream) = gateway(data.path(), &[]).await;
    // telemeter's test has the first, its manual the second; a balancer may send the whole subject, and header names have no case.
    for subject in ["/O=test-O/CN=c1", "/O = 1234567, /CN = c1", "/C=US/ST=NC/O=Red Hat/OU=x/CN=c1", "/CN=c1"] {
        push(&gateway, &[("X-Secret", SECRET), ("x-common-name", subject)], vec![of("c1")]).await.expect_status(200);
        let write = upstream.received().pop().unwrap();
        assert_eq!(spelt(&write), [r#"up{_id="c1"}"#], "{subject}");
        for header in ["x-secret", "x-common-name"] {
            assert_eq!(write.header(header), None, "goes no further");
        }
    }
    // Its series must carry its name.
    let sent = [("x-secret", SECRET), ("x-common-name", "/O=1/CN=c1")];
    let before = upstream.received().len();
    let refused = push(&gateway, &sent, vec![of("c2"), of("c1")]).await.expect_status(400);
    assert!(refused.reason().contains("label `_id` is `c2`, this sender writes `c1`; 1 of 2"), "{refused:?}");
    assert_eq!(spelt(&upstream.received()[before]), [r#"up{_id="c1"}"#]);

    let metrics = support::http::get(&gateway.internal("/metrics")).await;
    for line in [
        r#"infogw_authorizations_total{source="headers"} 5"#,
        r#"infogw_authorizations_total{source="certificate"} 0"#,
        r#"infogw_authorizations_total{source="token"} 0"#,
        r#"infogw_rejections_total{layer="authorize",reason="client_info",route="receive"} 0"#,
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
}

#[tokio::test]
async fn whatever_is_wrong_is_403_and_goes_nowhere() {
    let data = file(&data(SECRET));
    let (gateway, upstream) = gateway(data.path(), &["--log-level=debug"]).await;
    let token = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
    let secret = ("x-secret", SECRET);
    let subject = ("x-common-name", "/O=1/CN=c1");
    let longer = format!("{SECRET}!");
    let long = format!("/O=1/CN={}", "c".repeat(257));
    let rows: &[(&[(&str, &str)], &str)] = &[
        (&[subject], "the secret must be sent in header `x-secret`"),
        (&[("x-secret", ""), subject], "the secret must be sent in header `x-secret`"),
        (&[("x-secret", "123"), subject], "the secret in header `x-secret` is wrong"),
        (&[("x-secret", &SECRET[1..]), subject], "is wrong"),
        (&[("x-secret", &longer), subject], "is wrong"),
        (&[secret, secret, subject], "header `x-secret` must be sent once"),
        (&[("x-secret", "123"), secret, subject], "header `x-secret` must be sent once"),
        (&[("authorization", &token)], "the secret must be sent in header `x-secret`"),
        (&[("authorization", &token), ("x-secret", "123"), subject], "is wrong"),
        (&[], "the secret must be sent in header `x-secret`"),
        (&[secret], "must be sent in header `x-common-name`"),
        (&[secret, ("x-common-name", "")], "must be sent in header `x-common-name`"),
        (&[secret, subject, subject], "header `x-common-name` must be sent once"),
        (&[secret, subject, ("x-common-name", "/O=1/CN=c2")], "header `x-common-name` must be sent once"),
        (&[secret, ("x-common-name", "invalid")], "must be like `/O=ACCOUNT/CN=CLUSTER`"),
        (&[secret, ("x-common-name", "CN=c1,O=1")], "must be like"),
        (&[secret, ("x-common-name", "/O=1/CN=")], "must be like"),
        (&[secret, ("x-common-name", "/CN=c1/O=1")], "must be like"),
        (&[secret, ("x-common-name", "/O=1/CN=c1,/CN=c2")], "more than one CN or O"),
        (&[secret, ("x-common-name", "/O=1/CN=c1/CN=c1")], "more than one CN or O"),
        (&[secret, ("x-common-name", "/O=1/O=2/CN=c1")], "more than one CN or O"),
        (&[secret, ("x-common-name", "/O=1/CN=c\u{fc}")], "must be like"),
        (&[secret, ("x-common-name", &long)], "over 256 bytes"),
    ];
    for (headers, says) in rows {
        let refused = push(&gateway, headers, vec![of("c1")]).await.expect_status(403);
        assert!(refused.reason().contains(says) && !refused.text().contains(SECRET), "{headers:?}: {refused:?}");
    }
    assert!(upstream.received().is_empty());
    let metrics = support::http::get(&gateway.internal("/metrics")).await;
    let counted = format!(
        "infogw_rejections_total{{layer=\"authorize\",reason=\"client_info\",route=\"receive\"}} {}",
        rows.len()
    );
    assert!(metrics.text().contains(&counted), "{}", metrics.text());
    gateway.wait_for_log("request refused").await;
    let logs = gateway.stop().await.stderr;
    assert!(!logs.contains(SECRET), "{logs}");
}

#[tokio::test]
async fn tokens_are_taken_besides_where_there_is_an_authorizer() {
    let data = file(&data(SECRET));
    let world = World::with(&["--client-info-data-file", data.path().to_str().unwrap()]).await;
    world.receive("c1", vec![of("c1")]).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), 1);
    let subject = ("x-common-name", "/O=1/CN=c2");
    push(&world.gateway, &[("x-secret", SECRET), subject], vec![of("c2")]).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), 1, "nobody is asked about what the balancer says");
    assert_eq!(world.upstream.received().len(), 2);

    // Who shows a secret is held to it, whatever token comes with it.
    let token = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
    let both = [("authorization", token.as_str()), ("x-secret", "no"), subject];
    push(&world.gateway, &both, vec![of("c1")]).await.expect_status(403);
    let both = [("authorization", token.as_str()), ("x-secret", SECRET), subject];
    push(&world.gateway, &both, vec![of("c1")]).await.expect_status(400);
    // Without one a subject says nothing.
    let refused = push(&world.gateway, &[subject], vec![of("c2")]).await.expect_status(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"), "{refused:?}");
    assert_eq!(world.upstream.received().len(), 2);
    // The other routes take no notice.
    world.upload("c3", &format!("up{{_id=\"c3\"}} 1 {}\n", now())).await.expect_status(200);
}

#[tokio::test]
async fn without_an_authorizer_no_token_is_issued() {
    let data = file(&data(SECRET));
    let (gateway, upstream) = gateway(data.path(), &[]).await;
    gateway.wait_for_log("client certificates alone say which cluster it is").await;
    let refused = gateway.authorize("c1", PULL_SECRET).await.expect_status(403);
    assert!(refused.reason().contains("no tokens are taken or issued here"), "{refused:?}");
    gateway.upload("x.y.z", TEXT, "", "up 1\n").await.expect_status(401);
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn the_subject_label_can_be_another_where_no_token_names_a_cluster() {
    let data = file(&data(SECRET));
    let (gateway, upstream) = gateway(data.path(), &["--client-info-subject-label=host"]).await;
    let sent = [("x-secret", SECRET), ("x-common-name", "/CN=c1")];
    let labelled = |host| series(&[("__name__", "up"), ("_id", "any"), ("host", host)], &[(1.0, now())]);
    push(&gateway, &sent, vec![labelled("c1")]).await.expect_status(200);
    assert_eq!(spelt(&upstream.received()[0]), [r#"up{_id="any",host="c1"}"#]);
    let refused = push(&gateway, &sent, vec![labelled("c2")]).await.expect_status(400);
    assert!(refused.reason().contains("label `host` is `c2`"), "{refused:?}");
    let refused = push(&gateway, &sent, vec![of("c1")]).await.expect_status(400);
    assert!(refused.reason().contains("label `host` is missing"), "{refused:?}");

    let path = data.path().display();
    let flags = [
        "--authorize=http://localhost/".to_owned(),
        "--forward-url=http://localhost/".to_owned(),
        format!("--client-info-data-file={path}"),
        "--client-info-subject-label=host".to_owned(),
    ];
    let exit = Gateway::run_to_exit(&flags).await;
    assert_eq!(exit.code(), 64, "{exit:?}");
    assert!(exit.stderr.contains("`host` is not the --partition-label, `_id`"), "{exit:?}");

    for flag in ["--receive-elide-label=host", "--receive-label=host=c1"] {
        let exit = Gateway::run_to_exit([flag].into_iter().chain(flags[1..].iter().map(String::as_str))).await;
        let (name, _) = flag.split_once('=').unwrap();
        let says = format!("error: {name}: `host` is the --client-info-subject-label, which says whose a series is");
        assert!(exit.code() == 64 && exit.stderr.starts_with(&says), "{exit:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_meant_is_refused() {
    for (content, says) in [
        ("", "line 1, column 0: this is not {"),
        ("{\"secret\":\n\"hush", "line 2, column 5: this is not {"),
        (r#"{"secret":"hush"}"#, "secret_header must be set"),
        (r#"{"config":{"secret_header":"s","common_name_header":"c"}}"#, "secret must be set"),
        (r#"{"secret":"hush","config":{"secret_header":"s"}}"#, "common_name_header must be set"),
        (
            r#"{"secret":"hush","config":{"secret_header":"s s","common_name_header":"c"}}"#,
            "secret_header is not the name",
        ),
        (
            r#"{"secret":"hush\n","config":{"secret_header":"s","common_name_header":"c"}}"#,
            "secret cannot stand in a header",
        ),
        (r#"{"secret":["hush"]}"#, "line 1, column 10: this is not {"),
    ] {
        let file = file(content);
        let path = file.path().display().to_string();
        let exit = Gateway::run_to_exit(["--forward-url=http://localhost/", "--client-info-data-file", &path]).await;
        assert_eq!((exit.code(), exit.stderr.lines().count()), (64, 1), "{exit:?}");
        assert!(exit.stderr.contains(&format!("--client-info-data-file: {path}: {says}")), "{exit:?}");
        assert!(!exit.stderr.contains("hush"), "{exit:?}");
    }
}

#[tokio::test]
async fn a_changed_file_is_picked_up_and_a_broken_one_is_not() {
    let config = file(&data(SECRET));
    let (gateway, _upstream) = gateway(config.path(), &[]).await;
    let push = async |secret: &str| {
        let headers = [("x-secret", secret), ("x-common-name", "/O=1/CN=c1")];
        push(&gateway, &headers, vec![of("c1")]).await.status.as_u16()
    };
    assert_eq!([push(SECRET).await, push("next").await], [200, 403]);

    std::fs::write(config.path(), data("")).unwrap();
    let logged = gateway.wait_for_log("the client-info data were not reloaded").await;
    assert!(logged.starts_with("level=error") && logged.contains("secret must be set"), "{logged}");
    assert_eq!(push(SECRET).await, 200);

    std::fs::write(config.path(), data("next")).unwrap();
    gateway.wait_for_log("reloaded the client-info data").await;
    assert_eq!([push(SECRET).await, push("next").await], [403, 200]);
    let metrics = support::http::get(&gateway.internal("/metrics")).await;
    for line in [
        r#"infogw_client_info_reloads_total{result="success"} 1"#,
        r#"infogw_client_info_reloads_total{result="error"} 1"#,
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
}
