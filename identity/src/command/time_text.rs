//! Points in time as the commands print them.

use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

const SHOWN: StaticFormatDescription = format_description!(
    "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute] UTC"
);

/// `2026-01-31 10:00:00 +0000 UTC`; the number itself when it is no point in time.
pub fn utc(unix_seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|at| at.format(SHOWN).ok())
        .unwrap_or_else(|| unix_seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_go_style_utc() {
        assert_eq!(utc(1_769_853_600), "2026-01-31 10:00:00 +0000 UTC");
        assert_eq!(utc(i64::MAX), i64::MAX.to_string());
    }
}
