//! Whom to trust at first contact: exactly one source.

use std::path::PathBuf;

use finial_identity::settings::{Problems, Section};

use super::read::given;
use super::{BootstrapSource, BundleFormat, Flags};

/// Reads the keys of the trust bundle. `None` when a problem was reported.
pub(super) fn read(
    agent: &Section<'_>,
    flags: &Flags,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Option<BootstrapSource> {
    let path = agent.string("trust_bundle_path");
    let path = given(&flags.trust_bundle).or(path).map(PathBuf::from);
    let insecure = agent.bool("insecure_bootstrap");
    let insecure = flags.insecure_bootstrap.or(insecure).unwrap_or_default();
    let format = read_format(agent, flags, problems);
    read_rebootstrap(agent, flags, problems, warnings);

    let mut unserved = false;
    for key in [
        "trust_bundle_url",
        "trust_bundle_unix_socket",
        "trust_bundle_spiffe_workload_api",
    ] {
        if agent.string(key).is_some() {
            agent.problem(
                key,
                "is not served by this version: put the bundle into a file and name it in trust_bundle_path",
            );
            unserved = true;
        }
    }
    if given(&flags.trust_bundle_url).is_some() {
        problems.add(
            "-trustBundleUrl",
            None,
            "is not served by this version: use -trustBundle",
        );
        unserved = true;
    }
    match (path, insecure) {
        _ if unserved => None,
        (Some(_), true) => {
            agent.problem(
                "insecure_bootstrap",
                "only one of trust_bundle_path and insecure_bootstrap can be set",
            );
            None
        }
        (Some(path), false) => Some(BootstrapSource::File {
            path,
            format: format?,
        }),
        (None, true) => {
            warnings.push(
                "agent.insecure_bootstrap: the server is not verified at first contact; set trust_bundle_path instead"
                    .to_owned(),
            );
            Some(BootstrapSource::Insecure)
        }
        (None, false) => {
            agent.problem(
                "trust_bundle_path",
                "is required unless insecure_bootstrap is set",
            );
            None
        }
    }
}

fn read_format(agent: &Section<'_>, flags: &Flags, problems: &Problems) -> Option<BundleFormat> {
    let parse = |text: &str| match text {
        "pem" => Ok(BundleFormat::Pem),
        "spiffe" => Ok(BundleFormat::Spiffe),
        other => Err(format!("must be pem or spiffe: {other}")),
    };
    let of_file = agent.parse("trust_bundle_format", parse);
    match given(&flags.trust_bundle_format) {
        Some(text) => parse(&text)
            .map_err(|error| problems.add("-trustBundleFormat", None, error))
            .ok(),
        None => Some(of_file.unwrap_or_default()),
    }
}

/// A lost trust bundle is never replaced by itself here, which is SPIRE's default too.
fn read_rebootstrap(agent: &Section<'_>, flags: &Flags, problems: &Problems, warnings: &mut Vec<String>) {
    const UNSERVED: &str = "only never is served by this version";
    match agent.string("rebootstrap_mode").as_deref() {
        None | Some("never") => {}
        Some("auto" | "always") => agent.problem("rebootstrap_mode", UNSERVED),
        Some(other) => agent.problem(
            "rebootstrap_mode",
            format!("must be never, auto or always: {other}"),
        ),
    }
    if given(&flags.rebootstrap_mode).is_some_and(|mode| mode != "never") {
        problems.add("-rebootstrapMode", None, UNSERVED);
    }
    let delay = agent.duration("rebootstrap_delay").is_some();
    if delay || given(&flags.rebootstrap_delay).is_some() {
        warnings.push("agent.rebootstrap_delay: has no effect with rebootstrap_mode never".to_owned());
    }
}
