//! The `WorkloadAttestor` blocks.

use std::path::{Path, PathBuf};

use finial_identity::settings::plugins::{enabled, not_served};
use finial_identity::settings::{ConfigError, DataFile, Plugin, Section, Variables};

use super::cgroup_patterns::CgroupPatterns;
use super::k8s::{self, K8sSettings};
use super::rootless::{self, TrustedUsers};

const UNIX: &str = "unix";
const DOCKER: &str = "docker";
const K8S: &str = "k8s";
const SYSTEMD: &str = "systemd";
const SERVED: [&str; 4] = [UNIX, DOCKER, K8S, SYSTEMD];

/// The socket of Docker's daemon.
const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";
/// The socket of Podman's service of root.
const PODMAN_SOCKET: &str = "unix:///run/podman/podman.sock";
/// The sockets of Podman's services of other users.
const PODMAN_SOCKET_TEMPLATE: &str = "unix:///run/user/%d/podman/podman.sock";

/// Which facts about workloads are found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadAttestors {
    /// `WorkloadAttestor "unix"`
    pub unix: Option<UnixSettings>,
    /// `WorkloadAttestor "docker"`
    pub docker: Option<DockerSettings>,
    /// `WorkloadAttestor "k8s"`
    pub k8s: Option<K8sSettings>,
    /// `WorkloadAttestor "systemd"`
    pub systemd: bool,
    /// Whose data is in a file (`plugin_data_file`), by name.
    pub files: Vec<(&'static str, DataFile)>,
}

/// What `WorkloadAttestor "unix"` finds out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixSettings {
    /// `discover_workload_path`: find out `path` and `sha256` too.
    pub discover_workload_path: bool,
    /// `workload_size_limit` in bytes: a larger program fails the attestation; 0 means any size, a negative
    /// number no hash.
    pub workload_size_limit: i64,
}

/// Whom `WorkloadAttestor "docker"` asks about which containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerSettings {
    /// `docker_socket_path`, without `unix://`
    pub docker_socket: PathBuf,
    /// `docker_version`: the version of the API to use, such as `1.41`; the daemon's newest when not set.
    pub api_version: Option<String>,
    /// `podman_socket_path`, without `unix://`
    pub podman_socket: PathBuf,
    /// `podman_socket_path_template`
    pub podman_user_socket: UserSocket,
    /// `rootless_podman.trusted_uids`: whose own Podman is trusted.
    pub trusted_users: TrustedUsers,
    /// `container_id_cgroup_matchers`; none when containers are recognised without.
    pub patterns: CgroupPatterns,
    /// `verbose_container_locator_logs`: log the control groups of each process at debug level.
    pub verbose: bool,
}

/// A socket of which every user has one: its path with a place for the user id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSocket {
    before: String,
    after: String,
}

impl Default for DockerSettings {
    fn default() -> Self {
        let path = |address| socket_path(address).expect("the defaults are paths");
        Self {
            docker_socket: path(DOCKER_SOCKET),
            api_version: None,
            podman_socket: path(PODMAN_SOCKET),
            podman_user_socket: user_socket(PODMAN_SOCKET_TEMPLATE)
                .expect("the default has a place for the id"),
            trusted_users: TrustedUsers::default(),
            patterns: CgroupPatterns::default(),
            verbose: false,
        }
    }
}

impl UserSocket {
    /// What stands before and after the user id.
    pub fn new(before: &str, after: &str) -> Self {
        Self {
            before: before.to_owned(),
            after: after.to_owned(),
        }
    }

    /// The socket of this user.
    pub fn of(&self, uid: u32) -> PathBuf {
        format!("{}{uid}{}", self.before, self.after).into()
    }
}

impl WorkloadAttestors {
    /// The same, with values from the environment for what the file does not set.
    pub(super) fn with_variables(self, env: Variables<'_>) -> Self {
        Self {
            k8s: self.k8s.map(|settings| settings.with_variables(env)),
            ..self
        }
    }

    /// The same, with the data of one attestor as a text has it that its file held. What deserves attention is added
    /// to the warnings.
    ///
    /// # Errors
    /// [`ConfigError`]: all mistakes at once.
    pub fn with_data(
        &self,
        name: &str,
        file: &DataFile,
        text: &str,
        env: Variables<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let mut next = self.clone();
        file.check(text, |data| next.take(name, data, warnings))?;
        Ok(next.with_variables(env))
    }

    /// Takes the data of the attestor of this name.
    fn take(&mut self, name: &str, data: Option<Section<'_>>, warnings: &mut Vec<String>) {
        match name {
            UNIX => self.unix = Some(read_unix(data)),
            DOCKER => self.docker = Some(read_docker(data, warnings)),
            K8S => self.k8s = Some(k8s::read(data, warnings)),
            _ => {
                if let Some(data) = data {
                    data.finish();
                }
                self.systemd = true;
            }
        }
    }
}

/// Reads all blocks; each attestor may stand once.
pub(super) fn read(plugins: &Section<'_>, warnings: &mut Vec<String>) -> WorkloadAttestors {
    let blocks = enabled(plugins, "WorkloadAttestor");
    if blocks.is_empty() {
        plugins.problem("WorkloadAttestor", "at least one WorkloadAttestor is required");
    }
    let mut attestors = WorkloadAttestors::default();
    let mut seen = Vec::new();
    for (name, section) in blocks {
        if seen.contains(&name) {
            section.problem(
                "plugin_data",
                format!("WorkloadAttestor {name:?} is configured twice"),
            );
        }
        match SERVED.into_iter().find(|served| *served == name) {
            Some(name) => {
                let read = Plugin::read(section, |data| attestors.take(name, data, warnings));
                attestors.files.extend(read.file.map(|file| (name, file)));
            }
            None => not_served(&section, "WorkloadAttestor", &name),
        }
        seen.push(name);
    }
    attestors
}

fn read_unix(data: Option<Section<'_>>) -> UnixSettings {
    let Some(data) = data else {
        return UnixSettings::default();
    };
    let settings = UnixSettings {
        discover_workload_path: data.bool("discover_workload_path").unwrap_or_default(),
        workload_size_limit: data.i64("workload_size_limit").unwrap_or_default(),
    };
    data.finish();
    settings
}

fn read_docker(data: Option<Section<'_>>, warnings: &mut Vec<String>) -> DockerSettings {
    let defaults = DockerSettings::default();
    let Some(data) = data else {
        return defaults;
    };
    if data.ignore("sigstore") {
        data.problem(
            "sigstore",
            "image signatures are not verified by this version; entries would get selectors that nothing proves",
        );
    }
    if data.ignore("docker_host") {
        data.problem("docker_host", "is for Windows; docker_socket_path is its equal");
    }
    let settings = DockerSettings {
        docker_socket: data
            .parse("docker_socket_path", socket_path)
            .unwrap_or(defaults.docker_socket),
        api_version: data.parse("docker_version", api_version),
        podman_socket: data
            .parse("podman_socket_path", socket_path)
            .unwrap_or(defaults.podman_socket),
        podman_user_socket: data
            .parse("podman_socket_path_template", user_socket)
            .unwrap_or(defaults.podman_user_socket),
        trusted_users: rootless::read(&data, data.has("podman_socket_path_template"), warnings),
        patterns: read_patterns(&data, warnings),
        verbose: data.bool("verbose_container_locator_logs").unwrap_or_default(),
    };
    data.finish();
    settings
}

fn read_patterns(data: &Section<'_>, warnings: &mut Vec<String>) -> CgroupPatterns {
    let patterns = data.strings("container_id_cgroup_matchers");
    let use_new = data.bool("use_new_container_locator").unwrap_or(true);
    if patterns.is_empty() {
        return CgroupPatterns::default();
    }
    if use_new {
        data.problem(
            "container_id_cgroup_matchers",
            "have an effect only with use_new_container_locator = false",
        );
    } else {
        warnings.push(
            "container_id_cgroup_matchers: containers are found by these patterns alone; without them cgroups of \
             Docker, Podman and Kubernetes are recognised"
                .to_owned(),
        );
    }
    CgroupPatterns::new(patterns).unwrap_or_else(|error| {
        data.problem("container_id_cgroup_matchers", error.to_string());
        CgroupPatterns::default()
    })
}

/// The path of `unix:///path`.
fn socket_path(address: &str) -> Result<PathBuf, String> {
    match address.strip_prefix("unix://") {
        Some(path) if Path::new(path).is_absolute() => Ok(path.into()),
        Some(_) => Err(format!("must have an absolute path: {address}")),
        None => Err(format!(
            "must be of the form unix:///path, other transports are not served: {address}"
        )),
    }
}

/// `unix:///a/%d/b`; `%%` means `%`.
fn user_socket(template: &str) -> Result<UserSocket, String> {
    let path = socket_path(template)?;
    let mut rest = path.to_str().unwrap_or_default();
    let (mut before, mut after, mut places) = (String::new(), String::new(), 0);
    loop {
        let (plain, more) = rest
            .split_once('%')
            .map_or((rest, None), |(plain, more)| (plain, Some(more)));
        let text = if places == 0 { &mut before } else { &mut after };
        text.push_str(plain);
        let Some(more) = more else { break };
        rest = if let Some(more) = more.strip_prefix('%') {
            text.push('%');
            more
        } else if let Some(more) = more.strip_prefix('d') {
            places += 1;
            more
        } else {
            return Err(format!("may have %d, the user id, and %% alone: {template}"));
        };
    }
    if places != 1 {
        return Err(format!("must have %d, the user id, exactly once: {template}"));
    }
    Ok(UserSocket::new(&before, &after))
}

/// `1.41`, also as `v1.41`.
fn api_version(text: &str) -> Result<String, String> {
    let version = text.strip_prefix('v').unwrap_or(text);
    let is_number =
        |part: &str| (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    match version.split_once('.') {
        Some((major, minor)) if is_number(major) && is_number(minor) => Ok(version.to_owned()),
        _ => Err(format!("must be a version of Docker's API, such as 1.41: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Flags};
    use super::*;

    fn parse(attestors: &str) -> Result<Config, String> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 trust_bundle_path = "/b" }}
            plugins {{
                KeyManager "memory" {{}}
                NodeAttestor "join_token" {{}}
                {attestors}
            }}"#
        );
        Config::parse(&text, Path::new("agent.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    fn docker(data: &str) -> Result<DockerSettings, String> {
        let config = parse(&format!(
            "WorkloadAttestor \"docker\" {{ plugin_data {{ {data} }} }}"
        ))?;
        Ok(config.workload_attestors().docker.clone().unwrap())
    }

    #[test]
    fn several_attestors_stand_side_by_side() {
        let config = parse(
            "WorkloadAttestor \"unix\" {}\nWorkloadAttestor \"docker\" {}\nWorkloadAttestor \"systemd\" {}",
        )
        .unwrap();
        let attestors = config.workload_attestors();
        assert_eq!(attestors.unix, Some(UnixSettings::default()));
        assert_eq!(attestors.docker, Some(DockerSettings::default()));
        assert!(attestors.systemd);
        let config = parse("WorkloadAttestor \"systemd\" { plugin_data {} }").unwrap();
        assert!(config.workload_attestors().unix.is_none() && config.workload_attestors().docker.is_none());
    }

    #[test]
    fn an_attestor_that_stands_twice_is_refused() {
        for name in ["unix", "docker", "k8s", "systemd"] {
            let block = format!("WorkloadAttestor \"{name}\" {{}}\n");
            let error = parse(&block.repeat(2)).unwrap_err();
            assert!(
                error.contains(&format!("{name:?} is configured twice")),
                "{error}"
            );
        }
    }

    #[test]
    fn docker_has_spires_defaults() {
        let settings = docker("use_new_container_locator = true docker_version = \"\"").unwrap();
        assert_eq!(settings, DockerSettings::default());
        assert_eq!(settings.docker_socket, Path::new("/var/run/docker.sock"));
        assert_eq!(settings.podman_socket, Path::new("/run/podman/podman.sock"));
        let of_user = settings.podman_user_socket.of(1000);
        assert_eq!(of_user, Path::new("/run/user/1000/podman/podman.sock"));
    }

    #[test]
    fn every_key_of_docker_has_its_effect() {
        let settings = docker(
            "docker_socket_path = \"unix:///d\" docker_version = \"v1.41\" podman_socket_path = \"unix:///p\"\n\
             podman_socket_path_template = \"unix:///a%%/%d/b%%\" verbose_container_locator_logs = true\n\
             rootless_podman { trusted_uids = [\"1000\", \"1001\"] }\n\
             use_new_container_locator = false container_id_cgroup_matchers = [\"/docker/<id>\"]",
        )
        .unwrap();
        let expected = DockerSettings {
            docker_socket: "/d".into(),
            api_version: Some("1.41".to_owned()),
            podman_socket: "/p".into(),
            podman_user_socket: UserSocket::new("/a%/", "/b%"),
            trusted_users: TrustedUsers::of([1000, 1001]),
            patterns: CgroupPatterns::new(vec!["/docker/<id>".to_owned()]).unwrap(),
            verbose: true,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_docker_cannot_do_is_refused_by_name() {
        for (key, data) in [
            ("sigstore", "sigstore { ignore_tlog = true }"),
            ("docker_host", "docker_host = \"npipe:////./pipe/docker_engine\""),
            (
                "docker_socket_path",
                "docker_socket_path = \"tcp://localhost:2375\"",
            ),
            (
                "docker_socket_path",
                "docker_socket_path = \"/var/run/docker.sock\"",
            ),
            (
                "docker_socket_path",
                "docker_socket_path = \"unix://run/docker.sock\"",
            ),
            ("docker_version", "docker_version = \"1.41/../..\""),
            ("podman_socket_path", "podman_socket_path = \"http://a\""),
            (
                "podman_socket_path_template",
                "podman_socket_path_template = \"unix:///a\"",
            ),
            (
                "podman_socket_path_template",
                "podman_socket_path_template = \"unix:///%d/%d\"",
            ),
            (
                "podman_socket_path_template",
                "podman_socket_path_template = \"unix:///%s\"",
            ),
            (
                "podman_socket_path_template",
                "podman_socket_path_template = \"unix:///%d%\"",
            ),
            (
                "container_id_cgroup_matchers",
                "container_id_cgroup_matchers = [\"/docker/<id>\"]",
            ),
            (
                "container_id_cgroup_matchers",
                "use_new_container_locator = false container_id_cgroup_matchers = [\"/docker/*\"]",
            ),
            ("docker_sock", "docker_sock = \"a\""),
            ("trusted_uids", "rootless_podman { trusted_uids = [\"root\"] }"),
            ("trusted_uids", "rootless_podman { trusted_uids = [\"-1\"] }"),
            ("trusted_user", "rootless_podman { trusted_user = 1 }"),
        ] {
            let error = docker(data).unwrap_err();
            assert!(error.contains(key), "{key} in {error}");
        }
    }

    #[test]
    fn users_own_engines_are_believed_only_where_the_operator_says_so() {
        let warned = |data: &str| {
            let config = parse(&format!(
                "WorkloadAttestor \"docker\" {{ plugin_data {{ {data} }} }}"
            ));
            config.unwrap().warnings().join("\n")
        };
        for (data, of_1000, of_7, warning) in [
            ("", false, false, ""),
            (
                "podman_socket_path_template = \"unix:///run/user/%d/p\"",
                false,
                false,
                "has no effect",
            ),
            ("rootless_podman {}", false, false, ""),
            ("rootless_podman { trusted_uids = [\"1000\"] }", true, false, ""),
            (
                "rootless_podman { trusted_uids = [\"*\"] }",
                true,
                true,
                "any docker: selector",
            ),
        ] {
            let trusted = docker(data).unwrap().trusted_users;
            assert_eq!(
                (trusted.contains(1000), trusted.contains(7)),
                (of_1000, of_7),
                "{data}"
            );
            let warnings = warned(data);
            assert!(
                warnings.contains(warning) && warnings.is_empty() == warning.is_empty(),
                "{data}: {warnings}"
            );
        }
    }

    #[test]
    fn patterns_of_the_operators_are_warned_of() {
        let text = "WorkloadAttestor \"docker\" { plugin_data { use_new_container_locator = false \
                    container_id_cgroup_matchers = [\"/docker/<id>\"] } }";
        let config = parse(text).unwrap();
        let warned = |warning: &String| warning.contains("container_id_cgroup_matchers");
        assert!(config.warnings().iter().any(warned), "{:?}", config.warnings());
    }
}
