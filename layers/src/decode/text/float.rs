//! Numbers as Go's `strconv.ParseFloat` reads them.
//!
//! std's own grammar is that of Go for decimals, and both round correctly, so those are std's. It differs for the words (std takes
//! `-nan`), for what is too large (std gives an infinity), and std has no hexadecimal floats.

/// The NaN that Prometheus takes as one; a stale marker has other bits, and no spelling in text.
const NORMAL_NAN: f64 = f64::from_bits(0x7ff8_0000_0000_0001);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FloatError {
    NotANumber,
    OutOfRange,
}

pub(super) fn parse(token: &str) -> Result<f64, FloatError> {
    let unsigned = token.strip_prefix(['+', '-']).unwrap_or(token);
    let magnitude = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', digits @ ..] => hexadecimal(digits)?,
        [b'0'..=b'9' | b'.', ..] => {
            let decimal = unsigned.parse::<f64>().map_err(|_| FloatError::NotANumber)?;
            if decimal.is_infinite() {
                return Err(FloatError::OutOfRange);
            }
            decimal
        }
        _ if unsigned.eq_ignore_ascii_case("inf") || unsigned.eq_ignore_ascii_case("infinity") => f64::INFINITY,
        _ if token.eq_ignore_ascii_case("nan") => return Ok(NORMAL_NAN),
        _ => return Err(FloatError::NotANumber),
    };
    Ok(if token.starts_with('-') { -magnitude } else { magnitude })
}

/// Digits with at most one point among them, `p`, and a decimal power of two with or without a sign: `1.8p-2`.
fn hexadecimal(digits: &[u8]) -> Result<f64, FloatError> {
    let mut mantissa = Mantissa::default();
    let mut bytes = digits.iter();
    let (mut any_digit, mut in_fraction) = (false, false);
    loop {
        match bytes.next() {
            Some(b'.') if !in_fraction => in_fraction = true,
            Some(b'p' | b'P') if any_digit => break,
            Some(&byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(FloatError::NotANumber)?;
                mantissa.push(digit, in_fraction);
                any_digit = true;
            }
            None => return Err(FloatError::NotANumber),
        }
    }
    mantissa.scaled(exponent(bytes.as_slice())?)
}

fn exponent(text: &[u8]) -> Result<i64, FloatError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(FloatError::NotANumber);
    }
    let power =
        digits.iter().fold(0i64, |power, digit| power.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Ok(if negative { -power } else { power })
}

/// `bits * 2^exponent`, and a bit more than that if `more`.
#[derive(Default)]
struct Mantissa {
    bits: u64,
    exponent: i64,
    more: bool,
}

impl Mantissa {
    fn push(&mut self, digit: u32, in_fraction: bool) {
        let full = self.bits >> 60 != 0;
        if full {
            self.more |= digit != 0;
        } else {
            self.bits = self.bits << 4 | u64::from(digit);
        }
        // A digit's place counts 4 powers of two: up for one that did not fit, down for one behind the point.
        self.exponent += 4 * (i64::from(full) - i64::from(in_fraction));
    }

    /// The float next to this times `2^power`, to even where two are as near.
    fn scaled(self, power: i64) -> Result<f64, FloatError> {
        const LARGEST_EXPONENT: i64 = 1023;
        const SMALLEST_EXPONENT: i64 = -1022;
        const FRACTION_BITS: u32 = 52;

        if self.bits == 0 {
            return Ok(0.0);
        }
        // 1.something times 2^exponent, its first bit at the top.
        let zeros = self.bits.leading_zeros();
        let bits = self.bits << zeros;
        let exponent = self.exponent.saturating_add(power).saturating_add(63 - i64::from(zeros));
        if exponent > LARGEST_EXPONENT {
            return Err(FloatError::OutOfRange);
        }
        // Below the smallest exponent a float has fewer bits, in the end none; 65 is enough to lose all of `bits`.
        let lost = SMALLEST_EXPONENT.saturating_sub(exponent).clamp(0, 54) as u32 + (63 - FRACTION_BITS);
        let wide = u128::from(bits);
        let (kept, rest, half) = ((wide >> lost) as u64, wide & ((1 << lost) - 1), 1u128 << (lost - 1));
        let up = rest > half || rest == half && (self.more || kept & 1 == 1);
        // The leading bit of a normal float adds the last 1 to its biased exponent, as a carry out of the fraction does.
        let biased = (exponent.max(SMALLEST_EXPONENT) - SMALLEST_EXPONENT) as u64;
        let float = f64::from_bits((biased << FRACTION_BITS) + kept + u64::from(up));
        if float.is_infinite() { Err(FloatError::OutOfRange) } else { Ok(float) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(token: &str) -> Result<u64, FloatError> {
        parse(token).map(f64::to_bits)
    }

    /// Answers of Go 1.26's `strconv.ParseFloat(token, 64)`.
    #[test]
    fn reads_what_go_reads() {
        let cases = [
            ("0", 0),
            ("-0", 1 << 63),
            ("+1", 0x3ff0_0000_0000_0000),
            (".5", 0x3fe0_0000_0000_0000),
            ("5.", 0x4014_0000_0000_0000),
            ("5.e1", 0x4049_0000_0000_0000),
            ("2.41496064e+10", 0x4216_7db7_0000_0000),
            ("1.6920000000000686", 0x3ffb_126e_978d_5114),
            ("1E-400", 0),
            ("0e99999999999", 0),
            ("5e-324", 1),
            ("1.7976931348623157e308", 0x7fef_ffff_ffff_ffff),
            ("inf", 0x7ff0_0000_0000_0000),
            ("+Inf", 0x7ff0_0000_0000_0000),
            ("-iNFiNiTY", 0xfff0_0000_0000_0000),
            ("NaN", 0x7ff8_0000_0000_0001),
            ("nan", 0x7ff8_0000_0000_0001),
            ("0x1p-2", 0x3fd0_0000_0000_0000),
            ("-0X1.8P1", 0xc008_0000_0000_0000),
            ("0x.8p0", 0x3fe0_0000_0000_0000),
            ("0x1.p+0", 0x3ff0_0000_0000_0000),
            ("-0x0p9", 1 << 63),
            // A tie goes to the even neighbour; a bit behind the sixteenth digit breaks it.
            ("0x1.00000000000008p0", 0x3ff0_0000_0000_0000),
            ("0x1.00000000000018p0", 0x3ff0_0000_0000_0002),
            ("0x1.000000000000080000000001p0", 0x3ff0_0000_0000_0001),
            ("0x1.fffffffffffffp1023", 0x7fef_ffff_ffff_ffff),
            ("0x1.fffffffffffff7p1023", 0x7fef_ffff_ffff_ffff),
            ("0x1p-1074", 1),
            ("0x1p-1075", 0),
            ("0x1.8p-1075", 1),
            ("0x1.000000000000000000001p-1075", 1),
            ("0x1.8p-1074", 2),
            ("0x1.8p-1076", 0),
            ("0x1.fffffffffffffp-1023", 0x0010_0000_0000_0000),
            ("0x1p-99999999999999999999", 0),
        ];
        for (token, expected) in cases {
            assert_eq!(bits(token), Ok(expected), "{token}");
        }
    }

    /// Refused by Go as well, but for the underscores, which expfmt refuses ahead of it.
    #[test]
    fn refuses_what_is_no_number() {
        let cases = [
            "",
            "+",
            "-",
            ".",
            "e5",
            "1e",
            "1e+",
            "1.2.3",
            "--1",
            "+-1",
            "1_000",
            "0x1_0p0",
            " 1",
            "1 ",
            "1,5",
            "1f",
            "+nan",
            "-NaN",
            "nano",
            "infi",
            "infinit",
            "in",
            ".inf",
            "0x",
            "0xp1",
            "0x.p1",
            "0x1",
            "0x1p",
            "0x1p+",
            "0x1.8.1p0",
            "0x1p1.",
            "0xgp1",
            "x1p1",
            "1p1",
            "0b1",
            "0o7",
            "١",
            "∞",
        ];
        for token in cases {
            assert_eq!(bits(token), Err(FloatError::NotANumber), "{token}");
        }
    }

    #[test]
    fn refuses_what_is_too_large() {
        let cases = [
            "1e999",
            "-1e309",
            "1.7976931348623159e308",
            "0x1p1024",
            "-0x1.fffffffffffff8p1023",
            "0x1p99999999999999999999",
        ];
        for token in cases {
            assert_eq!(bits(token), Err(FloatError::OutOfRange), "{token}");
        }
    }

    proptest! {
        #[test]
        fn hexadecimals_are_exact(expected in any::<u64>()) {
            let float = f64::from_bits(expected);
            prop_assume!(float.is_finite());
            let (exponent, fraction) = ((expected >> 52 & 0x7ff) as i64, expected & ((1 << 52) - 1));
            let (leading, power) = if exponent == 0 { (0, -1022) } else { (1, exponent - 1023) };
            let sign = if float.is_sign_negative() { "-" } else { "" };
            prop_assert_eq!(bits(&format!("{sign}0x{leading}.{fraction:013x}p{power}")), Ok(expected));
        }

        // A cast rounds to the nearest float, to even at a tie; few bits in the middle make ties and near-ties.
        #[test]
        fn hexadecimals_round_as_casts_do(high in any::<u64>(), shift in 0..64u32, low in 0..4u128) {
            let whole = (u128::from(high) << shift) | low;
            prop_assert_eq!(bits(&format!("0x{whole:x}p0")), Ok((whole as f64).to_bits()));
            prop_assert_eq!(bits(&format!("0x{whole:x}00.00p-8")), Ok((whole as f64).to_bits()));
        }

        #[test]
        fn decimals_are_exact(expected in any::<f64>()) {
            prop_assume!(!expected.is_nan());
            prop_assert_eq!(bits(&format!("{expected}")), Ok(expected.to_bits()));
            prop_assert_eq!(bits(&format!("{expected:e}")), Ok(expected.to_bits()));
        }

        #[test]
        fn never_panics(token in "[-+]?(0[xX])?[0-9a-fA-F.]{0,40}([pPeE][-+]?[0-9]{0,25})?|\\PC{0,12}") {
            let _ = parse(&token);
        }
    }
}
