//! Which SVIDs and tokens must be replaced or withdrawn because of the authority that signed them.
//!
//! A tainted authority is trusted until it is revoked: its SVIDs are replaced soon. SVIDs of a revoked one, which was
//! tainted and then removed from the bundle, cannot be used any more. An authority that disappears without having been
//! tainted may be missing because the bundle is an older copy: its SVIDs are replaced but not withdrawn.

use std::collections::{HashSet, VecDeque};

use finial_identity::bundle::{Bundle, JwtAuthority};
use finial_identity::x509::X509Svid;

type KeyId = Vec<u8>;

/// Authorities that no longer count.
#[derive(Debug, Default)]
pub(super) struct Distrust {
    tainted: HashSet<KeyId>,
    /// The oldest first; an authority may return when the bundle was an older copy for a while.
    revoked: VecDeque<KeyId>,
}

/// Tokens that must not be served any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forget {
    pub(super) entries: HashSet<String>,
    pub(super) jwt_key_ids: HashSet<String>,
    /// The same of WIT authorities.
    pub(super) wit_key_ids: HashSet<String>,
}

/// What an SVID is worth, by its signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    Good,
    ToReplace,
    Nothing,
}

/// What one change of the bundle did.
#[derive(Debug, Default)]
pub(super) struct Step {
    to_replace: HashSet<KeyId>,
    revoked: HashSet<KeyId>,
    /// `kid`s whose tokens must not be served any more.
    pub(super) jwt_key_ids: HashSet<String>,
    /// The same of WIT authorities.
    pub(super) wit_key_ids: HashSet<String>,
}

impl Distrust {
    /// Takes up that `after` follows on `before`.
    pub(super) fn change(&mut self, before: &Bundle, after: &Bundle) -> Step {
        let (held, next) = (KeyIds::of(before), KeyIds::of(after));
        let revoked: HashSet<_> = held.tainted.difference(&next.all()).cloned().collect();
        self.tainted.clone_from(&next.tainted);
        self.revoked
            .retain(|id| !next.good.contains(id) && !next.tainted.contains(id));
        self.revoked.extend(revoked.iter().cloned());
        while self.revoked.len() > MAX_REVOKED {
            self.revoked.pop_front();
        }
        let good_jwt = |bundle: &Bundle| good_keys(bundle.jwt_authorities.iter());
        let good_wit = |bundle: &Bundle| good_keys(bundle.wit_authorities.iter().map(|key| &key.0));
        Step {
            to_replace: held.good.difference(&next.good).cloned().collect(),
            revoked,
            jwt_key_ids: good_jwt(before).difference(&good_jwt(after)).cloned().collect(),
            wit_key_ids: good_wit(before).difference(&good_wit(after)).cloned().collect(),
        }
    }

    /// What an SVID is worth that is signed just now.
    pub(super) fn judge(&self, svid: &X509Svid) -> Worth {
        worth(svid, |id| {
            if self.revoked.iter().any(|revoked| revoked == id) {
                Worth::Nothing
            } else if self.tainted.contains(id) {
                Worth::ToReplace
            } else {
                Worth::Good
            }
        })
    }
}

impl Step {
    /// Whether any X509-SVID may be touched by the change.
    pub(super) fn concerns_x509(&self) -> bool {
        !self.to_replace.is_empty() || !self.revoked.is_empty()
    }

    /// What an SVID that was good before is worth after the change.
    pub(super) fn judge(&self, svid: &X509Svid) -> Worth {
        worth(svid, |id| {
            if self.revoked.contains(id) {
                Worth::Nothing
            } else if self.to_replace.contains(id) {
                Worth::ToReplace
            } else {
                Worth::Good
            }
        })
    }
}

/// The ids of the keys that are not tainted.
fn good_keys<'a>(keys: impl Iterator<Item = &'a JwtAuthority>) -> HashSet<String> {
    let good = keys.filter(|key| !key.tainted);
    good.map(|key| key.key_id.clone()).collect()
}

/// The worst that holds for a link of the chain.
fn worth(svid: &X509Svid, of_signer: impl Fn(&[u8]) -> Worth) -> Worth {
    let signers = svid.chain().iter().filter_map(|link| link.authority_key_id());
    signers.map(of_signer).fold(Worth::Good, |worst, next| {
        if worst == Worth::Nothing || next == Worth::Good {
            worst
        } else {
            next
        }
    })
}

/// Subject key ids of a bundle. One key may have several certificates: it is good if one of them is.
struct KeyIds {
    good: HashSet<KeyId>,
    tainted: HashSet<KeyId>,
}

impl KeyIds {
    fn of(bundle: &Bundle) -> Self {
        let ids = |tainted: bool| -> HashSet<KeyId> {
            let authorities = bundle.x509_authorities.iter();
            authorities
                .filter(|authority| authority.tainted == tainted)
                .filter_map(|authority| Some(authority.certificate.subject_key_id()?.to_vec()))
                .collect()
        };
        let good = ids(false);
        let tainted = ids(true).difference(&good).cloned().collect();
        Self { good, tainted }
    }

    fn all(&self) -> HashSet<KeyId> {
        self.good.union(&self.tainted).cloned().collect()
    }
}

/// Far more than are revoked within the life of an SVID.
const MAX_REVOKED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::Authority;
    use finial_identity::bundle::X509Authority;

    fn bundle(authorities: &[(&Authority, bool)]) -> Bundle {
        let mut bundle = authorities[0].0.bundle();
        bundle.x509_authorities = authorities
            .iter()
            .map(|(authority, tainted)| X509Authority {
                tainted: *tainted,
                ..X509Authority::new(authority.certificate())
            })
            .collect();
        bundle
    }

    #[test]
    fn what_a_tainted_authority_signed_is_replaced_and_what_a_revoked_one_signed_is_worth_nothing() {
        let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
        let (by_old, by_new) = (old.svid("/a"), new.svid("/a"));
        let both = bundle(&[(&new, false), (&old, false)]);
        let tainted = bundle(&[(&new, false), (&old, true)]);
        let revoked = bundle(&[(&new, false)]);
        let mut distrust = Distrust::default();
        let step = distrust.change(&both, &tainted);
        assert_eq!(
            (step.judge(&by_old), step.judge(&by_new)),
            (Worth::ToReplace, Worth::Good)
        );
        assert_eq!(distrust.judge(&by_old), Worth::ToReplace);
        let step = distrust.change(&tainted, &revoked);
        assert_eq!(
            (step.judge(&by_old), step.judge(&by_new)),
            (Worth::Nothing, Worth::Good)
        );
        assert_eq!(distrust.judge(&by_old), Worth::Nothing);
        let step = distrust.change(&revoked, &both);
        assert!(!step.concerns_x509());
        assert_eq!(distrust.judge(&by_old), Worth::Good);
    }

    #[test]
    fn an_authority_that_is_gone_without_having_been_tainted_is_not_taken_for_revoked() {
        let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
        let mut distrust = Distrust::default();
        let step = distrust.change(
            &bundle(&[(&new, false), (&old, false)]),
            &bundle(&[(&new, false)]),
        );
        assert_eq!(step.judge(&old.svid("/a")), Worth::ToReplace);
        assert_eq!(distrust.judge(&old.svid("/a")), Worth::Good);
    }

    #[test]
    fn tokens_of_keys_that_are_tainted_or_gone_are_named_once() {
        let jwt = |keys: &[(&str, bool)]| {
            let mut bundle = Authority::new("example.org").bundle();
            let key = finial_identity::key::PrivateKey::generate(Default::default()).unwrap();
            bundle.jwt_authorities = keys
                .iter()
                .map(|(key_id, tainted)| finial_identity::bundle::JwtAuthority {
                    key_id: (*key_id).to_owned(),
                    public_key: key.public_key().clone(),
                    expires_at: 0,
                    tainted: *tainted,
                })
                .collect();
            bundle
        };
        let mut distrust = Distrust::default();
        let tainted = jwt(&[("a", true), ("c", false)]);
        let step = distrust.change(&jwt(&[("a", false), ("b", false), ("c", false)]), &tainted);
        assert_eq!(step.jwt_key_ids, HashSet::from(["a".to_owned(), "b".to_owned()]));
        let step = distrust.change(&tainted, &jwt(&[("c", false)]));
        assert!(step.jwt_key_ids.is_empty());
    }
}
