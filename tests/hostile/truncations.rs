//! Good bodies, cut off at every byte.

use std::{collections::BTreeMap, sync::Arc};

use infogw_proto::client::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prost::Message;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    row::{AT, DELIMITED, SENDER, spelt},
    support::{
        World,
        payload::{composite_token, delimited, series, snappy_block, snappy_framed},
        within,
        world::{PULL_SECRET, TEXT, now},
    },
};

/// So many at once: few enough that a debug build on a busy machine does not find itself overloaded.
const AT_ONCE: usize = 4;

/// A body at its full length, and how it is sent.
struct Whole {
    case: &'static str,
    /// What is cut.
    bytes: Vec<u8>,
    /// What is done to a part before it is sent.
    pack: fn(&[u8]) -> Vec<u8>,
    /// The content type and the encoding of an upload; of a remote write there is none to say.
    upload: Option<(&'static str, &'static str)>,
    /// Lengths at which a part is whole, and how many series it then has.
    whole_at: BTreeMap<usize, usize>,
    /// All series, as they reach the upstream.
    series: Vec<String>,
}

/// Of every part that is not whole by itself the sender is told so, and nothing else reaches the upstream than its whole series.
pub(crate) async fn check(world: &Arc<World>, upload_token: &str) {
    for whole in [blocks(), messages()].into_iter().chain(uploads()) {
        whole.check(world, upload_token).await;
    }
}

impl Whole {
    async fn check(self, world: &Arc<World>, upload_token: &str) {
        let before = world.upstream.count();
        let (places, composite) = (Arc::new(Semaphore::new(AT_ONCE)), composite_token(PULL_SECRET, SENDER));
        let mut sent = JoinSet::new();
        for cut in 0..=self.bytes.len() {
            let (world, place) = (Arc::clone(world), Arc::clone(&places).acquire_owned().await);
            let (body, upload) = ((self.pack)(&self.bytes[..cut]), self.upload);
            let token = if upload.is_some() { upload_token.to_owned() } else { composite.clone() };
            sent.spawn(async move {
                let answered = async {
                    loop {
                        let body = body.clone();
                        let reply = match upload {
                            Some((content_type, encoding)) => {
                                world.gateway.upload(&token, content_type, encoding, body).await
                            }
                            None => world.gateway.receive(&token, body).await,
                        };
                        // A machine that has other work to do refuses some before their bodies are read.
                        if reply.status != 503 || !reply.text().starts_with("overloaded: this gateway has work") {
                            return reply;
                        }
                    }
                };
                let reply = within("an answer", answered).await;
                drop(place);
                (cut, reply)
            });
        }
        while let Some(answered) = sent.join_next().await {
            let (cut, reply) = answered.unwrap();
            let expected = match (self.whole_at.get(&cut), self.upload) {
                (None, _) => 400,
                (Some(0), None) => 204,
                (Some(_), _) => 200,
            };
            assert_eq!(reply.status, expected, "{} cut at {cut} of {}: {reply:?}", self.case, self.bytes.len());
            if expected == 400 {
                reply.reason();
            }
        }
        let mut reached: Vec<usize> = Vec::new();
        for write in world.upstream.received_after(before) {
            let found = spelt(&write);
            assert!(self.series.starts_with(&found), "{}: {found:?} of {:?}", self.case, self.series);
            reached.push(found.len());
        }
        reached.sort_unstable();
        let mut expected: Vec<usize> = self.whole_at.values().copied().filter(|&count| count > 0).collect();
        expected.sort_unstable();
        assert_eq!(reached, expected, "{}", self.case);
    }
}

/// Three series of remote write, each in its bytes, and as they are spelt.
fn remote_write() -> (Vec<Vec<u8>>, Vec<String>) {
    let all = [
        series(&[("__name__", "up"), ("_id", SENDER)], &[(1.0, AT)]),
        series(&[("__name__", "requests_total"), ("_id", SENDER), ("code", "200")], &[(1.5, AT), (2.5, AT + 1)]),
        series(&[("__name__", "up"), ("_id", SENDER), ("room", "\u{e9}")], &[(-0.5, -1)]),
    ];
    let bytes = all.iter().map(|series| crate::wire::field(1, series.encode_to_vec())).collect();
    let spelt = [
        format!("up{{_id=\"c1\"}} 1@{AT}"),
        format!("requests_total{{_id=\"c1\",code=\"200\"}} 1.5@{AT} 2.5@{}", AT + 1),
        "up{_id=\"c1\",room=\"\u{e9}\"} -0.5@-1".to_owned(),
    ];
    (bytes, spelt.to_vec())
}

/// At the end of each of `parts`, and before the first one.
fn ends(parts: &[Vec<u8>]) -> BTreeMap<usize, usize> {
    let mut end = 0;
    let ends = parts.iter().enumerate().map(|(index, part)| {
        end += part.len();
        (end, index + 1)
    });
    [(0, 0)].into_iter().chain(ends).collect()
}

fn blocks() -> Whole {
    let (parts, series) = remote_write();
    let bytes = snappy_block(&parts.concat());
    let whole_at = BTreeMap::from([(bytes.len(), series.len())]);
    Whole { case: "a block", bytes, pack: <[u8]>::to_vec, upload: None, whole_at, series }
}

fn messages() -> Whole {
    let (parts, series) = remote_write();
    Whole { case: "a message", bytes: parts.concat(), pack: snappy_block, upload: None, whole_at: ends(&parts), series }
}

fn uploads() -> Vec<Whole> {
    let series: Vec<String> = [
        "up{_id=\"c1\"} 1@now",
        "requests_total{_id=\"c1\",code=\"200\"} 1500@now",
        "up{_id=\"c1\",room=\"\u{e9}\"} -0.5@now",
    ]
    .map(str::to_owned)
    .into();
    let at = now();
    let lines = [
        format!("up{{_id=\"c1\"}} 1 {at}\n"),
        format!("requests_total{{_id=\"c1\",code=\"200\"}} 1.5e3 {at}\n"),
        format!("up{{_id=\"c1\",room=\"\u{e9}\"}} -0.5 {at}\n"),
    ]
    .map(String::into_bytes);
    let family = |name: &str, labels: &[(&str, &str)], kind: MetricType, mut metric: Metric| {
        let pair =
            |&(name, value): &(&str, &str)| LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) };
        metric.label = labels.iter().map(pair).collect();
        metric.timestamp_ms = Some(at);
        let (name, r#type) = (Some(name.to_owned()), Some(kind as i32));
        delimited(&[MetricFamily { name, r#type, metric: vec![metric], ..Default::default() }])
    };
    let gauge = |value| Metric { gauge: Some(Gauge { value: Some(value) }), ..Default::default() };
    let counter = Metric { counter: Some(Counter { value: Some(1500.0), ..Default::default() }), ..Default::default() };
    let families = [
        family("up", &[("_id", "c1")], MetricType::Gauge, gauge(1.0)),
        family("requests_total", &[("_id", "c1"), ("code", "200")], MetricType::Counter, counter),
        family("up", &[("_id", "c1"), ("room", "\u{e9}")], MetricType::Gauge, gauge(-0.5)),
    ];
    let of = |case, content_type, encoding, parts: &[Vec<u8>], pack| Whole {
        case,
        bytes: parts.concat(),
        pack,
        upload: Some((content_type, encoding)),
        whole_at: ends(parts),
        series: series.clone(),
    };
    // Frames are whole where their identifier ends, and where they do.
    let framed = |case, content_type, parts: &[Vec<u8>]| {
        let bytes = snappy_framed(&parts.concat());
        let whole_at = BTreeMap::from([(0, 0), (10, 0), (bytes.len(), parts.len())]);
        Whole { bytes, whole_at, ..of(case, content_type, "snappy", parts, <[u8]>::to_vec) }
    };
    vec![
        of("text", TEXT, "", &lines, <[u8]>::to_vec),
        of("text in frames", TEXT, "snappy", &lines, snappy_framed),
        framed("frames of text", TEXT, &lines),
        of("families", DELIMITED, "identity", &families, <[u8]>::to_vec),
        of("families in frames", DELIMITED, "snappy", &families, snappy_framed),
        framed("frames of families", DELIMITED, &families),
    ]
}
