//! Discovery and grant, against issuers that a real one would not be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use infogw_layers::{
    client_credentials::{ClientCredentials, ClientSecret, Issued, IssuerError, IssuerUrl, TokenRequest},
    rejection::BoxError,
};
use serde_json::{Value, json};
use tower::{Service, ServiceExt, service_fn};

const ISSUER: &str = "https://issuer.example/realm";
const SECRET: &str = "s3cr=t &%";

/// What the token endpoint was sent.
#[derive(Debug, Clone)]
struct Asked {
    authorization: Option<String>,
    form: BTreeMap<String, String>,
}

#[derive(Clone)]
struct World {
    configuration: Arc<Mutex<(u16, String)>>,
    token: Arc<Mutex<(u16, &'static str, String)>>,
    discoveries: Arc<Mutex<usize>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl World {
    fn new(configuration: &Value, token: &Value) -> Self {
        World {
            configuration: Arc::new(Mutex::new((200, configuration.to_string()))),
            token: Arc::new(Mutex::new((200, "application/json", token.to_string()))),
            discoveries: Arc::default(),
            asked: Arc::default(),
        }
    }

    fn client(
        &self,
    ) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let world = self.clone();
        service_fn(move |request: Request<Full<Bytes>>| {
            let world = world.clone();
            async move {
                let (head, body) = request.into_parts();
                let answer = |status: u16, kind: &str, body: String| {
                    Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(Full::from(body))
                };
                if head.uri == *format!("{ISSUER}/.well-known/openid-configuration") {
                    assert_eq!(head.method, Method::GET);
                    *world.discoveries.lock().unwrap() += 1;
                    let (status, body) = world.configuration.lock().unwrap().clone();
                    return Ok(answer(status, "application/json", body)?);
                }
                assert_eq!(
                    (head.method, head.uri.to_string()),
                    (Method::POST, "https://token.example/t?x=1".to_owned())
                );
                assert_eq!(head.headers[header::CONTENT_TYPE], "application/x-www-form-urlencoded");
                let body = body.collect().await?.to_bytes();
                let form = form_urlencoded::parse(&body).into_owned().collect();
                let authorization = head.headers.get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
                world.asked.lock().unwrap().push(Asked { authorization, form });
                let (status, kind, body) = world.token.lock().unwrap().clone();
                Ok(answer(status, kind, body)?)
            }
        })
    }

    async fn ask(&self) -> Result<Issued, IssuerError> {
        self.issuer().audience("observatorium").oneshot(TokenRequest).await
    }

    fn issuer(
        &self,
    ) -> ClientCredentials<
        impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    > {
        ClientCredentials::new(self.client(), ISSUER.parse().unwrap(), "gate way", SECRET)
    }

    /// The refusal, which never holds the secret.
    async fn fails(&self) -> String {
        let error = self.ask().await.expect_err("this is no token");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET) && !shown.contains("t0ken"), "{shown}");
        error.to_string()
    }
}

fn configuration() -> Value {
    json!({ "issuer": ISSUER, "token_endpoint": "https://token.example/t?x=1" })
}

fn token() -> Value {
    json!({ "access_token": "t0ken", "token_type": "bearer", "expires_in": 300 })
}

#[tokio::test]
async fn the_client_proves_itself_as_the_issuer_wants() {
    // RFC 6749, section 2.3.1: both are form-encoded before they are joined.
    const BASIC: &str = "Basic Z2F0ZSt3YXk6czNjciUzRHQrJTI2JTI1";
    for (methods, basic) in [
        (None, true),
        (Some(json!(["client_secret_post", "client_secret_basic"])), true),
        (Some(json!(["private_key_jwt", "client_secret_post"])), false),
    ] {
        let mut configuration = configuration();
        if let Some(methods) = methods {
            configuration["token_endpoint_auth_methods_supported"] = methods;
        }
        let world = World::new(&configuration, &token());
        world.ask().await.unwrap();
        let asked = world.asked.lock().unwrap()[0].clone();
        assert_eq!(asked.authorization.as_deref(), basic.then_some(BASIC));
        let mut expected = vec![("audience", "observatorium"), ("grant_type", "client_credentials")];
        if !basic {
            expected.extend([("client_id", "gate way"), ("client_secret", SECRET)]);
        }
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(asked.form, expected);
    }
}

#[tokio::test]
async fn configurations_that_do_not_fit_are_refused() {
    let with = |key: &str, value: Value| {
        let mut configuration = configuration();
        configuration[key] = value;
        World::new(&configuration, &token())
    };
    for (world, expected) in [
        (with("issuer", json!("https://issuer.example/realm/")), "that of `https://issuer.example/realm/`"),
        (with("issuer", Value::Null), "configuration answer makes no sense"),
        (with("token_endpoint", json!("http://token.example/t?x=1")), "not an https:// URL"),
        (with("token_endpoint", json!("/t")), "not an https:// URL"),
        (with("token_endpoint", json!("ftp://token.example/")), "not an https:// URL"),
        (with("token_endpoint", Value::Null), "configuration answer makes no sense"),
        (with("token_endpoint_auth_methods_supported", json!(["private_key_jwt"])), "neither client_secret_basic"),
        (with("padding", json!("x".repeat(65_536))), "longer than 65536 bytes"),
    ] {
        let error = world.fails().await;
        assert!(error.contains(expected), "{error}");
        assert!(world.asked.lock().unwrap().is_empty(), "the secret went out: {error}");
    }
    for (status, body, expected) in [
        (302, "", "configuration endpoint answered 302"),
        (404, "{}", "configuration endpoint answered 404"),
        (503, "<html>", "configuration endpoint answered 503"),
        (200, "<html>", "makes no sense"),
    ] {
        let world = World::new(&configuration(), &token());
        *world.configuration.lock().unwrap() = (status, body.to_owned());
        let error = world.fails().await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn answers_that_are_no_bearer_token_are_refused() {
    let json = "application/json";
    for (status, kind, body, expected) in [
        (200, json, json!({ "access_token": "t0ken", "token_type": "mac" }).to_string(), "not a bearer token"),
        (
            200,
            json,
            json!({ "access_token": "t0ken\n", "token_type": "bearer" }).to_string(),
            "cannot stand in a header",
        ),
        (200, json, json!({ "access_token": "t0ken" }).to_string(), "makes no sense"),
        (200, json, json!({ "access_token": ["t0ken"], "token_type": "bearer" }).to_string(), "`access_token`"),
        (200, json, String::new(), "empty or not JSON"),
        (200, json, "t0ken".to_owned(), "makes no sense"),
        (200, "text/html", "<html>t0ken".to_owned(), "empty or not JSON"),
        (200, json, " ".repeat(65_537), "longer than 65536 bytes"),
        (502, "text/html", "<html>t0ken".to_owned(), "token endpoint answered 502"),
        (307, json, String::new(), "token endpoint answered 307"),
        (
            401,
            json,
            json!({ "error": "invalid_client", "error_description": "who?" }).to_string(),
            "invalid_client: who?",
        ),
        (400, json, json!({ "error": "invalid_target" }).to_string(), "refuses a token: invalid_target"),
        (
            401,
            json,
            json!({ "error": "invalid_client", "error_description": format!("`{SECRET}` is wrong") }).to_string(),
            "refuses a token: invalid_client",
        ),
        // Cut short it would still tell a part.
        (
            401,
            json,
            json!({ "error": "invalid_client", "error_description": format!("{}{SECRET}", "x".repeat(60)) })
                .to_string(),
            "refuses a token: invalid_client",
        ),
        (401, json, json!({ "error": format!("no_{SECRET}") }).to_string(), "it does not say why"),
    ] {
        let world = World::new(&configuration(), &token());
        *world.token.lock().unwrap() = (status, kind, body);
        let error = world.fails().await;
        assert!(error.contains(expected), "{error}");
    }
}

/// Go's client takes both.
#[tokio::test]
async fn a_life_may_be_quoted() {
    for (said, expected) in [(json!(90), Some(90)), (json!("90"), Some(90)), (json!(null), None)] {
        let answer = json!({ "access_token": "t0ken", "token_type": "bearer", "expires_in": said });
        let world = World::new(&configuration(), &answer);
        let issued = world.issuer().oneshot(TokenRequest).await.unwrap();
        let expected = format!("lifetime: {:?}", expected.map(Duration::from_secs));
        assert!(format!("{issued:?}").contains(&expected), "{said}: {issued:?}");
    }
}

#[tokio::test]
async fn the_configuration_is_kept_until_a_grant_fails() {
    let world = World::new(&configuration(), &token());
    let issuer = world.issuer();
    for _ in 0..3 {
        issuer.clone().oneshot(TokenRequest).await.unwrap();
    }
    assert_eq!(*world.discoveries.lock().unwrap(), 1);
    let good = std::mem::replace(&mut *world.token.lock().unwrap(), (500, "text/html", String::new()));
    issuer.clone().oneshot(TokenRequest).await.unwrap_err();
    *world.token.lock().unwrap() = good;
    issuer.oneshot(TokenRequest).await.unwrap();
    assert_eq!(*world.discoveries.lock().unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_hangs_has_twenty_seconds() {
    let hangs = service_fn(async |_: Request<Full<Bytes>>| {
        std::future::pending::<()>().await;
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    });
    let issuer = ClientCredentials::new(hangs, ISSUER.parse().unwrap(), "gateway", SECRET);
    let start = tokio::time::Instant::now();
    let error = issuer.oneshot(TokenRequest).await.unwrap_err();
    assert_eq!(
        (error.to_string(), start.elapsed()),
        ("the issuer did not answer within 20s".to_owned(), Duration::from_secs(20))
    );
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_for_each_token() {
    let path = std::env::temp_dir().join(format!("infogw-client-secret-{}", std::process::id()));
    let mut post = configuration();
    post["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"]);
    let world = World::new(&post, &token());
    let secret = ClientSecret::File(path.clone());
    let issuer = ClientCredentials::new(world.client(), ISSUER.parse().unwrap(), "gateway", secret.clone());
    for text in ["one\n", "two", "three\r\n"] {
        std::fs::write(&path, text).unwrap();
        issuer.clone().oneshot(TokenRequest).await.unwrap();
        let asked = world.asked.lock().unwrap().last().unwrap().clone();
        assert_eq!(asked.form["client_secret"], text.trim_end());
    }
    std::fs::remove_file(&path).unwrap();
    let error = issuer.oneshot(TokenRequest).await.unwrap_err().to_string();
    assert!(error.starts_with("the client secret cannot be read: "), "{error}");
    assert_eq!(format!("{:?}", ClientSecret::from("hidden")), "ClientSecret");
}

#[test]
fn an_issuer_is_a_plain_url() {
    for text in ["https://issuer.example", "http://127.0.0.1:8080/realms/a/", "https://[::1]/"] {
        assert_eq!(text.parse::<IssuerUrl>().unwrap().as_str(), text);
    }
    for text in
        ["", "issuer.example", "/realm", "ftp://issuer", "https://", "https://a/?b", "https://a/#b", "https://u:p@a/"]
    {
        text.parse::<IssuerUrl>().expect_err(text);
    }
}
