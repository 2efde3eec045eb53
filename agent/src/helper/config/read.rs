//! From the document to [`HelperConfig`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use finial_identity::process::private_file::FileMode;
use finial_identity::settings::{Document, Problems, Section, SettingsError, Value};

use super::{
    CommandLine, Flags, HealthChecks, HelperConfig, JwtSvidOutput, OutputFile, X509Output, arguments, paths,
};
use crate::config::DEFAULT_SOCKET_PATH;
use crate::helper::signals;

/// Names the agent's socket when neither flag nor file does (SPIFFE Workload Endpoint §4).
const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const DEFAULT_HEALTH_PORT: u16 = 8081;

/// Reads everything; what is wrong is reported together.
pub(super) fn read(
    document: &Document,
    flags: &Flags,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<HelperConfig, SettingsError> {
    let problems = Problems::new();
    let root = document.section(&problems);
    let mut warnings = Vec::new();
    let files = Files::read(&root, &mut warnings);
    let daemon_mode = root.bool("daemon_mode");
    let daemon_mode = flags.daemon_mode.or(daemon_mode).unwrap_or(true);

    let x509 = read_x509(&root, &files);
    let jwt_bundle = root
        .string("jwt_bundle_file_name")
        .map(|name| files.file(&name, files.jwt_bundle_mode));
    let jwt_svids = read_jwt_svids(&root, &files);
    if x509.is_none() && jwt_bundle.is_none() && jwt_svids.is_empty() && problems.is_empty() {
        problems.add(
            "",
            None,
            "nothing to write: set svid_file_name, svid_key_file_name and svid_bundle_file_name, or jwt_svids, \
             or jwt_bundle_file_name",
        );
    }
    let config = HelperConfig {
        socket: read_socket(&root, flags, env, &problems),
        daemon_mode,
        hint: root.string("hint"),
        command: read_command(&root, &mut warnings),
        pid_file: root.string("pid_file_name").map(PathBuf::from),
        renew_signal: root.parse("renew_signal", signals::parse),
        health_checks: root
            .section("health_checks")
            .and_then(read_health_checks)
            .filter(|_| daemon_mode),
        x509,
        jwt_bundle,
        jwt_svids,
        warnings: Vec::new(),
    };
    check_each_file_is_named_once(&config, &root);
    check_telling(&config, &root, &mut warnings);
    root.finish();
    problems.into_result()?;
    Ok(HelperConfig { warnings, ..config })
}

/// What all files share: the directory and the modes.
struct Files {
    directory: String,
    cert_mode: FileMode,
    key_mode: FileMode,
    jwt_bundle_mode: FileMode,
    jwt_svid_mode: FileMode,
}

impl Files {
    fn read(root: &Section<'_>, warnings: &mut Vec<String>) -> Self {
        let mut mode = |key, default| read_mode(root, key, warnings).unwrap_or(default);
        Self {
            cert_mode: mode("cert_file_mode", FileMode::PUBLIC),
            key_mode: mode("key_file_mode", FileMode::SECRET),
            jwt_bundle_mode: mode("jwt_bundle_file_mode", FileMode::SECRET),
            jwt_svid_mode: mode("jwt_svid_file_mode", FileMode::SECRET),
            directory: root.string("cert_dir").unwrap_or_default(),
        }
    }

    fn file(&self, name: &str, mode: FileMode) -> OutputFile {
        let path = paths::join(&self.directory, name);
        OutputFile {
            shown: path.display().to_string(),
            // Links between files must not depend on where the process was started.
            path: std::path::absolute(&path).map_or(path, |whole| paths::clean(&whole)),
            mode,
        }
    }
}

/// A mode as Go's `ParseInt` reads numbers: octal ones begin with a zero. 0 is "not set".
fn read_mode(root: &Section<'_>, key: &str, warnings: &mut Vec<String>) -> Option<FileMode> {
    let number = root.i64(key).filter(|number| *number != 0)?;
    let Some(mode) = u32::try_from(number).ok().filter(|mode| *mode <= 0o777) else {
        root.problem(
            key,
            format!("must be a file mode of at most 0777, with a leading 0 for octal: {number}"),
        );
        return None;
    };
    let is_decimal = root.nodes(key).iter().any(
        |node| matches!(&node.value, Value::Number(text) | Value::String(text) if !text.starts_with('0')),
    );
    if is_decimal {
        warnings.push(format!(
            "{key}: {number} is a decimal number and means mode {mode:04o}; octal ones begin with 0"
        ));
    }
    Some(FileMode::new(mode))
}

/// The three files of the X.509-SVID; `None` when none is named, or when one is missing, which was reported.
fn read_x509(root: &Section<'_>, files: &Files) -> Option<X509Output> {
    let flag = |key: &str| root.bool(key).unwrap_or_default();
    let flags = (
        flag("add_intermediates_to_bundle"),
        flag("include_federated_domains"),
        flag("omit_expired"),
    );
    let (keys, modes) = (
        ["svid_file_name", "svid_key_file_name", "svid_bundle_file_name"],
        [files.cert_mode, files.key_mode, files.cert_mode],
    );
    let names = keys.map(|key| root.string(key));
    if names.iter().all(Option::is_none) {
        return None;
    }
    for (key, _) in keys.iter().zip(&names).filter(|(_, name)| name.is_none()) {
        root.problem(key, "is required beside the other file names of the X.509-SVID");
    }
    let [svid, key, bundle] = names;
    Some(X509Output {
        svid: files.file(&svid?, modes[0]),
        key: files.file(&key?, modes[1]),
        bundle: files.file(&bundle?, modes[2]),
        add_intermediates_to_bundle: flags.0,
        include_federated_domains: flags.1,
        omit_expired: flags.2,
    })
}

fn read_jwt_svids(root: &Section<'_>, files: &Files) -> Vec<JwtSvidOutput> {
    root.sections("jwt_svids")
        .into_iter()
        .filter_map(|section| {
            let audience = section.required_string("jwt_audience");
            let extra = section.strings("jwt_extra_audiences");
            let name = section.required_string("jwt_svid_file_name");
            section.finish();
            Some(JwtSvidOutput {
                audiences: audience.into_iter().chain(extra).collect(),
                file: files.file(&name?, files.jwt_svid_mode),
            })
        })
        .collect()
}

/// First match: the flag, `agent_address`, the variable, the default.
fn read_socket(
    root: &Section<'_>,
    flags: &Flags,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &Problems,
) -> PathBuf {
    let from_file = root.parse("agent_address", paths::socket);
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let elsewhere = |name: &str, address: &str| {
        paths::socket(address)
            .map_err(|text| problems.add(name, None, text))
            .ok()
    };
    if let Some(address) = given(flags.agent_address.clone()) {
        return elsewhere("-agentAddress", &address).unwrap_or_default();
    }
    from_file
        .or_else(|| {
            let address = given(env(SOCKET_VARIABLE))?;
            elsewhere(SOCKET_VARIABLE, &address)
        })
        .unwrap_or_else(|| DEFAULT_SOCKET_PATH.into())
}

fn read_command(root: &Section<'_>, warnings: &mut Vec<String>) -> Option<CommandLine> {
    let arguments = root.parse("cmd_args", arguments::split);
    if arguments
        .as_ref()
        .is_some_and(|arguments| arguments.has_more_lines)
    {
        warnings.push("cmd_args: only the first line counts".to_owned());
    }
    Some(CommandLine {
        program: root.string("cmd")?,
        arguments: arguments.map(|arguments| arguments.list).unwrap_or_default(),
    })
}

/// `None` when the listener is off.
fn read_health_checks(section: Section<'_>) -> Option<HealthChecks> {
    let enabled = section.bool("listener_enabled").unwrap_or_default();
    let port = section.u16("bind_port").filter(|port| *port != 0);
    let path = |key: &str, default: &str| {
        let path = section.parse(key, plain_path);
        path.unwrap_or_else(|| default.to_owned())
    };
    let (liveness_path, readiness_path) = (path("liveness_path", "/live"), path("readiness_path", "/ready"));
    if liveness_path == readiness_path {
        section.problem("readiness_path", "must differ from liveness_path");
    }
    section.finish();
    enabled.then(|| HealthChecks {
        port: port.unwrap_or(DEFAULT_HEALTH_PORT),
        liveness_path,
        readiness_path,
    })
}

/// A path without what the router would take for a pattern.
fn plain_path(path: &str) -> Result<String, String> {
    if path.starts_with('/') && !path.contains(['{', '}', '*', ':']) {
        Ok(path.to_owned())
    } else {
        Err(format!("must be a plain path that begins with a slash: {path}"))
    }
}

fn check_each_file_is_named_once(config: &HelperConfig, root: &Section<'_>) {
    let x509 = config.x509.iter().flat_map(|x509| {
        [
            ("svid_file_name", &x509.svid),
            ("svid_key_file_name", &x509.key),
            ("svid_bundle_file_name", &x509.bundle),
        ]
    });
    let bundle = config
        .jwt_bundle
        .iter()
        .map(|file| ("jwt_bundle_file_name", file));
    let svids = config.jwt_svids.iter().map(|svid| ("jwt_svids", &svid.file));
    let mut seen = BTreeMap::new();
    for (key, file) in x509.chain(bundle).chain(svids) {
        if let Some(first) = seen.insert(&file.path, key) {
            root.problem(key, format!("names the same file as {first}: {}", file.shown));
        }
    }
}

/// The process that is signalled at a renewal, and whether that is possible.
fn check_telling(config: &HelperConfig, root: &Section<'_>, warnings: &mut Vec<String>) {
    if config.pid_file.is_some() && root.string("renew_signal").is_none() {
        root.problem("pid_file_name", "needs renew_signal beside it");
    }
    if !config.daemon_mode {
        if config.pid_file.is_some() {
            root.problem("pid_file_name", "has an effect only with daemon_mode = true");
        }
        for (key, is_set) in [
            ("cmd", config.command.is_some()),
            ("renew_signal", config.renew_signal.is_some()),
        ] {
            if is_set {
                warnings.push(format!("{key}: has no effect with daemon_mode = false"));
            }
        }
    } else if config.x509.is_none() {
        for (key, is_set) in [
            ("cmd", config.command.is_some()),
            ("pid_file_name", config.pid_file.is_some()),
        ] {
            if is_set {
                warnings.push(format!(
                    "{key}: has no effect without svid_file_name, for only X.509-SVIDs are told of"
                ));
            }
        }
    }
}
