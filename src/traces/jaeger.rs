//! Spans in Jaeger's Thrift, as `jaeger.thrift` and `agent.thrift` of jaeger-idl define it.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _, UdpSocket},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use opentelemetry::{
    KeyValue, Value,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use thrift::protocol::{
    TBinaryOutputProtocol, TCompactOutputProtocol, TFieldIdentifier, TListIdentifier, TMessageIdentifier, TMessageType,
    TOutputProtocol, TStructIdentifier, TType,
};

use super::Sender;
use crate::{client::chain, config::variable};

/// Bytes of a packet that an agent takes.
const LARGEST_PACKET: usize = 65_000;

/// Sends spans to Jaeger.
#[derive(Debug)]
pub(super) struct JaegerExporter {
    to: To,
    process: Vec<KeyValue>,
}

#[derive(Debug)]
enum To {
    Agent { host: String, port: u16 },
    Collector { sender: Box<Sender>, url: Uri, authorization: Option<HeaderValue> },
}

impl JaegerExporter {
    pub(super) fn agent(host: String, port: u16) -> Self {
        JaegerExporter { to: To::Agent { host, port }, process: Vec::new() }
    }

    /// Shows the user and password of these variables, as Go's exporter does.
    pub(super) fn collector(sender: Sender, url: Uri) -> Self {
        let variable = |name| variable(name).ok().flatten();
        let authorization = variable("OTEL_EXPORTER_JAEGER_USER").and_then(|user| {
            let password = variable("OTEL_EXPORTER_JAEGER_PASSWORD").unwrap_or_default();
            let mut basic =
                HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
                    .ok()?;
            basic.set_sensitive(true);
            Some(basic)
        });
        JaegerExporter { to: To::Collector { sender: Box::new(sender), url, authorization }, process: Vec::new() }
    }
}

impl SpanExporter for JaegerExporter {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let sent = match &self.to {
            // Blocks, as whoever exports may.
            To::Agent { host, port } => send_packets(&self.process, &spans, (host, *port)),
            To::Collector { sender, url, authorization } => {
                send_request(&self.process, &spans, sender, url, authorization.as_ref()).await
            }
        };
        sent.map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.process = resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    }
}

/// A name is looked up anew each time, as agents move; of a name's addresses it is an IPv4 one, as in Go.
fn send_packets(process: &[KeyValue], spans: &[SpanData], (host, port): (&str, u16)) -> Result<(), String> {
    let failed = |error: io::Error| format!("the Jaeger agent {host}:{port}: {error}");
    let address = (host, port).to_socket_addrs().map_err(failed)?.min_by_key(SocketAddr::is_ipv6);
    let address = address.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.connect(address).map_err(failed)?;
    let (mut too_large, mut sent) = (0, Ok(()));
    for packet in packets(process, spans) {
        match packet {
            // One that is refused tells of one before it; the next may arrive.
            Ok(packet) => sent = sent.and(socket.send(&packet).map(drop)),
            Err(TooLarge) => too_large += 1,
        }
    }
    if too_large > 0 {
        tracing::warn!(spans = too_large, bytes = LARGEST_PACKET, "spans that fit no packet are lost");
    }
    sent.map_err(failed)
}

async fn send_request(
    process: &[KeyValue],
    spans: &[SpanData],
    sender: &Sender,
    url: &Uri,
    authorization: Option<&HeaderValue>,
) -> Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("the Jaeger collector: {why}");
    let mut body = Vec::new();
    write_batch(&mut TBinaryOutputProtocol::new(&mut body, true), process, spans).map_err(|error| failed(&error))?;
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.clone();
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.apache.thrift.binary"));
    if let Some(authorization) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    }
    let answer = sender.send(request).await.map_err(|error| failed(&chain(&*error)))?;
    if answer.status().is_success() { Ok(()) } else { Err(failed(&answer.status())) }
}

/// One span that fits no packet.
#[derive(Debug)]
struct TooLarge;

/// The spans in as many packets as it takes.
fn packets(process: &[KeyValue], spans: &[SpanData]) -> Vec<Result<Vec<u8>, TooLarge>> {
    let mut packet = Vec::new();
    let written = write_call(&mut TCompactOutputProtocol::new(&mut packet), process, spans);
    if written.is_ok() && packet.len() <= LARGEST_PACKET {
        return vec![Ok(packet)];
    }
    if spans.len() <= 1 {
        return vec![Err(TooLarge)];
    }
    let (one, other) = spans.split_at(spans.len() / 2);
    let mut all = packets(process, one);
    all.extend(packets(process, other));
    all
}

type Out<'a> = &'a mut dyn TOutputProtocol;

/// `Agent.emitBatch`, which answers nothing.
fn write_call(out: Out<'_>, process: &[KeyValue], spans: &[SpanData]) -> thrift::Result<()> {
    out.write_message_begin(&TMessageIdentifier::new("emitBatch", TMessageType::OneWay, 0))?;
    structure(out, |out| field(out, TType::Struct, 1, |out| write_batch(out, process, spans)))?;
    out.write_message_end()
}

/// `Batch`.
fn write_batch(out: Out<'_>, process: &[KeyValue], spans: &[SpanData]) -> thrift::Result<()> {
    structure(out, |out| {
        field(out, TType::Struct, 1, |out| write_process(out, process))?;
        list(out, 2, TType::Struct, spans, write_span)
    })
}

/// `Process`.
fn write_process(out: Out<'_>, process: &[KeyValue]) -> thrift::Result<()> {
    let is_name = |attribute: &&KeyValue| attribute.key.as_str() == "service.name";
    let name = process.iter().find(is_name).map(|name| name.value.to_string()).unwrap_or_default();
    let tags: Vec<_> = process.iter().filter(|attribute| !is_name(attribute)).map(Tag::from).collect();
    structure(out, |out| {
        field(out, TType::String, 1, |out| out.write_string(&name))?;
        list(out, 2, TType::Struct, &tags, write_tag)
    })
}

/// `Span`.
fn write_span(out: Out<'_>, span: &SpanData) -> thrift::Result<()> {
    let [high, low] = halves(span.span_context.trace_id().to_bytes());
    let long = |out: Out<'_>, id, value| field(out, TType::I64, id, |out| out.write_i64(value));
    structure(out, |out| {
        long(out, 1, low)?;
        long(out, 2, high)?;
        long(out, 3, i64::from_be_bytes(span.span_context.span_id().to_bytes()))?;
        long(out, 4, i64::from_be_bytes(span.parent_span_id.to_bytes()))?;
        field(out, TType::String, 5, |out| out.write_string(&span.name))?;
        let flags = span.span_context.trace_flags().to_u8();
        field(out, TType::I32, 7, |out| out.write_i32(i32::from(flags)))?;
        long(out, 8, micros(span.start_time))?;
        long(out, 9, micros(span.end_time).saturating_sub(micros(span.start_time)).max(0))?;
        list(out, 10, TType::Struct, &tags(span), write_tag)?;
        let logs: Vec<_> = span.events.iter().collect();
        list(out, 11, TType::Struct, &logs, |out, event| {
            let mut fields = vec![Tag { key: "event", value: Value::from(event.name.to_string()) }];
            fields.extend(event.attributes.iter().map(Tag::from));
            structure(out, |out| {
                long(out, 1, micros(event.timestamp))?;
                list(out, 2, TType::Struct, &fields, write_tag)
            })
        })
    })
}

/// A span's attributes, and what else of it Jaeger has tags for, as OpenTelemetry's specification maps them ("OpenTelemetry to Jaeger
/// Transformation").
fn tags(span: &SpanData) -> Vec<Tag<'_>> {
    let mut tags: Vec<_> = span.attributes.iter().map(Tag::from).collect();
    let mut add = |key, value: Value| tags.push(Tag { key, value });
    let kind = match span.span_kind {
        SpanKind::Client => Some("client"),
        SpanKind::Server => Some("server"),
        SpanKind::Producer => Some("producer"),
        SpanKind::Consumer => Some("consumer"),
        SpanKind::Internal => None,
    };
    if let Some(kind) = kind {
        add("span.kind", kind.into());
    }
    match &span.status {
        Status::Unset => {}
        Status::Ok => add("otel.status_code", "OK".into()),
        Status::Error { description } => {
            add("otel.status_code", "ERROR".into());
            add("error", true.into());
            if !description.is_empty() {
                add("otel.status_description", description.to_string().into());
            }
        }
    }
    let scope = &span.instrumentation_scope;
    add("otel.scope.name", scope.name().to_owned().into());
    if let Some(version) = scope.version() {
        add("otel.scope.version", version.to_owned().into());
    }
    tags
}

#[derive(Debug)]
struct Tag<'a> {
    key: &'a str,
    value: Value,
}

impl<'a> From<&'a KeyValue> for Tag<'a> {
    fn from(attribute: &'a KeyValue) -> Self {
        Tag { key: attribute.key.as_str(), value: attribute.value.clone() }
    }
}

/// `Tag`; lists are text.
fn write_tag(out: Out<'_>, Tag { key, value }: &Tag<'_>) -> thrift::Result<()> {
    structure(out, |out| {
        field(out, TType::String, 1, |out| out.write_string(key))?;
        let mut typed = |number, kind, id, write: &dyn Fn(Out<'_>) -> thrift::Result<()>| {
            field(out, TType::I32, 2, |out| out.write_i32(number))?;
            field(out, kind, id, write)
        };
        match value {
            Value::Bool(value) => typed(2, TType::Bool, 5, &|out| out.write_bool(*value)),
            Value::I64(value) => typed(3, TType::I64, 6, &|out| out.write_i64(*value)),
            Value::F64(value) => typed(1, TType::Double, 4, &|out| out.write_double(*value)),
            value => typed(0, TType::String, 3, &|out| out.write_string(&value.as_str())),
        }
    })
}

fn structure(out: Out<'_>, fields: impl FnOnce(Out<'_>) -> thrift::Result<()>) -> thrift::Result<()> {
    out.write_struct_begin(&TStructIdentifier::new(""))?;
    fields(out)?;
    out.write_field_stop()?;
    out.write_struct_end()
}

fn field(out: Out<'_>, kind: TType, id: i16, write: impl FnOnce(Out<'_>) -> thrift::Result<()>) -> thrift::Result<()> {
    out.write_field_begin(&TFieldIdentifier::new("", kind, id))?;
    write(out)?;
    out.write_field_end()
}

fn list<T>(
    out: Out<'_>,
    id: i16,
    kind: TType,
    elements: &[T],
    write: impl Fn(Out<'_>, &T) -> thrift::Result<()>,
) -> thrift::Result<()> {
    field(out, TType::List, id, |out| {
        let len = i32::try_from(elements.len()).unwrap_or(i32::MAX);
        out.write_list_begin(&TListIdentifier::new(kind, len))?;
        elements.iter().try_for_each(|element| write(out, element))?;
        out.write_list_end()
    })
}

fn halves(id: [u8; 16]) -> [i64; 2] {
    let id = u128::from_be_bytes(id);
    [((id >> 64) as u64).cast_signed(), (id as u64).cast_signed()]
}

/// Microseconds since the epoch.
fn micros(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
