//! Changes to a bundle. They change neither time nor sequence number: the store that commits a change
//! sets the number.

use std::collections::HashSet;

use thiserror::Error;
use time::OffsetDateTime;

use super::{Bundle, JwtAuthority, WitAuthority, X509Authority};

/// Why a change to a bundle is refused; the bundle is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BundleEditError {
    /// There is no X.509 authority with this subject key identifier.
    #[error("no X.509 authority has this subject key ID: {0:?}")]
    NoX509Authority(String),
    /// There is no JWT authority with this `kid`.
    #[error("no JWT authority has this key ID: {0:?}")]
    NoJwtAuthority(String),
    /// There is no WIT authority with this `kid`.
    #[error("no WIT authority has this key ID: {0:?}")]
    NoWitAuthority(String),
    /// The authority was tainted before.
    #[error("authority is already tainted: {0:?}")]
    AlreadyTainted(String),
    /// Only a tainted authority may be revoked.
    #[error("authority is not tainted, so it cannot be revoked: {0:?}")]
    NotTainted(String),
}

impl Bundle {
    /// Adds authorities and says whether the bundle changed. A certificate or a key ID that is there
    /// already is passed over, also when its taint or its key differs.
    pub fn append(&mut self, x509: Vec<X509Authority>, jwt: Vec<JwtAuthority>) -> bool {
        let before = (self.x509_authorities.len(), self.jwt_authorities.len());
        self.x509_authorities.extend(x509);
        super::drop_repeated_certificates(&mut self.x509_authorities);
        let mut key_ids = self.key_ids();
        let new = jwt
            .into_iter()
            .filter(|authority| key_ids.insert(authority.key_id.clone()));
        self.jwt_authorities.extend(new);
        before != (self.x509_authorities.len(), self.jwt_authorities.len())
    }

    /// Adds WIT authorities and says whether the bundle changed. A key ID that a WIT or JWT authority has already is
    /// passed over: it is unique in the whole bundle (WIT-SVID §6.1).
    pub fn append_wit(&mut self, wit: Vec<WitAuthority>) -> bool {
        let before = self.wit_authorities.len();
        let mut key_ids = self.key_ids();
        let new = wit
            .into_iter()
            .filter(|WitAuthority(authority)| key_ids.insert(authority.key_id.clone()));
        self.wit_authorities.extend(new);
        before != self.wit_authorities.len()
    }

    fn key_ids(&self) -> HashSet<String> {
        let wit = self
            .wit_authorities
            .iter()
            .map(|WitAuthority(authority)| authority);
        let all = self.jwt_authorities.iter().chain(wit);
        all.map(|authority| authority.key_id.clone()).collect()
    }

    /// Removes the authorities that expired before `at` and says whether there were any. Whoever calls
    /// it takes a safety margin off the present time. Of each kind some stay: where all X.509
    /// authorities, all JWT authorities or all WIT authorities have expired, that list remains as it is.
    pub fn prune(&mut self, at: OffsetDateTime) -> bool {
        let x509 = retain_unless_all_go(&mut self.x509_authorities, |authority| {
            authority.certificate.not_after() >= at
        });
        let jwt = retain_unless_all_go(&mut self.jwt_authorities, |authority| {
            !authority.expired_before(at)
        });
        let wit = retain_unless_all_go(&mut self.wit_authorities, |WitAuthority(authority)| {
            !authority.expired_before(at)
        });
        x509 || jwt || wit
    }

    /// Marks the X.509 authorities with this authority ID (lowercase hex of the subject key
    /// identifier) as tainted.
    ///
    /// # Errors
    /// There is none, or all are tainted already.
    pub fn taint_x509(&mut self, authority_id: &str) -> Result<(), BundleEditError> {
        let mut found = false;
        let mut changed = false;
        for authority in self
            .x509_authorities
            .iter_mut()
            .filter(|a| a.has_id(authority_id))
        {
            found = true;
            changed |= !authority.tainted;
            authority.tainted = true;
        }
        match (found, changed) {
            (false, _) => Err(BundleEditError::NoX509Authority(authority_id.to_owned())),
            (true, false) => Err(BundleEditError::AlreadyTainted(authority_id.to_owned())),
            (true, true) => Ok(()),
        }
    }

    /// Removes the tainted X.509 authorities with this authority ID and returns them.
    ///
    /// # Errors
    /// There is none, or one is not tainted.
    pub fn revoke_x509(&mut self, authority_id: &str) -> Result<Vec<X509Authority>, BundleEditError> {
        let mut found = self
            .x509_authorities
            .iter()
            .filter(|a| a.has_id(authority_id))
            .peekable();
        if found.peek().is_none() {
            return Err(BundleEditError::NoX509Authority(authority_id.to_owned()));
        }
        if found.any(|authority| !authority.tainted) {
            return Err(BundleEditError::NotTainted(authority_id.to_owned()));
        }
        Ok(self
            .x509_authorities
            .extract_if(.., |authority| authority.has_id(authority_id))
            .collect())
    }

    /// Marks the JWT authority with this key ID as tainted.
    ///
    /// # Errors
    /// There is none, or it is tainted already.
    pub fn taint_jwt(&mut self, key_id: &str) -> Result<(), BundleEditError> {
        let authority = self.jwt_authorities.iter_mut().find(|a| a.key_id == key_id);
        taint(authority.ok_or_else(|| BundleEditError::NoJwtAuthority(key_id.to_owned()))?)
    }

    /// Marks the WIT authority with this key ID as tainted.
    ///
    /// # Errors
    /// There is none, or it is tainted already.
    pub fn taint_wit(&mut self, key_id: &str) -> Result<(), BundleEditError> {
        let mut authorities = self.wit_authorities.iter_mut().map(|WitAuthority(a)| a);
        let authority = authorities.find(|a| a.key_id == key_id);
        taint(authority.ok_or_else(|| BundleEditError::NoWitAuthority(key_id.to_owned()))?)
    }

    /// Removes the tainted JWT authority with this key ID and returns it.
    ///
    /// # Errors
    /// There is none, or it is not tainted.
    pub fn revoke_jwt(&mut self, key_id: &str) -> Result<JwtAuthority, BundleEditError> {
        let index = self.jwt_authorities.iter().position(|a| a.key_id == key_id);
        let index = index.ok_or_else(|| BundleEditError::NoJwtAuthority(key_id.to_owned()))?;
        check_tainted(&self.jwt_authorities[index])?;
        Ok(self.jwt_authorities.remove(index))
    }

    /// Removes the tainted WIT authority with this key ID and returns it.
    ///
    /// # Errors
    /// There is none, or it is not tainted.
    pub fn revoke_wit(&mut self, key_id: &str) -> Result<WitAuthority, BundleEditError> {
        let index = self.wit_authorities.iter().position(|a| a.0.key_id == key_id);
        let index = index.ok_or_else(|| BundleEditError::NoWitAuthority(key_id.to_owned()))?;
        check_tainted(&self.wit_authorities[index].0)?;
        Ok(self.wit_authorities.remove(index))
    }
}

fn taint(authority: &mut JwtAuthority) -> Result<(), BundleEditError> {
    if authority.tainted {
        return Err(BundleEditError::AlreadyTainted(authority.key_id.clone()));
    }
    authority.tainted = true;
    Ok(())
}

fn check_tainted(authority: &JwtAuthority) -> Result<(), BundleEditError> {
    if authority.tainted {
        return Ok(());
    }
    Err(BundleEditError::NotTainted(authority.key_id.clone()))
}

/// Removes what does not live, unless nothing does, and says whether anything went.
fn retain_unless_all_go<T>(authorities: &mut Vec<T>, lives: impl Fn(&T) -> bool) -> bool {
    let before = authorities.len();
    if authorities.iter().any(&lives) {
        authorities.retain(lives);
    }
    authorities.len() != before
}

impl X509Authority {
    /// Whether the authority has this ID; one without a subject key identifier has none.
    fn has_id(&self, authority_id: &str) -> bool {
        !authority_id.is_empty() && self.certificate.authority_id() == authority_id
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bundle, ca, ca_until, instant, jwt, td};
    use super::*;

    fn expiring(x509: &[i64], jwt_at: &[i64]) -> Bundle {
        let mut bundle = Bundle::new(td("example.org"));
        let x509 = x509
            .iter()
            .map(|at| X509Authority::new(ca_until(instant(*at))))
            .collect();
        let keys = jwt_at.iter().map(|at| JwtAuthority {
            expires_at: *at,
            ..jwt(&format!("kid-{at}"))
        });
        bundle.append(x509, keys.collect());
        bundle
    }

    fn ids(bundle: &Bundle) -> Vec<String> {
        bundle
            .x509_authorities
            .iter()
            .map(|a| a.certificate.authority_id())
            .collect()
    }

    #[test]
    fn append_adds_what_is_new_and_says_so() {
        let mut bundle = bundle();
        let before = bundle.clone();
        assert!(!bundle.append(before.x509_authorities.clone(), before.jwt_authorities.clone()));
        assert!(!bundle.append(vec![], vec![]));
        assert_eq!(bundle, before);
        let new = ca();
        assert!(bundle.append(vec![new.clone(), new.clone()], vec![]));
        assert_eq!(bundle.x509_authorities[2..], [new]);
        assert!(bundle.append(vec![], vec![jwt("c"), jwt("c")]));
        assert_eq!(bundle.jwt_authorities.len(), 3);
    }

    #[test]
    fn append_changes_neither_taint_nor_the_key_of_what_is_there() {
        let mut bundle = bundle();
        bundle.taint_jwt("a").unwrap();
        let before = bundle.clone();
        let tainted = X509Authority {
            tainted: true,
            ..before.x509_authorities[0].clone()
        };
        assert!(!bundle.append(vec![tainted], vec![jwt("a")]));
        assert_eq!(bundle, before);
    }

    #[test]
    fn prune_removes_what_expired_before_the_time_given() {
        let mut bundle = expiring(&[100_000, 200_000, 300_000], &[100_000, 200_000, 0]);
        assert!(!bundle.prune(instant(100_000)));
        assert!(bundle.prune(instant(200_000)));
        assert_eq!(
            (bundle.x509_authorities.len(), bundle.jwt_authorities.len()),
            (2, 2)
        );
        assert!(bundle.prune(instant(300_000)));
        assert_eq!(
            (bundle.x509_authorities.len(), bundle.jwt_authorities.len()),
            (1, 1)
        );
        assert_eq!(bundle.jwt_authorities[0].expires_at, 0);
    }

    #[test]
    fn where_all_cas_have_expired_they_stay_and_the_jwt_keys_are_pruned() {
        let mut bundle = expiring(&[100_000, 200_000], &[100_000, 300_000]);
        let before = bundle.clone();
        assert!(bundle.prune(instant(200_001)));
        assert_eq!(bundle.x509_authorities, before.x509_authorities);
        assert_eq!(bundle.jwt_authorities, before.jwt_authorities[1..]);
    }

    #[test]
    fn where_all_jwt_keys_have_expired_they_stay_and_the_cas_are_pruned() {
        let mut bundle = expiring(&[100_000, 300_000], &[100_000]);
        let before = bundle.clone();
        assert!(bundle.prune(instant(200_000)));
        assert_eq!(bundle.x509_authorities, before.x509_authorities[1..]);
        assert_eq!(bundle.jwt_authorities, before.jwt_authorities);
        assert!(!bundle.prune(instant(200_000)));
        let mut without_jwt = expiring(&[100_000, 300_000], &[]);
        assert!(without_jwt.prune(instant(200_000)));
        assert!(!Bundle::new(td("example.org")).prune(instant(200_000)));
    }

    #[test]
    fn an_x509_authority_is_tainted_once() {
        let mut bundle = bundle();
        let id = ids(&bundle)[0].clone();
        assert_eq!(bundle.taint_x509(&id), Ok(()));
        assert_eq!(
            bundle
                .x509_authorities
                .iter()
                .map(|a| a.tainted)
                .collect::<Vec<_>>(),
            [true, false]
        );
        assert_eq!(bundle.taint_x509(&id), Err(BundleEditError::AlreadyTainted(id)));
        assert_eq!(
            bundle.taint_x509("00ff"),
            Err(BundleEditError::NoX509Authority("00ff".into()))
        );
        assert_eq!(
            bundle.taint_x509(""),
            Err(BundleEditError::NoX509Authority(String::new()))
        );
    }

    #[test]
    fn an_x509_authority_is_revoked_only_if_tainted() {
        let mut bundle = bundle();
        let [id, kept] = &ids(&bundle)[..] else {
            panic!("two authorities")
        };
        assert_eq!(
            bundle.revoke_x509(id),
            Err(BundleEditError::NotTainted(id.clone()))
        );
        assert_eq!(bundle.x509_authorities.len(), 2);
        bundle.taint_x509(id).unwrap();
        assert_eq!(&bundle.revoke_x509(id).unwrap()[0].certificate.authority_id(), id);
        assert_eq!(ids(&bundle), std::slice::from_ref(kept));
        assert_eq!(
            bundle.revoke_x509(id),
            Err(BundleEditError::NoX509Authority(id.clone()))
        );
    }

    #[test]
    fn a_jwt_authority_is_tainted_once_and_revoked_only_if_tainted() {
        let mut bundle = bundle();
        assert_eq!(
            bundle.revoke_jwt("a"),
            Err(BundleEditError::NotTainted("a".into()))
        );
        assert_eq!(bundle.taint_jwt("a"), Ok(()));
        assert_eq!(
            bundle.taint_jwt("a"),
            Err(BundleEditError::AlreadyTainted("a".into()))
        );
        assert_eq!(
            bundle.taint_jwt("x"),
            Err(BundleEditError::NoJwtAuthority("x".into()))
        );
        assert!(bundle.jwt_authorities[0].tainted && !bundle.jwt_authorities[1].tainted);
        assert_eq!(bundle.revoke_jwt("a").unwrap().key_id, "a");
        assert_eq!(
            bundle.revoke_jwt("a"),
            Err(BundleEditError::NoJwtAuthority("a".into()))
        );
        assert_eq!(bundle.jwt_authorities.len(), 1);
    }

    #[test]
    fn edits_leave_the_sequence_number_to_the_store() {
        let mut bundle = Bundle {
            sequence_number: 5,
            ..expiring(&[100_000, 300_000], &[100_000, 300_000])
        };
        bundle.append(vec![ca()], vec![jwt("c")]);
        bundle.prune(instant(200_000));
        bundle.taint_jwt("c").unwrap();
        bundle.revoke_jwt("c").unwrap();
        assert_eq!(bundle.sequence_number, 5);
    }
}
