//! No secret comes out: known ones of every kind go in by every way there is, at the most talkative level, between neighbours that quote
//! what they are sent; then all that was said is searched for them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use http_body_util::Full;
use hyper::{Request, body::Bytes, header::AUTHORIZATION};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use support::{
    Answer, Authorizer, Gateway, RedisServer, Registration, Reply, Server, Upstream, Write, authorizer, ensure,
    eventually, http,
    payload::{composite_token, series, write_body},
    process::{self, Exit},
    server::Received,
    tls::Authority,
    world::{TEXT, now},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Secrets by name, all that was said by where, and files to keep secrets in.
struct Inquiry {
    secrets: BTreeMap<String, Vec<u8>>,
    said: Vec<(String, String)>,
    files: TempDir,
}

impl Inquiry {
    fn new() -> Self {
        Inquiry { secrets: BTreeMap::new(), said: Vec::new(), files: TempDir::new().unwrap() }
    }

    /// A new secret, with characters that encodings change.
    fn secret(&mut self, name: &str) -> String {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        self.know(name, format!("{random}+/=&~{random}"))
    }

    /// This is a secret, too.
    fn know(&mut self, name: &str, secret: impl Into<String>) -> String {
        let secret = secret.into();
        assert!(secret.len() >= 12, "{name}: whatever is shorter may turn up by chance");
        self.secrets.insert(name.to_owned(), secret.clone().into_bytes());
        secret
    }

    /// A new key, each line of which is a secret.
    fn key(&mut self, name: &str) -> String {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for (n, line) in pem.lines().filter(|line| !line.starts_with("-----")).enumerate() {
            self.know(&format!("{name}, line {n}"), line);
        }
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        self.secrets.insert(format!("{name}, DER"), BASE64_STANDARD.decode(der).unwrap());
        pem
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn hear(&mut self, place: &str, text: impl Into<String>) {
        self.said.push((place.to_owned(), text.into()));
    }

    fn hear_reply(&mut self, place: &str, reply: &Reply) {
        let headers: Vec<_> =
            reply.headers.iter().map(|(name, value)| format!("{name}: {}", lossy(value.as_bytes()))).collect();
        self.hear(place, format!("{}\n{}\n\n{}", reply.status, headers.join("\n"), lossy(&reply.body)));
    }

    fn hear_exit(&mut self, place: &str, exit: &Exit) {
        self.hear(&format!("{place}, stdout"), &*exit.stdout);
        self.hear(&format!("{place}, stderr"), &*exit.stderr);
    }

    /// Ends it, and checks that it logged at debug.
    async fn stop(&mut self, place: &str, gateway: Gateway) {
        let exit = gateway.stop().await;
        assert_eq!(exit.code(), 0, "{exit:?}");
        assert!(exit.stderr.contains("level=debug "), "{place}: nothing at debug: {}", exit.stderr);
        self.hear_exit(place, &exit);
    }

    /// What was said of secrets, and where.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, secret) in &self.secrets {
            let forms = forms(secret);
            for (place, text) in &self.said {
                if let Some((form, spelt)) = forms.iter().find(|(_, spelt)| text.contains(spelt.as_str())) {
                    let at = text.find(spelt.as_str()).unwrap_or_default();
                    let line = text[..at].rfind('\n').map_or(0, |at| at + 1);
                    let line = text[line..].lines().next().unwrap_or_default();
                    leaks.push(format!("{name}, {form}, in {place}: {line}"));
                }
            }
        }
        leaks
    }

    #[track_caller]
    fn assert_kept(&self) {
        assert!(self.said.len() > 1 && !self.secrets.is_empty());
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    }
}

/// How a secret, or a telling part of one, may be spelt.
fn forms(secret: &[u8]) -> Vec<(&'static str, String)> {
    /// Any 32 bytes on end hold one of these parts.
    const PART: usize = 24;
    let parts: Vec<&[u8]> =
        if secret.len() <= PART { vec![secret] } else { secret.windows(PART).step_by(PART / 3).collect() };
    let mut forms = Vec::new();
    for part in parts {
        let hex = part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        forms.extend([("in hex", hex.clone()), ("in hex", hex.to_uppercase()), ("as a list", listed(part))]);
        if let Ok(text) = std::str::from_utf8(part) {
            let debug = format!("{text:?}");
            forms.extend([
                ("as it is", text.to_owned()),
                ("quoted", debug[1..debug.len() - 1].to_owned()),
                ("in a URL", utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()),
                ("in a form", form_urlencoded::byte_serialize(part).collect()),
            ]);
        }
        for ahead in 0..3 {
            let padded = [&vec![0; ahead][..], part].concat();
            // Of the characters at both ends some bits are of what is beside it.
            let (first, end) = ((ahead * 8).div_ceil(6), padded.len() * 8 / 6);
            forms.push(("in base64", BASE64_STANDARD_NO_PAD.encode(&padded)[first..end].to_owned()));
            forms.push(("in base64 for URLs", BASE64_URL_SAFE_NO_PAD.encode(&padded)[first..end].to_owned()));
        }
    }
    forms
}

fn listed(bytes: &[u8]) -> String {
    bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_said_of_a_secret_is_found() {
    let mut inquiry = Inquiry::new();
    let secret = inquiry.secret("it");
    inquiry.hear("a harmless place", "nothing of it");
    assert!(inquiry.leaks().is_empty());
    for said in [
        secret.clone(),
        format!("{secret:?}"),
        secret[5..40].to_owned(),
        format!("{:?}", secret.as_bytes()),
        BASE64_STANDARD.encode(&secret),
        BASE64_STANDARD.encode(format!("user:{secret}")),
        BASE64_URL_SAFE_NO_PAD.encode(format!("a{secret}b")),
        form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
        utf8_percent_encode(&secret, NON_ALPHANUMERIC).to_string(),
    ] {
        inquiry.said.clear();
        inquiry.hear("a place", format!("before {said} after"));
        assert_eq!(inquiry.leaks().len(), 1, "{said}");
    }
}

/// An issuer of one token, which `refuses` may keep to itself.
async fn issuer(
    token: &str,
    refuses: impl Fn(&Received) -> Option<Answer> + Send + Sync + 'static,
) -> Server<Received> {
    let token = token.to_owned();
    Server::start(move |request: &Received| match request.uri.path() {
        "/.well-known/openid-configuration" => {
            let issuer = format!("http://{}", request.headers["host"].to_str().unwrap());
            Answer::json(200, &json!({ "issuer": issuer, "token_endpoint": format!("{issuer}/token") }))
        }
        _ => refuses(request).unwrap_or_else(|| {
            Answer::json(200, &json!({ "access_token": token, "token_type": "Bearer", "expires_in": 300 }))
        }),
    })
    .await
}

fn header<'h>(headers: &'h hyper::HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn up(cluster: &str) -> Vec<u8> {
    write_body(vec![series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])])
}

/// A gateway with every secret that it can have, and what is around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_at_work_tells_no_secret() {
    let mut inquiry = Inquiry::new();
    let client_secret = inquiry.secret("the client secret");
    let access = format!(
        "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.{}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(json!({ "sub": "gateway", "jti": fastrand::u64(..) }).to_string()),
        std::iter::repeat_with(fastrand::alphanumeric).take(86).collect::<String>()
    );
    inquiry.know("the access token", &*access);
    let pull = inquiry.secret("the pull secret");
    let (balancer, not_balancer) = (inquiry.secret("the balancer's secret"), inquiry.secret("another balancer's"));
    let (internal, not_internal) = (inquiry.secret("the internal token"), inquiry.secret("another internal token"));
    let redis_password = inquiry.secret("the password of Redis");
    let url_key: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
    inquiry.know("the key in the upstream's URL", &*url_key);
    let key = inquiry.key("the shared key");
    let key_file = inquiry.file("key.pem", &key);
    let client_info = |secret: &str| {
        json!({ "secret": secret, "config": { "secret_header": "x-secret", "common_name_header": "x-cn" } }).to_string()
    };
    let client_info_file = inquiry.file("client-info.json", &client_info(&balancer));
    let internal_file = inquiry.file("internal", &format!("{internal}\n"));

    let issuer = issuer(&access, |_| None).await;
    let redis = RedisServer::start_with(&["--requirepass", &redis_password]).await;
    let (asked, upstream) = (Authorizer::granting().await, Upstream::accepting().await);
    let mut command = Gateway::command();
    command
        .args(["--listen=127.0.0.1:0", "--listen-internal=127.0.0.1:0", "--log-level=debug", "--verbose"])
        .args(["--ratelimit=0", "--limit-receive-requests-per-second=1000", "--tenant-key=authorization_token"])
        .args(["--authorize", &asked.url(), "--forward-url", &format!("{}?key={url_key}", upstream.url())])
        .args(["--shared-key", &key_file, "--internal-token-file", &internal_file])
        .args(["--client-info-data-file", &client_info_file, "--oidc-issuer", &issuer.url_of("")])
        .args(["--client-id=gateway", "--redis", &redis.url()])
        .env("INFOGW_CLIENT_SECRET", &client_secret)
        .env("INFOGW_REDIS_PASSWORD", &redis_password);
    let gateway = Gateway::start_command(command).await;

    // What is well.
    let reply = gateway.authorize("c1", &pull).await.expect_status(200);
    let token = reply.json()["token"].as_str().unwrap().to_owned();
    inquiry.know("an upload token", &*token);
    let told = Reply { body: reply.text().replace(&token, "that token").into(), ..reply };
    inquiry.hear_reply("a registration", &told);
    let composite = composite_token(&pull, "c1");
    inquiry.know("a composite token", &*composite);
    let upload = async |token: &str| gateway.upload(token, TEXT, "", format!("up{{_id=\"c1\"}} 1 {}\n", now())).await;
    let reply = upload(&token).await.expect_status(200);
    inquiry.hear_reply("an upload", &reply);
    let reply = gateway.receive(&composite, up("c1")).await.expect_status(200);
    inquiry.hear_reply("a remote write", &reply);
    let by_balancer = async |secret: &str| {
        let request = Request::post(gateway.public("/metrics/v1/receive"))
            .header("x-secret", secret)
            .header("x-cn", "/O=1/CN=c1")
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", "snappy");
        http::send(request, up("c1")).await
    };
    let reply = by_balancer(&balancer).await.expect_status(200);
    inquiry.hear_reply("a balancer's remote write", &reply);
    let reload = async |token: &str| {
        let request = Request::post(gateway.internal("/-/reload"));
        http::send(request.header(AUTHORIZATION, format!("Bearer {token}")), "").await
    };
    let reply = reload(&internal).await.expect_status(200);
    inquiry.hear_reply("a reload", &reply);

    // They were all of use.
    let shown = format!("Bearer {access}");
    for registration in asked.received() {
        assert_eq!(
            (header(&registration.headers, "authorization"), registration.authorization_token()),
            (&*shown, &*pull)
        );
    }
    for write in upstream.received() {
        assert_eq!(
            (write.header("authorization"), write.uri.query()),
            (Some(&*shown), Some(&*format!("key={url_key}")))
        );
    }
    assert_eq!((asked.count(), upstream.count()), (2, 3));
    let basic = form_urlencoded::byte_serialize(client_secret.as_bytes()).collect::<String>();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("gateway:{basic}")));
    assert_eq!(header(&issuer.received()[1].headers, "authorization"), basic);
    eventually("Redis is told of it", async || {
        let keys = redis.cli(&["-a", &redis_password, "--no-auth-warning", "dbsize"]).await;
        ensure(keys.parse::<u32>().is_ok_and(|keys| keys > 0), || keys)
    })
    .await;

    // What is refused.
    let tampered = format!("{}AAAA{}", &token[..token.len() - 24], &token[token.len() - 20..]);
    let signed = |claims: Value| {
        encode(&Header::new(Algorithm::ES256), &claims, &EncodingKey::from_ec_pem(key.as_bytes()).unwrap()).unwrap()
    };
    let claims = json!({
        "iss": "telemeter.selfsigned", "aud": "telemeter-client", "sub": pull, "iat": 1, "nbf": 1, "exp": 2,
        "telemeter.openshift.io": { "labels": { "_id": "c1" } },
    });
    let (expired, strange) = (signed(claims.clone()), signed(json!({ "aud": pull, "exp": pull })));
    inquiry.know("an expired token", &*expired);
    inquiry.know("a strange token", &*strange);
    let composites = [
        json!({ "authorization_token": [pull], "cluster_id": "c1" }).to_string(),
        json!({ "authorization_token": pull }).to_string(),
        json!({ "authorization_token": pull, "cluster_id": { "x": pull } }).to_string(),
        json!({ "authorization_token": pull, "Cluster_Id": pull, "cluster_id": "c1" }).to_string(),
        json!({ "authorization_token": pull, "cluster_id": "c1", &*pull: 1 }).to_string() + &pull,
        json!([pull]).to_string(),
        pull.clone(),
    ];
    let mut credentials = vec![
        format!("Basic {}", BASE64_STANDARD.encode(format!("user:{pull}"))),
        format!("Bearer {pull} {pull}"),
        format!("{pull} Bearer"),
    ];
    credentials
        .extend([&pull, &token[..90].to_owned(), &tampered, &expired, &strange].map(|token| format!("Bearer {token}")));
    credentials.extend(composites.iter().map(|json| format!("Bearer {}", BASE64_STANDARD.encode(json))));
    for (n, credential) in credentials.iter().enumerate() {
        for path in ["/upload", "/metrics/v1/receive", "/authorize", &format!("/authorize?token={url_key}")] {
            let request = Request::post(gateway.public(path)).header(AUTHORIZATION, credential);
            let reply = http::send(request, up("c1")).await;
            assert!(reply.status.is_client_error(), "{path}: {credential}: {reply:?}");
            inquiry.hear_reply(&format!("{path} with bad credential {n}"), &reply);
        }
    }
    let reply = by_balancer(&not_balancer).await;
    assert!(reply.status.is_client_error(), "{reply:?}");
    inquiry.hear_reply("a remote write of no balancer", &reply);
    let reply = reload(&not_internal).await.expect_status(401);
    inquiry.hear_reply("a reload of a stranger", &reply);
    for (n, raw) in [
        format!("POST /upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {pull}\u{1}\r\n\r\n"),
        format!("POST /upload HTTP/1.1\r\nAuthorization: Bearer {pull}\r\nContent-Length: {pull}\r\n\r\n"),
        format!("{pull} /upload HTTP/1.1\r\n\r\n"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{pull}"),
    ]
    .iter()
    .enumerate()
    {
        let mut stream = TcpStream::connect(gateway.public_address()).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It may be reset.
        let _ = support::within("an answer", stream.read_to_end(&mut answer)).await;
        inquiry.hear(&format!("the answer to broken request {n}"), lossy(&answer));
    }
    // By HTTP/2, whose library has log lines of its own.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for credential in [&composite, &pull] {
        let request = Request::post(gateway.public("/metrics/v1/receive"))
            .header(AUTHORIZATION, format!("Bearer {credential}"))
            .header("content-encoding", "snappy");
        let answer = client.request(request.body(Full::new(Bytes::from(up("c1")))).unwrap()).await.unwrap();
        let reply = http::read(answer).await.unwrap();
        inquiry.hear_reply("an answer by HTTP/2", &reply);
    }

    // Neighbours that quote.
    let mut n = 0;
    for status in [200, 302, 400, 401, 403, 404, 409, 429, 500, 502] {
        for content_type in ["application/json", "text/html"] {
            asked.set_script(move |registration: &Registration| {
                let headers = &registration.headers;
                let quote = format!("{} {}", header(headers, "authorization"), registration.body);
                Answer::body(status, content_type, json!({ "reason": quote }).to_string())
                    .header("x-quote", header(headers, "authorization"))
            });
            n += 1;
            // Only what is about us has another token asked for.
            let reply = gateway.receive(&composite_token(&pull, &format!("r{n}")), up("c1")).await;
            inquiry.hear_reply(&format!("a remote write where the authorizer answers {status}"), &reply);
        }
    }
    asked.set_script(authorizer::grant);
    for status in [200, 302, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503] {
        for part in [usize::MAX, 40, 20] {
            upstream.set_script(move |write: &Write| {
                let authorization = write.header("authorization").unwrap_or_default();
                let quote = authorization.get(..part).unwrap_or(authorization);
                Answer::body(status, "text/plain", format!("no: {quote} at {}\n{authorization}", write.uri))
                    .header("x-quote", authorization)
                    .header("location", &format!("/?{authorization}"))
            });
            let reply = gateway.receive(&composite, up("c1")).await;
            inquiry.hear_reply(&format!("a remote write where the upstream answers {status}"), &reply);
            let reply = upload(&token).await;
            inquiry.hear_reply(&format!("an upload where the upstream answers {status}"), &reply);
        }
        upstream.set_script(move |write: &Write| Answer::body(status, "text/plain", format!("no {}", write.uri)));
        let reply = gateway.receive(&composite, up("c1")).await;
        inquiry.hear_reply(&format!("a remote write where the upstream answers {status} with its URL"), &reply);
    }
    upstream.set_script(|_| Answer::body(400, "text/plain", "out of order\n"));
    let reply = upload(&token).await.expect_status(400);
    assert!(reply.reason().contains("out of order"), "what is no secret is told: {reply:?}");

    // Files that are broken, and hold secrets.
    let hush = inquiry.secret("a secret in a broken file");
    for (n, broken) in [
        hush.clone(),
        format!("-----BEGIN PRIVATE KEY-----\n{hush}\n-----END PRIVATE KEY-----\n"),
        format!("-----BEGIN {hush}-----\n"),
        key.replacen('M', &hush, 1),
        format!("{{\"secret\":{{\"{hush}\":1}}}}"),
        json!({ "secret": [hush] }).to_string(),
        json!({ "secret": hush, "config": hush }).to_string(),
        json!(hush).to_string(),
    ]
    .iter()
    .enumerate()
    {
        inquiry.file("key.pem", broken);
        inquiry.file("client-info.json", broken);
        let reply = reload(&internal).await.expect_status(500);
        inquiry.hear_reply(&format!("a reload of broken files {n}"), &reply);
    }
    gateway.wait_for_log("the shared keys were not reloaded").await;
    gateway.wait_for_log("the client-info data were not reloaded").await;
    std::fs::remove_file(&internal_file).unwrap();
    let reply = reload(&internal).await.expect_status(500);
    inquiry.hear_reply("a reload without a token file", &reply);

    // Every page.
    for path in ["/", "/metrics", "/healthz", "/healthz/ready", "/-/reload", "/nowhere", "/config", "/debug/pprof"] {
        let reply = http::get(&gateway.internal(path)).await;
        inquiry.hear_reply(&format!("the internal {path}"), &reply);
        let reply = http::get(&gateway.public(path)).await;
        inquiry.hear_reply(&format!("the public {path}"), &reply);
    }
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    let reply = http::send(Request::get(gateway.internal("/metrics")).header("accept", accept), "").await;
    inquiry.hear_reply("the metrics in protobuf", &reply);

    let logs = gateway.logs().join("\n");
    for expected in ["msg=\"outgoing request\"", "msg=\"request refused\"", "msg=\"receive request\"", "client=oauth"] {
        assert!(logs.contains(expected), "no {expected} in\n{logs}");
    }
    inquiry.stop("the log", gateway).await;
    inquiry.assert_kept();
}

#[tokio::test]
async fn an_issuer_may_quote_the_client_secret() {
    let mut inquiry = Inquiry::new();
    let secret = inquiry.secret("the client secret");
    let quotes: [fn(&str, &str) -> String; 4] = [
        |authorization, _| format!("Invalid header: {authorization}"),
        |authorization, _| authorization.get(6..46).unwrap_or_default().to_owned(),
        |_, secret| format!("{secret} is wrong"),
        |_, secret| form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
    ];
    let (asked, upstream) = (Authorizer::granting().await, Upstream::accepting().await);
    for (n, quote) in quotes.into_iter().enumerate() {
        let sent = secret.clone();
        let issuer = issuer("", move |request| {
            let said = quote(header(&request.headers, "authorization"), &sent);
            Some(Answer::json(401, &json!({ "error": said, "error_description": said, "error_uri": said })))
        })
        .await;
        let file = inquiry.file("secret", &format!("{secret}\n"));
        let gateway = Gateway::start([
            "--log-level=debug",
            "-v",
            "--authorize",
            &asked.url(),
            "--forward-url",
            &upstream.url(),
            "--client-id=gateway",
            "--oidc-issuer",
            &issuer.url_of(""),
            "--client-secret-file",
            &file,
        ])
        .await;
        let line = gateway.wait_for_log("no new token").await;
        assert!(line.contains("the issuer refuses a token: "), "{line}");
        let reply = gateway.receive(&composite_token("pull-secret", "c1"), up("c1")).await.expect_status(503);
        inquiry.hear_reply("a remote write", &reply);
        inquiry.stop(&format!("the log, with issuer {n}"), gateway).await;
    }
    inquiry.assert_kept();
}

/// What speaks as Redis does, and answers each command with an error that quotes it, as Redis does with commands that it does not know.
struct QuotingRedis {
    url: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl QuotingRedis {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 16 * 1024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        let command = lossy(&buffer[..read]);
                        all.lock().unwrap().extend(&buffer[..read]);
                        let quoted = command.replace(['\r', '\n'], " ");
                        let error = format!("-ERR unknown command, with args beginning with: {quoted}\r\n");
                        let commands = command.lines().filter(|line| line.starts_with('*')).count();
                        if stream.write_all(error.repeat(commands).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        QuotingRedis { url, heard }
    }

    async fn hears(&self, secret: &str) {
        eventually("Redis is sent the password", async || {
            let heard = lossy(&self.heard.lock().unwrap());
            ensure(heard.contains(secret), || heard)
        })
        .await;
    }
}

#[tokio::test]
async fn redis_may_quote_its_password() {
    let mut inquiry = Inquiry::new();
    let (password, sentinel) = (inquiry.secret("the password"), inquiry.secret("the sentinels' password"));
    let in_url = utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string();
    let redis = QuotingRedis::start().await;
    let (asked, upstream) = (Authorizer::granting().await, Upstream::accepting().await);
    let real = RedisServer::start_with(&["--requirepass", "another"]).await;
    let (password_file, sentinel_file) =
        (inquiry.file("password", &password), inquiry.file("sentinel", &format!("{sentinel}\r\n")));
    let places = [
        (vec![format!("--redis=redis://me:{in_url}@{}", redis.url)], Some(&password)),
        (vec![format!("--redis=redis://{}", redis.url), format!("--redis-password={password}")], Some(&password)),
        (
            vec![format!("--redis=redis://me@{}", redis.url), format!("--redis-password-file={password_file}")],
            Some(&password),
        ),
        (
            vec![
                format!("--redis=redis://{}", redis.url),
                "--redis-mode=sentinel".to_owned(),
                "--redis-sentinel-master=m".to_owned(),
                format!("--redis-sentinel-password-file={sentinel_file}"),
                format!("--redis-password-file={password_file}"),
            ],
            Some(&sentinel),
        ),
        (vec![format!("--redis=redis://:{in_url}@127.0.0.1:{}", real.port())], None),
        (vec![format!("--redis=redis://:{in_url}@127.0.0.1:1")], None),
    ];
    for (n, (flags, sent)) in places.into_iter().enumerate() {
        redis.heard.lock().unwrap().clear();
        let mut args = vec!["--log-level=debug".to_owned(), "-v".to_owned(), "--authorize".to_owned(), asked.url()];
        args.extend([
            "--forward-url".to_owned(),
            upstream.url(),
            "--limit-receive-requests-per-second=1000".to_owned(),
        ]);
        args.extend(flags);
        let gateway = Gateway::start(&args).await;
        for _ in 0..10 {
            let reply = gateway.receive(&composite_token("pull-secret", "c1"), up("c1")).await.expect_status(200);
            inquiry.hear_reply("a remote write", &reply);
        }
        if let Some(secret) = sent {
            redis.hears(secret).await;
        }
        gateway.wait_for_log("Redis does not keep the rate limits").await;
        inquiry.stop(&format!("the log, with Redis {n}"), gateway).await;
    }
    inquiry.assert_kept();
}

/// A key that is being replaced, and one that is replaced by nonsense.
#[tokio::test]
async fn certificates_are_followed_without_a_word_of_their_keys() {
    let mut inquiry = Inquiry::new();
    let hush = inquiry.secret("a secret in a broken key");
    let leaf = Authority::new().server();
    for (n, line) in leaf.key_pem().lines().filter(|line| !line.starts_with("-----")).enumerate() {
        inquiry.know(&format!("the key, line {n}"), line);
    }
    let (crt, key) = (inquiry.file("tls.crt", &leaf.pem()), inquiry.file("tls.key", &leaf.key_pem()));
    let gateway = Gateway::start([
        "--log-level=debug",
        "--insecure-accept-any-token",
        "--forward-url=https://localhost:1/",
        &format!("--tls-crt={crt}"),
        &format!("--tls-key={key}"),
        &format!("--forward-tls-crt={crt}"),
        &format!("--forward-tls-key={key}"),
    ])
    .await;
    // No TLS: what it makes of that is logged.
    let mut stream = TcpStream::connect(gateway.public_address()).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nAuthorization: Bearer {hush}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = support::within("an answer", stream.read_to_end(&mut answer)).await;
    inquiry.hear("the answer to plaintext", lossy(&answer));
    gateway.wait_for_log("TLS handshake failed").await;
    let reload = gateway.internal("/-/reload");
    for broken in [
        hush.clone(),
        format!("-----BEGIN PRIVATE KEY-----\n{hush}\n-----END PRIVATE KEY-----\n"),
        leaf.key_pem().replacen('M', &hush, 1),
        leaf.key_pem().replace("-----END", "END"),
        format!("-----BEGIN {hush}"),
    ] {
        inquiry.file("tls.key", &broken);
        let reply = http::send(Request::post(&reload), "").await.expect_status(500);
        inquiry.hear_reply("a reload of a broken key", &reply);
        inquiry.file("tls.key", &leaf.key_pem());
        inquiry.file("tls.crt", &broken);
        let reply = http::send(Request::post(&reload), "").await.expect_status(500);
        inquiry.hear_reply("a reload of a broken certificate", &reply);
        inquiry.file("tls.crt", &leaf.pem());
    }
    inquiry.stop("the log", gateway).await;
    inquiry.assert_kept();
}

const LEAST: [&str; 2] = ["--insecure-accept-any-token", "--forward-url=http://localhost:1/receive"];

#[tokio::test]
async fn a_wrong_flag_is_told_without_the_secret_in_it() {
    let mut inquiry = Inquiry::new();
    let secret = inquiry.secret("a secret");
    let dashed = inquiry.know("a secret that begins like a flag", format!("--{}", fastrand::u128(..)));
    let key = inquiry.key("a key");
    let key_file = inquiry.file("key.pem", &key);
    let broken =
        inquiry.file("broken.pem", &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"));
    let crt = inquiry.file("tls.crt", &Authority::new().pem());
    let token = inquiry.file("token", &format!("{secret} {secret}"));
    let url = utf8_percent_encode(&secret, NON_ALPHANUMERIC).to_string();
    let rows: Vec<Vec<String>> = vec![
        vec![format!("--authorize=http://user:{url}@host/")],
        vec![format!("--authorize=user:{url}@host")],
        vec![format!("--authorize=ftp://host/?key={url}")],
        vec![format!("--forward-url=http://user:{url}@host:port/")],
        vec![format!("--forward-url=http://ho st/?key={url}")],
        vec![format!("--oidc-issuer=http://user:{url}@host/"), "--client-id=a".into(), "--client-secret=b".into()],
        vec![format!("--oidc-issuer=http://host/?key={url}"), "--client-id=a".into(), "--client-secret=b".into()],
        vec!["--oidc-issuer=http://host/".into(), "--client-secret".into(), dashed.clone()],
        vec![
            format!("--client-secret={secret}"),
            format!("--client-secret-file={key_file}"),
            "--oidc-issuer=http://a".into(),
            "--client-id=a".into(),
        ],
        vec![format!("--client-secret-file={key}")],
        vec![format!("--shared-key={key}")],
        vec![format!("--shared-key={}", key.replace('\n', " "))],
        vec![format!("--shared-key={broken}")],
        vec!["--shared-key".into(), key.clone()],
        vec!["--oidc-issuer=".into(), secret.clone()],
        vec![format!("--tls-key={key}"), format!("--tls-crt={crt}")],
        vec![format!("--tls-key={broken}"), format!("--tls-crt={crt}")],
        vec![format!("--tls-key={key_file}"), format!("--tls-crt={key_file}")],
        vec![format!("--client-info-data-file={{\"secret\":\"{secret}\"}}")],
        vec![format!("--client-info-data-file={key_file}")],
        vec![format!("--policy={key_file}")],
        vec![format!("--whitelist-file={key_file}")],
        vec![format!("--listen=user:{url}@host:1")],
        vec![format!("--memcached=user:{url}@host:1")],
        vec![format!("--redis=http://:{url}@host")],
        vec![format!("--redis=redis://:{url}@host:port")],
        vec![format!("--redis=redis://:{url}@a,redis://:{url}@b")],
        vec![format!("--redis=redis://:{url}@a"), format!("--redis-password={secret}")],
        vec![format!("--redis-password={secret}")],
        vec!["--redis-password".into(), dashed.clone()],
        vec!["--redis-sentinel-password".into(), dashed.clone()],
        vec![format!("--redis-sentinel-password={secret}"), "--redis=redis://a".into()],
        vec![format!("--redis-tls-key={broken}"), format!("--redis-tls-crt={crt}"), "--redis=rediss://a".into()],
        vec![format!("--redis-tls-key={key_file}"), format!("--redis-tls-crt={broken}"), "--redis=rediss://a".into()],
        vec![format!("--redis-password-file={key}"), "--redis=redis://a".into()],
        vec!["--redis-password-file=/dev/null".into(), "--redis=redis://a".into()],
    ];
    for row in &rows {
        for command in [&[][..], &["check"]] {
            let exit =
                Gateway::run_to_exit(command.iter().map(|arg| (*arg).to_owned()).chain(least(row)).chain(row.clone()))
                    .await;
            assert_eq!((exit.code(), exit.stderr.lines().count()), (64, 1), "{row:?}: {exit:?}");
            inquiry.hear_exit(&format!("{command:?} {row:?}").replace(&secret, "…"), &exit);
        }
    }
    for (args, code) in [
        (vec!["token", "receive", "--cluster=c", "--token-file", &token], 65),
        (vec!["token", "receive", "--cluster=c", "--token", &format!("{secret} x")], 65),
        (vec!["token", "receive", "--cluster=", "--token", &dashed], 64),
        (vec!["token", "receive", "--cluster=c", "--token=t", "--field", &secret.replace('=', "")], 64),
        (vec!["token", "upload", "--cluster=c", "--account=a", "--shared-key", &broken], 65),
        (vec!["token", "upload", "--cluster=c", "--account=a", "--shared-key", &key], 64),
        (vec!["token", "upload", "--cluster=c", "--account=a", &format!("--shared-key={key}")], 64),
        (vec!["explain", "--from", &format!("http://user:{url}@host/")], 64),
        (vec!["explain", "--from", &format!("http://127.0.0.1:1/?key={url}")], 69),
        (vec!["explain", "--from=http://127.0.0.1:1/", "--from-token-file", &token], 69),
    ] {
        let exit = Gateway::run_to_exit(&args).await;
        assert_eq!(exit.code(), code, "{args:?}: {exit:?}");
        inquiry.hear_exit(&format!("{args:?}").replace(&secret, "…"), &exit);
    }
    inquiry.assert_kept();
}

/// What there must be, but for what is given.
fn least(row: &[String]) -> Vec<String> {
    let given = |flag: &str| row.iter().any(|arg| arg.starts_with(flag));
    let replaced = |flag: &str| match flag {
        flag if flag.starts_with("--insecure") => given("--authorize"),
        _ => given("--forward-url"),
    };
    let kept = LEAST.into_iter().filter(|flag| !replaced(flag));
    kept.map(str::to_owned).collect()
}

#[tokio::test]
async fn commands_show_no_secret_that_they_are_not_asked_for() {
    let mut inquiry = Inquiry::new();
    let [client, redis, sentinel, pull] =
        ["the client secret", "the password", "the sentinels' password", "the pull secret"]
            .map(|name| inquiry.secret(name));
    let url_key = inquiry.secret("a key in a URL");
    let url_key = utf8_percent_encode(&url_key, NON_ALPHANUMERIC).to_string();
    let key = inquiry.key("the shared key");
    let key_file = inquiry.file("key.pem", &key);
    for output in ["yaml", "json"] {
        for by_environment in [true, false] {
            let mut command = Gateway::command();
            command.args(["check", "-o", output, "--insecure-accept-any-token", "--shared-key", &key_file]);
            command.arg(format!("--forward-url=https://localhost:1/?key={url_key}&{url_key}"));
            command.args(["--oidc-issuer=http://localhost", "--client-id=gateway"]);
            command.args(["--redis=redis://me@a", "--redis-mode=sentinel", "--redis-sentinel-master=m"]);
            if by_environment {
                command.env("INFOGW_CLIENT_SECRET", &client).env("INFOGW_REDIS_PASSWORD", &redis);
                command.env("INFOGW_REDIS_SENTINEL_PASSWORD", &sentinel);
            } else {
                command.arg(format!("--client-secret={client}")).arg(format!("--redis-password={redis}"));
                command.arg(format!("--redis-sentinel-password={sentinel}"));
            }
            let exit = process::run(command, b"").await;
            assert_eq!(exit.code(), 0, "{exit:?}");
            let shown: Value = serde_saphyr::from_str(&exit.stdout).unwrap();
            for flag in ["client-secret", "redis-password", "redis-sentinel-password"] {
                assert_eq!(shown["flags"][flag], "<hidden>", "{exit:?}");
            }
            inquiry.hear_exit("check", &exit);
        }
    }

    // The environment serves for a cluster's token, too.
    let mut command = Gateway::command();
    command.args(["token", "receive", "--cluster=c1"]).env("INFOGW_TOKEN", &pull);
    let composite = process::run(command, b"").await;
    assert_eq!((composite.code(), &*composite.stdout), (0, &*composite_token(&pull, "c1")), "{composite:?}");
    let upload =
        Gateway::run_to_exit(["token", "upload", "--cluster=c1", "--account=a", "--shared-key", &key_file]).await;
    let signature = upload.stdout.rsplit('.').next().unwrap().to_owned();
    inquiry.know("the signature of an upload token", signature);
    for token in [&composite.stdout, &upload.stdout] {
        for output in ["text", "json"] {
            let mut command = Gateway::command();
            command.args(["token", "read", "-o", output, "--shared-key", &key_file]);
            let exit = process::run(command, token.as_bytes()).await;
            assert_eq!(exit.code(), 0, "{exit:?}");
            inquiry.hear_exit("token read", &exit);
        }
    }

    let quoting = Server::start(|request: &Received| {
        Answer::body(403, "text/plain", format!("no: {} {}", header(&request.headers, "authorization"), request.uri))
    })
    .await;
    let token_file = inquiry.file("token", &pull);
    let exit =
        Gateway::run_to_exit(["explain", "--from", &quoting.url_of("/federate"), "--from-token-file", &token_file])
            .await;
    assert_eq!(exit.code(), 69, "{exit:?}");
    assert_eq!(header(&quoting.received()[0].headers, "authorization"), format!("Bearer {pull}"));
    inquiry.hear_exit("explain", &exit);
    inquiry.assert_kept();
}
