//! A server's record of its authorities, which survives restarts.
//!
//! Keys stay in the key manager; the journal says which key belongs to which authority, and its state. It is written to
//! the store before an authority is used, so a server that is killed at any moment restarts with the same authority.

use finial_identity::key::PublicKey;
use finial_identity::x509::Certificate;
use prost::Message;
use time::OffsetDateTime;

use super::lifecycle::Status;

/// Entries kept per kind; older ones are dropped.
const MOST_ENTRIES: usize = 10;
/// How long after the end of its last authority a journal is kept, in seconds.
const KEPT_AFTER_EXPIRY: i64 = 14 * 24 * 60 * 60;

/// The kinds of authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthorityKind {
    X509,
    Jwt,
    Wit,
}

/// One of the two slots that authorities of a kind alternate between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotId {
    A,
    B,
}

impl SlotId {
    /// The other slot.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The id of the slot's key in the key manager, as SPIRE names it.
    pub fn key_id(self, kind: AuthorityKind) -> &'static str {
        match (kind, self) {
            (AuthorityKind::X509, Self::A) => "x509-CA-A",
            (AuthorityKind::X509, Self::B) => "x509-CA-B",
            (AuthorityKind::Jwt, Self::A) => "JWT-Signer-A",
            (AuthorityKind::Jwt, Self::B) => "JWT-Signer-B",
            (AuthorityKind::Wit, Self::A) => "WIT-Signer-A",
            (AuthorityKind::Wit, Self::B) => "WIT-Signer-B",
        }
    }

    /// `A` or `B`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "A" => Some(Self::A),
            "B" => Some(Self::B),
            _ => None,
        }
    }
}

/// One authority in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    pub slot: SlotId,
    pub status: Status,
    /// The hexadecimal subject key identifier of a CA, or the key id of a JWT or WIT authority.
    pub authority_id: String,
    /// The hexadecimal authority key identifier of the upstream authority, else empty.
    pub upstream_authority_id: String,
    pub issued_at: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub public_key: PublicKey,
    /// Only of X.509 authorities.
    pub certificate: Option<Certificate>,
    /// What follows the SVID in a chain; empty below a self-signed CA.
    pub chain: Vec<Certificate>,
}

/// The journal of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// Under which the store keeps it; drawn once.
    pub id: String,
    /// How often it was saved; of two that fit the same keys, the higher one counts.
    pub saved: u64,
    x509: Vec<JournalEntry>,
    jwt: Vec<JournalEntry>,
    wit: Vec<JournalEntry>,
}

impl Journal {
    /// An empty journal with a new id.
    pub fn new() -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            ..Self::default()
        }
    }

    /// The entries of a kind, oldest first.
    pub fn entries(&self, kind: AuthorityKind) -> &[JournalEntry] {
        match kind {
            AuthorityKind::X509 => &self.x509,
            AuthorityKind::Jwt => &self.jwt,
            AuthorityKind::Wit => &self.wit,
        }
    }

    /// The journal with one more entry.
    pub fn with_entry(&self, kind: AuthorityKind, entry: JournalEntry) -> Self {
        let mut next = self.clone();
        let entries = next.entries_mut(kind);
        entries.push(entry);
        let surplus = entries.len().saturating_sub(MOST_ENTRIES);
        entries.drain(..surplus);
        next
    }

    /// The journal with that authority active; whichever was active is old.
    pub fn with_active(&self, kind: AuthorityKind, authority_id: &str) -> Self {
        let mut next = self.clone();
        for entry in next.entries_mut(kind) {
            if entry.authority_id == authority_id {
                entry.status = Status::Active;
            } else if entry.status == Status::Active {
                entry.status = Status::Old;
            }
        }
        next
    }

    /// Whether any authority in it has one of these keys.
    pub fn has_any_key(&self, keys: &[PublicKey]) -> bool {
        self.all().any(|entry| keys.contains(&entry.public_key))
    }

    /// Whether all its authorities have been expired for two weeks.
    pub fn is_forgettable(&self, now: OffsetDateTime) -> bool {
        let newest = self.all().map(|entry| entry.not_after.unix_timestamp()).max();
        newest.is_none_or(|end| end.saturating_add(KEPT_AFTER_EXPIRY) < now.unix_timestamp())
    }

    /// The bytes for the store.
    pub fn encode(&self) -> Vec<u8> {
        Record {
            id: self.id.clone(),
            saved: self.saved,
            x509: self.x509.iter().map(EntryRecord::from_entry).collect(),
            jwt: self.jwt.iter().map(EntryRecord::from_entry).collect(),
            wit: self.wit.iter().map(EntryRecord::from_entry).collect(),
        }
        .encode_to_vec()
    }

    /// Reads the store's bytes. Entries that cannot be read are left out: an authority is made again then. `None` when the
    /// bytes are no journal.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let record = Record::decode(bytes).ok()?;
        if record.id.is_empty() {
            return None;
        }
        let readable = |entries: Vec<EntryRecord>| {
            let entries = entries.into_iter().filter_map(EntryRecord::into_entry);
            entries.collect()
        };
        Some(Self {
            id: record.id,
            saved: record.saved,
            x509: readable(record.x509),
            jwt: readable(record.jwt),
            wit: readable(record.wit),
        })
    }

    fn all(&self) -> impl Iterator<Item = &JournalEntry> {
        self.x509.iter().chain(&self.jwt).chain(&self.wit)
    }

    fn entries_mut(&mut self, kind: AuthorityKind) -> &mut Vec<JournalEntry> {
        match kind {
            AuthorityKind::X509 => &mut self.x509,
            AuthorityKind::Jwt => &mut self.jwt,
            AuthorityKind::Wit => &mut self.wit,
        }
    }
}

/// The active authority and what is in the other slot, of the entries that `usable` lets through. The newest active
/// entry becomes the first; of the others the newest becomes the second. Without an active one the other takes its place,
/// so that nothing prepared is lost.
pub fn pick_slots(
    entries: &[JournalEntry],
    usable: impl Fn(&JournalEntry) -> bool,
) -> (Option<&JournalEntry>, Option<&JournalEntry>) {
    let mut active = None;
    let mut other = None;
    for entry in entries.iter().rev().filter(|entry| usable(entry)) {
        let place = if entry.status == Status::Active {
            &mut active
        } else {
            &mut other
        };
        place.get_or_insert(entry);
    }
    let clash = matches!((active, other), (Some(a), Some(b)) if a.slot == b.slot);
    match (active, other) {
        (Some(active), _) if clash => (Some(active), None),
        (Some(active), other) => (Some(active), other),
        (None, other) => (other, None),
    }
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    saved: u64,
    #[prost(message, repeated, tag = "3")]
    x509: Vec<EntryRecord>,
    #[prost(message, repeated, tag = "4")]
    jwt: Vec<EntryRecord>,
    #[prost(message, repeated, tag = "5")]
    wit: Vec<EntryRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(string, tag = "1")]
    slot: String,
    #[prost(int32, tag = "2")]
    status: i32,
    #[prost(string, tag = "3")]
    authority_id: String,
    #[prost(string, tag = "4")]
    upstream_authority_id: String,
    #[prost(int64, tag = "5")]
    issued_at: i64,
    #[prost(int64, tag = "6")]
    not_after: i64,
    #[prost(bytes = "vec", tag = "7")]
    public_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    certificate: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    chain: Vec<Vec<u8>>,
}

impl EntryRecord {
    fn from_entry(entry: &JournalEntry) -> Self {
        let der = |certificate: &Certificate| certificate.der().to_vec();
        Self {
            slot: entry.slot.as_str().to_owned(),
            status: entry.status as i32,
            authority_id: entry.authority_id.clone(),
            upstream_authority_id: entry.upstream_authority_id.clone(),
            issued_at: entry.issued_at.unix_timestamp(),
            not_after: entry.not_after.unix_timestamp(),
            public_key: entry.public_key.spki_der().to_vec(),
            certificate: entry.certificate.as_ref().map(der).unwrap_or_default(),
            chain: entry.chain.iter().map(der).collect(),
        }
    }

    fn into_entry(self) -> Option<JournalEntry> {
        let certificate = match self.certificate.as_slice() {
            [] => None,
            der => Some(Certificate::parse(der).ok()?),
        };
        Some(JournalEntry {
            slot: SlotId::parse(&self.slot)?,
            status: match self.status {
                2 => Status::Prepared,
                3 => Status::Active,
                4 => Status::Old,
                _ => return None,
            },
            authority_id: self.authority_id,
            upstream_authority_id: self.upstream_authority_id,
            issued_at: OffsetDateTime::from_unix_timestamp(self.issued_at).ok()?,
            not_after: OffsetDateTime::from_unix_timestamp(self.not_after).ok()?,
            public_key: PublicKey::from_spki_der(&self.public_key).ok()?,
            certificate,
            chain: self
                .chain
                .iter()
                .map(|der| Certificate::parse(der))
                .collect::<Result<_, _>>()
                .ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use finial_identity::key::{KeyType, PrivateKey};
    use time::macros::datetime;

    const T0: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn entry(slot: SlotId, status: Status, id: &str) -> JournalEntry {
        JournalEntry {
            slot,
            status,
            authority_id: id.to_owned(),
            upstream_authority_id: String::new(),
            issued_at: T0,
            not_after: T0 + time::Duration::DAY,
            public_key: PrivateKey::generate(KeyType::EcP256)
                .unwrap()
                .public_key()
                .clone(),
            certificate: None,
            chain: Vec::new(),
        }
    }

    fn journal(entries: Vec<JournalEntry>) -> Journal {
        entries.into_iter().fold(Journal::new(), |journal, entry| {
            journal.with_entry(AuthorityKind::Jwt, entry)
        })
    }

    #[test]
    fn a_journal_survives_its_encoding() {
        let journal = journal(vec![
            entry(SlotId::A, Status::Active, "a"),
            entry(SlotId::B, Status::Prepared, "b"),
        ]);
        assert_eq!(Journal::decode(&journal.encode()), Some(journal));
        assert_eq!(Journal::decode(b"\xff\xff"), None);
        assert_eq!(Journal::decode(b""), None);
    }

    #[test]
    fn an_unreadable_entry_is_left_out() {
        let journal = journal(vec![
            entry(SlotId::A, Status::Active, "a"),
            entry(SlotId::B, Status::Old, "b"),
        ]);
        let mut record = Record::decode(journal.encode().as_slice()).unwrap();
        record.jwt[0].public_key.pop();
        let read = Journal::decode(&record.encode_to_vec()).unwrap();
        assert_eq!(read.entries(AuthorityKind::Jwt).len(), 1);
        assert_eq!(read.entries(AuthorityKind::Jwt)[0].authority_id, "b");
    }

    #[test]
    fn only_the_last_ten_entries_are_kept() {
        let journal = journal(
            (0..12)
                .map(|n| entry(SlotId::A, Status::Old, &n.to_string()))
                .collect(),
        );
        let ids: Vec<_> = journal
            .entries(AuthorityKind::Jwt)
            .iter()
            .map(|entry| entry.authority_id.as_str())
            .collect();
        assert_eq!(ids, ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
    }

    #[test]
    fn activation_makes_the_former_authority_old() {
        let journal = journal(vec![
            entry(SlotId::A, Status::Active, "a"),
            entry(SlotId::B, Status::Prepared, "b"),
        ])
        .with_active(AuthorityKind::Jwt, "b");
        let statuses: Vec<_> = journal
            .entries(AuthorityKind::Jwt)
            .iter()
            .map(|entry| entry.status)
            .collect();
        assert_eq!(statuses, [Status::Old, Status::Active]);
    }

    #[test]
    fn slots_are_the_newest_usable_entries() {
        let entries = [
            entry(SlotId::A, Status::Old, "a1"),
            entry(SlotId::B, Status::Active, "b1"),
            entry(SlotId::A, Status::Prepared, "a2"),
        ];
        let picked = |usable: &dyn Fn(&JournalEntry) -> bool| {
            let (active, other) = pick_slots(&entries, usable);
            (
                active.map(|entry| entry.authority_id.clone()),
                other.map(|entry| entry.authority_id.clone()),
            )
        };
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(picked(&|_| true), (some("b1"), some("a2")));
        assert_eq!(
            picked(&|entry| entry.authority_id != "a2"),
            (some("b1"), some("a1"))
        );
        assert_eq!(picked(&|entry| entry.slot == SlotId::A), (some("a2"), None));
        assert_eq!(picked(&|_| false), (None, None));
    }

    #[test]
    fn a_journal_is_forgettable_two_weeks_after_its_last_authority() {
        let journal = journal(vec![entry(SlotId::A, Status::Active, "a")]);
        let end = T0 + time::Duration::DAY;
        assert!(!journal.is_forgettable(end + time::Duration::days(14)));
        assert!(journal.is_forgettable(end + time::Duration::days(14) + time::Duration::SECOND));
    }
}
