//! Floats as Prometheus' Go client prints them: in `le` and `quantile`, and as values.

use std::fmt::Write as _;

/// Writes `value` into `out` as Go's `strconv.FormatFloat(value, 'g', -1, 64)`: the fewest digits that read back the same, with
/// an exponent below 1e-4 and from 1e+06 on.
pub(crate) fn go_float(out: &mut String, value: f64) {
    out.clear();
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{value}");
    } else {
        let _ = write!(out, "{value:e}");
        let Some(e) = out.rfind('e') else { return };
        let exponent: i32 = out.get(e + 1..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        out.truncate(e);
        let _ = write!(out, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn prints_as_go_does() {
        let rows = [
            (1e6, "1e+06"),
            (100_000.0, "100000"),
            (1_234_567.0, "1.234567e+06"),
            (1e20, "1e+20"),
            (1e22, "1e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.00012345, "0.00012345"),
            (5.0, "5"),
            (2.5, "2.5"),
            (0.005, "0.005"),
            (123_456.5, "123456.5"),
            (999_999.0, "999999"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (-0.0, "-0"),
            (-12_345_678.9, "-1.23456789e+07"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ];
        for (value, expected) in rows {
            let mut out = "stale".to_owned();
            super::go_float(&mut out, value);
            assert_eq!(out, expected);
        }
    }
}
