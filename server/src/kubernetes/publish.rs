//! Publishes the bundle in a ConfigMap: SPIRE's `BundlePublisher "k8s_configmap"`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::process::Stop;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::sleep;

use super::FIELD_MANAGER;
use crate::config::{BundleFormat, ConfigMapPublisher};
use crate::registry::Registry;

/// How often it is written although nothing changed, against changes by others.
const REFRESH: Duration = Duration::from_secs(10 * 60);
/// How long after a failure it is written again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Writes the bundle with each change of it until `stop`.
pub(super) async fn run(
    publisher: ConfigMapPublisher,
    client: Client,
    registry: Arc<Registry>,
    stop: Stop,
) -> Result<(), Infallible> {
    let api = Api::<ConfigMap>::namespaced(client, &publisher.namespace);
    let mut bundles = registry.bundles();
    let mut written: Option<Arc<Bundle>> = None;
    let mut is_failing = false;
    loop {
        let bundle = bundles.borrow_and_update().get(registry.trust_domain()).cloned();
        let mut pause = REFRESH;
        if let Some(bundle) = bundle {
            match write(&api, &publisher, &bundle).await {
                Ok(()) => {
                    if is_failing || written.as_ref() != Some(&bundle) {
                        tracing::info!(
                            cluster = publisher.cluster,
                            configmap = publisher.name,
                            "bundle published"
                        );
                    }
                    is_failing = false;
                    written = Some(bundle);
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(cluster = publisher.cluster, configmap = publisher.name, %error, "failed to publish the bundle");
                    }
                    is_failing = true;
                    pause = TRY_AGAIN;
                }
            }
        }
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = sleep(pause) => break,
                changed = bundles.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // Foreign bundles change too.
                    let now = bundles.borrow().get(registry.trust_domain()).cloned();
                    if now != written {
                        break;
                    }
                }
            }
        }
    }
}

async fn write(api: &Api<ConfigMap>, publisher: &ConfigMapPublisher, bundle: &Bundle) -> kube::Result<()> {
    let data = BTreeMap::from([(publisher.key.clone(), document(publisher, bundle))]);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(publisher.name.clone()),
            namespace: Some(publisher.namespace.clone()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&publisher.name, &params, &Patch::Apply(&map)).await?;
    Ok(())
}

fn document(publisher: &ConfigMapPublisher, bundle: &Bundle) -> String {
    match publisher.format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Jwks => bundle.to_jwks(),
        BundleFormat::Spiffe => match publisher.refresh_hint {
            None => bundle.to_spiffe_json(),
            Some(hint) => Bundle {
                refresh_hint: i64::try_from(hint.as_secs()).unwrap_or(i64::MAX),
                ..bundle.clone()
            }
            .to_spiffe_json(),
        },
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::spiffe_id::TrustDomain;

    use super::*;

    #[test]
    fn a_refresh_hint_of_the_configuration_replaces_the_bundles() {
        let bundle = Bundle::new(TrustDomain::parse("example.test").unwrap());
        let publisher = |format| ConfigMapPublisher {
            cluster: "a".to_owned(),
            namespace: "spire".to_owned(),
            name: "bundle".to_owned(),
            key: "k".to_owned(),
            format,
            kube_config_file: None,
            refresh_hint: Some(Duration::from_secs(77)),
        };
        assert!(document(&publisher(BundleFormat::Spiffe), &bundle).contains("77"));
        assert_eq!(document(&publisher(BundleFormat::Pem), &bundle), bundle.to_pem());
        assert_eq!(
            document(&publisher(BundleFormat::Jwks), &bundle),
            bundle.to_jwks()
        );
    }
}
