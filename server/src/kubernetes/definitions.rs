//! Applies the definitions of our kinds at start where the cluster's are missing or older: a package manager
//! that installs them once never updates them.

use std::convert::Infallible;
use std::time::Duration;

use finial_identity::process::Stop;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::sleep;

use super::FIELD_MANAGER;
use super::resources::{SCHEMA_VERSION, SCHEMA_VERSION_ANNOTATION, definitions};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Applies what is missing or older, until all is well or `stop`.
pub(super) async fn apply(client: Client, stop: Stop) -> Result<(), Infallible> {
    let api = Api::<CustomResourceDefinition>::all(client);
    let mut pause = Duration::from_secs(1);
    let mut is_told = false;
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap_or_default();
        while let Err(error) = apply_one(&api, &name, &definition).await {
            if !is_told {
                tracing::warn!(definition = %name, %error, "failed to apply a definition to the cluster");
            }
            is_told = true;
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    Ok(())
}

async fn apply_one(
    api: &Api<CustomResourceDefinition>,
    name: &str,
    definition: &CustomResourceDefinition,
) -> kube::Result<()> {
    let found = api.get_opt(name).await?;
    if found.as_ref().is_some_and(is_current) {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(definition)).await?;
    tracing::info!(
        definition = name,
        is_new = found.is_none(),
        "definition was applied to the cluster"
    );
    Ok(())
}

/// Whether a definition is ours, of this version or a newer one.
fn is_current(found: &CustomResourceDefinition) -> bool {
    let annotations = found.metadata.annotations.as_ref();
    let version = annotations.and_then(|annotations| annotations.get(SCHEMA_VERSION_ANNOTATION));
    version
        .and_then(|version| version.parse::<u32>().ok())
        .is_some_and(|version| version >= SCHEMA_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_and_older_definitions_are_replaced() {
        let ours = definitions().remove(0);
        assert!(is_current(&ours));
        let of = |version: Option<&str>| {
            let mut found = ours.clone();
            found.metadata.annotations =
                version.map(|version| [(SCHEMA_VERSION_ANNOTATION.to_owned(), version.to_owned())].into());
            found
        };
        assert!(!is_current(&of(None)), "another program's");
        assert!(!is_current(&of(Some("0"))));
        assert!(!is_current(&of(Some("x"))));
        assert!(is_current(&of(Some("99"))));
    }
}
