//! Manual operations: prepare, activate, taint, revoke, in this order.

use std::sync::Arc;

use super::journal::AuthorityKind;
use super::lifecycle::Status;
use super::records::BundleChange;
use super::{AuthorityError, AuthorityManager, Working};

/// One authority as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityState {
    /// The subject key identifier of a CA in lowercase hex, or the key id of a JWT or WIT authority.
    pub authority_id: String,
    /// Unix seconds; 0 where it is not known.
    pub expires_at: i64,
    /// The authority key identifier of the upstream authority, else empty.
    pub upstream_authority_subject_key_id: String,
}

/// The authorities of one kind. At most one of `prepared` and `old` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityStates {
    pub active: AuthorityState,
    pub prepared: Option<AuthorityState>,
    pub old: Option<AuthorityState>,
}

impl AuthorityManager {
    /// The X.509 authorities.
    pub fn x509_state(&self) -> Result<AuthorityStates, AuthorityError> {
        self.state(AuthorityKind::X509)
    }

    /// The JWT authorities.
    pub fn jwt_state(&self) -> Result<AuthorityStates, AuthorityError> {
        self.state(AuthorityKind::Jwt)
    }

    /// The authorities of a kind.
    ///
    /// # Errors
    /// `JwtDisabled`, `WitDisabled`, or `NotReady` while none is active.
    pub fn state(&self, kind: AuthorityKind) -> Result<AuthorityStates, AuthorityError> {
        self.enabled(kind)?;
        let published = self.published();
        let states = match kind {
            AuthorityKind::X509 => &published.x509_states,
            AuthorityKind::Jwt => &published.jwt_states,
            AuthorityKind::Wit => &published.wit_states,
        };
        states.clone().ok_or(AuthorityError::NotReady)
    }

    /// Makes a new authority in the slot that is not active, and replaces what was there.
    pub async fn prepare(&self, kind: AuthorityKind) -> Result<AuthorityState, AuthorityError> {
        self.enabled(kind)?;
        let mut working = self.working.lock().await;
        if working.slots(kind).current.is_none() {
            return Err(AuthorityError::NotReady);
        }
        self.prepare_authority(&mut working, kind).await?;
        self.state(kind)?.prepared.ok_or(AuthorityError::NotReady)
    }

    /// Lets the prepared authority sign from now on.
    pub async fn activate(
        &self,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<AuthorityState, AuthorityError> {
        self.enabled(kind)?;
        let mut working = self.working.lock().await;
        let (id, status) = next_slot(&working, kind);
        if authority_id.is_empty() {
            return Err(invalid("no authority ID provided"));
        }
        if id != Some(authority_id) {
            return Err(invalid("unexpected authority ID"));
        }
        if status != Some(Status::Prepared) {
            return Err(AuthorityError::internal(
                "only Prepared authorities can be activated",
                format!("unsupported local authority status: {status:?}"),
            ));
        }
        self.activate_authority(&mut working, kind).await?;
        Ok(self.state(kind)?.active)
    }

    /// Marks the old authority as no longer to be trusted. Agents replace what it signed; this server does so at once.
    pub async fn taint(
        self: &Arc<Self>,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<AuthorityState, AuthorityError> {
        self.enabled(kind)?;
        let working = self.working.lock().await;
        let (id, status) = next_slot(&working, kind);
        if authority_id.is_empty() {
            return Err(invalid("no authority ID provided"));
        }
        if current_id(&working, kind) == Some(authority_id) {
            return Err(invalid("unable to taint current local authority"));
        }
        if id != Some(authority_id) {
            return Err(invalid("unexpected authority ID"));
        }
        if status != Some(Status::Old) {
            return Err(invalid("only Old local authorities can be tainted"));
        }
        let what = match kind {
            AuthorityKind::X509 => "failed to taint X.509 authority",
            AuthorityKind::Jwt => "failed to taint JWT authority",
            AuthorityKind::Wit => "failed to taint WIT authority",
        };
        // First, so that a call that is cut off leaves no SVID of a tainted authority in use.
        if kind == AuthorityKind::X509 {
            self.leave_authority(authority_id).await?;
        }
        self.records
            .change_bundle(BundleChange::Taint(kind, authority_id.to_owned()))
            .await
            .map_err(|error| AuthorityError::internal(what, error))?;
        Ok(shown(&working, kind, authority_id))
    }

    /// Removes a tainted authority from the bundle: what it signed is worthless from now on.
    pub async fn revoke(
        &self,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<AuthorityState, AuthorityError> {
        self.enabled(kind)?;
        let working = self.working.lock().await;
        self.check_revocable(&working, kind, authority_id)
            .await
            .map_err(|reason| AuthorityError::InvalidArgument(format!("invalid authority ID: {reason}")))?;
        let what = match kind {
            AuthorityKind::X509 => "failed to revoke X.509 authority",
            AuthorityKind::Jwt => "failed to revoke JWT authority",
            AuthorityKind::Wit => "failed to revoke WIT authority",
        };
        self.records
            .change_bundle(BundleChange::Revoke(kind, authority_id.to_owned()))
            .await
            .map_err(|error| AuthorityError::internal(what, error))?;
        Ok(shown(&working, kind, authority_id))
    }

    fn enabled(&self, kind: AuthorityKind) -> Result<(), AuthorityError> {
        match kind {
            AuthorityKind::Jwt if self.config.disable_jwt_svids => Err(AuthorityError::JwtDisabled),
            AuthorityKind::Wit if self.config.wit.is_none() => Err(AuthorityError::WitDisabled),
            _ => Ok(()),
        }
    }

    async fn check_revocable(
        &self,
        working: &Working,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<(), String> {
        let (id, status) = next_slot(working, kind);
        let is_next = id == Some(authority_id);
        if authority_id.is_empty() {
            return Err("no authority ID provided".to_owned());
        }
        if current_id(working, kind) == Some(authority_id) {
            return Err("unable to use current authority".to_owned());
        }
        match kind {
            AuthorityKind::X509 if is_next && status == Some(Status::Old) => Ok(()),
            AuthorityKind::X509 => Err("only Old local authority can be revoked".to_owned()),
            AuthorityKind::Jwt | AuthorityKind::Wit if is_next && status == Some(Status::Prepared) => {
                Err("unable to use a prepared key".to_owned())
            }
            AuthorityKind::Jwt | AuthorityKind::Wit if is_next => Ok(()),
            // Also a key that another server made, or one that left its slot.
            AuthorityKind::Jwt | AuthorityKind::Wit => {
                let bundle = self.records.bundle().await.map_err(|error| error.to_string())?;
                let (name, known) = match kind {
                    AuthorityKind::Wit => (
                        "WIT",
                        bundle.is_some_and(|b| b.wit_authority(authority_id).is_some()),
                    ),
                    _ => (
                        "JWT",
                        bundle.is_some_and(|b| b.jwt_authority(authority_id).is_some()),
                    ),
                };
                if known {
                    Ok(())
                } else {
                    Err(format!("no {name} authority found with provided authority ID"))
                }
            }
        }
    }
}

fn next_slot(working: &Working, kind: AuthorityKind) -> (Option<&str>, Option<Status>) {
    match &working.slots(kind).next {
        Some((authority, status)) => (Some(&authority.id), Some(*status)),
        None => (None, None),
    }
}

fn current_id(working: &Working, kind: AuthorityKind) -> Option<&str> {
    working
        .slots(kind)
        .current
        .as_ref()
        .map(|authority| authority.id.as_str())
}

/// The state of what was in the next slot. JWT and WIT authorities are answered with their id alone, as SPIRE does.
fn shown(working: &Working, kind: AuthorityKind, authority_id: &str) -> AuthorityState {
    let old = match kind {
        AuthorityKind::X509 => working.slots(kind).states().and_then(|states| states.old),
        AuthorityKind::Jwt | AuthorityKind::Wit => None,
    };
    old.unwrap_or_else(|| AuthorityState {
        authority_id: authority_id.to_owned(),
        expires_at: 0,
        upstream_authority_subject_key_id: String::new(),
    })
}

fn invalid(text: &str) -> AuthorityError {
    AuthorityError::InvalidArgument(text.to_owned())
}
