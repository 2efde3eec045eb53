//! `experimental.ratelimit`: how often one caller may call a method of the Workload API.

use finial_identity::settings::Section;

/// Calls a second, and at once, for each caller; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// `FetchX509SVID`
    pub fetch_x509_svid: u32,
    /// `FetchJWTSVID`
    pub fetch_jwt_svid: u32,
    /// `FetchX509Bundles`
    pub fetch_x509_bundles: u32,
    /// `FetchJWTBundles`
    pub fetch_jwt_bundles: u32,
    /// `StreamSecrets` and `DeltaSecrets` of Envoy's secret discovery.
    pub stream_secrets: u32,
    /// `FetchSecrets` of Envoy's secret discovery.
    pub fetch_secrets: u32,
}

impl RateLimits {
    /// The name and the limit of the method with this path, if it has one. The name is what SPIRE's agents label metrics with.
    pub fn of(&self, path: &str) -> Option<(&'static str, u32)> {
        let (name, limit) = match path {
            "/SpiffeWorkloadAPI/FetchX509SVID" => ("_SpiffeWorkloadAPI_FetchX509SVID", self.fetch_x509_svid),
            "/SpiffeWorkloadAPI/FetchJWTSVID" => ("_SpiffeWorkloadAPI_FetchJWTSVID", self.fetch_jwt_svid),
            "/SpiffeWorkloadAPI/FetchX509Bundles" => {
                ("_SpiffeWorkloadAPI_FetchX509Bundles", self.fetch_x509_bundles)
            }
            "/SpiffeWorkloadAPI/FetchJWTBundles" => {
                ("_SpiffeWorkloadAPI_FetchJWTBundles", self.fetch_jwt_bundles)
            }
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
            | "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets" => (
                "_envoy_service_secret_v3_SecretDiscoveryService_StreamSecrets",
                self.stream_secrets,
            ),
            "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets" => (
                "_envoy_service_secret_v3_SecretDiscoveryService_FetchSecrets",
                self.fetch_secrets,
            ),
            _ => return None,
        };
        (limit > 0).then_some((name, limit))
    }
}

/// What the `experimental` block says.
pub(super) fn read(experimental: &Section<'_>) -> RateLimits {
    let Some(block) = experimental.section("ratelimit") else {
        return RateLimits::default();
    };
    let limit = |key: &str| block.u32(key).unwrap_or_default();
    let limits = RateLimits {
        fetch_x509_svid: limit("fetch_x509_svid"),
        fetch_jwt_svid: limit("fetch_jwt_svid"),
        fetch_x509_bundles: limit("fetch_x509_bundles"),
        fetch_jwt_bundles: limit("fetch_jwt_bundles"),
        stream_secrets: limit("stream_secrets"),
        fetch_secrets: limit("fetch_secrets"),
    };
    block.finish();
    limits
}
