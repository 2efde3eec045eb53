//! When an authority is prepared and when it is activated. Pure: slots and the time in, actions out.
//!
//! ```text
//!              issued          prepare next           activate next     not after
//! current  ------|------------------|----------------------|----------------|
//!                      lifetime - min(1/2, 30 d)   lifetime - min(1/6, 7 d)
//! ```
//!
//! A prepared authority is in the bundle at once, so all agents have received it long before it signs.

use time::{Duration, OffsetDateTime};

/// Of the authority's lifetime, how much may be left when the next one is prepared; never more than the second number.
const PREPARE: (i32, Duration) = (2, Duration::days(30));
/// The same for its activation.
const ACTIVATE: (i32, Duration) = (6, Duration::days(7));
/// How long a new authority is in the bundle before it signs when it was prepared late: long enough for every agent
/// to learn it. Part of the lifetime at most.
const SETTLE: (i32, Duration) = (12, Duration::minutes(5));

/// Where an authority stands. The numbers are those of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// In the bundle, does not sign yet.
    Prepared = 2,
    /// Signs.
    Active = 3,
    /// Signed before; what it signed is still valid.
    Old = 4,
}

/// The lifetime of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub issued_at: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// The two slots of one kind of authority, as far as time matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The active authority.
    pub current: Option<Lifetime>,
    /// The prepared authority. A slot with an old authority counts as empty.
    pub prepared: Option<Lifetime>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make an authority in the next slot and put it into the bundle.
    Prepare,
    /// Let the prepared authority sign; the active one becomes old.
    Activate,
    /// Nothing before that moment.
    Wait(OffsetDateTime),
}

/// The next action. Ask again after each one that was carried out, until it says to wait.
pub fn next_action(slots: Slots, now: OffsetDateTime) -> Action {
    let usable = |lifetime: &Lifetime| lifetime.not_after > now;
    let prepared = slots.prepared.filter(usable);
    let Some(current) = slots.current.filter(usable) else {
        return if prepared.is_some() {
            Action::Activate
        } else {
            Action::Prepare
        };
    };
    match prepared {
        None => {
            let threshold = current.threshold(PREPARE);
            if now > threshold {
                Action::Prepare
            } else {
                Action::Wait(threshold)
            }
        }
        Some(prepared) => {
            let threshold = current.activation(prepared);
            if now > threshold {
                Action::Activate
            } else {
                Action::Wait(threshold)
            }
        }
    }
}

impl Lifetime {
    fn threshold(self, (part, most): (i32, Duration)) -> OffsetDateTime {
        let lifetime = self.not_after - self.issued_at;
        self.not_after.saturating_sub((lifetime / part).min(most))
    }

    /// When `prepared` takes over from this one: at the usual threshold, or a little later if it is brand-new and this one
    /// can wait.
    fn activation(self, prepared: Lifetime) -> OffsetDateTime {
        let lifetime = self.not_after - self.issued_at;
        let settled = prepared
            .issued_at
            .saturating_add((lifetime / SETTLE.0).min(SETTLE.1));
        let latest = self.threshold((SETTLE.0, ACTIVATE.1));
        self.threshold(ACTIVATE).max(settled.min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const T0: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn lifetime(start: OffsetDateTime, length: Duration) -> Lifetime {
        Lifetime {
            issued_at: start,
            not_after: start + length,
        }
    }

    fn day(prepared_at: Option<OffsetDateTime>) -> Slots {
        Slots {
            current: Some(lifetime(T0, Duration::DAY)),
            prepared: prepared_at.map(|start| lifetime(start, Duration::DAY)),
        }
    }

    #[test]
    fn empty_slots_prepare_and_then_activate_at_once() {
        let mut slots = Slots {
            current: None,
            prepared: None,
        };
        assert_eq!(next_action(slots, T0), Action::Prepare);
        slots.prepared = Some(lifetime(T0, Duration::DAY));
        assert_eq!(next_action(slots, T0), Action::Activate);
    }

    #[test]
    fn a_day_long_authority_is_followed_after_twelve_hours_and_replaced_after_twenty() {
        let noon = T0 + Duration::hours(12);
        assert_eq!(next_action(day(None), T0), Action::Wait(noon));
        assert_eq!(next_action(day(None), noon), Action::Wait(noon));
        assert_eq!(next_action(day(None), noon + Duration::SECOND), Action::Prepare);
        let evening = T0 + Duration::hours(20);
        let slots = day(Some(noon + Duration::SECOND));
        assert_eq!(next_action(slots, noon + Duration::SECOND), Action::Wait(evening));
        assert_eq!(next_action(slots, evening + Duration::SECOND), Action::Activate);
    }

    #[test]
    fn long_lifetimes_are_bounded_by_thirty_and_seven_days() {
        let slots = |prepared| Slots {
            current: Some(lifetime(T0, Duration::days(365))),
            prepared,
        };
        assert_eq!(
            next_action(slots(None), T0),
            Action::Wait(T0 + Duration::days(335))
        );
        let prepared = lifetime(T0 + Duration::days(335), Duration::days(365));
        assert_eq!(
            next_action(slots(Some(prepared)), T0),
            Action::Wait(T0 + Duration::days(358))
        );
    }

    #[test]
    fn an_authority_prepared_late_settles_before_it_signs() {
        let late = T0 + Duration::hours(21);
        assert_eq!(next_action(day(None), late), Action::Prepare);
        assert_eq!(
            next_action(day(Some(late)), late),
            Action::Wait(late + Duration::minutes(5))
        );
        let very_late = T0 + Duration::minutes(23 * 60 + 59);
        assert_eq!(next_action(day(Some(very_late)), very_late), Action::Activate);
    }

    #[test]
    fn an_expired_authority_counts_as_none() {
        let after = T0 + Duration::hours(25);
        assert_eq!(next_action(day(None), after), Action::Prepare);
        assert_eq!(
            next_action(day(Some(T0 + Duration::hours(12))), after),
            Action::Activate
        );
        let long_after = T0 + Duration::days(9);
        assert_eq!(
            next_action(day(Some(T0 + Duration::hours(12))), long_after),
            Action::Prepare
        );
    }

    #[test]
    fn seconds_long_lifetimes_work_too() {
        let slots = |prepared| Slots {
            current: Some(lifetime(T0, Duration::seconds(60))),
            prepared,
        };
        assert_eq!(
            next_action(slots(None), T0),
            Action::Wait(T0 + Duration::seconds(30))
        );
        let prepared = lifetime(T0 + Duration::seconds(31), Duration::seconds(60));
        assert_eq!(
            next_action(slots(Some(prepared)), T0),
            Action::Wait(T0 + Duration::seconds(50))
        );
    }
}
