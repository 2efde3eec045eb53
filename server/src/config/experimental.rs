//! The block `server.experimental`.

use finial_identity::key::KeyType;
use finial_identity::settings::Section;

use super::WitConfig;

/// What of the block has an effect here.
#[derive(Debug, Default)]
pub(super) struct Experimental {
    pub(super) agent_spiffe_id_as_selector: bool,
    wit: Option<Wit>,
}

#[derive(Debug)]
struct Wit {
    key_type: Option<KeyType>,
    issuer: Option<String>,
}

impl Experimental {
    /// How WIT-SVIDs are signed, if they are switched on; keys are of the type of CA keys unless another is given.
    pub(super) fn wit(&self, ca_key_type: KeyType) -> Option<WitConfig> {
        self.wit.as_ref().map(|wit| WitConfig {
            key_type: wit.key_type.unwrap_or(ca_key_type),
            issuer: wit.issuer.clone(),
        })
    }
}

pub(super) fn read(section: Section<'_>, warnings: &mut Vec<String>) -> Experimental {
    // SPIRE's caches: entries and agents are in memory here, and news comes with the commit.
    for key in [
        "cache_reload_interval",
        "full_cache_reload_interval",
        "prune_events_older_than",
        "event_timeout",
        "sql_transaction_timeout",
    ] {
        section.duration(key);
    }
    section.bool("events_based_cache");
    section.ignore("named_pipe_name");
    if section.ignore("auth_opa_policy_engine") {
        section.problem(
            "auth_opa_policy_engine",
            "policies in Rego are not served: who may call is fixed as in SPIRE's default policy",
        );
    }
    if section.bool("require_pq_kem").unwrap_or_default() {
        section.problem(
            "require_pq_kem",
            "is not served: the TLS library that this build uses has no hybrid post-quantum key exchange",
        );
    }
    let wit = read_wit(&section, warnings);
    let agent_spiffe_id_as_selector = section.bool("agent_spiffe_id_as_selector").unwrap_or_default();
    section.finish();
    Experimental {
        agent_spiffe_id_as_selector,
        wit,
    }
}

/// WIT-SVIDs are Incubating: on only where the flag says so.
fn read_wit(section: &Section<'_>, warnings: &mut Vec<String>) -> Option<Wit> {
    let mut is_on = false;
    for flag in section.strings("feature_flags") {
        if flag == "wit-svid" {
            is_on = true;
        } else {
            section.problem("feature_flags", format!("unknown feature flag: {flag}"));
        }
    }
    let wit = Wit {
        key_type: section.parse("wit_key_type", str::parse::<KeyType>),
        issuer: section.string("wit_issuer"),
    };
    if is_on {
        // An OpenID Connect client could take the token for one that needs no proof (WIT-SVID §3.7).
        if wit
            .issuer
            .as_deref()
            .is_some_and(|issuer| issuer.starts_with("https://"))
        {
            warnings.push(
                "server.experimental.wit_issuer: should not be a URL that is usable for OpenID Connect discovery".to_owned(),
            );
        }
        return Some(wit);
    }
    for (key, is_given) in [
        ("wit_key_type", wit.key_type.is_some()),
        ("wit_issuer", wit.issuer.is_some()),
    ] {
        if is_given {
            warnings.push(format!(
                "server.experimental.{key}: has no effect without the feature flag \"wit-svid\""
            ));
        }
    }
    None
}
