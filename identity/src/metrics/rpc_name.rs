//! From an RPC to its metric, as SPIRE names them.

/// The segments of a service: `spire.api.server.svid.v1.SVID` gives `svid_v1_svid`. Services of an agent have
/// short names.
pub fn service_segments(service: &str) -> String {
    let short = match service {
        "SpiffeWorkloadAPI" => "WorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService" => "SDS.v3",
        "grpc.health.v1.Health" => "Health",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity" => "DelegatedIdentity",
        "spire.agent.debug.v1.Debug" | "spire.api.agent.debug.v1.Debug" => "Debug",
        "spire.api.agent.logger.v1.Logger" => "Logger",
        other => other.strip_prefix("spire.api.server.").unwrap_or(other),
    };
    let segments: Vec<String> = short.split('.').map(snake_case).collect();
    segments.join("_")
}

/// The segment of a method: `BatchNewX509SVID` gives `batch_new_x509svid`.
pub fn method_segment(method: &str) -> String {
    match method {
        "SubscribeToX509SVIDs" => "subscribe_to_x509_svids".to_owned(),
        other => snake_case(other),
    }
}

/// Runs of capitals stay together, except that the last one begins a word when a small letter follows.
fn snake_case(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    let mut snake = String::with_capacity(name.len() + 8);
    for (at, character) in characters.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| characters.get(at));
        let begins_word = character.is_uppercase()
            && before.is_some_and(|before| {
                let after = characters.get(at + 1);
                before.is_lowercase() || after.is_some_and(|after| after.is_lowercase())
            });
        if begins_word {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_spires_dashboards() {
        for (service, segments) in [
            ("spire.api.server.svid.v1.SVID", "svid_v1_svid"),
            (
                "spire.api.server.trustdomain.v1.TrustDomain",
                "trustdomain_v1_trust_domain",
            ),
            (
                "spire.api.server.localauthority.v1.LocalAuthority",
                "localauthority_v1_local_authority",
            ),
            ("SpiffeWorkloadAPI", "workload_api"),
            ("envoy.service.secret.v3.SecretDiscoveryService", "sds_v3"),
            ("finial.server.sync.v1.Sync", "finial_server_sync_v1_sync"),
        ] {
            assert_eq!(service_segments(service), segments);
        }
        for (method, segment) in [
            ("BatchNewX509SVID", "batch_new_x509svid"),
            ("NewJWTSVID", "new_jwtsvid"),
            ("FetchX509Bundles", "fetch_x509_bundles"),
            ("FetchJWTBundles", "fetch_jwt_bundles"),
            ("GetAuthorizedEntries", "get_authorized_entries"),
            ("SubscribeToX509SVIDs", "subscribe_to_x509_svids"),
            ("SubscribeToX509Bundles", "subscribe_to_x509_bundles"),
            ("AttestAgent", "attest_agent"),
        ] {
            assert_eq!(method_segment(method), segment);
        }
    }
}
