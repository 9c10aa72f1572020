//! The layer around an HTTP client.

use std::sync::{Arc, Mutex};

use http::{Request, Response, header::AUTHORIZATION};
use infogw_layers::{
    client_credentials::{BearerLayer, TokenSource},
    clock::SystemClock,
    conformance::Conformance,
    rejection::{BoxError, Reason, Rejection},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::{
    Duration, advance,
    scripted::{Call, Issuer},
    seconds, source,
};

fn issuer() -> Issuer {
    Issuer::taking(Duration::ZERO, |_| Call::Issue(Some(seconds(3600))))
}

/// Sends a request through the layer to an upstream that answers the Nth token with the Nth status; gives what it said in the
/// end and what it was shown.
async fn send(layer: BearerLayer, statuses: &'static [u16]) -> (Result<u16, BoxError>, Vec<String>) {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let see = shown.clone();
    let upstream = service_fn(move |request: Request<&'static str>| {
        assert_eq!((request.uri().path(), *request.body()), ("/push", "data"));
        assert_eq!(request.headers()["x"], "y");
        let all: Vec<_> = request.headers().get_all(AUTHORIZATION).iter().collect();
        assert_eq!(all.len(), 1);
        assert!(all[0].is_sensitive());
        let mut shown = see.lock().unwrap();
        shown.push(all[0].to_str().unwrap().to_owned());
        let response = Response::builder().status(statuses[shown.len() - 1]).header("challenge", "no").body(());
        std::future::ready(response)
    });
    let client = ServiceBuilder::new().layer(layer).service(upstream);
    let request =
        Request::post("http://upstream/push").header(AUTHORIZATION, "Bearer the client's own").header("x", "y");
    let answer = client.oneshot(request.body("data").unwrap()).await;
    let shown = shown.lock().unwrap().clone();
    (answer.map(|response| response.status().as_u16()), shown)
}

#[tokio::test(start_paused = true)]
async fn a_401_is_answered_with_another_token_once() {
    for (statuses, status, shown) in [
        (&[200][..], 200, &["Bearer token-1"][..]),
        (&[500], 500, &["Bearer token-1"]),
        (&[403], 403, &["Bearer token-1"]),
        (&[401, 200], 200, &["Bearer token-1", "Bearer token-2"]),
        (&[401, 503], 503, &["Bearer token-1", "Bearer token-2"]),
        (&[401, 401], 401, &["Bearer token-1", "Bearer token-2"]),
    ] {
        let (answered, seen) = send(BearerLayer::new(source(&issuer())), statuses).await;
        assert_eq!((answered.unwrap(), &*seen), (status, &*shown.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()));
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_second_request_without_another_token() {
    let issuer = issuer();
    let layer = BearerLayer::new(source(&issuer));
    assert_eq!(send(layer.clone(), &[401, 401]).await.1.len(), 2);
    for _ in 0..10 {
        let (answered, shown) = send(layer.clone(), &[401]).await;
        assert_eq!((answered.unwrap(), shown), (401, vec!["Bearer token-2".to_owned()]));
    }
    assert_eq!(issuer.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_401_on_another_subject_is_only_passed_on() {
    let issuer = issuer();
    let layer = BearerLayer::new(source(&issuer)).where_about_us(|headers| headers["challenge"] == "yes");
    let (answered, shown) = send(layer, &[401]).await;
    assert_eq!((answered.unwrap(), shown.len(), issuer.calls().len()), (401, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_token_nothing_is_sent() {
    let layer = BearerLayer::new(source(&Issuer::taking(Duration::ZERO, |_| Call::Fail)));
    let (answered, shown) = send(layer, &[]).await;
    let rejection = Rejection::from(answered.unwrap_err());
    assert_eq!((rejection.status().as_u16(), rejection.reason()), (503, Reason::CredentialsUnavailable));
    assert!(shown.is_empty());
}

#[tokio::test(start_paused = true)]
async fn it_keeps_to_what_every_layer_keeps_to() {
    let unit = || Response::new(());
    let tokens = TokenSource::spawn(issuer(), SystemClock, ());
    Conformance::waiting(BearerLayer::new(tokens), || Request::new(()), unit).check().await;

    // Hangs for as long as anyone waits.
    let none = TokenSource::spawn(Issuer::taking(Duration::ZERO, |_| Call::Hang), SystemClock, ());
    let refusing = BearerLayer::new(none);
    let client = ServiceBuilder::new()
        .layer(refusing)
        .service(service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new(()))));
    let refused = tokio::spawn(client.oneshot(Request::new(())));
    tokio::task::yield_now().await;
    advance(seconds(3)).await;
    assert_eq!(Rejection::from(refused.await.unwrap().unwrap_err()).reason(), Reason::CredentialsUnavailable);
}
