//! Messages that are not what their definitions say: lengths, tags, varints, wire types, nesting, order and repeats.

use crate::{
    row::{AT, Row, Rows},
    wire::{
        delimited, field, fixed64, gauge, gauges, good, int, label, long, lying, one, own, pair, series, tag,
        timestamp, varint,
    },
};

const UP: &str = "up{_id=\"c1\"} 1@1700000000000";
const NOW: &str = "up{_id=\"c1\"} 1@now";

/// What no field begins with: groups, wire types that do not exist, field number 0, tags over 32 bits, and one whose number is 1 to whom
/// cuts its tenth byte off.
const NEVER: [(&str, &[u8]); 9] = [
    ("a group", b"\x7b\x7c"),
    ("an end of a group", b"\x7c"),
    ("a group that never ends", b"\x0b"),
    ("wire type 6", b"\x7e\x00"),
    ("wire type 7", b"\x7f\x00"),
    ("field 0", b"\x02\x00"),
    ("a tag over 32 bits", b"\x8a\x80\x80\x80\x10\x00"),
    ("a tag over 64 bits", b"\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x02\x00"),
    ("a tag without an end", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
];

pub(crate) fn rows() -> Vec<Row> {
    [lengths(), tags(), wire_types(), nesting(), order(), families()].into_iter().flatten().collect()
}

fn lengths() -> Vec<Row> {
    let mut rows = Rows::of("lengths");
    let what = "is not the protobuf message it should be: the message is cut off";
    for length in [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 32, 1 << 31, 100] {
        let levels = [
            ("a series", lying(1, length, own())),
            ("a label", series(&[&lying(1, length, pair("_id", "c1")), &one()])),
            ("a name", series(&[&own(), &field(1, [lying(1, length, "zz"), field(2, "v")].concat())])),
            ("a value", series(&[&own(), &field(1, [field(1, "zz"), lying(2, length, "v")].concat())])),
            ("a sample", series(&[&own(), &lying(2, length, fixed64(1, 0))])),
            ("an exemplar", series(&[&own(), &lying(3, length, fixed64(2, 0))])),
            ("a histogram", series(&[&own(), &lying(4, length, fixed64(3, 0))])),
            ("deltas", series(&[&own(), &field(4, lying(12, length, "\x01"))])),
            ("metadata", [good(), lying(3, length, "")].concat()),
            ("what nobody knows", [good(), lying(99, length, "")].concat()),
        ];
        for (level, message) in levels {
            rows.message(format!("{level} of {length} bytes"), message, 400, what);
        }
        rows.families(format!("a family of {length} bytes"), [varint(length), field(1, "up")].concat(), 400, what);
        let metric = gauges(&[lying(1, length, pair("_id", "c1"))]);
        rows.families(format!("a label of {length} bytes in a metric"), metric, 400, what);
    }
    // A label that reaches into the sample behind it, and a series into the next one.
    let inner = [own(), lying(1, pair("zz", "v").len() as u64 + one().len() as u64, pair("zz", "v")), one()].concat();
    // The sample's tag is that of a label's value.
    rows.message("a label that swallows a sample", field(1, inner), 400, "label `zz` is not UTF-8");
    let inner = [own(), one()].concat();
    let swallows = [lying(1, (inner.len() + good().len()) as u64, &inner), good()].concat();
    rows.message("a series that swallows the next", swallows, 400, "");
    rows.message(
        "a length in ten bytes",
        [&tag(1, 2), &long(good().len() as u64 - 2, 10), &good()[2..]].concat(),
        200,
        "",
    )
    .reaches([UP]);
    rows.message(
        "a length in eleven bytes",
        [&tag(1, 2), &long(good().len() as u64 - 2, 11), &good()[2..]].concat(),
        400,
        "64 bits",
    );
    rows.all()
}

fn tags() -> Vec<Row> {
    let mut rows = Rows::of("tags");
    for (case, never) in NEVER {
        let levels = [
            ("the request", [good(), never.to_vec()].concat()),
            ("a series", series(&[&own(), never, &one()])),
            ("a label", series(&[&own(), &field(1, [&pair("zz", "v"), never].concat())])),
            ("a sample", series(&[&own(), &field(2, never)])),
            ("an exemplar", series(&[&own(), &one(), &field(3, never)])),
            ("an exemplar's label", series(&[&own(), &one(), &field(3, field(1, never))])),
            ("a histogram", series(&[&own(), &field(4, never)])),
            ("a span", series(&[&own(), &field(4, field(11, never))])),
            ("metadata", [good(), field(3, never)].concat()),
        ];
        for (level, message) in levels {
            rows.message(format!("{case} in {level}"), message, 400, "is not the protobuf message it should be");
        }
        let metric = [label("_id", "c1"), gauge(), timestamp()].concat();
        let levels = [
            ("a family", delimited([field(1, "up"), int(3, 1), field(4, &metric), never.to_vec()].concat())),
            ("a metric", gauges(&[[&metric, never].concat()])),
            ("a metric's label", gauges(&[[field(1, [&pair("zz", "v"), never].concat()), metric.clone()].concat()])),
            ("a gauge", gauges(&[[label("_id", "c1"), timestamp(), field(2, never)].concat()])),
        ];
        for (level, body) in levels {
            rows.families(format!("{case} in {level}"), body, 400, "is not the protobuf message it should be");
        }
    }
    let rest = |message: &[u8]| message[1..].to_vec();
    for bytes in [2, 5, 10] {
        let tag = long(1 << 3 | 2, bytes);
        let inner = [&own(), &[&tag, &rest(&label("zz", "v"))[..]].concat(), &one()[..]].concat();
        for (level, message) in [
            ("a series", [&tag, &rest(&good())[..]].concat()),
            ("a label", series(&[&label("__name__", "up"), &[&tag, &rest(&label("_id", "c1"))[..]].concat(), &one()])),
            (
                "a name",
                series(&[&label("__name__", "up"), &field(1, [&tag, &rest(&pair("_id", "c1"))[..]].concat()), &one()]),
            ),
        ] {
            rows.message(format!("the tag of {level} in {bytes} bytes"), message, 200, "").reaches([UP]);
        }
        rows.message(format!("a further label in {bytes} bytes"), field(1, inner), 200, "")
            .reaches(["up{_id=\"c1\",zz=\"v\"} 1@1700000000000"]);
    }
    let largest = (1 << 29) - 1;
    rows.message("the largest field number", [good(), field(largest, "x"), int(largest, 7)].concat(), 200, "")
        .reaches_as_sent();
    rows.all()
}

fn wire_types() -> Vec<Row> {
    let mut rows = Rows::of("wire types");
    let four = |number: u64| [tag(number, 5), vec![0; 4]].concat();
    for (case, message) in [
        ("a series is a number", [good(), int(1, 7)].concat()),
        ("a series is a double", [good(), fixed64(1, 7)].concat()),
        ("a series is a float", [good(), four(1)].concat()),
        ("metadata is a number", [good(), int(3, 7)].concat()),
        ("a label is a number", series(&[&own(), &int(1, 7), &one()])),
        ("a name is a number", series(&[&own(), &field(1, [int(1, 7), field(2, "v")].concat()), &one()])),
        ("a value is a double", series(&[&own(), &field(1, [field(1, "zz"), fixed64(2, 7)].concat()), &one()])),
        ("a sample is a number", series(&[&own(), &int(2, 7)])),
        ("a sample's value is an integer", series(&[&own(), &field(2, [int(1, 7), int(2, 7)].concat())])),
        ("a sample's value is a float", series(&[&own(), &field(2, [four(1), int(2, 7)].concat())])),
        ("a sample's time is a double", series(&[&own(), &field(2, [fixed64(1, 7), fixed64(2, 7)].concat())])),
        ("a sample's time is bytes", series(&[&own(), &field(2, [fixed64(1, 7), field(2, "7")].concat())])),
        ("an exemplar's value is a number", series(&[&own(), &one(), &field(3, int(2, 7))])),
        ("a histogram's sum is a number", series(&[&own(), &field(4, int(3, 7))])),
        ("a histogram's span is a number", series(&[&own(), &field(4, int(11, 7))])),
    ] {
        rows.message(case, message, 400, "has the wrong wire type");
    }
    let id = || label("_id", "c1");
    for (case, body) in [
        ("a family's name is a number", delimited([int(1, 7), int(3, 1)].concat())),
        ("a family's type is bytes", delimited([field(1, "up"), field(3, "1")].concat())),
        ("a metric is a number", delimited([field(1, "up"), int(4, 7)].concat())),
        ("a metric's label is a number", gauges(&[[int(1, 7), gauge(), timestamp()].concat()])),
        ("a gauge is a double", gauges(&[[id(), fixed64(2, 7), timestamp()].concat()])),
        ("a gauge's value is a number", gauges(&[[id(), field(2, int(1, 7)), timestamp()].concat()])),
        ("a metric's time is a double", gauges(&[[id(), gauge(), fixed64(6, 7)].concat()])),
    ] {
        rows.families(case, body, 400, "has the wrong wire type");
    }
    let deltas = |packed: &[u8]| series(&[&own(), &field(4, field(12, packed))]);
    rows.message("deltas that end within one", deltas(b"\x01\x80"), 400, "cut off");
    rows.message("deltas over 64 bits", deltas(&[0xff; 10]), 400, "64 bits");
    rows.message("counts that end within one", series(&[&own(), &field(4, field(13, [0; 12]))]), 400, "cut off");
    rows.all()
}

fn nesting() -> Vec<Row> {
    let mut rows = Rows::of("nesting");
    let nested = |number: u64, depth: usize| (0..depth).fold(Vec::new(), |inner, _| field(number, inner));
    // 10,000 levels of what nobody knows are some bytes to whoever does not know them.
    rows.message("fields that nobody knows", [good(), nested(15, 10_000)].concat(), 200, "").reaches_as_sent();
    rows.message("groups", [good(), b"\x7b".repeat(500_000)].concat(), 400, "wire type that is not supported");
    rows.message(
        "groups that end",
        [good(), b"\x7b".repeat(9_000), b"\x7c".repeat(9_000)].concat(),
        400,
        "not supported",
    );
    // Of 10,000 messages in each other, three are a series, its label and its name.
    rows.message("field 1 in field 1", nested(1, 10_000), 400, "is not UTF-8");
    rows.message("a request in a label", series(&[&own(), &field(1, good()), &one()]), 400, "is not UTF-8");
    let families = |inner: Vec<u8>| gauges(&[[label("_id", "c1"), gauge(), timestamp(), inner].concat()]);
    rows.families("fields that nobody knows in a metric", families(nested(15, 10_000)), 200, "").reaches([NOW]);
    rows.families("groups in a metric", families(b"\x7b".repeat(200_000)), 400, "not supported");
    rows.all()
}

fn order() -> Vec<Row> {
    let mut rows = Rows::of("order");
    let (name, id) = (label("__name__", "up"), label("_id", "c1"));
    rows.message("the sample before the labels", series(&[&one(), &own()]), 200, "").reaches([UP]);
    rows.message("a sample between labels", series(&[&name, &one(), &id]), 200, "").reaches([UP]);
    rows.message("labels between samples", series(&[&one(), &name, &one(), &id, &one()]), 200, "")
        .reaches(["up{_id=\"c1\"} 1@1700000000000 1@1700000000000 1@1700000000000"]);
    rows.message("labels backwards", series(&[&id, &name, &one()]), 200, "").reaches([UP]);
    let metadata = || field(3, [int(1, 1), field(2, "up"), field(4, "help")].concat());
    let between = [metadata(), good(), field(99, "x"), good(), metadata()].concat();
    rows.message("series between metadata and what nobody knows", between, 200, "").reaches_as_sent();
    // The last of a field that repeats counts, to us as to Go.
    let twice = field(1, [field(1, "zz"), field(1, "_id"), field(2, "zz"), field(2, "c1")].concat());
    rows.message("a name and a value twice in a label", series(&[&name, &twice, &one()]), 200, "").reaches([UP]);
    let twice = field(2, [fixed64(1, 0), fixed64(1, 1f64.to_bits()), int(2, 7), int(2, AT as u64)].concat());
    rows.message("a value and a time twice in a sample", series(&[&own(), &twice]), 200, "").reaches([UP]);
    rows.message(
        "the value before the name in a label",
        series(&[&name, &field(1, [field(2, "c1"), field(1, "_id")].concat()), &one()]),
        200,
        "",
    )
    .reaches([UP]);
    rows.message("another label twice", series(&[&own(), &label("zz", "a"), &label("zz", "b"), &one()]), 200, "")
        .reaches(["up{_id=\"c1\",zz=\"a\"} 1@1700000000000"]);
    rows.message("the name twice", series(&[&name, &label("__name__", "down"), &id, &one()]), 200, "").reaches([UP]);
    rows.message("a label that is empty", series(&[&own(), b"\x0a\x00", &one()]), 200, "").reaches([UP]);
    rows.message("labels without a sample", series(&[&own()]), 200, "").reaches_as_sent();
    rows.message("the same series twice", good().repeat(2), 200, "").reaches_as_sent();
    rows.all()
}

fn families() -> Vec<Row> {
    let mut rows = Rows::of("families");
    let id = label("_id", "c1");
    let metric = [id.clone(), gauge(), timestamp()].concat();
    rows.families(
        "the name and the type behind the metrics",
        delimited([field(4, &metric), int(3, 1), field(1, "up")].concat()),
        200,
        "",
    )
    .reaches([NOW]);
    rows.families(
        "two names",
        delimited([field(1, "down"), int(3, 1), field(4, &metric), field(1, "up")].concat()),
        200,
        "",
    )
    .reaches([NOW]);
    rows.families("no name", delimited([int(3, 1), field(4, &metric)].concat()), 400, "no name");
    rows.families(
        "a name that is not UTF-8",
        delimited([field(1, b"u\xff"), int(3, 1), field(4, &metric)].concat()),
        400,
        "not UTF-8",
    );
    for kind in [6, 1 << 31, 1 << 32, u64::MAX] {
        let body = delimited([field(1, "up"), int(3, kind), field(4, &metric)].concat());
        rows.families(format!("type {kind}"), body, 400, &format!("is of type {kind}"));
    }
    rows.families(
        "a value of another type",
        delimited([field(1, "up"), int(3, 2), field(4, &metric)].concat()),
        400,
        "",
    );
    rows.families("two values", gauges(&[[metric.clone(), gauge()].concat()]), 400, "its value twice");
    rows.families("no value", gauges(&[[id.clone(), timestamp()].concat()]), 400, "");
    rows.families("no time", gauges(&[[id.clone(), gauge()].concat()]), 400, "no timestamp");
    rows.families("two times, the last one good", gauges(&[[id, gauge(), int(6, 1), timestamp()].concat()]), 200, "")
        .reaches([NOW]);
    rows.families("an empty family", delimited(vec![]), 200, "");
    rows.families("nothing but empty families", vec![0; 500_000], 200, "");
    rows.families("text", b"up 1\n".to_vec(), 400, "");
    rows.families("without its length", gauges(&[metric])[1..].to_vec(), 400, "");
    rows.all()
}
