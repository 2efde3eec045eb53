//! Arguments as Go programs take them, brought into the form that `clap` parses.
//!
//! SPIRE's spelling is canonical (`-spiffeID`), one dash or two; kebab-case (`--spiffe-id`) is an alias
//! of every flag, made from the canonical name by one rule.

use std::ffi::{OsStr, OsString};

use clap::Command;

/// Runs of capitals that are one word each.
const ACRONYMS: &[&str] = &[
    "X509", "SVID", "TTL", "API", "JTI", "SDS", "URL", "DNS", "UID", "ID",
];

/// Gives every flag of the tree its kebab-case alias.
pub fn with_aliases(command: Command) -> Command {
    let subcommands: Vec<String> = command
        .get_subcommands()
        .map(|inner| inner.get_name().to_owned())
        .collect();
    let mut command = command.mut_args(|arg| match arg.get_long().map(kebab) {
        Some(alias) if Some(alias.as_str()) != arg.get_long() => arg.alias(alias),
        _ => arg,
    });
    for name in subcommands {
        command = command.mut_subcommand(name, with_aliases);
    }
    command
}

/// `-flag` becomes `--flag`; everything that is not a flag of `command` stays. As in Go programs, a flag that takes
/// a value and has no `=` takes the next argument, whatever it looks like; and after `--` there are no flags.
pub fn normalize(command: &Command, arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut normal: Vec<OsString> = arguments.next().into_iter().collect();
    let mut command = command;
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            normal.push(argument);
            normal.extend(arguments);
            break;
        }
        if !is_flag(&argument) {
            let inner = argument.to_str().and_then(|name| command.find_subcommand(name));
            command = inner.unwrap_or(command);
            normal.push(argument);
            continue;
        }
        let mut flag = double_dash(argument);
        if takes_next(command, &flag)
            && let Some(value) = arguments.next()
        {
            // `clap` takes a value that looks like a flag only behind a `=`.
            if value.as_encoded_bytes().starts_with(b"-") && value != "-" {
                flag.push("=");
                flag.push(value);
                normal.push(flag);
            } else {
                normal.extend([flag, value]);
            }
        } else {
            normal.push(flag);
        }
    }
    normal
}

/// The command to act as, from the name that we were called by: `spire-server`, `finial-agent`, `spiffe-helper`, …
pub fn program_of(name: &OsStr) -> &'static [&'static str] {
    let name = std::path::Path::new(name).file_name();
    let name = name.and_then(OsStr::to_str).unwrap_or_default();
    let programs: [&[&str]; 3] = [&["server"], &["agent"], &["agent", "helper"]];
    programs
        .into_iter()
        .find(|program| {
            program
                .last()
                .is_some_and(|last| name.ends_with(&format!("-{last}")))
        })
        .unwrap_or_default()
}

/// `-name` or `--name`; a single letter behind one dash is a flag of `clap`'s own.
fn is_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    let name = bytes.strip_prefix(b"--").unwrap_or(match bytes {
        [b'-', name @ ..] if name.len() > 1 => name,
        _ => &[],
    });
    name.first().is_some_and(u8::is_ascii_alphabetic)
}

fn double_dash(argument: OsString) -> OsString {
    if argument.as_encoded_bytes().starts_with(b"--") {
        return argument;
    }
    let mut text = OsString::from("-");
    text.push(argument);
    text
}

/// Whether the flag is one of `command` that takes a value and has none behind a `=`.
fn takes_next(command: &Command, flag: &OsStr) -> bool {
    let Some(name) = flag.to_str().and_then(|flag| flag.strip_prefix("--")) else {
        return false;
    };
    command.get_arguments().any(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        let is_meant = arg.get_long() == Some(name) || aliases.contains(&name);
        is_meant && arg.get_action().takes_values() && !arg.is_require_equals_set()
    })
}

/// `x509SVIDTTL` -> `x509-svid-ttl`.
fn kebab(name: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let taken = ACRONYMS
            .iter()
            .find(|acronym| rest.starts_with(**acronym))
            .map(|acronym| acronym.len());
        let length = taken.unwrap_or_else(|| {
            let tail = rest
                .char_indices()
                .skip(1)
                .find(|(_, character)| character.is_ascii_uppercase());
            tail.map_or(rest.len(), |(at, _)| at)
        });
        let (word, remaining) = rest.split_at(length);
        words.push(word.to_ascii_lowercase());
        rest = remaining;
    }
    words.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kebab_case_splits_at_humps_and_acronyms() {
        let expected = [
            ("spiffeID", "spiffe-id"),
            ("parentID", "parent-id"),
            ("x509SVIDTTL", "x509-svid-ttl"),
            ("jwtSVIDTTL", "jwt-svid-ttl"),
            ("disableX509SVIDPrefetch", "disable-x509-svid-prefetch"),
            ("jwtSVIDIncludeJTI", "jwt-svid-include-jti"),
            ("federatesWith", "federates-with"),
            ("matchSelectorsOn", "match-selectors-on"),
            ("socketPath", "socket-path"),
            ("disableSDSAPI", "disable-sds-api"),
            ("disableWorkloadAPI", "disable-workload-api"),
            ("trustBundleUrl", "trust-bundle-url"),
            ("storeSVID", "store-svid"),
            ("config", "config"),
        ];
        for (name, alias) in expected {
            assert_eq!(kebab(name), alias);
        }
    }

    fn normal(given: &[&str]) -> Vec<String> {
        let given = ["finial"].iter().chain(given).map(OsString::from);
        normalize(&with_aliases(crate::command()), given)
            .into_iter()
            .skip(1)
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    #[test]
    fn one_dash_becomes_two_and_values_stay() {
        let create = ["server", "entry", "create"];
        let cases: [(&[&str], &[&str]); 9] = [
            (&["-spiffeID", "x", "-admin"], &["--spiffeID", "x", "--admin"]),
            (&["-spiffe-id", "-x"], &["--spiffe-id=-x"]),
            (&["-hint", "-draft", "-dns=a"], &["--hint=-draft", "--dns=a"]),
            (&["--hint", "--", "-dns", "b"], &["--hint=--", "--dns", "b"]),
            (&["--x509SVIDTTL", "-5", "-v"], &["--x509SVIDTTL=-5", "-v"]),
            (&["-data", "-"], &["--data", "-"]),
            (&["-hint=-a", "-b-c"], &["--hint=-a", "--b-c"]),
            (&["-admin", "--", "-dns", "-a"], &["--admin", "--", "-dns", "-a"]),
            (&["-dns"], &["--dns"]),
        ];
        for (given, expected) in cases {
            let with = |rest: &[&'static str]| [&create[..], rest].concat();
            assert_eq!(normal(&with(given)), with(expected));
        }
    }

    #[test]
    fn a_value_that_looks_like_a_flag_arrives_as_it_is() {
        let command = with_aliases(crate::command());
        let given = ["finial", "server", "entry", "create", "-hint", "-draft"].map(OsString::from);
        let matches = command
            .clone()
            .try_get_matches_from(normalize(&command, given))
            .unwrap();
        let path = ["server", "entry", "create"];
        let inner = path.iter().fold(&matches, |matches, name| {
            matches.subcommand_matches(name).unwrap()
        });
        assert_eq!(inner.get_one::<String>("hint").unwrap(), "-draft");
    }

    #[test]
    fn every_command_tells_the_version() {
        for path in [&[][..], &["server"], &["agent"], &["server", "run"]] {
            for flag in ["-version", "--version"] {
                let command = with_aliases(crate::command());
                let given = ["finial"].iter().chain(path).chain([&flag]).map(OsString::from);
                let arguments = normalize(&command, given);
                let error = command.try_get_matches_from(arguments).unwrap_err();
                assert_eq!(error.kind(), clap::error::ErrorKind::DisplayVersion, "{path:?}");
                assert!(error.to_string().contains(env!("CARGO_PKG_VERSION")));
            }
        }
    }

    #[test]
    fn the_name_of_the_program_decides() {
        let program = |name: &str| program_of(OsStr::new(name)).join(" ");
        assert_eq!(program("/opt/spire/bin/spire-server"), "server");
        assert_eq!(program("finial-agent"), "agent");
        assert_eq!(program("/spiffe-helper"), "agent helper");
        assert_eq!(program("finial"), "");
    }

    #[test]
    fn every_flag_of_the_commands_has_a_canonical_and_a_kebab_form() {
        let command = with_aliases(crate::command());
        command.clone().debug_assert();
        for spelling in ["--spiffeID", "--spiffe-id"] {
            let arguments = [
                "finial",
                "server",
                "token",
                "generate",
                spelling,
                "spiffe://example.org/a",
            ];
            let matches = command.clone().try_get_matches_from(arguments).unwrap();
            assert!(matches.subcommand_matches("server").is_some());
        }
    }
}
