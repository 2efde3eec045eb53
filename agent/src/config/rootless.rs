//! `rootless_podman` of `WorkloadAttestor "docker"`, which SPIRE does not have: which users' own engines are trusted.

use std::collections::BTreeSet;

use finial_identity::settings::Section;

/// Means every user.
const EVERYBODY: &str = "*";

/// Users whose own Podman is trusted about its containers. Without any, only the engines of the system are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedUsers {
    everybody: bool,
    uids: BTreeSet<u32>,
}

impl TrustedUsers {
    /// Every user, as in SPIRE: then every user can get any selector of a container.
    pub fn everybody() -> Self {
        Self {
            everybody: true,
            ..Self::default()
        }
    }

    /// These users.
    pub fn of(uids: impl IntoIterator<Item = u32>) -> Self {
        Self {
            everybody: false,
            uids: uids.into_iter().collect(),
        }
    }

    /// Whether this user's engine is trusted.
    pub fn contains(&self, uid: u32) -> bool {
        self.everybody || self.uids.contains(&uid)
    }
}

/// Reads `rootless_podman { trusted_uids = ["1000"] }`. `has_socket` says whether the configuration names the users' sockets.
pub(super) fn read(data: &Section<'_>, has_socket: bool, warnings: &mut Vec<String>) -> TrustedUsers {
    let Some(block) = data.section("rootless_podman") else {
        if has_socket {
            warnings.push(
                "podman_socket_path_template: users' own engines are not believed, so the key has no effect; \
                 rootless_podman.trusted_uids names the users that are"
                    .to_owned(),
            );
        }
        return TrustedUsers::default();
    };
    let named = block.parse_each("trusted_uids", |text| match text {
        EVERYBODY => Ok(None),
        digits => digits
            .parse::<u32>()
            .map(Some)
            .map_err(|_| format!("must be the id of a user or \"*\": {digits:?}")),
    });
    block.finish();
    if named.contains(&None) {
        warnings.push(
            "rootless_podman.trusted_uids: whoever may log in to this machine can have any docker: selector"
                .to_owned(),
        );
        return TrustedUsers::everybody();
    }
    TrustedUsers::of(named.into_iter().flatten())
}
