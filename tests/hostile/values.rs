//! Numbers at their ends: what a sender says of them arrives bit for bit, or not at all.

use crate::{
    row::{Row, Rows, number},
    support::world::now,
    wire::{field, fixed64, gauges, int, label, own, sample, series, timestamp},
};

/// Doubles that get lost most easily: the stale marker, other NaNs, infinities, zeros, the smallest, and what is next to a whole number.
const BITS: [u64; 12] = [
    0x7ff0_0000_0000_0002,
    0x7ff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    0xfff8_dead_beef_cafe,
    0xffff_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x8000_0000_0000_0000,
    0,
    1,
    0x3ff0_0000_0000_0001,
    0x4340_0000_0000_0001,
];

pub(crate) fn rows() -> Vec<Row> {
    [doubles(), times()].into_iter().flatten().collect()
}

fn doubles() -> Vec<Row> {
    let mut rows = Rows::of("doubles");
    for bits in BITS {
        let spelt = number(f64::from_bits(bits));
        rows.message(format!("{bits:#x}"), series(&[&own(), &sample(bits, 7)]), 200, "").reaches_as_sent();
        // Behind the sample, so that all of it is put together anew.
        let scattered = series(&[&sample(bits, 7), &own()]);
        rows.message(format!("{bits:#x}, before its labels"), scattered, 200, "")
            .reaches([format!("up{{_id=\"c1\"}} {spelt}@7")]);
        let gauge = field(2, fixed64(1, bits));
        let body = gauges(&[[label("_id", "c1"), gauge, timestamp()].concat()]);
        rows.families(format!("{bits:#x}, in families"), body, 200, "")
            .reaches([format!("up{{_id=\"c1\"}} {spelt}@now")]);
    }
    for (number, spelt) in [
        ("NaN", "NaN:7ff8000000000001"),
        ("-NaN", ""),
        ("+Inf", "inf"),
        ("-infinity", "-inf"),
        ("-0", "-0"),
        ("1e-400", "0"),
        ("1e400", ""),
        ("0x1p-1074", &*number(f64::from_bits(1))),
        ("1_000", ""),
        ("1,5", ""),
        ("1.5.5", ""),
        ("", ""),
        ("0x", ""),
        ("\u{661}", ""),
        ("1 1 1", ""),
    ] {
        let status = if spelt.is_empty() { 400 } else { 200 };
        let line = format!("up{{_id=\"c1\"}} {number} {{NOW}}\n");
        let row =
            rows.text(format!("{number:?} in text"), &line, status, if number.is_empty() { "" } else { "line 1" });
        if status == 200 {
            row.reaches([format!("up{{_id=\"c1\"}} {spelt}@now")]);
        }
    }
    let digits = format!("up{{_id=\"c1\"}} 1{} {{NOW}}\n", "0".repeat(300));
    rows.text("301 digits in text", &digits, 200, "").reaches([format!("up{{_id=\"c1\"}} 1{}@now", "0".repeat(300))]);
    let digits = format!("up{{_id=\"c1\"}} 0.{}1 {{NOW}}\n", "0".repeat(400_000));
    rows.text("400,000 digits in text", &digits, 200, "").reaches(["up{_id=\"c1\"} 0@now"]);
    rows.all()
}

fn times() -> Vec<Row> {
    let mut rows = Rows::of("times");
    for time in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX] {
        rows.message(format!("{time}"), series(&[&own(), &sample(0, time)]), 200, "").reaches_as_sent();
        let metric = |gauge: &[u8]| gauges(&[[&label("_id", "c1")[..], gauge, &int(6, time as u64)].concat()]);
        let (families, gauge) = (metric(&field(2, fixed64(1, 0))), format!("up{{_id=\"c1\"}} 0 {time}\n"));
        // What is to come is stamped with now, as everything else.
        let (status, says) = if time > now() { (200, "") } else { (400, "s old, at most 86400 s are taken") };
        let row = rows.families(format!("{time}, in families"), families, status, says);
        if status == 200 {
            row.reaches(["up{_id=\"c1\"} 0@now"]);
        }
        let row = rows.text(format!("{time}, in text"), &gauge, status, says);
        if status == 200 {
            row.reaches(["up{_id=\"c1\"} 0@now"]);
        }
    }
    rows.message("without a time", series(&[&own(), &field(2, fixed64(1, 0))]), 200, "").reaches_as_sent();
    rows.message("an empty sample", series(&[&own(), &field(2, "")]), 200, "").reaches_as_sent();
    let eleven = [&own()[..], &field(2, [&[0x10][..], &[0x80; 10], &[0]].concat())].concat();
    rows.message("a time in eleven bytes", field(1, eleven), 400, "does not fit 64 bits");
    let over = [&own()[..], &field(2, [&[0x10][..], &[0xff; 9], &[2]].concat())].concat();
    rows.message("a time over 64 bits", field(1, over), 400, "does not fit 64 bits");
    for time in [
        "9223372036854775808",
        "-9223372036854775809",
        "1e12",
        "1.5",
        "0x10",
        "now",
        "1_000",
        "99999999999999999999999999",
    ] {
        rows.text(format!("{time}, in text"), &format!("up{{_id=\"c1\"}} 1 {time}\n"), 400, "line 1");
    }
    let at = now();
    let two =
        |first: i64, second: i64| format!("up{{_id=\"c1\",n=\"1\"}} 1 {first}\nup{{_id=\"c1\",n=\"2\"}} 1 {second}\n");
    rows.text("backwards", &two(at, at - 1), 400, "sort each family by time");
    rows.text("from the end of time back to now", &two(i64::MAX, at), 400, "sort each family by time");
    rows.all()
}
