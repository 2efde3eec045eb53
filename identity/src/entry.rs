//! Registration entries: which selectors give which SPIFFE ID, under which parent.
//!
//! [`EntryParts`] is unchecked input; [`Entry`] has been checked and can only be read.

use std::ops::Deref;

use thiserror::Error;

use crate::selector::Selector;
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// Longest entry id in bytes.
pub const MAX_ENTRY_ID_BYTES: usize = 255;

/// Longest hint in bytes (SPIFFE Workload API §8).
pub const MAX_HINT_BYTES: usize = 1024;

/// The fields of a registration entry, unchecked.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryParts {
    /// Identifies the entry in its trust domain: 1 to 255 bytes of `[A-Za-z0-9._-]`.
    pub id: String,
    /// The identity that is given.
    pub spiffe_id: SpiffeId,
    /// Who may hand it out: an agent, another entry's SPIFFE ID, or the server for a node alias.
    pub parent_id: SpiffeId,
    /// What a workload must have, all of it.
    pub selectors: Vec<Selector>,
    /// Lifetime of X.509-SVIDs in seconds; 0 is the server's default.
    pub x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds; 0 is the server's default.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains whose bundles the workload gets.
    pub federates_with: Vec<TrustDomain>,
    /// Whether the SVID gives administrator rights at the server's API.
    pub admin: bool,
    /// Whether the SVID is a downstream server's.
    pub downstream: bool,
    /// When the entry is deleted, in Unix seconds; 0 is never.
    pub expires_at: i64,
    /// DNS names in X.509-SVIDs, in this order.
    pub dns_names: Vec<String>,
    /// Counts updates from 0; a change makes agents renew.
    pub revision_number: i64,
    /// Whether the SVID goes to an SVID store instead of the Workload API.
    pub store_svid: bool,
    /// By which the workload distinguishes its identities (SPIFFE Workload API §8).
    pub hint: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Whether agents wait for a workload before they ask for the X.509-SVID.
    pub disable_x509_svid_prefetch: bool,
    /// Whether JWT-SVIDs carry a `jti` claim.
    pub jwt_svid_include_jti: bool,
}

impl EntryParts {
    /// An entry that says nothing but who gets which identity from whom; it has no id yet.
    pub fn new(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: Vec<Selector>) -> Self {
        Self {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: 0,
            dns_names: Vec::new(),
            revision_number: 0,
            store_svid: false,
            hint: String::new(),
            created_at: 0,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }
}

/// A registration entry that obeys the rules; its fields are read through [`EntryParts`].
///
/// Selectors are sorted and without repeats; `federates_with` and `dns_names` keep their order and
/// have no repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry(EntryParts);

/// The rule that an entry breaks; the text begins with the field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// The id is empty where one is needed.
    #[error("entry id is empty")]
    EmptyId,
    /// The id exceeds 255 bytes.
    #[error("entry id is longer than {MAX_ENTRY_ID_BYTES} bytes: {0}")]
    IdTooLong(usize),
    /// The id has a character outside its set.
    #[error("entry id has a character outside [A-Za-z0-9._-]: {0:?}")]
    IdCharacter(char),
    /// The SPIFFE ID belongs to another trust domain.
    #[error("spiffe_id is not a member of trust domain {1}: {0}")]
    ForeignSpiffeId(SpiffeId, TrustDomain),
    /// The SPIFFE ID has no path.
    #[error("spiffe_id has no path: {0}")]
    SpiffeIdWithoutPath(SpiffeId),
    /// The SPIFFE ID lies in the name space of servers and agents.
    #[error("spiffe_id is in the reserved name space /spire: {0}")]
    ReservedSpiffeId(SpiffeId),
    /// The parent ID belongs to another trust domain.
    #[error("parent_id is not a member of trust domain {1}: {0}")]
    ForeignParentId(SpiffeId, TrustDomain),
    /// The parent ID has no path.
    #[error("parent_id has no path: {0}")]
    ParentIdWithoutPath(SpiffeId),
    /// There are no selectors.
    #[error("selectors are empty")]
    NoSelectors,
    /// A lifetime is negative.
    #[error("{field} is negative: {seconds}")]
    NegativeTtl {
        /// `x509_svid_ttl` or `jwt_svid_ttl`.
        field: &'static str,
        /// The value given.
        seconds: i32,
    },
    /// A DNS name is not one that a certificate may carry.
    #[error("dns_names has an invalid name: {name:?}: {reason}")]
    DnsName {
        /// The name given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The hint exceeds 1024 bytes.
    #[error("hint is longer than {MAX_HINT_BYTES} bytes: {0}")]
    HintTooLong(usize),
    /// An entry for an SVID store has selectors of two types, so that its store is not clear.
    #[error("store_svid needs selectors of one type: {0:?} and {1:?}")]
    StoreSelectorTypes(String, String),
    /// An entry for an SVID store has prefetching switched off.
    #[error("store_svid and disable_x509_svid_prefetch exclude each other")]
    StoreWithoutPrefetch,
}

impl Entry {
    /// Checks an entry that has an id.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(parts: EntryParts, trust_domain: &TrustDomain) -> Result<Self, EntryError> {
        let mut parts = parts;
        check_entry_id(&parts.id)?;
        check_spiffe_ids(&parts, trust_domain)?;
        if parts.selectors.is_empty() {
            return Err(EntryError::NoSelectors);
        }
        check_ttl("x509_svid_ttl", parts.x509_svid_ttl)?;
        check_ttl("jwt_svid_ttl", parts.jwt_svid_ttl)?;
        for name in &parts.dns_names {
            check_dns_name(name)?;
        }
        check_hint(&parts.hint)?;
        check_store_svid(&parts)?;
        parts.selectors.sort_unstable();
        parts.selectors.dedup();
        drop_repeats(&mut parts.federates_with);
        drop_repeats(&mut parts.dns_names);
        Ok(Self(parts))
    }

    /// Checks an entry that may come without an id; then a random UUID (version 4) becomes its id.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check_new(parts: EntryParts, trust_domain: &TrustDomain) -> Result<Self, EntryError> {
        let mut parts = parts;
        if parts.id.is_empty() {
            parts.id = uuid::Uuid::new_v4().to_string();
        }
        Self::check(parts, trust_domain)
    }

    /// Gives up the check, to make another entry from this one.
    #[must_use]
    pub fn into_parts(self) -> EntryParts {
        self.0
    }

    /// Whether both give the same identity for the same facts: same SPIFFE ID, parent and set of
    /// selectors. As in SPIRE, two such entries cannot be created.
    #[must_use]
    pub fn same_identity(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.parent_id == other.parent_id
            && self.selectors == other.selectors
    }
}

impl Deref for Entry {
    type Target = EntryParts;

    fn deref(&self) -> &EntryParts {
        &self.0
    }
}

/// Checks the id of an entry: 1 to 255 bytes of `[A-Za-z0-9._-]`.
///
/// # Errors
/// The rule that is broken.
pub fn check_entry_id(id: &str) -> Result<(), EntryError> {
    if id.is_empty() {
        return Err(EntryError::EmptyId);
    }
    if id.len() > MAX_ENTRY_ID_BYTES {
        return Err(EntryError::IdTooLong(id.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match id.chars().find(|c| !allowed(*c)) {
        Some(odd) => Err(EntryError::IdCharacter(odd)),
        None => Ok(()),
    }
}

/// Checks a hint: at most 1024 bytes, else free (SPIFFE Workload API §8).
///
/// # Errors
/// The hint is too long.
pub fn check_hint(hint: &str) -> Result<(), EntryError> {
    if hint.len() > MAX_HINT_BYTES {
        return Err(EntryError::HintTooLong(hint.len()));
    }
    Ok(())
}

/// Checks a DNS name as SPIRE does: ASCII, unchanged by strict IDNA processing, no trailing dot, at
/// most one `*.` and that in front.
///
/// # Errors
/// The name with the rule that it breaks.
pub fn check_dns_name(name: &str) -> Result<(), EntryError> {
    let refuse = |reason| EntryError::DnsName {
        name: name.chars().take(255).collect(),
        reason,
    };
    if name.is_empty() {
        return Err(refuse("it is empty"));
    }
    if !name.is_ascii() {
        return Err(refuse("it is not ASCII"));
    }
    if name.len() > 253 {
        return Err(refuse("it is longer than 253 bytes"));
    }
    if name.ends_with('.') {
        return Err(refuse("it ends in a dot"));
    }
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.contains('*') {
        return Err(refuse("a wildcard is allowed as the whole first label only"));
    }
    match idna::domain_to_ascii_strict(rest) {
        Ok(ascii) if ascii == rest => Ok(()),
        Ok(_) => Err(refuse("IDNA processing changes it")),
        Err(_) => Err(refuse("IDNA processing refuses it")),
    }
}

fn check_spiffe_ids(parts: &EntryParts, trust_domain: &TrustDomain) -> Result<(), EntryError> {
    let (id, parent) = (&parts.spiffe_id, &parts.parent_id);
    if !parent.is_member_of(trust_domain) {
        return Err(EntryError::ForeignParentId(parent.clone(), trust_domain.clone()));
    }
    if !parent.has_path() {
        return Err(EntryError::ParentIdWithoutPath(parent.clone()));
    }
    if !id.is_member_of(trust_domain) {
        return Err(EntryError::ForeignSpiffeId(id.clone(), trust_domain.clone()));
    }
    if !id.has_path() {
        return Err(EntryError::SpiffeIdWithoutPath(id.clone()));
    }
    if id.is_reserved() {
        return Err(EntryError::ReservedSpiffeId(id.clone()));
    }
    Ok(())
}

fn check_ttl(field: &'static str, seconds: i32) -> Result<(), EntryError> {
    if seconds < 0 {
        return Err(EntryError::NegativeTtl { field, seconds });
    }
    Ok(())
}

fn check_store_svid(parts: &EntryParts) -> Result<(), EntryError> {
    if !parts.store_svid {
        return Ok(());
    }
    if let [first, rest @ ..] = parts.selectors.as_slice()
        && let Some(other) = rest.iter().find(|selector| selector.kind() != first.kind())
    {
        let kinds = (first.kind().to_owned(), other.kind().to_owned());
        return Err(EntryError::StoreSelectorTypes(kinds.0, kinds.1));
    }
    if parts.disable_x509_svid_prefetch {
        return Err(EntryError::StoreWithoutPrefetch);
    }
    Ok(())
}

fn drop_repeats<T: Clone + Eq + std::hash::Hash>(items: &mut Vec<T>) {
    if items.len() < 2 {
        return;
    }
    let mut seen = std::collections::HashSet::with_capacity(items.len());
    items.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::EntryError as E;
    use super::*;

    fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn id(text: &str) -> SpiffeId {
        SpiffeId::parse(text).unwrap()
    }

    fn parts() -> EntryParts {
        EntryParts {
            id: "web-1".into(),
            ..EntryParts::new(
                id("spiffe://example.org/web"),
                id("spiffe://example.org/spire/agent/join_token/x"),
                vec![Selector::parse("unix:uid:1").unwrap()],
            )
        }
    }

    fn check_with(change: impl FnOnce(&mut EntryParts)) -> Result<Entry, E> {
        let mut parts = parts();
        change(&mut parts);
        Entry::check(parts, &td())
    }

    fn selectors(texts: &[&str]) -> Vec<Selector> {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    #[test]
    fn accepts_an_entry_and_gives_its_parts_back() {
        assert_eq!(Entry::check(parts(), &td()).unwrap().into_parts(), parts());
    }

    #[test]
    fn sorts_selectors_and_drops_repeats_but_keeps_the_order_of_names() {
        let entry = check_with(|p| {
            p.selectors = selectors(&["unix:uid:2", "k8s:ns:a", "unix:uid:2"]);
            p.dns_names = ["b.test", "a.test", "b.test"].map(String::from).to_vec();
            p.federates_with = ["z.test", "c.test", "z.test"]
                .map(|n| TrustDomain::parse(n).unwrap())
                .to_vec();
        })
        .unwrap();
        assert_eq!(entry.selectors, selectors(&["k8s:ns:a", "unix:uid:2"]));
        assert_eq!(entry.dns_names, ["b.test", "a.test"]);
        assert_eq!(
            entry
                .federates_with
                .iter()
                .map(TrustDomain::as_str)
                .collect::<Vec<_>>(),
            ["z.test", "c.test"]
        );
    }

    #[test]
    fn refuses_spiffe_ids_that_no_workload_may_bear() {
        let with = |text: &str| check_with(|p| p.spiffe_id = id(text)).map(|_| ());
        let (foreign, bare) = (id("spiffe://b.test/web"), id("spiffe://example.org"));
        assert_eq!(
            with(foreign.as_str()),
            Err(E::ForeignSpiffeId(foreign.clone(), td()))
        );
        assert_eq!(with(bare.as_str()), Err(E::SpiffeIdWithoutPath(bare.clone())));
        for text in [
            "spiffe://example.org/spire",
            "spiffe://example.org/spire/agent/x/y",
            "spiffe://example.org/spire/server",
        ] {
            assert_eq!(with(text), Err(E::ReservedSpiffeId(id(text))));
        }
        assert_eq!(with("spiffe://example.org/spirelike"), Ok(()));
    }

    #[test]
    fn accepts_reserved_parents_but_not_foreign_or_bare_ones() {
        let with = |text: &str| check_with(|p| p.parent_id = id(text)).map(|_| ());
        assert_eq!(with("spiffe://example.org/spire/server"), Ok(()));
        assert_eq!(with("spiffe://example.org/other"), Ok(()));
        assert_eq!(
            with("spiffe://b.test/x"),
            Err(E::ForeignParentId(id("spiffe://b.test/x"), td()))
        );
        assert_eq!(
            with("spiffe://example.org"),
            Err(E::ParentIdWithoutPath(id("spiffe://example.org")))
        );
    }

    #[test]
    fn refuses_an_entry_without_selectors() {
        assert_eq!(check_with(|p| p.selectors.clear()), Err(E::NoSelectors));
    }

    #[test]
    fn refuses_negative_lifetimes_and_names_the_field() {
        let error = check_with(|p| p.x509_svid_ttl = -1).unwrap_err();
        assert_eq!(error.to_string(), "x509_svid_ttl is negative: -1");
        let error = check_with(|p| p.jwt_svid_ttl = -5).unwrap_err();
        assert_eq!(error.to_string(), "jwt_svid_ttl is negative: -5");
    }

    #[test]
    fn wl71_holds_hints_to_1024_bytes_and_leaves_their_content_alone() {
        assert!(check_with(|p| p.hint = "é\n".repeat(341)).is_ok());
        assert_eq!(
            check_with(|p| p.hint = "h".repeat(1025)),
            Err(E::HintTooLong(1025))
        );
    }

    #[test]
    fn holds_ids_to_255_bytes_of_the_allowed_characters() {
        assert_eq!(check_entry_id(&"A".repeat(255)), Ok(()));
        assert_eq!(check_entry_id("k8s.cluster-1._x"), Ok(()));
        assert_eq!(check_entry_id(&"A".repeat(256)), Err(E::IdTooLong(256)));
        assert_eq!(check_entry_id("a/b"), Err(E::IdCharacter('/')));
        assert_eq!(check_entry_id("é"), Err(E::IdCharacter('é')));
        assert_eq!(check_entry_id(""), Err(E::EmptyId));
    }

    #[test]
    fn a_new_entry_without_an_id_gets_a_random_uuid() {
        let new = || {
            Entry::check_new(
                EntryParts {
                    id: String::new(),
                    ..parts()
                },
                &td(),
            )
            .unwrap()
        };
        let drawn = uuid::Uuid::parse_str(&new().id).unwrap();
        assert_eq!(drawn.get_version_num(), 4);
        assert_ne!(new().id, new().id);
        assert_eq!(Entry::check_new(parts(), &td()).unwrap().id, "web-1");
        assert_eq!(check_with(|p| p.id.clear()), Err(E::EmptyId));
    }

    #[test]
    fn an_entry_for_a_store_has_one_selector_type_and_prefetches() {
        let store = |texts: &[&str], no_prefetch| {
            check_with(|p| {
                p.store_svid = true;
                p.selectors = selectors(texts);
                p.disable_x509_svid_prefetch = no_prefetch;
            })
            .map(|_| ())
        };
        assert_eq!(store(&["aws:a:1", "aws:b:2"], false), Ok(()));
        assert_eq!(
            store(&["aws:a:1", "gcp:b:2"], false),
            Err(E::StoreSelectorTypes("aws".into(), "gcp".into()))
        );
        assert_eq!(store(&["aws:a:1"], true), Err(E::StoreWithoutPrefetch));
        assert!(check_with(|p| p.disable_x509_svid_prefetch = true).is_ok());
        assert!(check_with(|p| p.selectors = selectors(&["aws:a:1", "gcp:b:2"])).is_ok());
    }

    #[test]
    fn accepts_dns_names_that_strict_idna_leaves_unchanged() {
        for name in [
            "a",
            "db.example.org",
            "*.example.org",
            "xn--bcher-kva.example",
            "10.0.0.1",
            "a-b.c1",
            &"a".repeat(63),
        ] {
            assert_eq!(check_dns_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn refuses_other_dns_names() {
        let long = format!("{}.a", "abcdefghi.".repeat(26));
        for name in [
            "",
            ".",
            "*",
            "*.",
            "a.",
            ".a",
            "a..b",
            "*.*.a",
            "a.*.b",
            "a*.b",
            "*a.b",
            "DB.example.org",
            "bücher.example",
            "a_b",
            "-a",
            "a-",
            "ab--cd",
            "xn--",
            "xn--a",
            "xn--zzzzzzzz",
            "a b",
            "a/b",
            "a:1",
            "a\0b",
            &"a".repeat(64),
            &long,
        ] {
            let error = check_with(|p| p.dns_names = vec!["ok.test".into(), name.into()]);
            assert!(
                matches!(error, Err(E::DnsName { name: ref shown, .. }) if shown.starts_with(name) || name.len() > 255),
                "{name:?} {error:?}"
            );
        }
    }

    #[test]
    fn entries_are_similar_by_spiffe_id_parent_and_set_of_selectors() {
        let base = check_with(|p| p.selectors = selectors(&["a:1", "b:2"])).unwrap();
        let similar = check_with(|p| {
            p.id = "other".into();
            p.hint = "h".into();
            p.selectors = selectors(&["b:2", "a:1"]);
        });
        assert!(base.same_identity(&similar.unwrap()));
        let other = |change: fn(&mut EntryParts)| {
            check_with(|p| {
                p.selectors = selectors(&["a:1", "b:2"]);
                change(p);
            })
            .unwrap()
        };
        assert!(!base.same_identity(&other(|p| p.selectors = selectors(&["a:1"]))));
        assert!(!base.same_identity(&other(|p| p.parent_id = id("spiffe://example.org/p"))));
        assert!(!base.same_identity(&other(|p| p.spiffe_id = id("spiffe://example.org/s"))));
    }
}
