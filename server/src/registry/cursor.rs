//! The position of an agent's set, and the latest changes, with which an agent that was disconnected can catch up.

use std::collections::VecDeque;
use std::fmt;

use finial_identity::spiffe_id::SpiffeId;

use crate::store::Revision;

/// Changes that are kept for agents that come back.
const KEPT: usize = 16_384;
const BYTES: usize = 32;

/// A point in the registry's life; opaque to agents.
///
/// Besides the store's revision it counts the changes that this registry applied, derived entries
/// included; another server, or this one after a restart, cannot resume the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    revision: Revision,
    instance: u64,
    sequence: u64,
}

impl Cursor {
    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The form on the wire: 32 bytes.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let parts = [self.revision.n, self.revision.mark, self.instance, self.sequence];
        let mut bytes = [0; BYTES];
        for (target, part) in bytes.chunks_exact_mut(8).zip(parts) {
            target.copy_from_slice(&part.to_be_bytes());
        }
        bytes
    }

    /// Reads the form on the wire; `None` when it is not 32 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let mut parts = bytes
            .chunks_exact(8)
            .filter_map(|part| part.try_into().ok())
            .map(u64::from_be_bytes);
        Some(Self {
            revision: Revision {
                n: parts.next()?,
                mark: parts.next()?,
            },
            instance: parts.next()?,
            sequence: parts.next()?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{:016x}-{}", self.revision, self.instance, self.sequence)
    }
}

/// What a change means for an agent that could not be reached.
#[derive(Clone, Debug)]
pub(super) enum Logged {
    /// An entry with nothing below it changed or went.
    Entry {
        id: String,
        /// What it was before; `None` when it is new.
        before: Option<WasPlaced>,
    },
    /// A node's selectors changed.
    Node(SpiffeId),
    /// Entries below others moved; what that means for whom is not kept.
    Structure,
}

/// Where an entry stood.
#[derive(Clone, Debug)]
pub(super) struct WasPlaced {
    pub(super) parent: SpiffeId,
    pub(super) spiffe_id: SpiffeId,
}

/// The latest changes.
#[derive(Debug)]
pub(super) struct RecentChanges {
    instance: u64,
    /// Number of the last change.
    sequence: u64,
    changes: VecDeque<Logged>,
}

impl RecentChanges {
    pub(super) fn new() -> Self {
        Self {
            instance: rand::random(),
            sequence: 0,
            changes: VecDeque::new(),
        }
    }

    pub(super) fn cursor(&self, revision: Revision) -> Cursor {
        Cursor {
            revision,
            instance: self.instance,
            sequence: self.sequence,
        }
    }

    pub(super) fn push(&mut self, change: Logged) {
        self.sequence += 1;
        if self.changes.len() == KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    /// Makes all cursors given so far unknown.
    pub(super) fn forget(&mut self) {
        *self = Self::new();
    }

    /// The changes after a cursor, if they are all known.
    pub(super) fn since(&self, cursor: Cursor) -> Option<impl Iterator<Item = &Logged>> {
        if cursor.instance != self.instance {
            return None;
        }
        let missed = usize::try_from(self.sequence.checked_sub(cursor.sequence)?).ok()?;
        let known = self.changes.len().checked_sub(missed)?;
        Some(self.changes.iter().skip(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence_after(recent: &RecentChanges, cursor: Cursor) -> Option<usize> {
        recent.since(cursor).map(Iterator::count)
    }

    #[test]
    fn a_cursor_survives_the_wire() {
        let cursor = RecentChanges::new().cursor(Revision { n: 7, mark: 9 });
        assert_eq!(Cursor::from_bytes(&cursor.to_bytes()), Some(cursor));
        assert_eq!(Cursor::from_bytes(&cursor.to_bytes()[1..]), None);
        assert_eq!(Cursor::from_bytes(&[]), None);
    }

    #[test]
    fn knows_what_came_after_a_cursor() {
        let mut recent = RecentChanges::new();
        let start = recent.cursor(Revision::START);
        (0..3).for_each(|_| recent.push(Logged::Structure));
        let middle = recent.cursor(Revision::START);
        recent.push(Logged::Structure);
        assert_eq!(sequence_after(&recent, start), Some(4));
        assert_eq!(sequence_after(&recent, middle), Some(1));
    }

    #[test]
    fn does_not_know_cursors_that_are_too_old_ahead_or_of_another_instance() {
        let mut recent = RecentChanges::new();
        let old = recent.cursor(Revision::START);
        (0..=KEPT).for_each(|_| recent.push(Logged::Structure));
        assert_eq!(sequence_after(&recent, old), None);
        let ahead = Cursor {
            sequence: recent.sequence + 1,
            ..old
        };
        assert_eq!(sequence_after(&recent, ahead), None);
        let current = recent.cursor(Revision::START);
        recent.forget();
        assert_eq!(sequence_after(&recent, current), None);
    }
}
