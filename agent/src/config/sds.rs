//! `sds` and `disable_sds_api`: Envoy's secret discovery.

use finial_identity::settings::Section;

use super::Flags;

/// How secrets are called, and how bundles are wrapped (`agent.sds`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsSettings {
    /// Asks for the caller's first X509-SVID.
    pub default_svid_name: String,
    /// Asks for the bundle of the agent's trust domain.
    pub default_bundle_name: String,
    /// Asks for that bundle and those of the federated trust domains.
    pub default_all_bundles_name: String,
    /// Bundles come as plain `trusted_ca` instead of a configuration for Envoy's SPIFFE certificate validator.
    /// An Envoy decides otherwise for itself by its metadata.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for SdsSettings {
    fn default() -> Self {
        Self {
            default_svid_name: "default".to_owned(),
            default_bundle_name: "ROOTCA".to_owned(),
            default_all_bundles_name: "ALL".to_owned(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// What the `agent` block says; `None` when the service is switched off.
pub(super) fn read(agent: &Section<'_>, flags: &Flags) -> Option<SdsSettings> {
    let off = agent.bool("disable_sds_api");
    let off = flags.disable_sds_api.or(off).unwrap_or_default();
    let settings = agent.section("sds").map(read_block).unwrap_or_default();
    (!off).then_some(settings)
}

fn read_block(sds: Section<'_>) -> SdsSettings {
    let defaults = SdsSettings::default();
    let name =
        |key: &str, default: String| sds.string(key).filter(|name| !name.is_empty()).unwrap_or(default);
    let settings = SdsSettings {
        default_svid_name: name("default_svid_name", defaults.default_svid_name),
        default_bundle_name: name("default_bundle_name", defaults.default_bundle_name),
        default_all_bundles_name: name("default_all_bundles_name", defaults.default_all_bundles_name),
        disable_spiffe_cert_validation: sds.bool("disable_spiffe_cert_validation").unwrap_or_default(),
    };
    let (svid, own, all) = (
        &settings.default_svid_name,
        &settings.default_bundle_name,
        &settings.default_all_bundles_name,
    );
    if own == svid {
        sds.problem("default_bundle_name", format!("is also default_svid_name: {own}"));
    }
    if all == svid || all == own {
        sds.problem(
            "default_all_bundles_name",
            format!("is also the name of something else: {all}"),
        );
    }
    sds.finish();
    settings
}
