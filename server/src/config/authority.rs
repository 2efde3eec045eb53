//! The settings of the trust domain's authorities.

use std::time::Duration;

use finial_identity::key::KeyType;
use finial_identity::spiffe_id::TrustDomain;

/// How the authorities of a trust domain are made and what they sign by default.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    pub trust_domain: TrustDomain,
    /// Lifetime of a CA and of a JWT key.
    pub ca_ttl: Duration,
    /// Of CA keys and of the server's own SVID.
    pub ca_key_type: KeyType,
    pub jwt_key_type: KeyType,
    /// Subject of self-signed CAs.
    pub ca_subject: CaSubject,
    /// `iss` of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    pub disable_jwt_svids: bool,
    /// WIT-SVIDs (Incubating), which are off unless the flag `wit-svid` is set.
    pub wit: Option<WitConfig>,
    pub default_x509_svid_ttl: Duration,
    pub default_jwt_svid_ttl: Duration,
    /// Lifetime of agents' SVIDs; `None` is the default of X.509-SVIDs.
    pub agent_ttl: Option<Duration>,
    /// Whether workloads' subjects carry the attribute of SPIRE's `uniqueid` composer.
    pub unique_id: bool,
}

impl AuthorityConfig {
    /// SPIRE's defaults.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            ca_ttl: Duration::from_secs(24 * 60 * 60),
            ca_key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            ca_subject: CaSubject::default(),
            jwt_issuer: None,
            disable_jwt_svids: false,
            wit: None,
            default_x509_svid_ttl: Duration::from_secs(60 * 60),
            default_jwt_svid_ttl: Duration::from_secs(5 * 60),
            agent_ttl: None,
            unique_id: false,
        }
    }
}

/// How WIT-SVIDs are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WitConfig {
    /// `experimental.wit_key_type`
    pub key_type: KeyType,
    /// `experimental.wit_issuer`: `iss` of WIT-SVIDs.
    pub issuer: Option<String>,
}

/// `ca_subject`: the parts of a distinguished name that SPIRE's configuration can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSubject {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub common_name: String,
}

impl Default for CaSubject {
    /// `C=US, O=SPIFFE`, as SPIRE has it.
    fn default() -> Self {
        Self {
            country: vec!["US".to_owned()],
            organization: vec!["SPIFFE".to_owned()],
            common_name: String::new(),
        }
    }
}

impl CaSubject {
    /// Whether no part is given.
    pub fn is_empty(&self) -> bool {
        self.country.is_empty() && self.organization.is_empty() && self.common_name.is_empty()
    }
}
