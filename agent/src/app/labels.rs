//! Types of the sockets' folders where SELinux labels files.

use std::path::Path;

use finial_identity::process::selinux::{self, LabelError};

use crate::config::Config;

/// Gives the folders that are mounted into pods the type that containers may open: those of sockets for workloads with
/// all that is in them; those of sockets for delegates and brokers, which may hold other files, with the socket alone.
/// Where that cannot be done the agent serves all others.
pub(super) fn set(config: &Config) {
    let Some(socket_type) = config.socket_selinux_type() else {
        return;
    };
    let public = config.essentials().socket_path.parent();
    let of_pods = config.csi().map(|csi| csi.socket_dir.as_path());
    for folder in public.into_iter().chain(of_pods) {
        report(folder, selinux::set_type(folder, socket_type));
    }
    let admin = config.admin().map(|admin| &admin.socket_path);
    let broker = config.broker().and_then(|broker| broker.socket_path.as_ref());
    for socket in admin.into_iter().chain(broker) {
        for path in socket.parent().into_iter().chain([socket.as_path()]) {
            report(path, selinux::set_type_alone(path, socket_type));
        }
    }
}

fn report(path: &Path, outcome: Result<usize, LabelError>) {
    match outcome {
        Ok(changed) => tracing::debug!(path = %path.display(), changed, "SELinux types of sockets are set"),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "SELinux type of sockets cannot be set: containers may be kept from them");
        }
    }
}
