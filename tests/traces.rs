//! Traces of gateway and push client, as those who collect them get them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    io::{Cursor, Read as _},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    trace::v1::{Span as OtlpSpan, status::StatusCode},
};
use prost::Message as _;
use support::{
    Answer, Authorizer, Gateway, Prometheus, Server, World, ensure, eventually,
    federate::{Client, Receiver, Source},
    http,
    payload::{self, composite_token, write_body},
    server::Received,
    within,
    world::{PULL_SECRET, now},
};
use thrift::protocol::{TBinaryInputProtocol, TCompactInputProtocol, TInputProtocol, TMessageType, TType};
use tokio::{
    net::{TcpSocket, UdpSocket},
    task::JoinSet,
};

/// A span, whatever it came as.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    trace: String,
    id: String,
    /// "" at the root.
    parent: String,
    name: String,
    kind: String,
    /// Microseconds.
    duration: u64,
    attributes: BTreeMap<String, String>,
    events: Vec<BTreeMap<String, String>>,
    failed: bool,
}

impl Span {
    fn get(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

/// Sent at once, and all of them.
const FLAGS: [&str; 1] = ["--internal.tracing.sampling-fraction=1"];
const HURRY: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// Takes spans as OTLP.
async fn collector() -> Server<Received> {
    Server::start(|_: &Received| Answer::body(200, "application/x-protobuf", "")).await
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}

fn pairs(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans that a collector got.
fn otlp(collector: &Server<Received>) -> Vec<Span> {
    let mut spans = Vec::new();
    for request in collector.received() {
        assert_eq!(
            (request.uri.path(), &request.headers["content-type"]),
            ("/v1/traces", &"application/x-protobuf".parse().unwrap())
        );
        let mut body = request.body.to_vec();
        if request.headers.get("content-encoding").is_some_and(|coding| coding == "gzip") {
            body.clear();
            GzDecoder::new(&*request.body).read_to_end(&mut body).unwrap();
        }
        for resource in ExportTraceServiceRequest::decode(&*body).unwrap().resource_spans {
            let service = pairs(&resource.resource.unwrap().attributes)["service.name"].clone();
            for OtlpSpan {
                trace_id,
                span_id,
                parent_span_id,
                name,
                kind,
                attributes,
                events,
                status,
                start_time_unix_nano,
                end_time_unix_nano,
                ..
            } in resource.scope_spans.into_iter().flat_map(|scope| scope.spans)
            {
                spans.push(Span {
                    service: service.clone(),
                    trace: hex(&trace_id),
                    id: hex(&span_id),
                    parent: hex(&parent_span_id),
                    name,
                    kind: ["", "internal", "server", "client"][kind as usize].to_owned(),
                    duration: (end_time_unix_nano - start_time_unix_nano) / 1000,
                    attributes: pairs(&attributes),
                    events: events.iter().map(|event| pairs(&event.attributes)).collect(),
                    failed: status.is_some_and(|status| status.code == StatusCode::Error as i32),
                });
            }
        }
    }
    spans
}

/// The spans called `name`, once there are so many.
async fn wait_for(n: usize, name: &str, spans: impl Fn() -> Vec<Span>) -> Vec<Span> {
    eventually(&format!("{n} spans {name}"), async || {
        let all = spans();
        let found: Vec<_> = all.iter().filter(|span| span.name == name).cloned().collect();
        ensure(found.len() >= n, || format!("{all:#?}"))?;
        Ok(found)
    })
    .await
}

/// A gateway that traces, with its neighbours; and what it is told of where to.
async fn world(endpoint: &str, kind: &str, authorizer: &Authorizer, upstream: &str) -> Gateway {
    let mut command = Gateway::command();
    command.env(HURRY.0, HURRY.1).args(FLAGS).args(["--listen=127.0.0.1:0", "--listen-internal=127.0.0.1:0"]);
    // As Go's exporters heed them.
    command.env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    command.envs([("OTEL_EXPORTER_JAEGER_USER", "user"), ("OTEL_EXPORTER_JAEGER_PASSWORD", "hush")]);
    command.args([
        format!("--authorize={}", authorizer.url()),
        format!("--forward-url={upstream}"),
        format!("--internal.tracing.endpoint={endpoint}"),
        format!("--internal.tracing.endpoint-type={kind}"),
    ]);
    Gateway::start_command(command).await
}

fn upload_body(cluster: &str) -> String {
    format!("up{{_id=\"{cluster}\"}} 1 {}\n", now())
}

#[tokio::test]
async fn a_trace_goes_from_the_push_client_through_the_gateway() {
    let collector = collector().await;
    let (authorizer, central) = (Authorizer::granting().await, Prometheus::receiver().await);
    let gateway = world(&collector.address().to_string(), "otel", &authorizer, &central.remote_write_url()).await;
    let source = Source::of_text(format!("up 1 {}\n", now())).await;
    let mut command = Client::command();
    command.args([format!("--from={}", source.url_of("")), format!("--to={}", gateway.public(""))]);
    command.args([format!("--internal.tracing.endpoint={}", collector.address()), format!("--to-token={PULL_SECRET}")]);
    command.args(FLAGS).args(["--internal.tracing.endpoint-type=otel", "--id=c1", "--once"]);
    // What is still there at the end is sent at the end.
    let exit = support::process::Process::spawn(command).exit().await;
    assert_eq!(exit.code(), 0, "{exit:?}");

    let [forward] = &wait_for(1, "POST forward", || otlp(&collector)).await[..] else {
        panic!("forwarded more than once")
    };
    let spans = otlp(&collector);
    let parent =
        |span: &Span| spans.iter().find(|other| other.id == span.parent).unwrap_or_else(|| panic!("{span:#?}"));
    let chain: Vec<_> =
        std::iter::successors(Some(forward), |span| (!span.parent.is_empty()).then(|| parent(span))).collect();
    let said: Vec<_> = chain.iter().map(|span| (&*span.service, &*span.name, &*span.kind)).collect();
    let expected = [
        ("telemeter-server", "POST forward", "client"),
        ("telemeter-server", "POST /upload", "server"),
        ("telemeter-client", "POST federate_to", "client"),
        ("telemeter-client", "round", "internal"),
    ];
    assert_eq!(said, expected);
    assert!(chain.iter().all(|span| span.trace == forward.trace && !span.failed), "{chain:#?}");
    assert!(chain.windows(2).all(|pair| pair[0].duration <= pair[1].duration), "{chain:#?}");
    assert_eq!(
        (forward.get("url.full"), forward.get("http.response.status_code")),
        (&*central.remote_write_url(), "204")
    );
    assert_eq!((chain[1].get("http.route"), chain[1].get("infogw.cluster")), ("/upload", "c1"));
    // So is what the gateway's authorizer was asked.
    let [first, second] = &wait_for(2, "POST authorize", || otlp(&collector)).await[..] else { panic!("{spans:#?}") };
    let (asked, exchanged) = if first.service == "telemeter-server" { (first, second) } else { (second, first) };
    assert_eq!((&parent(asked).parent, &asked.trace), (&exchanged.id, &forward.trace), "{asked:#?} {exchanged:#?}");
}

#[tokio::test]
async fn spans_say_whose_request_was_refused_and_why() {
    let collector = collector().await;
    let (authorizer, upstream) = (Authorizer::granting().await, support::Upstream::accepting().await);
    let gateway = world(&format!("http://{}", collector.address()), "otel", &authorizer, &upstream.url()).await;
    let token = gateway.upload_token("c1", PULL_SECRET).await;
    let upload = async |body: String| gateway.upload(&token, "text/plain; version=0.0.4", "", body).await;
    upload(upload_body("c1")).await.expect_status(200);
    upload(upload_body("c1")).await.expect_status(429);
    // The authorizer's answers say what its own span is of; nobody asks it here.
    let spans = wait_for(2, "POST /upload", || otlp(&collector)).await;
    let [taken, refused] = &spans[..] else { panic!("{spans:#?}") };
    for span in [taken, refused] {
        assert_eq!((&*span.parent, span.get("infogw.cluster"), span.failed), ("", "c1", false), "{span:#?}");
    }
    assert_eq!((taken.get("http.response.status_code"), taken.get("infogw.reason")), ("200", ""));
    assert_eq!((refused.get("http.response.status_code"), refused.get("infogw.reason")), ("429", "rate_limited"));
    assert_eq!(refused.get("infogw.layer"), "RateLimitLayer");
    assert!(refused.events[0]["message"].contains("270s"), "{refused:#?}");

    // What fails behind us is an error, with its reason.
    upstream.set_script(|_| Answer::status(503));
    let other = gateway.upload_token("c2", PULL_SECRET).await;
    gateway.upload(&other, "text/plain; version=0.0.4", "", upload_body("c2")).await.expect_status(503);
    let spans = wait_for(3, "POST /upload", || otlp(&collector)).await;
    assert!(spans[2].failed && spans[2].get("infogw.layer") == "Forward", "{spans:#?}");
    assert!(
        otlp(&collector).iter().any(|span| span.name == "POST forward" && span.parent == spans[2].id && span.failed)
    );
    let composite = composite_token(PULL_SECRET, "c3");
    let series = payload::series(&[("__name__", "up"), ("_id", "c3")], &[(1.0, now())]);
    gateway.receive(&composite, write_body(vec![series])).await.expect_status(503);
    let spans = wait_for(1, "POST /metrics/v1/receive", || otlp(&collector)).await;
    assert_eq!(
        (spans[0].get("infogw.cluster"), spans[0].get("infogw.layer"), spans[0].failed),
        ("c3", "Forward", true)
    );
    // No token is in any of it.
    for request in collector.received() {
        assert_eq!(request.headers["content-encoding"], "gzip");
        let mut said = Vec::new();
        GzDecoder::new(&*request.body).read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("/upload") || said.contains("authorize") || said.contains("receive"), "{said}");
        assert!(![PULL_SECRET, &token, &other, &composite].iter().any(|secret| said.contains(secret)), "{said}");
    }
}

#[tokio::test]
async fn jaeger_gets_the_same_by_its_own_protocols() {
    let http_collector = Server::start(|_: &Received| Answer::status(202)).await;
    let agent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (authorizer, upstream) = (Authorizer::granting().await, support::Upstream::accepting().await);
    let by_http = world(&http_collector.url_of("/api/traces"), "collector", &authorizer, &upstream.url()).await;
    let by_udp = world(&agent.local_addr().unwrap().to_string(), "agent", &authorizer, &upstream.url()).await;
    for gateway in [&by_http, &by_udp] {
        let request = hyper::Request::post(gateway.public("/upload"))
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .header("authorization", "Bearer none");
        http::send(request, upload_body("c1")).await.expect_status(401);
    }
    let check = |spans: Vec<Span>| {
        let [span] = &spans[..] else { panic!("{spans:#?}") };
        assert_eq!((&*span.service, &*span.name, &*span.kind), ("telemeter-server", "POST /upload", "server"));
        assert_eq!((&*span.trace, &*span.parent), ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"));
        assert!(span.id.len() == 16 && span.id != span.parent && span.duration < 60_000_000, "{span:#?}");
        assert_eq!((span.get("http.response.status_code"), span.get("infogw.reason")), ("401", "unauthenticated"));
        assert_eq!(span.events[0]["event"], "refused");
        assert!(!span.events[0]["message"].is_empty() && !span.failed, "{span:#?}");
    };
    let request = http_collector.wait_for(1).await.remove(0);
    assert_eq!(
        (request.uri.path(), &request.headers["content-type"]),
        ("/api/traces", &"application/vnd.apache.thrift.binary".parse().unwrap())
    );
    assert_eq!(request.headers["authorization"], "Basic dXNlcjpodXNo");
    let mut body = Cursor::new(request.body.to_vec());
    check(jaeger(&read_struct(&mut TBinaryInputProtocol::new(&mut body, true))));
    assert_eq!(body.position(), request.body.len() as u64, "nothing is left over");

    let mut packet = vec![0; 65_536];
    let len = within("a packet", agent.recv(&mut packet)).await.unwrap();
    let mut packet = Cursor::new(packet[..len].to_vec());
    let spans = {
        let mut input = TCompactInputProtocol::new(&mut packet);
        let call = input.read_message_begin().unwrap();
        assert_eq!((&*call.name, call.message_type), ("emitBatch", TMessageType::OneWay));
        let arguments = read_struct(&mut input);
        input.read_message_end().unwrap();
        jaeger(&arguments[&1])
    };
    check(spans);
    assert_eq!(packet.position(), len as u64, "nothing is left over");
}

#[tokio::test]
async fn a_round_that_fails_is_a_trace_too() {
    let collector = collector().await;
    let (source, receiver) = (Source::of_text(format!("up 1 {}\n", now())).await, Receiver::start().await);
    receiver.upload.set_script(|_| Answer::status(503));
    let mut command = Client::command();
    command.args([
        format!("--from={}", source.url_of("")),
        format!("--internal.tracing.endpoint={}", collector.address()),
    ]);
    command.args(receiver.flags()).args(FLAGS).args(["--internal.tracing.endpoint-type=otel", "--once"]);
    command.arg("--internal.tracing.service-name=my-client");
    let exit = support::process::Process::spawn(command).exit().await;
    assert_eq!(exit.code(), 69, "{exit:?}");
    let spans = otlp(&collector);
    let [round] = &wait_for(1, "round", || otlp(&collector)).await[..] else { panic!("{spans:#?}") };
    assert_eq!((&*round.service, &*round.parent, round.failed), ("my-client", "", true));
    let mut parts: Vec<_> =
        spans.iter().filter(|span| span.parent == round.id).map(|span| (&*span.name, span.failed)).collect();
    parts.sort_unstable();
    assert_eq!(parts, [("GET federate_from", false), ("POST authorize", false), ("POST federate_to", true)]);
    // Whoever is called knows of it.
    for request in
        [source.received().remove(0), receiver.authorize.received().remove(0), receiver.upload.received().remove(0)]
    {
        let parent = request.headers["traceparent"].to_str().unwrap();
        assert!(parent.starts_with(&format!("00-{}-", round.trace)), "{parent}, not of {round:#?}");
    }
}

#[tokio::test]
async fn what_waits_is_sent_when_the_client_ends() {
    let collector = collector().await;
    let (source, receiver) = (Source::of_text(format!("up 1 {}\n", now())).await, Receiver::start().await);
    let mut command = Client::command();
    // Nothing would be sent for an hour.
    command.env(HURRY.0, "3600000").args(["--listen=127.0.0.1:0", "--interval=100ms"]).args(FLAGS);
    command.args([
        format!("--from={}", source.url_of("")),
        format!("--internal.tracing.endpoint={}", collector.address()),
    ]);
    command.args(receiver.flags()).arg("--internal.tracing.endpoint-type=otel");
    let client = Client::start_command(command).await;
    receiver.upload.wait_for(2).await;
    assert_eq!(collector.count(), 0);
    // The round in which it is told to stop is given up.
    receiver.upload.set_script(|_| Answer::Hang);
    receiver.upload.wait_for(receiver.upload.count() + 1).await;
    let exit = client.stop().await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    let rounds = wait_for(3, "round", || otlp(&collector)).await;
    let failed: Vec<_> = rounds.iter().map(|round| round.failed).collect();
    assert!(failed.iter().rev().skip(1).all(|failed| !failed) && failed.ends_with(&[true]), "{rounds:#?}");
}

#[tokio::test]
async fn whoever_takes_no_spans_holds_up_nobody() {
    const KEY: &str = "collectors-key";
    // Quotes the key that it is shown.
    let refusing = Server::start(|request: &Received| {
        Answer::body(400, "text/plain", format!("unknown key in {:?} {}", request.headers, request.uri))
    })
    .await;
    let hanging = Server::start(|_: &Received| Answer::Hang).await;
    // Takes them all, and says something about it.
    let talking = Server::start(|request: &Received| {
        let error_message = format!("thank you for {:?}", request.headers);
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans: 0, error_message });
        Answer::body(200, "application/x-protobuf", ExportTraceServiceResponse { partial_success }.encode_to_vec())
    })
    .await;
    // Nobody listens there, nor will.
    let unused = TcpSocket::new_v4().unwrap();
    unused.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = unused.local_addr().unwrap().to_string();
    let (refused, hung) = (refusing.address().to_string(), hanging.address().to_string());
    let mut cases = JoinSet::new();
    for (endpoint, kind, told) in [
        (refused.clone(), "otel", "status code: 400"),
        (free.clone(), "otel", "Connection refused"),
        (talking.address().to_string(), "otel", ""),
        (format!("http://{refused}/?k={KEY}"), "collector", "400"),
        (format!("http://{free}/"), "collector", "the Jaeger collector: "),
        ("no.such.host.invalid:6831".to_owned(), "agent", "the Jaeger agent no.such.host.invalid:6831: "),
        (hung, "otel", ""),
    ] {
        cases.spawn(async move {
            let world = World::start().await;
            let mut command = Gateway::command();
            command.env(HURRY.0, HURRY.1).env("OTEL_EXPORTER_OTLP_HEADERS", format!("x-key={KEY}")).args(FLAGS);
            command.envs([("OTEL_EXPORTER_JAEGER_USER", "user"), ("OTEL_EXPORTER_JAEGER_PASSWORD", KEY)]);
            command.args(["--listen=127.0.0.1:0", "--listen-internal=127.0.0.1:0", "--log-level=debug", "-v"]);
            command.args([
                format!("--authorize={}", world.authorizer.url()),
                format!("--forward-url={}", world.upstream.url()),
                format!("--internal.tracing.endpoint={endpoint}"),
                format!("--internal.tracing.endpoint-type={kind}"),
            ]);
            let gateway = Gateway::start_command(command).await;
            let token = gateway.upload_token("c1", PULL_SECRET).await;
            gateway.upload(&token, "text/plain; version=0.0.4", "", upload_body("c1")).await.expect_status(200);
            if !told.is_empty() {
                let line = gateway.wait_for_log("spans are lost").await;
                assert!(line.contains("level=error") && line.contains(told), "{line}");
            }
            // Nor does it hold up the end.
            let exit = gateway.stop().await;
            assert_eq!(exit.code(), 0, "{endpoint} {kind}: {exit:?}");
            let basic = BASE64_STANDARD.encode(format!("user:{KEY}"));
            assert!(!exit.stderr.contains(KEY) && !exit.stderr.contains(&basic), "{exit:?}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    assert!(hanging.count() > 0 && refusing.count() > 1 && talking.count() > 0);
}

/// A Thrift struct, by field.
type Struct = BTreeMap<i16, Thrift>;

#[derive(Debug, Clone)]
enum Thrift {
    Text(String),
    Number(i64),
    Truth(bool),
    Struct(Struct),
    List(Vec<Thrift>),
}

impl std::ops::Index<&i16> for Thrift {
    type Output = Thrift;

    fn index(&self, id: &i16) -> &Thrift {
        match self {
            Thrift::Struct(fields) => &fields[id],
            other => panic!("{other:?} has no fields"),
        }
    }
}

impl Thrift {
    fn list(&self) -> &[Thrift] {
        match self {
            Thrift::List(elements) => elements,
            other => panic!("{other:?} is no list"),
        }
    }

    fn number(&self) -> i64 {
        match self {
            Thrift::Number(number) => *number,
            other => panic!("{other:?} is no number"),
        }
    }

    fn text(&self) -> String {
        match self {
            Thrift::Text(text) => text.clone(),
            Thrift::Number(number) => number.to_string(),
            Thrift::Truth(truth) => truth.to_string(),
            other => panic!("{other:?} is no text"),
        }
    }
}

fn read_struct(input: &mut dyn TInputProtocol) -> Struct {
    let mut fields = Struct::new();
    input.read_struct_begin().unwrap();
    loop {
        let field = input.read_field_begin().unwrap();
        if field.field_type == TType::Stop {
            break;
        }
        let value = read(input, field.field_type);
        assert!(fields.insert(field.id.unwrap(), value).is_none());
        input.read_field_end().unwrap();
    }
    input.read_struct_end().unwrap();
    fields
}

fn read(input: &mut dyn TInputProtocol, kind: TType) -> Thrift {
    match kind {
        TType::String => Thrift::Text(input.read_string().unwrap()),
        TType::I32 => Thrift::Number(input.read_i32().unwrap().into()),
        TType::I64 => Thrift::Number(input.read_i64().unwrap()),
        TType::Bool => Thrift::Truth(input.read_bool().unwrap()),
        TType::Struct => Thrift::Struct(read_struct(input)),
        TType::List => {
            let list = input.read_list_begin().unwrap();
            let elements = (0..list.size).map(|_| read(input, list.element_type)).collect();
            input.read_list_end().unwrap();
            Thrift::List(elements)
        }
        other => panic!("{other:?}"),
    }
}

/// The spans of `jaeger.thrift`'s `Batch`.
fn jaeger(batch: &impl std::ops::Index<&'static i16, Output = Thrift>) -> Vec<Span> {
    let tags = |tags: &Thrift| {
        let value = |tag: &Thrift| {
            let field: i16 = [3, 4, 5, 6][tag[&2].number() as usize];
            tag[&field].text()
        };
        tags.list().iter().map(|tag| (tag[&1].text(), value(tag))).collect::<BTreeMap<_, _>>()
    };
    let service = batch[&1][&1].text();
    assert!(tags(&batch[&1][&2]).contains_key("telemetry.sdk.name"));
    let spans = batch[&2].list().iter().map(|span| {
        let attributes = tags(&span[&10]);
        assert_eq!(span[&7].number(), 1, "sampled");
        assert!(span[&8].number() / 1000 - now() < 60_000, "{span:?}");
        Span {
            service: service.clone(),
            trace: format!("{:016x}{:016x}", span[&2].number(), span[&1].number()),
            id: format!("{:016x}", span[&3].number()),
            parent: format!("{:016x}", span[&4].number()),
            name: span[&5].text(),
            kind: attributes["span.kind"].clone(),
            duration: span[&9].number() as u64,
            failed: attributes.contains_key("error"),
            attributes,
            events: span[&11].list().iter().map(|event| tags(&event[&2])).collect(),
        }
    });
    spans.collect()
}
