//! The `log_*` keys, which are the same for server and agent.

use std::path::PathBuf;
use std::str::FromStr;

use super::{Problems, Section};
use crate::process::log::LogSettings;

/// The flags that override the keys. Empty ones count as not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFlags<'a> {
    /// `log_file`
    pub file: Option<&'a str>,
    /// `log_level`
    pub level: Option<&'a str>,
    /// `log_format`
    pub format: Option<&'a str>,
    /// `log_source_location`
    pub source_location: Option<bool>,
}

/// Reads the keys of a block; flags win.
pub fn read_log(section: &Section<'_>, flags: LogFlags<'_>, problems: &Problems) -> LogSettings {
    let defaults = LogSettings::default();
    let file = section.string("log_file");
    let level = section.parse("log_level", str::parse);
    let format = section.parse("log_format", str::parse);
    let source_location = section.bool("log_source_location");
    let given = |flag: Option<&'_ str>| flag.filter(|text| !text.is_empty()).map(str::to_owned);
    LogSettings {
        file: given(flags.file).or(file).map(PathBuf::from),
        level: of_flag("-logLevel", given(flags.level), problems)
            .or(level)
            .unwrap_or(defaults.level),
        format: of_flag("-logFormat", given(flags.format), problems)
            .or(format)
            .unwrap_or(defaults.format),
        source_location: flags.source_location.or(source_location).unwrap_or_default(),
    }
}

fn of_flag<T: FromStr<Err: std::fmt::Display>>(
    name: &str,
    given: Option<String>,
    problems: &Problems,
) -> Option<T> {
    let parsed = given?.parse::<T>();
    parsed
        .map_err(|error| problems.add(name, None, error.to_string()))
        .ok()
}
