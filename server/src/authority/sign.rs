//! Signs with the active authorities.
//!
//! Every signature goes the same way: profile, audit, sign, check, audit. P-256 keys of this process sign in
//! microseconds and do so on the caller's thread; slower ones have `…_off_thread` forms.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::key::{PublicKey, PublicKeyKind, Signer};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::Certificate;
use finial_identity::{jwt, wit};
use time::OffsetDateTime;
use tracing::{info, warn};

use super::slots::TokenIssuer;
use super::{AuthorityError, AuthorityManager};
use crate::credential::{
    Basis, DistinguishedName, JwtProfile, MintedJwt, ProfileError, Serial, SignedBy, Validity, X509Issuer,
    X509Profile, check_certificate, check_token,
};
use crate::telemetry::{AUDIT_TARGET, TRACE_TARGET, metrics};

/// A certificate to be signed.
#[derive(Clone, Debug)]
pub struct X509Request {
    pub subject: X509Subject,
    /// The key to certify: all that is taken from a CSR, except of one that an administrator mints an SVID with.
    pub public_key: PublicKey,
    /// `None` is the default of the subject's kind. The authority's end bounds it in any case.
    pub ttl: Option<Duration>,
}

/// For whom a certificate is.
#[derive(Clone, Debug)]
pub enum X509Subject {
    Workload {
        spiffe_id: SpiffeId,
        dns_names: Vec<String>,
        /// Only of minted SVIDs: the subject of the request, if it has one.
        name: Option<Box<DistinguishedName>>,
    },
    Agent(SpiffeId),
    /// This server itself.
    Server,
    /// A server nested below this one.
    DownstreamCa,
}

impl X509Request {
    /// The SVID that an entry gives to the holder of the key.
    pub fn for_entry(entry: &Entry, public_key: PublicKey) -> Self {
        Self {
            subject: X509Subject::Workload {
                spiffe_id: entry.spiffe_id.clone(),
                dns_names: entry.dns_names.clone(),
                name: None,
            },
            public_key,
            ttl: seconds(entry.x509_svid_ttl),
        }
    }
}

/// A token to be signed.
#[derive(Clone, Debug)]
pub struct JwtRequest {
    pub spiffe_id: SpiffeId,
    /// Empty strings are dropped; one other has to be left.
    pub audiences: Vec<String>,
    /// `None` is the default. The key's end bounds it in any case.
    pub ttl: Option<Duration>,
    pub include_jti: bool,
}

impl JwtRequest {
    /// The SVID that an entry gives for these audiences.
    pub fn for_entry(entry: &Entry, audiences: Vec<String>) -> Self {
        Self {
            spiffe_id: entry.spiffe_id.clone(),
            audiences,
            ttl: seconds(entry.jwt_svid_ttl),
            include_jti: entry.jwt_svid_include_jti,
        }
    }
}

/// A JWT-SVID or WIT-SVID. Its `Debug` shows no token: whoever holds one can use it.
#[derive(Clone)]
pub struct SignedJwt {
    pub token: String,
    pub issued_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
}

impl std::fmt::Debug for SignedJwt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SignedJwt")
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl AuthorityManager {
    /// Signs a certificate and returns it with the intermediates that lead to, but do not include, the root.
    ///
    /// # Errors
    /// `NotReady` without an active authority, `InvalidArgument` for an ID or name that must not be certified,
    /// `Internal` when signing fails or what was signed is not what was to be signed.
    pub fn sign_x509(&self, request: &X509Request) -> Result<Vec<Certificate>, AuthorityError> {
        let issuer = self.published().x509.clone().ok_or(AuthorityError::NotReady)?;
        self.sign_x509_with(&issuer, request)
    }

    /// The same for callers on async threads: on the calling thread where that is fast, else on one of a bounded number
    /// of others.
    pub async fn sign_x509_off_thread(
        self: &Arc<Self>,
        request: X509Request,
    ) -> Result<Vec<Certificate>, AuthorityError> {
        let issuer = self.published().x509.clone().ok_or(AuthorityError::NotReady)?;
        if signs_fast(&**issuer.signer()) {
            return self.sign_x509_with(&issuer, &request);
        }
        let manager = Arc::clone(self);
        self.off_thread(move || manager.sign_x509_with(&issuer, &request))
            .await?
    }

    /// Signs a JWT-SVID.
    ///
    /// # Errors
    /// `JwtDisabled`, `NotReady`, `InvalidArgument` without an audience or for an ID of another trust domain, `Internal`.
    pub fn sign_jwt(&self, request: &JwtRequest) -> Result<SignedJwt, AuthorityError> {
        let issuer = self.jwt_issuer()?;
        self.sign_jwt_with(&issuer, request)
    }

    /// The same for callers on async threads.
    pub async fn sign_jwt_off_thread(
        self: &Arc<Self>,
        request: JwtRequest,
    ) -> Result<SignedJwt, AuthorityError> {
        let issuer = self.jwt_issuer()?;
        if signs_fast(&*issuer.signer) {
            return self.sign_jwt_with(&issuer, &request);
        }
        let manager = Arc::clone(self);
        self.off_thread(move || manager.sign_jwt_with(&issuer, &request))
            .await?
    }

    fn sign_x509_with(
        &self,
        issuer: &X509Issuer,
        request: &X509Request,
    ) -> Result<Vec<Certificate>, AuthorityError> {
        let profile = self.x509_profile(issuer, request)?;
        let span = tracing::info_span!(target: TRACE_TARGET, "sign_x509");
        let certificate = span.in_scope(|| issue(&profile, issuer.signed_by()))?;
        let signed = match request.subject {
            X509Subject::DownstreamCa => "server_ca_sign_x509_ca_svid",
            _ => "server_ca_sign_x509_svid",
        };
        metrics().count(signed, &[], 1);
        let mut chain = Vec::with_capacity(1 + issuer.chain().len());
        chain.push(certificate);
        chain.extend(issuer.chain().iter().cloned());
        Ok(chain)
    }

    fn x509_profile(
        &self,
        issuer: &X509Issuer,
        request: &X509Request,
    ) -> Result<X509Profile, AuthorityError> {
        let config = &self.config;
        let default = match request.subject {
            X509Subject::Workload { .. } | X509Subject::Server => config.default_x509_svid_ttl,
            X509Subject::Agent(_) => config.agent_ttl.unwrap_or(config.default_x509_svid_ttl),
            X509Subject::DownstreamCa => config.ca_ttl,
        };
        let cap = issuer.certificate().not_after();
        let ttl = request.ttl.unwrap_or(default);
        let basis = Basis {
            trust_domain: &config.trust_domain,
            public_key: &request.public_key,
            serial: Serial::draw(&self.random)
                .ok_or_else(|| AuthorityError::internal("draw a serial number", "random generator failed"))?,
            validity: Validity::starting(self.clock.now(), ttl, Some(cap)).map_err(refused)?,
        };
        match &request.subject {
            X509Subject::Workload {
                spiffe_id,
                dns_names,
                name,
            } => X509Profile::workload(
                spiffe_id,
                dns_names,
                name.as_deref().cloned(),
                config.unique_id,
                basis,
            ),
            X509Subject::Agent(spiffe_id) => X509Profile::agent(spiffe_id, basis),
            X509Subject::Server => X509Profile::server(basis),
            X509Subject::DownstreamCa => X509Profile::downstream_ca(issuer, basis),
        }
        .map_err(refused)
    }

    fn jwt_issuer(&self) -> Result<Arc<TokenIssuer>, AuthorityError> {
        if self.config.disable_jwt_svids {
            return Err(AuthorityError::JwtDisabled);
        }
        self.published().jwt.clone().ok_or(AuthorityError::NotReady)
    }

    fn sign_jwt_with(&self, issuer: &TokenIssuer, request: &JwtRequest) -> Result<SignedJwt, AuthorityError> {
        let audiences: Vec<String> = request
            .audiences
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect();
        let minted = MintedJwt {
            trust_domain: &self.config.trust_domain,
            spiffe_id: &request.spiffe_id,
            audiences,
            ttl: request.ttl.unwrap_or(self.config.default_jwt_svid_ttl),
            cap: issuer.not_after,
            issuer: self.config.jwt_issuer.as_deref(),
            with_id: request.include_jti,
        };
        let profile = JwtProfile::new(minted, self.clock.now()).map_err(refused)?;
        let span = tracing::info_span!(target: TRACE_TARGET, "sign_jwt");
        let signed = span.in_scope(|| issue_token(&request.spiffe_id, issuer, &profile))?;
        metrics().count("server_ca_sign_jwt_svid", &[], 1);
        Ok(signed)
    }
}

/// Signs a token as its profile says and lets it out only if it came out so, with an audit event on either side.
pub(super) fn issue_token(
    spiffe_id: &SpiffeId,
    issuer: &TokenIssuer,
    profile: &JwtProfile,
) -> Result<SignedJwt, AuthorityError> {
    let (kind, authority_id) = (profile.token_type(), issuer.key_id.as_str());
    let expires_at = profile.expires_at().unix_timestamp();
    info!(target: AUDIT_TARGET, kind, %spiffe_id, authority_id, expires_at, "signing a token");
    match sign_token(issuer, profile) {
        Ok(token) => {
            info!(target: AUDIT_TARGET, kind, %spiffe_id, authority_id, expires_at, "signed a token");
            Ok(SignedJwt {
                token,
                issued_at: profile.issued_at(),
                expires_at: profile.expires_at(),
            })
        }
        Err(error) => {
            warn!(target: AUDIT_TARGET, kind, %spiffe_id, authority_id, expires_at, %error, "did not sign a token");
            Err(error)
        }
    }
}

/// Signs what the profile says and lets it out only if it came out so. Every certificate of this server goes through
/// here, its own authorities too, with an audit event on either side.
pub(super) fn issue(profile: &X509Profile, signed_by: SignedBy<'_>) -> Result<Certificate, AuthorityError> {
    let serial = profile.serial().to_decimal();
    let expires_at = profile.validity().not_after.unix_timestamp();
    info!(
        target: AUDIT_TARGET,
        kind = ?profile.kind(), spiffe_id = %profile.spiffe_id(), serial, expires_at,
        "signing a certificate"
    );
    let signed = sign_and_check(profile, &signed_by);
    match &signed {
        Ok(_certificate) => info!(
            target: AUDIT_TARGET,
            kind = ?profile.kind(), spiffe_id = %profile.spiffe_id(), serial, expires_at,
            "signed a certificate"
        ),
        Err(error) => warn!(
            target: AUDIT_TARGET,
            kind = ?profile.kind(), spiffe_id = %profile.spiffe_id(), serial, expires_at, %error,
            "did not sign a certificate"
        ),
    }
    signed
}

fn sign_and_check(profile: &X509Profile, signed_by: &SignedBy<'_>) -> Result<Certificate, AuthorityError> {
    let tbs_der = profile
        .tbs_der(signed_by)
        .map_err(|error| AuthorityError::internal("encode a certificate", error))?;
    let signature = signed_by
        .signer()
        .sign_x509(&tbs_der)
        .map_err(|error| AuthorityError::internal("sign a certificate", error))?;
    let certificate_der = signed_by.assemble(&tbs_der, &signature);
    check_certificate(&certificate_der, &tbs_der, profile, signed_by)
        .map_err(|error| AuthorityError::internal("check a signed certificate", error))?;
    Certificate::parse(&certificate_der)
        .map_err(|error| AuthorityError::internal("parse a signed certificate", error))
}

fn sign_token(issuer: &TokenIssuer, profile: &JwtProfile) -> Result<String, AuthorityError> {
    let sign = match profile.token_type() {
        wit::TYPE => wit::sign,
        _ => jwt::sign,
    };
    let token = sign(&*issuer.signer, &issuer.key_id, profile.claims())
        .map_err(|error| AuthorityError::internal("sign a token", error))?;
    check_token(&token, profile, &*issuer.signer, &issuer.key_id)
        .map_err(|error| AuthorityError::internal("check a signed token", error))?;
    Ok(token)
}

/// What the caller asked for is refused; what this server cannot do is its own fault.
pub(super) fn refused(error: ProfileError) -> AuthorityError {
    match error {
        ProfileError::SpiffeId { .. }
        | ProfileError::Subject(_)
        | ProfileError::Audience
        | ProfileError::Confirmation(_)
        | ProfileError::DnsName(_) => AuthorityError::InvalidArgument(error.to_string()),
        ProfileError::Expired(_)
        | ProfileError::Lifetime(_)
        | ProfileError::Algorithm(_)
        | ProfileError::Mismatch(_) => AuthorityError::internal("build a credential", error),
    }
}

pub(super) fn signs_fast(signer: &dyn Signer) -> bool {
    signer.in_process() && signer.public_key().kind() == PublicKeyKind::EcP256
}

/// Zero and less mean the default.
pub(super) fn seconds(ttl: i32) -> Option<Duration> {
    u64::try_from(ttl)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
}
