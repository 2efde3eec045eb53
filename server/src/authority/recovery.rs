//! Restores the authorities of this server when it starts.

use std::sync::Arc;

use finial_identity::bundle::{Bundle, JwtAuthority};
use finial_identity::key::{PublicKey, Signer};
use tracing::{info, warn};

use super::journal::{AuthorityKind, Journal, JournalEntry, pick_slots};
use super::lifecycle::{Lifetime, Status};
use super::slots::{Authority, Issuer, SlotPair, TokenIssuer};
use super::{AuthorityError, AuthorityManager, Working};
use crate::credential::X509Issuer;

impl AuthorityManager {
    /// Finds the authorities that this server had: by the keys that its key manager holds. Entries whose key is gone, that
    /// have expired, that are not in the bundle or that are tainted there are left aside; of the tainted, one that signed
    /// before stays known as old, so that it can be revoked.
    pub(super) async fn recover(&self) -> Result<(), AuthorityError> {
        let failed = |error| AuthorityError::internal("load the journal of the authorities", error);
        let keys = self
            .key_manager
            .keys()
            .await
            .map_err(|error| AuthorityError::internal("list the keys of the authorities", error))?;
        let public_keys: Vec<PublicKey> = keys
            .iter()
            .map(|(_, signer)| signer.public_key().clone())
            .collect();
        let mine = self
            .records
            .journals()
            .await
            .map_err(failed)?
            .into_iter()
            .filter(|journal| journal.has_any_key(&public_keys))
            .max_by_key(|journal| journal.saved);
        let Some(journal) = mine else {
            info!("no journal of authorities fits the keys, starting with new authorities");
            return Ok(());
        };
        let bundle = self.records.bundle().await.map_err(failed)?;
        let mut working = self.working.lock().await;
        working.journal = journal;
        for kind in self.kinds() {
            let pair = self.recover_slots(kind, &working.journal, &keys, bundle.as_deref());
            *working.slots_mut(kind) = pair;
            // The journal says that it is active before it signs; most often it says so already.
            self.mark_active(&mut working, kind).await?;
        }
        self.publish(&working);
        Ok(())
    }

    fn recover_slots(
        &self,
        kind: AuthorityKind,
        journal: &Journal,
        keys: &[(String, Arc<dyn Signer>)],
        bundle: Option<&Bundle>,
    ) -> SlotPair {
        let now = self.clock.now();
        let signer_of = |entry: &JournalEntry| {
            let key_id = entry.slot.key_id(kind);
            let (_, signer) = keys.iter().find(|(id, _)| id == key_id)?;
            (*signer.public_key() == entry.public_key).then(|| Arc::clone(signer))
        };
        let is_tainted = |entry: &JournalEntry| bundle.is_some_and(|bundle| is_tainted(kind, entry, bundle));
        let usable = |entry: &JournalEntry| {
            let obstacle = if signer_of(entry).is_none() {
                Some("its key is gone")
            } else if entry.not_after <= now {
                Some("it has expired")
            } else if !bundle.is_some_and(|bundle| is_published(kind, entry, bundle)) {
                Some("it is not in the bundle")
            } else if entry.status != Status::Old && is_tainted(entry) {
                Some("it is tainted")
            } else {
                None
            };
            // Those that were replaced long ago are of no interest.
            if let (Some(reason), true) = (obstacle, entry.status != Status::Old) {
                warn!(kind = ?kind, authority_id = entry.authority_id, reason, "authority of the journal cannot be used");
            }
            obstacle.is_none()
        };
        let restore = |entry: &JournalEntry| match restore(kind, entry, signer_of(entry)?) {
            Ok(authority) => Some(authority),
            Err(error) => {
                warn!(kind = ?kind, authority_id = entry.authority_id, %error, "authority of the journal cannot be used");
                None
            }
        };
        let (active, other) = pick_slots(journal.entries(kind), usable);
        SlotPair {
            // Without an active one an old one takes its place: not when it is tainted.
            current: active.filter(|entry| !is_tainted(entry)).and_then(restore),
            next: other.and_then(|entry| Some((restore(entry)?, entry.status))),
        }
    }

    async fn mark_active(&self, working: &mut Working, kind: AuthorityKind) -> Result<(), AuthorityError> {
        let Some(current) = &working.slots(kind).current else {
            return Ok(());
        };
        let journal = working.journal.with_active(kind, &current.id);
        if journal != working.journal {
            self.save(working, journal).await?;
        }
        Ok(())
    }
}

fn restore(
    kind: AuthorityKind,
    entry: &JournalEntry,
    signer: Arc<dyn Signer>,
) -> Result<Authority, AuthorityError> {
    let issuer = match kind {
        AuthorityKind::X509 => {
            let certificate = entry
                .certificate
                .clone()
                .ok_or_else(|| AuthorityError::internal("read the journal", "entry has no certificate"))?;
            let issuer = X509Issuer::new(certificate, entry.chain.clone(), signer)
                .map_err(|error| AuthorityError::internal("try the key of an authority", error))?;
            Issuer::X509(Arc::new(issuer))
        }
        AuthorityKind::Jwt => Issuer::Jwt(Arc::new(token_issuer(entry, signer))),
        AuthorityKind::Wit => Issuer::Wit(Arc::new(token_issuer(entry, signer))),
    };
    Ok(Authority {
        slot: entry.slot,
        id: entry.authority_id.clone(),
        upstream_id: entry.upstream_authority_id.clone(),
        lifetime: Lifetime {
            issued_at: entry.issued_at,
            not_after: entry.not_after,
        },
        issuer,
    })
}

fn token_issuer(entry: &JournalEntry, signer: Arc<dyn Signer>) -> TokenIssuer {
    TokenIssuer {
        key_id: entry.authority_id.clone(),
        signer,
        not_after: entry.not_after,
    }
}

fn is_published(kind: AuthorityKind, entry: &JournalEntry, bundle: &Bundle) -> bool {
    match kind {
        // An intermediate is no root: what signed it is in the bundle.
        AuthorityKind::X509 if !entry.upstream_authority_id.is_empty() => true,
        AuthorityKind::X509 => {
            let own = entry.certificate.as_ref();
            bundle
                .x509_authorities
                .iter()
                .any(|authority| Some(&authority.certificate) == own)
        }
        AuthorityKind::Jwt => bundle
            .jwt_authorities
            .iter()
            .any(|authority| is_key_of(authority, entry)),
        AuthorityKind::Wit => bundle
            .wit_authorities
            .iter()
            .any(|authority| is_key_of(&authority.0, entry)),
    }
}

/// Whether the bundle says that nothing signed by the authority, or by what signed it, is to be trusted.
fn is_tainted(kind: AuthorityKind, entry: &JournalEntry, bundle: &Bundle) -> bool {
    match kind {
        AuthorityKind::X509 => {
            let own = entry.certificate.as_ref();
            let upstream = entry.upstream_authority_id.as_str();
            bundle.x509_authorities.iter().any(|authority| {
                let is_upstream = !upstream.is_empty() && authority.certificate.authority_id() == upstream;
                authority.tainted && (is_upstream || Some(&authority.certificate) == own)
            })
        }
        AuthorityKind::Jwt => bundle
            .jwt_authorities
            .iter()
            .any(|authority| authority.tainted && authority.key_id == entry.authority_id),
        AuthorityKind::Wit => bundle
            .wit_authorities
            .iter()
            .any(|authority| authority.0.tainted && authority.0.key_id == entry.authority_id),
    }
}

fn is_key_of(authority: &JwtAuthority, entry: &JournalEntry) -> bool {
    authority.key_id == entry.authority_id && authority.public_key == entry.public_key
}
