//! A row of the contract's table of answers, and the request that it is about.

use std::ops::RangeInclusive;

use hyper::Request;
use serde_json::json;

use crate::support::{
    Answer, Reply, World, Write, authorizer, http,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, TEXT, now, spelt},
};

/// The tenant of uploads, unless flags say otherwise.
pub(crate) const TENANT: &str = "FB870BF3-9F3A-44FF-9BF7-D7A047A52F43";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Authorize,
    Upload,
    Receive,
}

/// One row of the table.
pub(crate) struct Row {
    pub(crate) case: &'static str,
    sent: fn(Sent) -> Sent,
    /// What the authorizer says to the credentials; it grants unless set.
    authorizer: Option<Answer>,
    /// What the upstream says to the write; it takes it unless set.
    upstream: Option<Answer>,
    pub(crate) status: u16,
    says: &'static str,
    header: Option<(&'static str, &'static str)>,
    retry_after: Option<RangeInclusive<u64>>,
    /// The metrics that reach the upstream.
    reaches: &'static [&'static str],
    /// How often it is sent upstream, if at all.
    attempts: usize,
}

/// A good request is answered so. A success has no reason to give and reaches the upstream; a refusal reaches nobody.
pub(crate) fn row(case: &'static str, status: u16, says: &'static str) -> Row {
    let reaches: &[_] = if status < 300 { &["up"] } else { &[] };
    Row {
        case,
        sent: |sent| sent,
        authorizer: None,
        upstream: None,
        status,
        says,
        header: None,
        retry_after: None,
        reaches,
        attempts: 1,
    }
}

impl Row {
    pub(crate) fn sent(self, sent: fn(Sent) -> Sent) -> Self {
        Row { sent, ..self }
    }

    pub(crate) fn authorizer(self, answer: Answer) -> Self {
        Row { authorizer: Some(answer), ..self }
    }

    pub(crate) fn upstream(self, answer: Answer) -> Self {
        Row { upstream: Some(answer), ..self }
    }

    pub(crate) fn header(self, name: &'static str, value: &'static str) -> Self {
        Row { header: Some((name, value)), ..self }
    }

    pub(crate) fn retry_after(self, seconds: RangeInclusive<u64>) -> Self {
        Row { retry_after: Some(seconds), ..self }
    }

    pub(crate) fn reaches(self, metrics: &'static [&'static str]) -> Self {
        Row { reaches: metrics, ..self }
    }

    pub(crate) fn attempts(self, attempts: usize) -> Self {
        Row { attempts, ..self }
    }

    /// Sends the request as `cluster`, and holds what comes of it against the row.
    pub(crate) async fn check(&self, world: &World, route: Route, cluster: &str) -> Reply {
        world.authorizer.set_script(authorizer::grant);
        let token = if route == Route::Upload { world.token(cluster).await } else { String::new() };
        if let Some(answer) = self.authorizer.clone() {
            world.authorizer.set_script(move |_| answer.clone());
        }
        let answer = self.upstream.clone().unwrap_or_else(|| Answer::status(200));
        world.upstream.set_script(move |_| answer.clone());
        let before = world.upstream.received().len();

        let reply = self.request(route, cluster, &token).send(world.gateway.public_address()).await;
        self.check_reply(&reply, cluster);

        let writes = world.upstream.received().split_off(before);
        let reaches = if route == Route::Authorize { &[] } else { self.reaches };
        let attempts = if reaches.is_empty() { 0 } else { self.attempts };
        assert_eq!(writes.len(), attempts, "{}: requests upstream: {writes:?}", self.case);
        for write in &writes {
            let expected: Vec<_> = reaches.iter().map(|name| format!("{name}{{_id={cluster:?}}}")).collect();
            assert_eq!(spelt(write), expected, "{}", self.case);
            check_headers(write, (route == Route::Upload).then_some(TENANT));
        }
        reply
    }

    pub(crate) fn request(&self, route: Route, cluster: &str, token: &str) -> Sent {
        (self.sent)(Sent::good(route, cluster, token))
    }

    #[track_caller]
    pub(crate) fn check_reply(&self, reply: &Reply, cluster: &str) {
        let case = self.case;
        assert_eq!(reply.status, self.status, "{case}: {reply:?}");
        if self.status >= 300 {
            let says = self.says.replace("{C}", cluster);
            assert!(reply.reason().contains(&says), "{case}: {says:?} is not in {:?}", reply.reason());
        }
        if let Some((name, value)) = self.header {
            assert_eq!(reply.header(name), Some(value), "{case}: {reply:?}");
        }
        match (&self.retry_after, reply.retry_after()) {
            (None, None) => {}
            (Some(range), Some(wait)) => assert!(range.contains(&wait), "{case}: {wait} s, not {range:?}"),
            (expected, wait) => panic!("{case}: Retry-After is {wait:?}, not {expected:?}"),
        }
    }
}

/// Rows, each with a cluster of its own: grants are cached and uploads limited by cluster.
pub(crate) fn clusters(rows: Vec<Row>) -> impl Iterator<Item = (String, Row)> {
    rows.into_iter().enumerate().map(|(index, row)| (format!("c{index}"), row))
}

/// Remote write's headers, the tenant where there is one, what HTTP needs, and nothing of the sender's.
#[track_caller]
pub(crate) fn check_headers(write: &Write, tenant: Option<&str>) {
    assert_eq!((write.method.as_str(), write.uri.path()), ("POST", "/api/metrics/v1/telemeter/api/v1/receive"));
    assert_eq!(write.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(write.header("content-encoding"), Some("snappy"));
    assert_eq!(write.header("x-prometheus-remote-write-version"), Some("0.1.0"));
    assert_eq!(write.header("thanos-tenant"), tenant);
    let known = [
        "content-type",
        "content-encoding",
        "x-prometheus-remote-write-version",
        "thanos-tenant",
        "user-agent",
        "host",
        "content-length",
    ];
    let others: Vec<_> = write.headers.keys().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "unexpected headers upstream: {others:?}");
}

/// An answer as an API gives it, whose body is nobody else's business.
pub(crate) fn refusal(status: u16) -> Answer {
    Answer::json(status, &json!({ "kind": "Error", "reason": "because" }))
}

/// A request: a good one, and then changed.
pub(crate) struct Sent {
    pub(crate) cluster: String,
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Sent {
    pub(crate) fn good(route: Route, cluster: &str, token: &str) -> Self {
        let sent = |target: String, headers: &[(&'static str, String)]| Sent {
            cluster: cluster.to_owned(),
            method: "POST",
            target,
            headers: [&[("x-sent-by", "a test".to_owned())], headers].concat(),
            body: Vec::new(),
        };
        let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
        match route {
            Route::Authorize => sent(format!("/authorize?id={cluster}"), &[bearer(PULL_SECRET)]),
            Route::Upload => {
                let headers = [bearer(token), ("content-type", TEXT.to_owned())];
                sent("/upload".to_owned(), &headers).lines(&[("up", "{C}")])
            }
            Route::Receive => {
                let headers = [
                    bearer(&composite_token(PULL_SECRET, cluster)),
                    ("content-type", "application/x-protobuf".to_owned()),
                    ("content-encoding", "snappy".to_owned()),
                ];
                sent("/metrics/v1/receive".to_owned(), &headers).series(&[("up", "{C}")])
            }
        }
    }

    pub(crate) fn method(self, method: &'static str) -> Self {
        Sent { method, ..self }
    }

    pub(crate) fn target(self, target: &str) -> Self {
        Sent { target: target.to_owned(), ..self }
    }

    pub(crate) fn with(self, name: &'static str, value: &str) -> Self {
        self.without(name).also(name, value)
    }

    pub(crate) fn also(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| *header != name);
        self
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Sent { body: body.into(), ..self }
    }

    /// A body in which `{C}` is the sender, `{NOW}` this millisecond, `{BEFORE}` the last one and `{YESTERDAY}` 25 hours ago.
    pub(crate) fn text(self, text: &str) -> Self {
        let at = now();
        let text = text.replace("{C}", &self.cluster).replace("{NOW}", &at.to_string());
        let text = text.replace("{BEFORE}", &(at - 1).to_string());
        self.body(text.replace("{YESTERDAY}", &(at - 25 * 3_600_000).to_string()))
    }

    /// Metrics, each with a cluster: `{C}` is the sender, empty is none.
    pub(crate) fn lines(self, metrics: &[(&str, &str)]) -> Self {
        let line = |&(name, id): &(&str, &str)| match id {
            "" => format!("{name} 1 {{NOW}}\n"),
            id => format!("{name}{{_id=\"{id}\"}} 1 {{NOW}}\n"),
        };
        let text: String = metrics.iter().map(line).collect();
        self.text(&text)
    }

    /// The same as a write request.
    pub(crate) fn series(self, metrics: &[(&str, &str)]) -> Self {
        let one = |&(name, id): &(&str, &str)| {
            let id = id.replace("{C}", &self.cluster);
            let labels = [("__name__", name), ("_id", id.as_str())];
            series(&labels[..if id.is_empty() { 1 } else { 2 }], &[(1.0, now())])
        };
        let body = write_body(metrics.iter().map(one).collect());
        self.body(body)
    }

    pub(crate) async fn send(self, gateway: &str) -> Reply {
        let mut request = Request::builder().method(self.method).uri(format!("http://{gateway}{}", self.target));
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        http::send(request, self.body).await
    }
}
