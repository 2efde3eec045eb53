//! How long a caller itself is going to wait.

use std::time::Duration;

use http::HeaderMap;

/// The `grpc-timeout` of a call: up to eight digits and a unit (gRPC over HTTP/2, `Timeout`). `None` for a call that has
/// none or a malformed one, which is as good as none. The longest is 99,999,999 hours, so whoever adds it to a moment must
/// expect that there is no such moment.
#[must_use]
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // A sign is no digit, although it would be part of a number.
    if digits.len() > MOST_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// With so many no unit overflows a `u64`.
const MOST_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(value: &[u8]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_bytes(value).unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn a_timeout_is_an_amount_of_any_unit() {
        for (text, expected) in [
            ("0n", Duration::ZERO),
            ("2H", Duration::from_secs(7200)),
            ("2M", Duration::from_secs(120)),
            ("30S", Duration::from_secs(30)),
            ("1500m", Duration::from_millis(1500)),
            ("7u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("00000003S", Duration::from_secs(3)),
        ] {
            assert_eq!(read(text.as_bytes()), Some(expected), "{text}");
        }
    }

    #[test]
    fn the_longest_timeout_does_not_overflow() {
        let longest = Duration::from_secs(99_999_999 * 3600);
        assert_eq!(read(b"99999999H"), Some(longest));
        assert_eq!(read(b"99999999M"), Some(longest / 60));
    }

    #[test]
    fn more_than_eight_digits_are_no_timeout() {
        for text in ["100000000n", "123456789S", "000000003S", "18446744073709551616n"] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_no_timeout() {
        for text in [
            "", "S", "30", "+5S", "-1S", "1.5S", "30s", "5 S", " 5S", "5SS", "0x5S", "1é", "é",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(read(b"5\xff"), None);
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
