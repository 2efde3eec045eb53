//! Where files and the agent's socket are, from what the configuration says.

use std::path::{Component, Path, PathBuf};

/// A path in its shortest form: without `.`, and with `..` only at the beginning of a relative one. As Go's
/// `path.Clean` does it, from the text alone.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut parts: Vec<Component<'_>> = Vec::new();
    for part in path.components() {
        match (part, parts.last()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    if parts.is_empty() {
        return PathBuf::from(".");
    }
    parts.into_iter().collect()
}

/// `name` below `directory`, which `..` in the name may leave, as in spiffe-helper. A leading slash counts for nothing.
pub(super) fn join(directory: &str, name: &str) -> PathBuf {
    clean(&Path::new(directory).join(name.trim_start_matches('/')))
}

/// The path of the agent's socket: `unix:///path` and `unix:/path` (SPIFFE Workload Endpoint §4), or a path.
pub(super) fn socket(address: &str) -> Result<PathBuf, String> {
    if let Some(rest) = address.strip_prefix("unix:") {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        return if path.starts_with('/') && !path.contains(['?', '#']) {
            Ok(path.into())
        } else {
            Err(format!("must be unix:// and an absolute path: {address}"))
        };
    }
    if address.starts_with("tcp:") || address.contains("://") {
        return Err(format!("must be the path of a Unix socket: {address}"));
    }
    Ok(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_as_text() {
        let cases = [
            ("certs", "svid.pem", "certs/svid.pem"),
            ("", "tls.crt", "tls.crt"),
            ("./certs/", "sub//a.pem", "certs/sub/a.pem"),
            ("certs", "../a.pem", "a.pem"),
            ("certs", "../../a.pem", "../a.pem"),
            ("/c", "../../a.pem", "/a.pem"),
            ("/c", "/etc/a.pem", "/c/etc/a.pem"),
            ("..", "a", "../a"),
        ];
        for (directory, name, expected) in cases {
            assert_eq!(join(directory, name), Path::new(expected), "{directory} {name}");
        }
        assert_eq!(clean(Path::new("a/..")), Path::new("."));
    }

    #[test]
    fn an_address_is_a_path_or_a_unix_uri() {
        for (address, path) in [
            ("/tmp/a.sock", "/tmp/a.sock"),
            ("unix:///tmp/a.sock", "/tmp/a.sock"),
            ("unix:/tmp/a.sock", "/tmp/a.sock"),
            ("run/a.sock", "run/a.sock"),
        ] {
            assert_eq!(socket(address).unwrap(), Path::new(path));
        }
        for address in [
            "unix:a.sock",
            "unix://a.sock",
            "tcp://127.0.0.1:8081",
            "http://a",
            "unix:///a?b",
        ] {
            assert!(socket(address).unwrap_err().ends_with(address));
        }
    }
}
