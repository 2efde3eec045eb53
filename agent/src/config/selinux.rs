//! `agent.selinux`: which type the folders of sockets get where SELinux labels files.

use finial_identity::settings::Section;

/// Longest name of a type.
const MAX_TYPE: usize = 128;

/// `socket_type`; `None` leaves labels as they are.
pub(super) fn read(agent: &Section<'_>) -> Option<String> {
    let selinux = agent.section("selinux")?;
    let named = selinux.required_parse("socket_type", |name| {
        let characters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        let is_type = !name.is_empty() && name.len() <= MAX_TYPE && name.bytes().all(characters);
        is_type
            .then(|| name.to_owned())
            .ok_or("must be a type of SELinux, like container_file_t")
    });
    selinux.finish();
    named
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError, Flags};

    fn parse(selinux: &str) -> Result<Config, ConfigError> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 insecure_bootstrap = true
                {selinux} }}
            plugins {{ KeyManager "memory" {{}} NodeAttestor "join_token" {{}} WorkloadAttestor "unix" {{}} }}"#
        );
        Config::parse(&text, std::path::Path::new("agent.conf"), &Flags::default())
    }

    #[test]
    fn a_type_is_a_name_and_nothing_is_labelled_without() {
        assert_eq!(parse("").unwrap().socket_selinux_type(), None);
        let given = parse(r#"selinux { socket_type = "container_file_t" }"#).unwrap();
        assert_eq!(given.socket_selinux_type(), Some("container_file_t"));
        for bad in [
            "selinux {}",
            r#"selinux { socket_type = "" }"#,
            r#"selinux { socket_type = "a:b" }"#,
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("agent.selinux.socket_type"), "{bad}: {error}");
        }
    }
}
