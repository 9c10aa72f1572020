//! What fuzzing begins with: valid inputs, made anew each time from a fixed seed.

use std::{fs, path::Path};

use fastrand::Rng;
use infogw_proto::prometheus as prom;
use prost::Message as _;

use crate::{families, mutate::LONG, oracle, targets::NOW};

/// Writes the seeds of `target` into the directory that `FUZZ_SEEDS` names, and ends the process; without it does nothing.
pub fn write_if_asked(target: &str) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS") else { return };
    for (i, seed) in of(target).iter().enumerate() {
        fs::write(Path::new(&directory).join(format!("seed-{i:03}")), seed).expect("the directory can be written");
    }
    std::process::exit(0);
}

fn of(target: &str) -> Vec<Vec<u8>> {
    let mut rng = Rng::with_seed(6);
    let rng = &mut rng;
    let with = |mode: u8, input: &[u8]| [&[mode], input].concat();
    let mut seeds = Vec::new();
    for n in 0..40 {
        let tight = if n % 4 == 3 { 2 } else { 0 };
        match target {
            "write_request" => {
                let message = request(rng).encode_to_vec();
                seeds.push(with(tight, &message));
                seeds.push(with(tight | 1, &oracle::block(&message)));
            }
            "metric_families" => {
                let stream = stream(rng);
                seeds.push(with(tight, &stream));
                seeds.push(with(tight | 1, &oracle::framed(&stream)));
            }
            "text" => seeds.push(with(tight, text(rng).as_bytes())),
            "pipeline" => {
                let policy = (n % 4) << 2;
                let message = request(rng).encode_to_vec();
                seeds.push(with(policy, &message));
                seeds.push(with(policy | 3, &oracle::block(&message)));
                let stream = stream(rng);
                seeds.push(with(policy | 1, &stream));
                seeds.push(with(policy | 0x43, &oracle::framed(&stream)));
                seeds.push(with(policy | 2, text(rng).as_bytes()));
            }
            _ => {}
        }
    }
    match target {
        "selector" => seeds.extend(SELECTORS.iter().map(|text| text.as_bytes().to_vec())),
        "token" => {
            for (head, claims) in [
                (r#"{"alg":"ES256","typ":"JWT"}"#, CLAIMS),
                (r#"{"alg":"RS256","crit":["b64"]}"#, CLAIMS),
                ("", CLAIMS),
                (r#"{"alg":"none"}"#, r#"{"iss":1,"aud":["telemeter-client"]}"#),
            ] {
                seeds.push([b"\x01", head.as_bytes(), b"\xff", claims.as_bytes()].concat());
                use base64::Engine as _;
                let encode = |part: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part);
                seeds.push(with(0, format!("{}.{}.AAAA", encode(head), encode(claims)).as_bytes()));
            }
            for json in [
                r#"{"authorization_token":"s3cret","cluster_id":"c1"}"#,
                r#"{"cluster_id":"c1","authorization_token":"s3\u0063ret","n":[7,{"a":null}]}"#,
                r#"{"cluster_id":"c1","Cluster_ID":"c2","authorization_token":"s3cret"}"#,
            ] {
                seeds.push(with(2, json.as_bytes()));
            }
            seeds.push(with(3, b"Bearer eyJhdXRob3JpemF0aW9uX3Rva2VuIjoidCIsImNsdXN0ZXJfaWQiOiJjMSJ9"));
        }
        _ => {}
    }
    seeds
}

const CLAIMS: &str = r#"{"iss":"telemeter.selfsigned","aud":"telemeter-client","sub":"a","exp":1767230000,
    "nbf":1767220000,"iat":1767220000,"telemeter.openshift.io":{"labels":{"_id":"c1"}}}"#;

const SELECTORS: [&str; 6] = [
    "up\n{__name__=~\"a.*\",job!=\"x\"}\n\n__name__=up\njob=x\n\n__name__=ab",
    "{job=~`b|c.*`, env!='', replica=\"\",}\n{job!~\"(a|b)+\",x=\"y\"}\n\njob=c\nenv=é\n\njob=aab\nx=y",
    "{\"http.requests\", 'http.method'=~\"GET|P(U|OS)T\"}\n\n__name__=http.requests\nhttp.method=POST",
    "a:b{c=\"\\x41\\u00e9\\n\\\"\\\\\"} # comment\n{__name__=\"bool\"}\n\n__name__=a:b\nc=A\u{e9}",
    "{a=~\"[a-z]+\\\\d?(?i:X)\\\\.\\\\pL\"}\n{a=~\"^ab{2,3}$\"}\n{a=~\".+_total\"}\n{a=~\"x.*y\"}\n\na=abb\n\na=x\u{7f}y\n\na=b_total",
    "{a!=\"\"}\n{a=~\".+\"}\n{a=~\"\",b=\"c\"}\n{a!~\"\"}\n\na=b\n\nb=c",
];

const NAMES: [&str; 12] =
    ["__name__", "_id", "a", "b", "env", "instance", "job", "le", "namespace", "region", "replica", "\u{e9}t\u{e9}"];
const VALUES: [&str; 14] =
    ["up", "down", "c1", "c2", "a", "bb", "prod", "eu", "x", "cluster:usage", "", "\u{e9}", "10.0.0.1:9100", LONG];
const FLOATS: [f64; 9] = [0.0, 1.0, -1.5, f64::NAN, f64::INFINITY, 1e-7, 123_456_789.0, 0.005, f64::NEG_INFINITY];

fn pick<T: Copy>(of: &[T], rng: &mut Rng) -> T {
    of[rng.usize(..of.len())]
}

/// Mostly the labels of a series that a policy lets pass.
fn labels(named: bool, rng: &mut Rng) -> Vec<prom::Label> {
    let mut labels = Vec::new();
    let mut add = |name: &str, value: &str| labels.push(prom::Label { name: name.to_owned(), value: value.to_owned() });
    if named {
        add("__name__", pick(&["up", "ab", "cluster:usage"], rng));
    }
    add("_id", "c1");
    add("env", "prod");
    for name in &NAMES[5..] {
        if rng.u8(..3) == 0 {
            add(name, pick(&VALUES, rng));
        }
    }
    match rng.u8(..6) {
        0 => add(pick(&NAMES, rng), pick(&VALUES, rng)),
        1 => rng.shuffle(&mut labels),
        _ => {}
    }
    labels
}

fn timestamp(rng: &mut Rng) -> i64 {
    if rng.u8(..8) == 0 { rng.i64(..) } else { NOW.as_millis() as i64 + rng.i64(-1000..1000) }
}

fn request(rng: &mut Rng) -> prom::WriteRequest {
    let series = |rng: &mut Rng| {
        let sample = |rng: &mut Rng| prom::Sample { value: pick(&FLOATS, rng), timestamp: timestamp(rng) };
        let exemplar = |rng: &mut Rng| prom::Exemplar {
            labels: vec![prom::Label { name: "trace_id".to_owned(), value: pick(&VALUES, rng).to_owned() }],
            value: 1.0,
            timestamp: timestamp(rng),
        };
        prom::TimeSeries {
            labels: labels(true, rng),
            samples: (0..rng.usize(..3)).map(|_| sample(rng)).collect(),
            exemplars: (0..rng.usize(..2)).map(|_| exemplar(rng)).collect(),
            histograms: (0..rng.usize(..8) / 6).map(|_| histogram(rng)).collect(),
        }
    };
    let metadata = |rng: &mut Rng| prom::MetricMetadata {
        r#type: rng.i32(0..8),
        metric_family_name: "up".to_owned(),
        help: pick(&VALUES, rng).to_owned(),
        unit: String::new(),
    };
    prom::WriteRequest {
        timeseries: (0..rng.usize(1..5)).map(|_| series(rng)).collect(),
        metadata: (0..rng.usize(..2)).map(|_| metadata(rng)).collect(),
    }
}

fn histogram(rng: &mut Rng) -> prom::Histogram {
    use prom::histogram::{Count, ZeroCount};
    let float = rng.bool();
    let span = prom::BucketSpan { offset: rng.i32(-5..5), length: 2 };
    prom::Histogram {
        count: Some(if float { Count::CountFloat(3.0) } else { Count::CountInt(3) }),
        sum: pick(&FLOATS, rng),
        schema: rng.i32(-4..9),
        zero_threshold: 1e-5,
        zero_count: Some(if float { ZeroCount::ZeroCountFloat(1.0) } else { ZeroCount::ZeroCountInt(1) }),
        positive_spans: vec![span],
        positive_deltas: if float { vec![] } else { vec![1, -1] },
        positive_counts: if float { vec![1.0, 2.0] } else { vec![] },
        negative_spans: vec![span],
        negative_deltas: if float { vec![] } else { vec![-1, 300] },
        negative_counts: if float { vec![1.0, 2.0] } else { vec![] },
        reset_hint: rng.i32(0..4),
        timestamp: timestamp(rng),
        custom_values: if rng.bool() { vec![0.5, 1.0] } else { vec![] },
    }
}

fn stream(rng: &mut Rng) -> Vec<u8> {
    (0..rng.usize(1..4)).flat_map(|_| family(rng).encode_length_delimited_to_vec()).collect()
}

fn family(rng: &mut Rng) -> families::MetricFamily {
    let kind = rng.i32(0..6);
    let metric = |rng: &mut Rng| {
        let mut metric = families::Metric {
            label: labels(false, rng)
                .into_iter()
                .map(|it| families::LabelPair { name: it.name.into(), value: it.value.into() })
                .collect(),
            timestamp_ms: Some(NOW.as_millis() as i64),
            ..families::Metric::default()
        };
        let number = Some(families::Number { value: pick(&FLOATS, rng) });
        match kind {
            0 => metric.counter = number,
            1 => metric.gauge = number,
            2 => {
                let quantile = families::Quantile { quantile: 0.99, value: pick(&FLOATS, rng) };
                metric.summary =
                    Some(families::Summary { count: 7, sum: 2.5, quantile: vec![quantile] }.encode_to_vec());
            }
            3 => metric.untyped = number,
            _ if rng.bool() => {
                let bound = |upper_bound| families::Bucket { count: 3, upper_bound, count_float: 0.0 };
                let bucket = vec![bound(0.005), bound(pick(&FLOATS, rng))];
                let classic = families::Classic { count: 7, sum: 2.5, bucket, count_float: 0.0 };
                metric.histogram = Some(classic.encode_to_vec());
            }
            _ => {
                let it = histogram(rng);
                let float = !it.positive_counts.is_empty();
                let native = families::Native {
                    count_float: float.then_some(3.0),
                    sum: it.sum,
                    schema: it.schema,
                    zero_threshold: it.zero_threshold,
                    zero_count: Some(1),
                    zero_count_float: float.then_some(1.0),
                    negative_span: it.negative_spans,
                    positive_span: it.positive_spans,
                };
                let integers = families::Integers {
                    count: Some(3),
                    negative_delta: it.negative_deltas,
                    positive_delta: it.positive_deltas,
                };
                let floats =
                    families::Floats { negative_count: it.negative_counts, positive_count: it.positive_counts };
                let parts = [native.encode_to_vec(), integers.encode_to_vec(), floats.encode_to_vec()];
                metric.histogram = Some(parts.concat());
            }
        }
        metric
    };
    families::MetricFamily {
        name: pick(&["up", "ab", "cluster:usage"], rng).to_owned(),
        kind,
        metric: (0..rng.usize(1..4)).map(|_| metric(rng)).collect(),
    }
}

fn text(rng: &mut Rng) -> String {
    let mut text = String::new();
    for n in 0..rng.usize(1..4) {
        let kind = pick(&["counter", "gauge", "histogram", "summary", "untyped"], rng);
        let name = format!("{}{n}", pick(&["up", "ab", "cluster:usage"], rng));
        text += &format!("# HELP {name} what it\\nis \\\\ does\n# TYPE {name} {kind}\n");
        for _ in 0..rng.usize(1..4) {
            let labels = labels(false, rng).into_iter().filter(|label| label.name.is_ascii());
            let labels: Vec<_> = labels.map(|label| format!("{}=\"{}\"", label.name, label.value)).collect();
            let value = pick(&["1", "0.5", "NaN", "+Inf", "1e-7", "0x1p-2", "-3"], rng);
            text += &format!("{name}{{{}}} {value} {}\n", labels.join(","), NOW.as_millis());
        }
    }
    text
}
