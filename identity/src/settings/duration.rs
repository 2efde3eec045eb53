//! Durations as Go writes them, which SPIRE's files and flags use.

use std::time::Duration;

/// A text that is not a duration of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is not a sequence of numbers with units.
    #[error("is not a duration like 90s or 1h30m: {0}")]
    Malformed(String),
    /// No setting has a use for it.
    #[error("must not be negative: {0}")]
    Negative(String),
    /// More than 292 years.
    #[error("is too long: {0}")]
    TooLong(String),
}

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000), // U+00B5
    ("μs", 1_000), // U+03BC
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads `1h30m`, `90s`, `1.5h`, `300ms`, `0`.
///
/// # Errors
/// [`DurationError`], also for negative durations.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(malformed());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(malformed());
        }
        let end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        let unit = UNITS
            .iter()
            .find(|(unit, _)| *unit == name)
            .ok_or_else(malformed)?
            .1;
        if whole.len() > 19 {
            return Err(too_long());
        }
        total += number(whole) * u128::from(unit) + part(fraction, unit);
        if total > u128::from(i64::MAX.unsigned_abs()) {
            return Err(too_long());
        }
        rest = next;
    }
    if negative && total > 0 {
        return Err(DurationError::Negative(text.to_owned()));
    }
    u64::try_from(total)
        .map(Duration::from_nanos)
        .map_err(|_| too_long())
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn number(digits: &str) -> u128 {
    digits
        .bytes()
        .fold(0, |sum, digit| sum * 10 + u128::from(digit - b'0'))
}

/// `0.fraction` of a unit, in nanoseconds, cut.
fn part(fraction: &str, unit: u64) -> u128 {
    // Digits past the 18th are less than a nanosecond of every unit.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let scale = fraction.bytes().fold(1_u128, |scale, _| scale * 10);
    number(fraction) * u128::from(unit) / scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_go_reads() {
        let cases = [
            ("1h30m", 5_400_000),
            ("90s", 90_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("+5s", 5_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("2000us", 2),
            ("2000µs", 2),
            ("2000μs", 2),
            ("1h0m0.25s", 3_600_250),
            ("87600h", 315_360_000_000),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(
            parse_duration("1.0000000004s1ns"),
            Ok(Duration::from_nanos(1_000_000_001))
        );
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "", "5", "1h30", "h", "1d", "1 h", "1.2.3s", ".s", "-", "1H", "1e3s", "٣s",
        ] {
            assert_eq!(
                parse_duration(text),
                Err(DurationError::Malformed(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_negative_and_too_long() {
        assert_eq!(
            parse_duration("-1s"),
            Err(DurationError::Negative("-1s".to_owned()))
        );
        for text in [
            "2562048h",
            "99999999999999999999h",
            "9223372036854775808ns",
            "9999999999999999999h",
        ] {
            assert_eq!(
                parse_duration(text),
                Err(DurationError::TooLong(text.to_owned())),
                "{text}"
            );
        }
        assert!(parse_duration("9223372036854775807ns").is_ok());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+]?([0-9.]{0,30}(h|m|s|ms|us|µs|ns|x|)){0,4}") {
            let _outcome = parse_duration(&text);
        }
    }
}
