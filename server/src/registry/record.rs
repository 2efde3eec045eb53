//! One entry as the registry keeps it: 96 bytes, with its IDs and selectors by number. A million
//! entries fit where checked or wire types would take a gigabyte.

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::TrustDomain;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

/// No entry, no number.
pub(super) const NONE: u32 = u32::MAX;
const INLINE_SELECTORS: usize = 4;
const MANY_SELECTORS: u8 = u8::MAX;

/// An entry in numbers. The links tie entries with one parent, and entries with one SPIFFE ID.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) row: u64,
    created_at: i64,
    uuid: [u8; 16],
    rest: Option<Box<Rest>>,
    pub(super) spiffe: u32,
    pub(super) parent: u32,
    pub(super) next_child: u32,
    pub(super) previous_child: u32,
    pub(super) next_holder: u32,
    pub(super) previous_holder: u32,
    x509_svid_ttl: i32,
    jwt_svid_ttl: i32,
    revision: u32,
    selectors: [u32; INLINE_SELECTORS],
    selector_count: u8,
    flags: u8,
}

/// What few entries have.
#[derive(Debug, Default, PartialEq)]
struct Rest {
    /// An id that is not a UUID in its usual form.
    id: Option<Box<str>>,
    /// All selectors, when they are more than fit.
    selectors: Box<[u32]>,
    federates_with: Vec<TrustDomain>,
    dns_names: Vec<String>,
    hint: String,
    expires_at: i64,
    /// A revision number that does not fit into 32 bits.
    revision: Option<i64>,
}

mod flag {
    pub(super) const ADMIN: u8 = 1;
    pub(super) const DOWNSTREAM: u8 = 1 << 1;
    pub(super) const STORE_SVID: u8 = 1 << 2;
    pub(super) const NO_PREFETCH: u8 = 1 << 3;
    pub(super) const JTI: u8 = 1 << 4;
}

/// The fields of a record without its IDs and selectors.
#[derive(Debug)]
pub(super) struct Fields<'r> {
    pub(super) x509_svid_ttl: i32,
    pub(super) jwt_svid_ttl: i32,
    pub(super) federates_with: &'r [TrustDomain],
    pub(super) dns_names: &'r [String],
    pub(super) hint: &'r str,
    pub(super) admin: bool,
    pub(super) downstream: bool,
    pub(super) store_svid: bool,
    pub(super) disable_x509_svid_prefetch: bool,
    pub(super) jwt_svid_include_jti: bool,
    pub(super) expires_at: i64,
    pub(super) revision_number: i64,
    pub(super) created_at: i64,
}

impl Record {
    /// A record without links.
    pub(super) fn new(row: u64, entry: &Entry, spiffe: u32, parent: u32, selectors: &[u32]) -> Self {
        let uuid = canonical_uuid(&entry.id);
        let revision = u32::try_from(entry.revision_number).ok();
        let mut inline = [NONE; INLINE_SELECTORS];
        let is_many = selectors.len() > INLINE_SELECTORS;
        if !is_many {
            inline[..selectors.len()].copy_from_slice(selectors);
        }
        let rest = Rest {
            id: uuid.is_none().then(|| entry.id.as_str().into()),
            selectors: if is_many { selectors.into() } else { Box::default() },
            federates_with: entry.federates_with.clone(),
            dns_names: entry.dns_names.clone(),
            hint: entry.hint.clone(),
            expires_at: entry.expires_at,
            revision: revision.is_none().then_some(entry.revision_number),
        };
        let flags = [
            (entry.admin, flag::ADMIN),
            (entry.downstream, flag::DOWNSTREAM),
            (entry.store_svid, flag::STORE_SVID),
            (entry.disable_x509_svid_prefetch, flag::NO_PREFETCH),
            (entry.jwt_svid_include_jti, flag::JTI),
        ];
        Self {
            row,
            created_at: entry.created_at,
            uuid: uuid.unwrap_or_default(),
            rest: (rest != Rest::default()).then(|| Box::new(rest)),
            spiffe,
            parent,
            next_child: NONE,
            previous_child: NONE,
            next_holder: NONE,
            previous_holder: NONE,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            revision: revision.unwrap_or_default(),
            selectors: inline,
            selector_count: if is_many {
                MANY_SELECTORS
            } else {
                u8::try_from(selectors.len()).expect("at most INLINE_SELECTORS here")
            },
            flags: flags
                .into_iter()
                .filter_map(|(is_set, bit)| is_set.then_some(bit))
                .sum(),
        }
    }

    /// Numbers of the selectors, in the order of their texts.
    pub(super) fn selectors(&self) -> &[u32] {
        match &self.rest {
            Some(rest) if self.selector_count == MANY_SELECTORS => &rest.selectors,
            _ => &self.selectors[..usize::from(self.selector_count)],
        }
    }

    /// Calls `see` with the entry's id.
    pub(super) fn with_id<R>(&self, see: impl FnOnce(&str) -> R) -> R {
        match self.rest.as_ref().and_then(|rest| rest.id.as_deref()) {
            Some(id) => see(id),
            None => {
                let mut buffer = [0; Hyphenated::LENGTH];
                see(Uuid::from_bytes(self.uuid).hyphenated().encode_lower(&mut buffer))
            }
        }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.flags & flag::ADMIN != 0
    }

    pub(super) fn is_downstream(&self) -> bool {
        self.flags & flag::DOWNSTREAM != 0
    }

    pub(super) fn federates_with(&self) -> &[TrustDomain] {
        self.rest.as_ref().map_or(&[], |rest| &rest.federates_with)
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        let rest = self.rest.as_deref();
        let has = |bit| self.flags & bit != 0;
        Fields {
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: rest.map_or(&[], |rest| &rest.federates_with),
            dns_names: rest.map_or(&[], |rest| &rest.dns_names),
            hint: rest.map_or("", |rest| &rest.hint),
            admin: has(flag::ADMIN),
            downstream: has(flag::DOWNSTREAM),
            store_svid: has(flag::STORE_SVID),
            disable_x509_svid_prefetch: has(flag::NO_PREFETCH),
            jwt_svid_include_jti: has(flag::JTI),
            expires_at: rest.map_or(0, |rest| rest.expires_at),
            revision_number: rest
                .and_then(|rest| rest.revision)
                .unwrap_or_else(|| self.revision.into()),
            created_at: self.created_at,
        }
    }
}

/// The bytes of an id that is a UUID exactly as it would be printed.
fn canonical_uuid(id: &str) -> Option<[u8; 16]> {
    let uuid = Uuid::try_parse(id).ok()?;
    let mut buffer = [0; Hyphenated::LENGTH];
    (uuid.hyphenated().encode_lower(&mut buffer) == id).then(|| uuid.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_96_bytes() {
        assert_eq!(size_of::<Record>(), 96);
    }

    #[test]
    fn only_the_printed_form_of_a_uuid_is_kept_as_bytes() {
        assert!(canonical_uuid("67e55044-10b1-426f-9247-bb680e5fe0c8").is_some());
        assert_eq!(canonical_uuid("67E55044-10b1-426f-9247-bb680e5fe0c8"), None);
        assert_eq!(canonical_uuid("67e5504410b1426f9247bb680e5fe0c8"), None);
        assert_eq!(canonical_uuid("db-primary"), None);
    }
}
