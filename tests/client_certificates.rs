//! Clusters named by their client certificates: `--tls-ca-crt`, O the account and CN the cluster, as rhelemeter-server takes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{fs, time::Duration};

use hyper::Request;
use infogw_proto::prometheus::TimeSeries;
use rcgen::{CertificateParams, DistinguishedName, DnType};
use support::{
    Gateway, Prometheus, Reply, Upstream, World, ensure, eventually,
    payload::{composite_token, series, write_body},
    tls::{Authority, ClientOptions, Leaf, TlsClient, TlsConnection, Volume},
    world::{PULL_SECRET, now, spelt},
};

/// Two authorities: the server's and the clients'.
struct Tls {
    servers: Authority,
    clients: Authority,
    files: Volume,
    ca: Volume,
}

impl Tls {
    fn new() -> Self {
        let (servers, clients) = (Authority::new(), Authority::new());
        let (files, ca) = (Volume::of(&servers.server()), Volume::new(&[("ca.crt", &clients.pem())]));
        Self { servers, clients, files, ca }
    }

    fn flags(&self) -> Vec<String> {
        let pair = [self.files.flag("--tls-crt", "tls.crt"), self.files.flag("--tls-key", "tls.key")];
        [&pair[..], &[self.ca.flag("--tls-ca-crt", "ca.crt")]].concat()
    }

    /// With no authorizer.
    async fn gateway(&self, flags: &[&str]) -> (Gateway, Upstream) {
        let upstream = Upstream::accepting().await;
        let forward = format!("--forward-url={}", upstream.url());
        let flags = flags.iter().map(|&flag| flag.to_owned());
        (Gateway::start(self.flags().into_iter().chain([forward]).chain(flags)).await, upstream)
    }

    async fn world(&self, flags: &[&str]) -> World {
        let own = self.flags();
        let flags: Vec<_> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        World::with(&flags).await
    }

    /// Remote-writes over a connection of its own.
    async fn push(
        &self,
        gateway: &Gateway,
        shows: Option<&Leaf>,
        headers: &[(&str, &str)],
        series: Vec<TimeSeries>,
    ) -> Reply {
        let client = TlsClient::new(&self.servers, &ClientOptions { shows, alpn: &["h2"], ..ClientOptions::default() });
        let mut connection = client.connect(gateway.public_address()).await.unwrap();
        let mut request = Request::post("/metrics/v1/receive");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        connection.send(request, write_body(series)).await.unwrap()
    }
}

fn of(cluster: &str) -> TimeSeries {
    series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])
}

async fn counts(gateway: &Gateway, lines: &[&str]) {
    let metrics = support::http::get(&gateway.internal("/metrics")).await;
    for line in lines {
        assert!(metrics.text().lines().any(|found| found == *line), "no {line} in {}", metrics.text());
    }
}

#[tokio::test]
async fn a_certificate_says_which_cluster_it_is() {
    let tls = Tls::new();
    let (gateway, upstream) = tls.gateway(&[]).await;
    let c1 = tls.clients.client("1234567", "c1");
    tls.push(&gateway, Some(&c1), &[], vec![of("c1")]).await.expect_status(200);
    assert_eq!(spelt(&upstream.received()[0]), [r#"up{_id="c1"}"#]);

    let refused = tls.push(&gateway, Some(&c1), &[], vec![of("c2"), of("c1")]).await.expect_status(400);
    assert!(refused.reason().contains("label `_id` is `c2`, this sender writes `c1`; 1 of 2"), "{refused:?}");
    assert_eq!(spelt(&upstream.received()[1]), [r#"up{_id="c1"}"#]);

    // Nothing that a client says of itself counts.
    let said = [("x-common-name", "/CN=c2"), ("x-secret", "s"), ("authorization", "Bearer x")];
    tls.push(&gateway, Some(&c1), &said, vec![of("c2")]).await.expect_status(400);
    tls.push(&gateway, Some(&c1), &said, vec![of("c1")]).await.expect_status(200);

    let refused = tls.push(&gateway, None, &said, vec![of("c1")]).await.expect_status(401);
    assert!(refused.reason().contains("client certificate"), "{refused:?}");
    assert_eq!(refused.header("www-authenticate"), None, "no token helps");
    assert_eq!(upstream.received().len(), 3);
    counts(
        &gateway,
        &[
            r#"infogw_authorizations_total{source="certificate"} 4"#,
            r#"infogw_authorizations_total{source="token"} 0"#,
            r#"infogw_rejections_total{layer="authorize",reason="unauthenticated",route="receive"} 1"#,
        ],
    )
    .await;
}

/// The handshake is long past when it does.
#[tokio::test]
async fn a_certificate_that_expires_ends_with_its_connection_open() {
    let tls = Tls::new();
    let (gateway, _upstream) = tls.gateway(&[]).await;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "c1");
    params.not_after =
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now().unsigned_abs()) + Duration::from_secs(8);
    let leaf = tls.clients.issue(&params);
    let connect = async |alpn| {
        let options = ClientOptions { shows: Some(&leaf), alpn: &[alpn], ..ClientOptions::default() };
        TlsClient::new(&tls.servers, &options).connect(gateway.public_address()).await.unwrap()
    };
    let mut connections = [connect("http/1.1").await, connect("h2").await];
    let push = async |connection: &mut TlsConnection| {
        connection.send(Request::post("/metrics/v1/receive"), write_body(vec![of("c1")])).await.unwrap()
    };
    for connection in &mut connections {
        push(connection).await.expect_status(200);
    }
    for (connection, hung_up) in connections.iter_mut().zip([Some("close"), None]) {
        let refused = eventually("the certificate to expire", async || {
            let reply = push(connection).await;
            ensure(reply.status == 401, || format!("{reply:?}"))?;
            Ok(reply)
        })
        .await;
        assert!(refused.reason().contains("the client certificate has expired"), "{refused:?}");
        assert_eq!((refused.header("connection"), refused.header("www-authenticate")), (hung_up, None));
    }
}

#[tokio::test]
async fn a_certificate_that_names_nobody_is_403() {
    let tls = Tls::new();
    let world = tls.world(&[]).await;
    let subject = |attributes: &[(DnType, &str)]| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), *value);
        }
        tls.clients.issue(&params)
    };
    let token = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
    let another = |last| DnType::CustomDnType(vec![2, 5, 4, last]);
    for (leaf, says) in [
        (subject(&[(DnType::OrganizationName, "1")]), "no common name"),
        (subject(&[(DnType::CommonName, "c1"), (another(3), "c2")]), "more than one CN or O"),
        (
            subject(&[(DnType::CommonName, "c1"), (DnType::OrganizationName, "1"), (another(10), "2")]),
            "more than one CN or O",
        ),
        (subject(&[(DnType::CommonName, "c\n1")]), "control characters"),
    ] {
        // A token besides does not mend it.
        let refused = tls.push(&world.gateway, Some(&leaf), &[("authorization", &token)], vec![of("c1")]).await;
        assert!(refused.clone().expect_status(403).reason().contains(says), "{refused:?}");
    }
    world.assert_nothing_forwarded();
    counts(&world.gateway, &[r#"infogw_rejections_total{layer="authorize",reason="client_info",route="receive"} 4"#])
        .await;
}

#[tokio::test]
async fn who_shows_none_may_bring_a_token_where_there_is_an_authorizer() {
    let tls = Tls::new();
    let world = tls.world(&[]).await;
    let token = format!("Bearer {}", composite_token(PULL_SECRET, "c2"));
    let token = [("authorization", token.as_str())];
    tls.push(&world.gateway, None, &token, vec![of("c2")]).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), 1);
    let refused = tls.push(&world.gateway, None, &[], vec![of("c2")]).await.expect_status(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"), "{refused:?}");

    // The certificate comes before the token, and needs nobody to ask.
    let c1 = tls.clients.client("1", "c1");
    tls.push(&world.gateway, Some(&c1), &token, vec![of("c2")]).await.expect_status(400);
    tls.push(&world.gateway, Some(&c1), &token, vec![of("c1")]).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), 1);
}

#[tokio::test]
async fn a_balancer_may_have_a_certificate_itself() {
    let tls = Tls::new();
    let data = tempfile::NamedTempFile::new().unwrap();
    let json = r#"{"secret":"s3cret","config":{"secret_header":"x-secret","common_name_header":"x-common-name"}}"#;
    fs::write(data.path(), json).unwrap();
    let flag = format!("--client-info-data-file={}", data.path().display());
    let (gateway, upstream) = tls.gateway(&[&flag]).await;
    let balancer = tls.clients.client("", "balancer");
    let headers = [("x-secret", "s3cret"), ("x-common-name", "/O=1/CN=c1")];
    tls.push(&gateway, Some(&balancer), &headers, vec![of("c1")]).await.expect_status(200);
    tls.push(&gateway, None, &headers, vec![of("c1")]).await.expect_status(200);
    assert_eq!(upstream.received().len(), 2);
    // A client's certificate does not make its headers true.
    let c2 = tls.clients.client("1", "c2");
    let forged = [("x-secret", "guess"), ("x-common-name", "/O=1/CN=c1")];
    tls.push(&gateway, Some(&c2), &forged, vec![of("c1")]).await.expect_status(403);
    tls.push(&gateway, Some(&c2), &forged[1..], vec![of("c1")]).await.expect_status(400);
    tls.push(&gateway, Some(&c2), &[], vec![of("c2")]).await.expect_status(200);
    tls.push(&gateway, None, &[], vec![of("c2")]).await.expect_status(403);
}

#[tokio::test]
async fn delegations_and_the_subject_label_apply() {
    let tls = Tls::new();
    let delegations = tempfile::NamedTempFile::new().unwrap();
    let policy = "overrides: {clusters: {management: {writes_for: [hosted]}, feed: {writes_for: ['*']}}}";
    fs::write(delegations.path(), policy).unwrap();
    let flag = format!("--policy={}", delegations.path().display());
    let (gateway, upstream) = tls.gateway(&[&flag, "--client-info-subject-label=host"]).await;
    let labelled = |host| series(&[("__name__", "up"), ("host", host)], &[(1.0, now())]);
    let offered = || ["management", "hosted", "another"].map(labelled).to_vec();
    for (cluster, status, written) in
        [("management", 400, &["management", "hosted"][..]), ("feed", 200, &["management", "hosted", "another"])]
    {
        let leaf = tls.clients.client("1", cluster);
        tls.push(&gateway, Some(&leaf), &[], offered()).await.expect_status(status);
        let written: Vec<_> = written.iter().map(|host| format!("up{{host={host:?}}}")).collect();
        assert_eq!(spelt(&upstream.received().pop().unwrap()), written);
    }
}

/// A stock Prometheus needs a certificate and nothing else.
#[tokio::test]
async fn a_stock_prometheus_pushes_with_its_certificate() {
    let tls = Tls::new();
    let (gateway, upstream) = tls.gateway(&[]).await;
    let leaf = tls.clients.client("1234567", "c1");
    let own = Volume::new(&[("ca.crt", &tls.servers.pem()), ("tls.crt", &leaf.pem()), ("tls.key", &leaf.key_pem())]);
    let url = format!("https://{}/metrics/v1/receive", gateway.public_address());
    let _sender = Prometheus::start(|address| {
        serde_json::json!({
            "global": { "scrape_interval": "1s", "external_labels": { "_id": "c1" } },
            "scrape_configs": [{ "job_name": "own", "static_configs": [{ "targets": [address.to_string()] }] }],
            "remote_write": [{
                "url": url,
                "tls_config": {
                    "ca_file": own.path("ca.crt"),
                    "cert_file": own.path("tls.crt"),
                    "key_file": own.path("tls.key"),
                    "server_name": "localhost",
                },
                "metadata_config": { "send": false },
            }],
        })
    })
    .await;
    let write = upstream.wait_for(1).await.remove(0);
    let labels = |series: &TimeSeries| series.labels.iter().any(|label| label.name == "_id" && label.value == "c1");
    assert!(!write.request().timeseries.is_empty() && write.request().timeseries.iter().all(labels));
}
