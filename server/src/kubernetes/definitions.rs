//! Applies the custom resource definitions of the three kinds at start if the cluster's are missing or older: Helm
//! installs them once and never updates them.

use std::convert::Infallible;
use std::time::Duration;

use finial_identity::process::Stop;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::sleep;

use super::FIELD_MANAGER;
use super::resources::{
    SCHEMA_VERSION, SCHEMA_VERSION_ANNOTATION, definitions, definitions_without_rules, has_rules,
};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Applies what is missing or older, until all is well or `stop`.
pub(super) async fn apply(client: Client, stop: Stop) -> Result<(), Infallible> {
    let mut pause = Duration::from_secs(1);
    let mut is_told = false;
    while let Err(error) = apply_all(&client).await {
        if !is_told {
            tracing::warn!(%error, "failed to apply the definitions to the cluster");
        }
        is_told = true;
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

async fn apply_all(client: &Client) -> kube::Result<()> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let ours = if serves_rules(client).await? {
        definitions()
    } else {
        definitions_without_rules()
    };
    for definition in ours {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let found = api.get_opt(&name).await?;
        if found.as_ref().is_some_and(|found| is_current(found, &definition)) {
            continue;
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(&definition)).await?;
        tracing::info!(
            definition = name,
            is_new = found.is_none(),
            "definition was applied to the cluster"
        );
    }
    Ok(())
}

/// Whether the API server runs rules in CEL. One that does not say its version is taken for an old one.
async fn serves_rules(client: &Client) -> kube::Result<bool> {
    match client.apiserver_version().await {
        Ok(version) => Ok(runs_rules(&version.major, &version.minor)),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kubernetes 1.25 and newer; some call their minor versions `25+`.
fn runs_rules(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().unwrap_or(0);
    (number(major), number(minor)) >= (1, 25)
}

/// Whether a definition is ours, of this version or a newer one, and has rules if ours has.
fn is_current(found: &CustomResourceDefinition, ours: &CustomResourceDefinition) -> bool {
    let annotations = found.metadata.annotations.as_ref();
    let version = annotations.and_then(|annotations| annotations.get(SCHEMA_VERSION_ANNOTATION));
    match version.and_then(|version| version.parse::<u32>().ok()) {
        Some(SCHEMA_VERSION) => has_rules(found) || !has_rules(ours),
        Some(version) => version > SCHEMA_VERSION,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_and_older_definitions_are_replaced() {
        let ours = definitions().remove(0);
        let is_current = |found: &_| is_current(found, &ours);
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

    /// As the chart installs them, on an API server that could do more and on one that could not.
    #[test]
    fn rules_are_added_where_they_are_served() {
        for (plain, full) in definitions_without_rules().iter().zip(&definitions()) {
            assert!(!has_rules(plain) && has_rules(full));
            assert!(!is_current(plain, full) && is_current(full, full));
            assert!(is_current(plain, plain) && is_current(full, plain));
        }
        assert!(!runs_rules("1", "20") && !runs_rules("1", "24+") && !runs_rules("", "x"));
        assert!(runs_rules("1", "25") && runs_rules("1", "33+"));
    }
}
