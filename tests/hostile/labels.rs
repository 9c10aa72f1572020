//! Whose series it is: every way to say that it is somebody else's, or to say two things of it. What reaches the upstream is read as
//! Go reads it, for each row.

use crate::{
    row::{Row, Rows},
    wire::{
        delimited, field, fixed64, gauge, gauges, good, int, label, long, one, own, pair, series, tag, timestamp,
        varint,
    },
};

const UP: &str = "up{_id=\"c1\"} 1@1700000000000";
const NOW: &str = "up{_id=\"c1\"} 1@now";

/// Names that look like the cluster label's, and are not.
const LIKE_ID: [&str; 12] = [
    "_ID",
    "_Id",
    "id",
    "__id",
    "_id_",
    " _id",
    "_id ",
    "_\u{456}d",
    "\u{ff3f}id",
    "_id\u{200b}",
    "_i\u{307}d",
    "_id\0",
];

/// Values that look like the sender's, and are not.
const LIKE_C1: [&str; 15] = [
    "c2",
    "C1",
    "c1 ",
    " c1",
    "c1\0",
    "\0c1",
    "c1\n",
    "c1\t",
    "\u{441}1",
    "\u{ff43}1",
    "c1\u{200b}",
    "c\u{2060}1",
    "c1\u{301}",
    "\u{feff}c1",
    "c11",
];

pub(crate) fn rows() -> Vec<Row> {
    [remote_write(), hidden(), elsewhere(), families(), text(), limits()].into_iter().flatten().collect()
}

/// `up` with these labels between its name and its sample.
fn with(labels: &[Vec<u8>]) -> Vec<u8> {
    series(&[&label("__name__", "up"), &labels.concat(), &one()])
}

fn remote_write() -> Vec<Row> {
    let mut rows = Rows::of("spoofed in remote write");
    // A good neighbour is written nevertheless.
    let beside = |labels: &[Vec<u8>]| [good(), with(labels)].concat();
    let (own, others) = (label("_id", "c1"), label("_id", "c2"));
    rows.message("missing", beside(&[]), 400, "series 2 `up`: label `_id` is missing").reaches([UP]);
    rows.message("empty", beside(&[label("_id", "")]), 400, "label `_id` is missing").reaches([UP]);
    rows.message("without a value", beside(&[field(1, field(1, "_id"))]), 400, "label `_id` is missing").reaches([UP]);
    rows.message("no labels at all", [good(), series(&[&one()])].concat(), 400, "label `_id` is missing").reaches([UP]);
    rows.message("an empty series", [good(), series(&[])].concat(), 400, "label `_id` is missing").reaches([UP]);
    for value in LIKE_C1 {
        rows.message(format!("{value:?}"), beside(&[label("_id", value)]), 400, "this sender writes `c1`")
            .reaches([UP]);
    }
    for value in [&b"c1\xff"[..], b"c1\xc0\x80", b"\xe3\x31", b"c\xc0\xb1"] {
        rows.message(format!("{value:02x?}"), beside(&[label("_id", value)]), 400, "label `_id` is not UTF-8")
            .reaches([UP]);
    }
    for name in LIKE_ID {
        let alone = beside(&[label(name, "c1")]);
        rows.message(format!("{name:?} in its place"), alone, 400, "label `_id` is missing").reaches([UP]);
        // It is another label, which its owner may have.
        let both = with(&[own.clone(), label(name, "c2")]);
        let mut labels = [format!("{name}=\"c2\""), "_id=\"c1\"".to_owned()];
        if name > "_id" {
            labels.reverse();
        }
        rows.message(format!("{name:?} beside it"), both, 200, "")
            .reaches([format!("up{{{}}} 1@1700000000000", labels.join(","))]);
    }
    rows.message("an overlong spelling of its name", beside(&[label(b"\xc1\x9fid", "c1")]), 400, "is not UTF-8")
        .reaches([UP]);
    let twice = "label `_id` stands there twice";
    for (case, labels) in [
        ("own, then another's", [own.clone(), others.clone()]),
        ("another's, then own", [others.clone(), own.clone()]),
        ("own, twice", [own.clone(), own.clone()]),
        ("empty, then own", [label("_id", ""), own.clone()]),
        ("own, then empty", [own.clone(), label("_id", "")]),
        ("without a value, then another's", [field(1, field(1, "_id")), others.clone()]),
    ] {
        rows.message(case, beside(&labels), 400, twice).reaches([UP]);
    }
    let apart = series(&[&label("__name__", "up"), &own, &one(), &others]);
    rows.message("another's behind the samples", [good(), apart].concat(), 400, twice).reaches([UP]);
    let apart = series(&[&others, &label("__name__", "up"), &one(), &label("zz", "v"), &own]);
    rows.message("own behind the samples, another's before", [good(), apart].concat(), 400, twice).reaches([UP]);
    rows.message("another's for a name", series(&[&label("__name__", "_id=\"c2\""), &own, &one()]), 200, "")
        .reaches(["_id=\"c2\"{_id=\"c1\"} 1@1700000000000"]);
    rows.message(
        "every other series another's",
        [good(), with(&[others]), good()].concat(),
        400,
        "1 of 3 series refused",
    )
    .reaches([UP, UP]);
    rows.all()
}

/// What one decoder takes for a label, and another for something else.
fn hidden() -> Vec<Row> {
    let mut rows = Rows::of("hidden in remote write");
    let own = label("_id", "c1");
    let malformed = "the tag at byte";
    // The low 32 bits of these are those of field 1, or of 2: that is what Go reads.
    for high in [1u64 << 29, 1 << 32, 1 << 60] {
        let spoof = |number: u64, content: &[u8]| field(high | number, content);
        for (level, message) in [
            ("a series", [good(), spoof(1, &[label("__name__", "up"), label("_id", "c2"), one()].concat())].concat()),
            ("a label", with(&[own.clone(), spoof(1, &pair("_id", "c2"))])),
            ("a label before it", with(&[spoof(1, &pair("_id", "c2")), own.clone()])),
            ("a name", with(&[own.clone(), field(1, [spoof(1, b"_id"), field(2, "c2")].concat())])),
            (
                "a name, again",
                with(&[own.clone(), field(1, [field(1, "zz"), spoof(1, b"_id"), field(2, "c2")].concat())]),
            ),
            ("a value", with(&[field(1, [field(1, "_id"), field(2, "c1"), spoof(2, b"c2")].concat())])),
        ] {
            rows.message(format!("{level} behind a tag of {high:#x}"), message, 400, malformed);
        }
    }
    // Ten bytes, of which Go cuts the last one's upper bits off; and what reads as a negative number there.
    for (case, tag) in [
        ("bit 64", &b"\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x02"[..]),
        ("bit 64 and 63", b"\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x03"),
        ("all bits", b"\xfa\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ] {
        let spoof = [tag, &varint(pair("_id", "c2").len() as u64), &pair("_id", "c2")].concat();
        rows.message(format!("a label behind a tag with {case}"), with(&[own.clone(), spoof]), 400, "");
    }
    let twice = "label `_id` stands there twice";
    for bytes in [2, 5, 10] {
        let spoof = [long(1 << 3 | 2, bytes), varint(9), pair("_id", "c2")].concat();
        assert_eq!(pair("_id", "c2").len(), 9);
        rows.message(format!("a label behind a tag of {bytes} bytes"), with(&[own.clone(), spoof]), 400, twice);
        let spoof = [tag(1, 2), long(9, bytes), pair("_id", "c2")].concat();
        rows.message(format!("a label of a length of {bytes} bytes"), with(&[own.clone(), spoof]), 400, twice);
        let name = [&[0x0a][..], &long(3, bytes), b"_id", &field(2, "c2")].concat();
        rows.message(format!("a name of a length of {bytes} bytes"), with(&[own.clone(), field(1, name)]), 400, twice);
    }
    // The last field counts.
    let foreign = "label `_id` is `c2`, this sender writes `c1`";
    let last = |fields: &[Vec<u8>]| with(&[field(1, fields.concat())]);
    let (id, c1, c2) = (field(1, "_id"), field(2, "c1"), field(2, "c2"));
    rows.message("another's value behind own", last(&[id.clone(), c1.clone(), c2.clone()]), 400, foreign);
    rows.message("own value behind another's", last(&[id.clone(), c2.clone(), c1.clone()]), 200, "").reaches([UP]);
    rows.message(
        "an empty value behind own",
        last(&[id.clone(), c1.clone(), field(2, "")]),
        400,
        "label `_id` is missing",
    );
    rows.message(
        "another name behind it",
        last(&[id.clone(), c1.clone(), field(1, "zz")]),
        400,
        "label `_id` is missing",
    );
    let renamed = with(&[own.clone(), field(1, [field(1, "zz"), c2.clone(), id.clone()].concat())]);
    rows.message("another label that is renamed to it", renamed, 400, twice);
    let unknown = field(1, [id, c1, field(3, "c2"), field(15, &c2), fixed64(4, 2), int(5, 2)].concat());
    rows.message("among fields that nobody knows", with(&[unknown]), 200, "").reaches([UP]);
    let groups = field(1, [&pair("_id", "c1")[..], b"\x0b", &field(2, "c2"), b"\x0c"].concat());
    rows.message("in a group", with(&[groups]), 400, malformed);
    rows.all()
}

/// What says another's name where it says nothing of whose series it is. It is the sender's, and goes on as it is.
fn elsewhere() -> Vec<Row> {
    let mut rows = Rows::of("another's name");
    let labels = [label("_id", "c2"), label("__name__", "down")].concat();
    let exemplar = field(3, [&labels[..], &fixed64(2, 0), &int(3, 1)].concat());
    rows.message("in an exemplar", series(&[&own(), &one(), &exemplar]), 200, "").reaches_as_sent();
    rows.message("in an exemplar before the labels", series(&[&exemplar, &own(), &one()]), 200, "").reaches([UP]);
    for number in [2, 4, 5, 6] {
        let metadata = [good(), field(3, [int(1, 1), field(number, "up{_id=\"c2\"}")].concat())].concat();
        rows.message(format!("in field {number} of metadata"), metadata, 200, "").reaches_as_sent();
    }
    rows.message(
        "in metadata shaped like a series",
        [good(), field(3, [&labels[..], &one()].concat())].concat(),
        400,
        "wrong wire type",
    );
    rows.message(
        "in a series of a field nobody knows",
        [good(), field(2, [&labels[..], &one()].concat())].concat(),
        200,
        "",
    )
    .reaches_as_sent();
    rows.message(
        "in a label of a field nobody knows",
        series(&[&own(), &one(), &field(5, pair("_id", "c2"))]),
        200,
        "",
    )
    .reaches_as_sent();
    rows.message("in metadata alone", field(3, field(2, "up{_id=\"c2\"}")), 204, "");
    let exemplars = [field(1, &labels), fixed64(2, 0)].concat();
    let counter = field(3, [fixed64(1, 1f64.to_bits()), field(2, exemplars)].concat());
    let metric = [label("_id", "c1"), counter, timestamp()].concat();
    rows.families("in an exemplar of an upload", delimited([field(1, "up"), field(4, metric)].concat()), 200, "")
        .reaches([NOW]);
    rows.families(
        "in the help of an upload",
        delimited(
            [
                field(1, "up"),
                field(2, "up{_id=\"c2\"} 1"),
                int(3, 1),
                field(4, [label("_id", "c1"), gauge(), timestamp()].concat()),
            ]
            .concat(),
        ),
        200,
        "",
    )
    .reaches([NOW]);
    rows.all()
}

fn families() -> Vec<Row> {
    let mut rows = Rows::of("spoofed in families");
    // One bad series refuses all of an upload.
    let metric = |labels: &[Vec<u8>]| [labels.concat(), gauge(), timestamp()].concat();
    let beside = |labels: &[Vec<u8>]| gauges(&[metric(&[label("_id", "c1")]), metric(labels)]);
    let (own, others) = (label("_id", "c1"), label("_id", "c2"));
    rows.families("missing", beside(&[]), 400, "label `_id` is missing");
    rows.families("empty", beside(&[label("_id", "")]), 400, "label `_id` is missing");
    for value in LIKE_C1 {
        rows.families(format!("{value:?}"), beside(&[label("_id", value)]), 400, "this sender writes `c1`");
    }
    for value in [&b"c1\xff"[..], b"c\xc0\xb1"] {
        rows.families(format!("{value:02x?}"), beside(&[label("_id", value)]), 400, "not UTF-8");
    }
    for name in LIKE_ID {
        rows.families(format!("{name:?} in its place"), beside(&[label(name, "c1")]), 400, "label `_id` is missing");
    }
    let twice = "label `_id` stands there twice";
    for (case, labels) in [
        ("own, then another's", [own.clone(), others.clone()]),
        ("another's, then own", [others.clone(), own.clone()]),
        ("own, twice", [own.clone(), own.clone()]),
        ("empty, then own", [label("_id", ""), own.clone()]),
        ("own, then empty", [own.clone(), label("_id", "")]),
    ] {
        rows.families(case, beside(&labels), 400, twice);
    }
    let behind = gauges(&[[own.clone(), gauge(), timestamp(), others.clone()].concat()]);
    rows.families("another's behind the value", behind, 400, twice);
    for high in [1u64 << 29, 1 << 32] {
        let spoof = field(high | 1, pair("_id", "c2"));
        rows.families(
            format!("a label behind a tag of {high:#x}"),
            beside(&[own.clone(), spoof]),
            400,
            "the tag at byte",
        );
    }
    let last = |value: &[u8], behind: &[u8]| field(1, [field(1, "_id"), field(2, value), field(2, behind)].concat());
    rows.families("another's value behind own", beside(&[last(b"c1", b"c2")]), 400, "label `_id` is `c2`");
    rows.families("own value behind another's", beside(&[last(b"c2", b"c1")]), 200, "").reaches([NOW, NOW]);
    // The name is the family's.
    rows.families("another name among the labels", beside(&[label("__name__", "down"), own.clone()]), 200, "")
        .reaches([NOW, NOW]);
    let named = delimited([field(1, "up{_id=\"c2\"}"), int(3, 1), field(4, metric(&[own]))].concat());
    rows.families("another's in the name", named, 200, "").reaches(["up{_id=\"c2\"}{_id=\"c1\"} 1@now"]);
    rows.all()
}

fn text() -> Vec<Row> {
    let mut rows = Rows::of("spoofed in text");
    let good = "up{_id=\"c1\"} 1 {NOW}\n";
    let mut refused = |case: &str, line: &str, says: &str| {
        rows.text(case, &format!("{good}{line}"), 400, says);
    };
    refused("missing", "up 1 {NOW}\n", "label `_id` is missing");
    refused("no labels in braces", "up{} 1 {NOW}\n", "label `_id` is missing");
    refused("empty", "up{_id=\"\"} 1 {NOW}\n", "label `_id` is missing");
    refused("another's", "up{_id=\"c2\"} 1 {NOW}\n", "label `_id` is `c2`");
    refused("own, then another's", "up{_id=\"c1\",_id=\"c2\"} 1 {NOW}\n", "");
    refused("another's, then own", "up{_id=\"c2\",_id=\"c1\"} 1 {NOW}\n", "");
    refused("empty, then own", "up{_id=\"\",_id=\"c1\"} 1 {NOW}\n", "");
    refused("in capitals", "up{_ID=\"c1\"} 1 {NOW}\n", "label `_id` is missing");
    refused("a look-alike", "up{_\u{456}d=\"c1\"} 1 {NOW}\n", "line 2");
    refused("a value that looks like it", "up{_id=\"\u{441}1\"} 1 {NOW}\n", "this sender writes `c1`");
    refused("an escaped newline", "up{_id=\"c1\\n\"} 1 {NOW}\n", "this sender writes `c1`");
    refused("an escaped quote", "up{_id=\"c1\\\"\"} 1 {NOW}\n", "this sender writes `c1`");
    refused("a NUL", "up{_id=\"c1\0\"} 1 {NOW}\n", "this sender writes `c1`");
    refused("an unknown escape", "up{_id=\"c\\1\"} 1 {NOW}\n", "line 2");
    refused("a newline in the value", "up{_id=\"c1\n\"} 1 {NOW}\n", "line 2");
    refused("without quotes", "up{_id=c1} 1 {NOW}\n", "line 2");
    refused("in single quotes", "up{_id='c1'} 1 {NOW}\n", "line 2");
    refused("without a closing brace", "up{_id=\"c1\" 1 {NOW}\n", "line 2");
    refused("two sets of labels", "up{_id=\"c1\"}{_id=\"c2\"} 1 {NOW}\n", "line 2");
    refused("the name in braces", "{\"up\",_id=\"c1\"} 1 {NOW}\n", "line 2");
    refused("a name in quotes", "up{\"_id\"=\"c1\"} 1 {NOW}\n", "line 2");
    refused("an exemplar", "up{_id=\"c1\"} 1 {NOW} # {_id=\"c2\"} 1\n", "line 2");
    refused("a mark of byte order", "\u{feff}up{_id=\"c1\"} 1 {NOW}\n", "line 2");
    refused("a carriage return", "up{_id=\"c1\"} 1 {NOW}\r\n", "line 2");
    refused("a second sample in the line", "up{_id=\"c1\"} 1 {NOW} up{_id=\"c2\"} 1\n", "line 2");
    refused("no newline", "up{_id=\"c1\"} 1 {NOW}", "line");
    rows.text(
        "in a comment",
        &format!("# up{{_id=\"c2\"}} 1\n{good}# HELP up up{{_id=\"c2\"}} 1\\nup{{_id=\"c2\"}} 1\n"),
        200,
        "",
    )
    .reaches([NOW]);
    rows.text("a line in a value", "up{_id=\"c1\",x=\"1\\nup{_id=\\\"c2\\\"} 1\"} 1 {NOW}\n", 200, "")
        .reaches(["up{_id=\"c1\",x=\"1\\nup{_id=\\\"c2\\\"} 1\"} 1@now"]);
    let text = [&b"up{_id=\"c1\xff\"} 1 "[..], crate::support::world::now().to_string().as_bytes(), b"\n"].concat();
    rows.sent(
        "bytes that are not UTF-8",
        (crate::table::Route::Upload, |sent: crate::table::Sent| sent.body(text)),
        400,
        "not UTF-8",
    );
    rows.all()
}

/// Names, values and numbers of labels, at the limits and beyond.
fn limits() -> Vec<Row> {
    let mut rows = Rows::of("limits");
    let padded = |count: usize| (0..count).map(|n| label(format!("l{n:03}"), "v")).collect::<Vec<_>>();
    rows.message("128 labels", series(&[&own(), &padded(126).concat(), &one()]), 200, "").reaches_as_sent();
    rows.message(
        "129 labels",
        [good(), series(&[&own(), &padded(127).concat(), &one()])].concat(),
        400,
        "it has 129 labels, at most 128",
    )
    .reaches([UP]);
    rows.message(
        "129 labels, of which one is empty",
        series(&[&own(), &padded(126).concat(), &label("zz", ""), &one()]),
        400,
        "it has 129 labels",
    );
    for length in [127, 128, 255, 256, 60_000] {
        let (name, value) = (format!("z{}", "n".repeat(length - 1)), "v".repeat(length));
        // Remote write has no limit of its own for them.
        rows.message(format!("a name of {length} bytes"), series(&[&own(), &label(&name, "v"), &one()]), 200, "")
            .reaches_as_sent();
        rows.message(format!("a value of {length} bytes"), series(&[&own(), &label("zz", &value), &one()]), 200, "")
            .reaches_as_sent();
        let upload = |labels: Vec<u8>| gauges(&[[label("_id", "c1"), labels, gauge(), timestamp()].concat()]);
        let of_name = [&*name, "v"];
        let of_value = ["zz", &*value];
        for (what, [name, value]) in [("name", of_name), ("value", of_value)] {
            let status = if length > 255 { 400 } else { 200 };
            let line = format!("up{{_id=\"c1\",{name}=\"{value}\"}} 1 {{NOW}}\n");
            let row =
                rows.text(format!("a {what} of {length} bytes in text"), &line, status, "bytes, at most 255 are taken");
            if status == 200 {
                row.reaches([format!("up{{_id=\"c1\",{name}={value:?}}} 1@now")]);
            }
            let row = rows.families(
                format!("a {what} of {length} bytes in families"),
                upload(label(name, value)),
                status,
                "bytes, at most 255 are taken",
            );
            if status == 200 {
                row.reaches([format!("up{{_id=\"c1\",{name}={value:?}}} 1@now")]);
            }
        }
    }
    rows.message(
        "a cluster of 60,000 bytes",
        series(&[&label("_id", "c1".repeat(30_000)), &one()]),
        400,
        "this sender writes `c1`",
    );
    // An empty name is none; names that PromQL would not take are the upstream's to judge.
    rows.message("a label without a name", series(&[&label("", "v"), &own(), &one()]), 200, "").reaches([UP]);
    rows.message("a name that PromQL does not take", series(&[&own(), &label("a-b\"}", "v"), &one()]), 200, "")
        .reaches_as_sent();
    rows.message("no metric name", series(&[&label("_id", "c1"), &one()]), 200, "").reaches_as_sent();
    rows.all()
}
