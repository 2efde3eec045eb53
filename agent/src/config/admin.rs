//! The admin socket: `admin_socket_path` and `authorized_delegates`.

use std::io;
use std::path::{Component, Path, PathBuf};

use finial_identity::settings::Section;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

/// The admin socket, when there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// `admin_socket_path`
    pub socket_path: PathBuf,
    /// `authorized_delegates`: who may ask for the identities of others.
    pub authorized_delegates: Vec<SpiffeId>,
}

/// Reads both keys. `None` when there is no admin socket, or something was reported.
pub(super) fn read(
    agent: &Section<'_>,
    trust_domain: Option<&TrustDomain>,
    public_socket: &Path,
    warnings: &mut Vec<String>,
) -> Option<AdminSettings> {
    let path = agent.string("admin_socket_path").map(PathBuf::from);
    let authorized_delegates = read_delegates(agent, trust_domain);
    let Some(socket_path) = path else {
        if !authorized_delegates.is_empty() {
            warnings.push(
                "agent.authorized_delegates: has no effect without admin_socket_path, on whose socket delegates call"
                    .to_owned(),
            );
        }
        return None;
    };
    match is_beside(&socket_path, public_socket) {
        Ok(false) => {}
        Ok(true) => agent.problem(
            "admin_socket_path",
            "must not be in the directory of socket_path or below it, which is shared with workloads",
        ),
        Err(error) => agent.problem("admin_socket_path", format!("cannot be made absolute: {error}")),
    }
    Some(AdminSettings {
        socket_path,
        authorized_delegates,
    })
}

fn read_delegates(agent: &Section<'_>, trust_domain: Option<&TrustDomain>) -> Vec<SpiffeId> {
    let mut delegates = Vec::new();
    for text in agent.strings("authorized_delegates") {
        match SpiffeId::parse(&text) {
            Err(error) => agent.problem("authorized_delegates", format!("{error}: {text:?}")),
            Ok(id) if !id.is_workload() => agent.problem(
                "authorized_delegates",
                format!("is not the SPIFFE ID of a workload: {id}"),
            ),
            Ok(id) if trust_domain.is_some_and(|own| !id.is_member_of(own)) => agent.problem(
                "authorized_delegates",
                format!("is not in the agent's trust domain: {id}"),
            ),
            Ok(id) => delegates.push(id),
        }
    }
    delegates
}

/// Whether `admin` is in the directory of `public` or below it. By their names: links are followed when the
/// sockets are opened.
pub(super) fn is_beside(admin: &Path, public: &Path) -> io::Result<bool> {
    let public = resolved(public)?;
    let directory = public.parent().unwrap_or(Path::new("/"));
    Ok(resolved(admin)?.starts_with(directory))
}

/// The absolute path without `.` and `..`.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_socket_stands_apart_from_the_public_one() {
        for (admin, public, beside) in [
            ("/run/a/admin.sock", "/run/a/api.sock", true),
            ("/run/a/b/admin.sock", "/run/a/api.sock", true),
            ("/run/b/../a/admin.sock", "/run/./a/api.sock", true),
            ("admin.sock", "api.sock", true),
            ("/run/a/../../run/a/admin.sock", "/run/a/api.sock", true),
            ("/run/admin.sock", "/api.sock", true),
            ("/run/a/admin.sock", "/run/a/public/api.sock", false),
            ("/run/ab/admin.sock", "/run/a/api.sock", false),
            ("private/admin.sock", "public/api.sock", false),
        ] {
            let found = is_beside(Path::new(admin), Path::new(public)).unwrap();
            assert_eq!(found, beside, "{admin} {public}");
        }
    }
}
