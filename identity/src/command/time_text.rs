//! Points in time as the commands print them, in the form of Go's `time.Time`.

use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::process::sys;

const SHOWN: StaticFormatDescription = format_description!(
    "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
);

/// `2026-01-31 10:00:00 +0000 UTC`; the number itself when it is no point in time.
pub fn utc(unix_seconds: i64) -> String {
    shown(unix_seconds, 0, "UTC")
}

/// The same in the local time zone, as `2026-01-31 11:00:00 +0100 CET`.
pub fn local(unix_seconds: i64) -> String {
    match sys::local_zone(unix_seconds) {
        Some((offset, zone)) => shown(unix_seconds, offset, &zone),
        None => utc(unix_seconds),
    }
}

fn shown(unix_seconds: i64, offset: i32, zone: &str) -> String {
    let text = || {
        let at = OffsetDateTime::from_unix_timestamp(unix_seconds).ok()?;
        let at = at.checked_to_offset(UtcOffset::from_whole_seconds(offset).ok()?)?;
        at.format(SHOWN).ok()
    };
    match text() {
        Some(text) => format!("{text} {zone}"),
        None => unix_seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_go_style_times() {
        assert_eq!(utc(1_769_853_600), "2026-01-31 10:00:00 +0000 UTC");
        assert_eq!(utc(i64::MAX), i64::MAX.to_string());
        assert_eq!(local(i64::MAX), i64::MAX.to_string());
        let shown = |offset, zone| shown(1_769_853_600, offset, zone);
        assert_eq!(shown(19_800, "IST"), "2026-01-31 15:30:00 +0530 IST");
        assert_eq!(shown(-12_600, "NST"), "2026-01-31 06:30:00 -0330 NST");
    }
}
