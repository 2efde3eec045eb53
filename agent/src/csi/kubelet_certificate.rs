//! The kubelet's own certificate, for agents that verify it by that.
//!
//! It is in one file with its private key, readable by root only, in a folder with the node's credentials. The agent
//! must not get these, so the driver, which is root anyway, copies only the certificates.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::key::pem_block;
use finial_identity::process::Stop;
use finial_identity::process::private_file::{self, FileMode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::config::CsiSettings;

/// How often the files are read; kubelets renew their certificates in place.
const EVERY: Duration = Duration::from_secs(60);
/// Most bytes of a file.
const MAX_FILE: usize = 1024 * 1024;

/// Passes the certificates on until `stop`.
pub(super) async fn run(settings: CsiSettings, stop: Stop) -> Result<(), Infallible> {
    let mut passed_on = None;
    loop {
        let sources = settings.kubelet_certificates.clone();
        let target = settings.kubelet_certificate();
        let before = passed_on.take();
        let work = move || pass_on(&sources, &target, before);
        passed_on = tokio::task::spawn_blocking(work).await.unwrap_or_default();
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Writes what the files have, if that is something and another than before; gives what is there now.
pub(super) fn pass_on(sources: &[PathBuf], target: &Path, before: Option<String>) -> Option<String> {
    let found: String = sources.iter().filter_map(|path| certificates(path)).collect();
    if found.is_empty() || before.as_ref() == Some(&found) {
        return before;
    }
    match private_file::write(target, found.as_bytes(), FileMode::PUBLIC) {
        Ok(()) => {
            tracing::info!(path = %target.display(), "certificate of the kubelet passed on");
            Some(found)
        }
        Err(error) => {
            tracing::warn!(%error, "certificate of the kubelet cannot be passed on");
            before
        }
    }
}

/// The certificates of a file in PEM. A file that is missing is passed over: kubelets have one of several.
fn certificates(path: &Path) -> Option<String> {
    let text = private_file::read_secret(path, MAX_FILE).ok()?;
    let read = CertificateDer::pem_slice_iter(text.as_bytes());
    let blocks = read.map_while(Result::ok);
    Some(
        blocks
            .map(|certificate| pem_block("CERTIFICATE", &certificate))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::os::unix::fs::PermissionsExt as _;

    use finial_identity::key::{KeyType, PrivateKey};

    use super::*;

    #[test]
    fn certificates_are_passed_on_and_keys_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let certificate = || {
            let made = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
            pem_block("CERTIFICATE", made.cert.der())
        };
        let (first, second) = (certificate(), certificate());
        let key = PrivateKey::generate(KeyType::EcP256).unwrap().to_pem();
        let sources = [path("absent"), path("current.pem"), path("kubelet.crt")];
        let target = path("kubelet.pem");
        assert_eq!(pass_on(&sources, &target, None), None);
        assert!(!target.exists(), "there is nothing yet");

        std::fs::write(&sources[1], format!("{}{first}", *key)).unwrap();
        let passed = pass_on(&sources, &target, None);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), first);
        assert!(!passed.as_ref().unwrap().contains("PRIVATE"));
        let mode = std::fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "the agent may be another user");

        // Renewed in place, and one more.
        std::fs::write(&sources[1], format!("{second}{}", *key)).unwrap();
        std::fs::write(&sources[2], &first).unwrap();
        let passed = pass_on(&sources, &target, passed);
        assert_eq!(passed.as_deref(), Some(&*format!("{second}{first}")));
        assert_eq!(
            std::fs::read_to_string(&target).unwrap(),
            format!("{second}{first}")
        );
        // What cannot be read for a while takes nothing away.
        std::fs::remove_file(&sources[1]).unwrap();
        std::fs::write(&sources[2], "nothing").unwrap();
        assert_eq!(pass_on(&sources, &target, passed.clone()), passed);
        assert!(target.exists());
    }
}
