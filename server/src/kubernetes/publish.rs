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
use uuid::Uuid;

use super::FIELD_MANAGER;
use crate::config::{BundleFormat, ConfigMapPublisher};
use crate::registry::Registry;

/// How often it is written although nothing changed, against changes by others.
const REFRESH: Duration = Duration::from_secs(10 * 60);
/// How long after a failure it is written again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Longest name of an owner of fields, in bytes, that API servers take.
const MAX_FIELD_MANAGER: usize = 128;

/// Writes the bundle with each change of it until `stop`, as this `owner` of fields.
pub(super) async fn run(
    publisher: ConfigMapPublisher,
    owner: String,
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
            match write(&api, &owner, &publisher, &bundle).await {
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

async fn write(
    api: &Api<ConfigMap>,
    owner: &str,
    publisher: &ConfigMapPublisher,
    bundle: &Bundle,
) -> kube::Result<()> {
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
    let params = PatchParams::apply(owner).force();
    api.patch(&publisher.name, &params, &Patch::Apply(&map)).await?;
    Ok(())
}

/// Who we are as the owner of what a publisher writes. An apply takes away what the same owner applied before and does not
/// name now: that is right when the key of a map is renamed, and wrong when others of `all` write to the same map, so then
/// each key has an owner.
pub(super) fn owner(publisher: &ConfigMapPublisher, all: &[ConfigMapPublisher]) -> String {
    let map = |one: &ConfigMapPublisher| {
        (
            one.kube_config_file.clone(),
            one.namespace.clone(),
            one.name.clone(),
        )
    };
    let own = map(publisher);
    if all.iter().filter(|other| map(other) == own).count() < 2 {
        return FIELD_MANAGER.to_owned();
    }
    let key = &publisher.key;
    let name = format!("{FIELD_MANAGER}/{key}");
    if name.len() <= MAX_FIELD_MANAGER {
        return name;
    }
    let unique = Uuid::new_v5(&Uuid::NAMESPACE_URL, key.as_bytes());
    format!("{FIELD_MANAGER}/{unique}")
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
    use std::sync::Mutex;

    use finial_identity::spiffe_id::TrustDomain;

    use super::*;

    fn publisher(key: &str, format: BundleFormat) -> ConfigMapPublisher {
        ConfigMapPublisher {
            cluster: "a".to_owned(),
            namespace: "spire".to_owned(),
            name: "bundle".to_owned(),
            key: key.to_owned(),
            format,
            kube_config_file: None,
            refresh_hint: Some(Duration::from_secs(77)),
        }
    }

    /// What an API server is asked for, by the owner of the fields: the keys of the map.
    #[tokio::test]
    async fn each_key_of_a_map_that_several_write_has_an_owner_of_its_own() {
        let applied = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = Arc::clone(&applied);
        let api_server = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                let map: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let keys: Vec<String> = map["data"].as_object().unwrap().keys().cloned().collect();
                let manager = query
                    .split('&')
                    .find(|part| part.starts_with("fieldManager="))
                    .unwrap();
                // As server-side apply does: what the manager owned before and does not name is taken away.
                seen.lock().unwrap().insert(manager.to_owned(), keys);
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                    body.to_vec(),
                )))
            }
        });
        let api = Api::<ConfigMap>::namespaced(Client::new(api_server, "default"), "spire");
        let bundle = Bundle::new(TrustDomain::parse("example.test").unwrap());
        let (long, longer) = ("k".repeat(253), "k".repeat(252));
        let all = ["bundle.crt", "bundle.json", &long, &longer].map(|key| publisher(key, BundleFormat::Pem));
        for publisher in all.iter().chain(&all[..1]) {
            let owner = owner(publisher, &all);
            assert!(owner.len() <= MAX_FIELD_MANAGER);
            write(&api, &owner, publisher, &bundle).await.unwrap();
        }
        let applied = applied.lock().unwrap();
        let keys: std::collections::BTreeSet<&String> = applied.values().flatten().collect();
        assert_eq!(keys.len(), 4, "{applied:?}");
    }

    #[test]
    fn the_only_key_of_a_map_may_be_renamed() {
        let elsewhere = ConfigMapPublisher {
            namespace: "other".to_owned(),
            ..publisher("bundle.spiffe", BundleFormat::Spiffe)
        };
        for key in ["bundle.crt", "bundle.spiffe"] {
            let publisher = publisher(key, BundleFormat::Pem);
            let all = [publisher.clone(), elsewhere.clone()];
            assert_eq!(owner(&publisher, &all), FIELD_MANAGER);
        }
    }

    #[test]
    fn a_refresh_hint_of_the_configuration_replaces_the_bundles() {
        let bundle = Bundle::new(TrustDomain::parse("example.test").unwrap());
        let publisher = |format| publisher("k", format);
        assert!(document(&publisher(BundleFormat::Spiffe), &bundle).contains("77"));
        assert_eq!(document(&publisher(BundleFormat::Pem), &bundle), bundle.to_pem());
        assert_eq!(
            document(&publisher(BundleFormat::Jwks), &bundle),
            bundle.to_jwks()
        );
    }
}
