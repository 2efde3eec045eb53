//! The service `pluginregistration.Registration`: the kubelet asks for the driver's name and reports whether it was
//! registered.

use finial_proto::pluginregistration as pb;
use finial_proto::pluginregistration::registration_server::Registration;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::config::CsiSettings;

/// Versions of CSI that the driver supports.
const VERSIONS: &[&str] = &["1.0.0"];
/// Most characters of the kubelet's reason that are shown.
const MAX_REASON: usize = 1024;

/// What the kubelet said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    /// Nothing.
    NotYet,
    /// The driver is known.
    Yes,
    /// It is not, for this reason.
    No(String),
}

/// Answers the kubelet.
#[derive(Debug)]
pub(super) struct Registrar {
    info: pb::PluginInfo,
    told: watch::Sender<Registered>,
}

impl Registrar {
    /// Answers for the driver with these settings.
    pub(super) fn new(settings: &CsiSettings, told: watch::Sender<Registered>) -> Self {
        Self {
            info: pb::PluginInfo {
                r#type: "CSIPlugin".to_owned(),
                name: settings.plugin_name.clone(),
                endpoint: settings.plugin_socket().display().to_string(),
                supported_versions: VERSIONS.iter().copied().map(str::to_owned).collect(),
            },
            told,
        }
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _request: Request<pb::InfoRequest>) -> Result<Response<pb::PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<pb::RegistrationStatus>,
    ) -> Result<Response<pb::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let news = if status.plugin_registered {
            tracing::info!("kubelet registered the driver");
            Registered::Yes
        } else {
            Registered::No(status.error.chars().take(MAX_REASON).collect())
        };
        // A refusal stands: the process is about to end.
        self.told.send_if_modified(|told| {
            let changes = !matches!(told, Registered::No(_)) && *told != news;
            if changes {
                *told = news;
            }
            changes
        });
        Ok(Response::new(pb::RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_stands_whatever_the_kubelet_says_next() {
        let (told, heard) = watch::channel(Registered::NotYet);
        let registrar = Registrar::new(&CsiSettings::default(), told);
        let tell = async |plugin_registered, error: &str| {
            let status = pb::RegistrationStatus {
                plugin_registered,
                error: error.to_owned(),
            };
            let answer = registrar.notify_registration_status(Request::new(status)).await;
            answer.unwrap();
            heard.borrow().clone()
        };
        assert_eq!(tell(true, "").await, Registered::Yes);
        let refused = Registered::No("x".repeat(MAX_REASON));
        assert_eq!(tell(false, &"x".repeat(10_000)).await, refused);
        assert_eq!(tell(true, "").await, refused);
    }
}
