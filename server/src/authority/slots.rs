//! The two slots of a kind of authority, and the two changes they go through: prepared and activated.

use std::sync::Arc;

use finial_identity::bundle::{JwtAuthority, WitAuthority};
use finial_identity::key::{KeyType, Signer};
use time::OffsetDateTime;
use tonic::Code;
use tracing::info;

use super::journal::{AuthorityKind, Journal, JournalEntry, SlotId};
use super::lifecycle::{Lifetime, Slots, Status};
use super::operate::{AuthorityState, AuthorityStates};
use super::records::BundleChange;
use super::{AuthorityConfig, AuthorityError, AuthorityManager, CaSubject, Working, sign};
use crate::credential::{
    Basis, DistinguishedName, Serial, SignedBy, Validity, X509Issuer, X509Profile, draw_key_id,
};
use crate::telemetry::metrics;

/// An authority that can sign.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    pub slot: SlotId,
    pub id: String,
    pub upstream_id: String,
    pub lifetime: Lifetime,
    pub issuer: Issuer,
}

#[derive(Clone, Debug)]
pub(super) enum Issuer {
    X509(Arc<X509Issuer>),
    Jwt(Arc<TokenIssuer>),
    Wit(Arc<TokenIssuer>),
}

/// A JWT or WIT authority that can sign.
#[derive(Debug)]
pub(super) struct TokenIssuer {
    pub key_id: String,
    pub signer: Arc<dyn Signer>,
    pub not_after: OffsetDateTime,
}

/// The slots of one kind.
#[derive(Debug, Default)]
pub(super) struct SlotPair {
    pub current: Option<Authority>,
    /// What is in the other slot, prepared or old.
    pub next: Option<(Authority, Status)>,
}

impl Authority {
    fn state(&self) -> AuthorityState {
        AuthorityState {
            authority_id: self.id.clone(),
            expires_at: self.lifetime.not_after.unix_timestamp(),
            upstream_authority_subject_key_id: self.upstream_id.clone(),
        }
    }

    fn journal_entry(&self) -> JournalEntry {
        let (public_key, certificate, chain) = match &self.issuer {
            Issuer::X509(issuer) => (
                issuer.signer().public_key(),
                Some(issuer.certificate().clone()),
                issuer.chain().to_vec(),
            ),
            Issuer::Jwt(issuer) | Issuer::Wit(issuer) => (issuer.signer.public_key(), None, Vec::new()),
        };
        JournalEntry {
            slot: self.slot,
            status: Status::Prepared,
            authority_id: self.id.clone(),
            upstream_authority_id: self.upstream_id.clone(),
            issued_at: self.lifetime.issued_at,
            not_after: self.lifetime.not_after,
            public_key: public_key.clone(),
            certificate,
            chain,
        }
    }

    fn bundle_change(&self) -> BundleChange {
        match &self.issuer {
            Issuer::X509(issuer) => BundleChange::AddX509(issuer.certificate().clone()),
            Issuer::Jwt(issuer) => BundleChange::AddJwt(issuer.authority()),
            Issuer::Wit(issuer) => BundleChange::AddWit(WitAuthority(issuer.authority())),
        }
    }
}

impl TokenIssuer {
    fn authority(&self) -> JwtAuthority {
        JwtAuthority {
            key_id: self.key_id.clone(),
            public_key: self.signer.public_key().clone(),
            expires_at: self.not_after.unix_timestamp(),
            tainted: false,
        }
    }
}

impl SlotPair {
    /// The slots as the lifecycle sees them.
    pub fn lifecycle(&self) -> Slots {
        Slots {
            current: self.current.as_ref().map(|authority| authority.lifetime),
            prepared: self.prepared().map(|authority| authority.lifetime),
        }
    }

    /// The prepared authority.
    pub fn prepared(&self) -> Option<&Authority> {
        self.next
            .as_ref()
            .filter(|(_, status)| *status == Status::Prepared)
            .map(|(authority, _)| authority)
    }

    pub fn x509_issuer(&self) -> Option<Arc<X509Issuer>> {
        match &self.current.as_ref()?.issuer {
            Issuer::X509(issuer) => Some(Arc::clone(issuer)),
            Issuer::Jwt(_) | Issuer::Wit(_) => None,
        }
    }

    pub fn token_issuer(&self) -> Option<Arc<TokenIssuer>> {
        match &self.current.as_ref()?.issuer {
            Issuer::Jwt(issuer) | Issuer::Wit(issuer) => Some(Arc::clone(issuer)),
            Issuer::X509(_) => None,
        }
    }

    /// What is shown to administrators; `None` while nothing is active.
    pub fn states(&self) -> Option<AuthorityStates> {
        let active = self.current.as_ref()?.state();
        let next = |wanted: Status| {
            self.next
                .as_ref()
                .filter(|(_, status)| *status == wanted)
                .map(|(authority, _)| authority.state())
        };
        Some(AuthorityStates {
            active,
            prepared: next(Status::Prepared),
            old: next(Status::Old),
        })
    }

    /// The slot that the next authority goes to.
    fn free_slot(&self) -> SlotId {
        self.current
            .as_ref()
            .map_or(SlotId::A, |authority| authority.slot.other())
    }
}

impl AuthorityManager {
    /// Makes an authority in the free slot, in place of what was there. It is in the bundle and in the journal when this
    /// returns.
    pub(super) async fn prepare_authority(
        &self,
        working: &mut Working,
        kind: AuthorityKind,
    ) -> Result<(), AuthorityError> {
        let name = match kind {
            AuthorityKind::X509 => "ca_manager_x509_ca_prepare",
            AuthorityKind::Jwt => "ca_manager_jwt_key_prepare",
            AuthorityKind::Wit => "ca_manager_wit_key_prepare",
        };
        let prepared = self.prepare_in_free_slot(working, kind);
        metrics().start(name).around(prepared, |_| Code::Internal).await
    }

    async fn prepare_in_free_slot(
        &self,
        working: &mut Working,
        kind: AuthorityKind,
    ) -> Result<(), AuthorityError> {
        let slot = working.slots(kind).free_slot();
        let key_type = match kind {
            AuthorityKind::X509 => self.config.ca_key_type,
            AuthorityKind::Jwt => self.config.jwt_key_type,
            AuthorityKind::Wit => self
                .config
                .wit
                .as_ref()
                .map_or_else(KeyType::default, |wit| wit.key_type),
        };
        let signer = self
            .key_manager
            .generate_key(slot.key_id(kind), key_type)
            .await
            .map_err(|error| AuthorityError::internal("generate the key of an authority", error))?;
        // What was in the slot has lost its key.
        working.slots_mut(kind).next = None;
        self.publish(working);

        let authority = self.make_authority(kind, slot, signer).await?;
        self.records
            .change_bundle(authority.bundle_change())
            .await
            .map_err(|error| AuthorityError::internal("append an authority to the bundle", error))?;
        let journal = working.journal.with_entry(kind, authority.journal_entry());
        self.save(working, journal).await?;
        info!(
            kind = ?kind,
            slot = slot.as_str(),
            authority_id = authority.id,
            expires_at = authority.lifetime.not_after.unix_timestamp(),
            "authority prepared"
        );
        working.slots_mut(kind).next = Some((authority, Status::Prepared));
        self.publish(working);
        Ok(())
    }

    /// Lets the prepared authority sign. The journal says so first.
    pub(super) async fn activate_authority(
        &self,
        working: &mut Working,
        kind: AuthorityKind,
    ) -> Result<(), AuthorityError> {
        let Some(prepared) = working.slots(kind).prepared().cloned() else {
            return Err(AuthorityError::NotReady);
        };
        let journal = working.journal.with_active(kind, &prepared.id);
        self.save(working, journal).await?;
        info!(
            kind = ?kind,
            slot = prepared.slot.as_str(),
            authority_id = prepared.id,
            expires_at = prepared.lifetime.not_after.unix_timestamp(),
            "authority activated"
        );
        let name = match kind {
            AuthorityKind::X509 => "ca_manager_x509_ca_activate",
            AuthorityKind::Jwt => "manager_jwt_key_activate",
            AuthorityKind::Wit => "manager_wit_key_activate",
        };
        metrics().count(name, &[], 1);
        let pair = working.slots_mut(kind);
        let former = pair.current.replace(prepared);
        pair.next = former.map(|authority| (authority, Status::Old));
        self.publish(working);
        Ok(())
    }

    /// The kinds that this server has.
    pub(super) fn kinds(&self) -> impl Iterator<Item = AuthorityKind> + use<> {
        let jwt = (!self.config.disable_jwt_svids).then_some(AuthorityKind::Jwt);
        let wit = self.config.wit.is_some().then_some(AuthorityKind::Wit);
        [AuthorityKind::X509].into_iter().chain(jwt).chain(wit)
    }

    /// Writes the journal down; only then it counts.
    pub(super) async fn save(
        &self,
        working: &mut Working,
        mut journal: Journal,
    ) -> Result<(), AuthorityError> {
        journal.saved += 1;
        self.records
            .save_journal(&journal)
            .await
            .map_err(|error| AuthorityError::internal("save the journal of the authorities", error))?;
        working.journal = journal;
        Ok(())
    }

    async fn make_authority(
        &self,
        kind: AuthorityKind,
        slot: SlotId,
        signer: Arc<dyn Signer>,
    ) -> Result<Authority, AuthorityError> {
        let now = self.clock.now();
        let issued_at = now.replace_nanosecond(0).unwrap_or(now);
        let random_failed =
            || AuthorityError::internal("draw the id of an authority", "random generator failed");
        match kind {
            AuthorityKind::X509 => {
                let serial = Serial::draw(&self.random).ok_or_else(random_failed)?;
                let config = self.config.clone();
                let issuer = self
                    .off_thread(move || self_signed(&config, serial, now, signer))
                    .await??;
                let certificate = issuer.certificate();
                Ok(Authority {
                    slot,
                    id: certificate.authority_id(),
                    upstream_id: String::new(),
                    lifetime: Lifetime {
                        issued_at,
                        not_after: certificate.not_after(),
                    },
                    issuer: Issuer::X509(Arc::new(issuer)),
                })
            }
            AuthorityKind::Jwt | AuthorityKind::Wit => {
                let validity = Validity::starting(now, self.config.ca_ttl, None)
                    .map_err(|error| AuthorityError::internal("make an authority for tokens", error))?;
                let key_id = draw_key_id(&self.random).ok_or_else(random_failed)?;
                let not_after = validity.not_after;
                let issuer = Arc::new(TokenIssuer {
                    key_id: key_id.clone(),
                    signer,
                    not_after,
                });
                Ok(Authority {
                    slot,
                    id: key_id,
                    upstream_id: String::new(),
                    lifetime: Lifetime { issued_at, not_after },
                    issuer: match kind {
                        AuthorityKind::Wit => Issuer::Wit(issuer),
                        _ => Issuer::Jwt(issuer),
                    },
                })
            }
        }
    }
}

fn self_signed(
    config: &AuthorityConfig,
    serial: Serial,
    now: OffsetDateTime,
    signer: Arc<dyn Signer>,
) -> Result<X509Issuer, AuthorityError> {
    let failed = |error| AuthorityError::internal("make an X.509 authority", error);
    let basis = Basis {
        trust_domain: &config.trust_domain,
        public_key: signer.public_key(),
        serial,
        validity: Validity::starting(now, config.ca_ttl, None).map_err(failed)?,
    };
    let profile = X509Profile::self_signed_ca(subject_of(&config.ca_subject), basis).map_err(failed)?;
    let certificate = sign::issue(&profile, SignedBy::itself(&*signer).map_err(failed)?)?;
    X509Issuer::new(certificate, Vec::new(), signer).map_err(failed)
}

/// The configured subject as a name; the parts that the configuration can not give stay empty.
fn subject_of(subject: &CaSubject) -> DistinguishedName {
    DistinguishedName {
        country: subject.country.clone(),
        organization: subject.organization.clone(),
        common_name: subject.common_name.clone(),
        ..DistinguishedName::default()
    }
}
