//! Which entries need an SVID signed now, which SVIDs are dropped, and when to check again. Pure: no clock, no network.
//!
//! An SVID expires by the clock. It is due by the clock or by the time that has passed since it came, whichever is
//! first ([`RenewalTime`]), and what is put off for a while, by the time that passes. All of it is queued by what the
//! clock will show then; when the clock is set back, everything that waits to be signed is queued anew.
//!
//! Every change of one entry is a few steps in ordered sets, whatever the number of entries. Wanted entries are
//! always issued; of the others, only up to the total limit of SVIDs: first those that were wanted most
//! recently, and those that have an SVID already before those that do not.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

#[cfg(test)]
use super::visits;
use crate::node::{Moment, RenewalTime};

/// What decides whether one entry is signed for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RenewalState {
    /// A subscriber's selectors match it.
    pub(super) wanted: bool,
    /// May be issued before anybody wants it.
    pub(super) prefetch: bool,
    /// The SVID held, if any.
    pub(super) held: Option<HeldTimes>,
    /// The SVID held is of an earlier revision, and to be replaced although it is not due.
    pub(super) is_outdated: bool,
    /// It is to be replaced from then on because it is signed by an authority that no longer counts.
    pub(super) replace_at: Option<Instant>,
    /// A signature is under way.
    pub(super) in_flight: bool,
    /// Not to be tried before, after a failure.
    pub(super) retry_at: Option<Instant>,
    /// Grows with each time somebody wanted it; 0 when nobody ever did.
    pub(super) last_wanted: u64,
}

/// When an SVID is due and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldTimes {
    /// To be replaced from then on.
    pub(super) renewal: RenewalTime,
    /// Not to be served from then on: shortly before the certificate expires.
    pub(super) expires_at: OffsetDateTime,
}

/// The entries by what is to be done about them, and when.
#[derive(Debug)]
pub(super) struct Schedule {
    limit: usize,
    now: Moment,
    /// When the clock was furthest ahead, of the times since everything was queued anew.
    ahead: Moment,
    items: HashMap<Arc<str>, Item>,
    wanted: usize,
    /// Not wanted, and within the limit.
    kept: BTreeSet<Rank>,
    /// Not wanted, and beyond the limit.
    spare: BTreeSet<Rank>,
    ready: BTreeSet<(Urgency, Arc<str>)>,
    timers: BTreeSet<(OffsetDateTime, Timer, Arc<str>)>,
    /// SVIDs beyond the limit.
    surplus: BTreeSet<Arc<str>>,
}

/// The first are kept: most recently wanted, then held, then in the order of ids.
type Rank = (Reverse<u64>, bool, Arc<str>);

/// The first are signed first: wanted, missing, outdated, soon to end.
type Urgency = (bool, bool, bool, Option<OffsetDateTime>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Expiry,
    Due,
}

#[derive(Debug)]
struct Item {
    state: RenewalState,
    is_kept: bool,
    signing: Signing,
}

/// Where an item waits to be signed.
#[derive(Clone, Copy, Debug)]
enum Signing {
    Not,
    At(OffsetDateTime),
    Ready(Urgency),
}

impl Schedule {
    /// For as many unwanted SVIDs as `limit` allows in addition to the wanted ones.
    pub(super) fn new(limit: usize, now: Moment) -> Self {
        Self {
            limit,
            now,
            ahead: now,
            items: HashMap::new(),
            wanted: 0,
            kept: BTreeSet::new(),
            spare: BTreeSet::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            surplus: BTreeSet::new(),
        }
    }

    /// An entry is new or stands otherwise than before.
    pub(super) fn set(&mut self, id: &Arc<str>, state: RenewalState) {
        self.take_out(id);
        self.wanted += usize::from(state.wanted);
        let mut is_kept = false;
        if let Some(rank) = state.rank(id) {
            is_kept = self.kept.last().is_some_and(|last| rank < *last);
            self.side(is_kept).insert(rank);
        }
        let item = Item {
            state,
            is_kept,
            signing: Signing::Not,
        };
        self.items.insert(Arc::clone(id), item);
        self.file(id);
        self.rebalance();
    }

    /// An entry is gone.
    pub(super) fn remove(&mut self, id: &str) {
        self.take_out(id);
        self.rebalance();
    }

    /// Takes up the time and returns the SVIDs to drop: expired, or more than the cache is to hold.
    pub(super) fn advance(&mut self, now: Moment) -> Vec<Arc<str>> {
        self.now = now;
        let ahead_by = now.clock - self.ahead.clock_at(now.passed);
        if ahead_by <= -SET_BACK {
            self.queue_anew();
        }
        if ahead_by.is_positive() || ahead_by <= -SET_BACK {
            self.ahead = now;
        }
        let mut drop: Vec<_> = std::mem::take(&mut self.surplus).into_iter().collect();
        while self.timers.first().is_some_and(|(at, ..)| *at <= now.clock) {
            let Some((_at, timer, id)) = self.timers.pop_first() else {
                break;
            };
            match timer {
                Timer::Expiry => drop.push(id),
                Timer::Due => self.file(&id),
            }
        }
        drop
    }

    /// Entries to have signed, the most urgent first.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ready.iter().map(|(_urgency, id)| id)
    }

    /// How many those are.
    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// What the clock shows when something becomes due or expires; `None` when nothing will.
    pub(super) fn next(&self) -> Option<OffsetDateTime> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// Looks at everything that waits, which happens when the clock was set back and not otherwise.
    fn queue_anew(&mut self) {
        let waits = |item: &Item| matches!(item.signing, Signing::At(_));
        let waiting = self.items.iter().filter(|(_id, item)| waits(item));
        let ids: Vec<_> = waiting.map(|(id, _item)| Arc::clone(id)).collect();
        for id in ids {
            self.file(&id);
        }
    }

    fn take_out(&mut self, id: &str) {
        let Some((id, item)) = self.items.remove_entry(id) else {
            return;
        };
        self.unfile(&id, &item);
        self.wanted -= usize::from(item.state.wanted);
        if let Some(rank) = item.state.rank(&id) {
            self.side(item.is_kept).remove(&rank);
        }
    }

    /// Moves entries over the limit until the first ranks are within.
    fn rebalance(&mut self) {
        let room = self.limit.saturating_sub(self.wanted);
        while self.kept.len() > room {
            self.move_over(true);
        }
        while self.kept.len() < room && !self.spare.is_empty() {
            self.move_over(false);
        }
        while let (Some(last), Some(first)) = (self.kept.last(), self.spare.first())
            && first < last
        {
            self.move_over(true);
            self.move_over(false);
        }
    }

    /// Moves the last of those within the limit out, or the first of those beyond it in.
    fn move_over(&mut self, out: bool) {
        let moved = if out {
            self.kept.pop_last()
        } else {
            self.spare.pop_first()
        };
        let Some(rank) = moved else {
            return;
        };
        let id = Arc::clone(&rank.2);
        self.side(!out).insert(rank);
        if let Some(item) = self.items.get_mut(&id) {
            item.is_kept = !out;
        }
        self.file(&id);
    }

    fn side(&mut self, is_kept: bool) -> &mut BTreeSet<Rank> {
        if is_kept { &mut self.kept } else { &mut self.spare }
    }

    /// Files an item under what it is waiting for.
    fn file(&mut self, id: &Arc<str>) {
        #[cfg(test)]
        visits::count();
        let Some(mut item) = self.items.remove(id) else {
            return;
        };
        self.unfile(id, &item);
        let state = item.state;
        let is_active = state.wanted || item.is_kept;
        if let Some(held) = state.held {
            self.timers
                .insert((held.expires_at, Timer::Expiry, Arc::clone(id)));
            if !is_active {
                self.surplus.insert(Arc::clone(id));
            }
        }
        item.signing = match state.due_at(self.now).filter(|_| is_active) {
            None => Signing::Not,
            Some(at) if at > self.now.clock => {
                self.timers.insert((at, Timer::Due, Arc::clone(id)));
                Signing::At(at)
            }
            Some(_past) => {
                let urgency = state.urgency();
                self.ready.insert((urgency, Arc::clone(id)));
                Signing::Ready(urgency)
            }
        };
        self.items.insert(Arc::clone(id), item);
    }

    fn unfile(&mut self, id: &Arc<str>, item: &Item) {
        if let Some(held) = item.state.held {
            self.timers
                .remove(&(held.expires_at, Timer::Expiry, Arc::clone(id)));
            self.surplus.remove(id);
        }
        match item.signing {
            Signing::Not => {}
            Signing::At(at) => {
                self.timers.remove(&(at, Timer::Due, Arc::clone(id)));
            }
            Signing::Ready(urgency) => {
                self.ready.remove(&(urgency, Arc::clone(id)));
            }
        }
    }
}

impl RenewalState {
    /// The order in which entries that nobody wants are kept; none for an entry that there is no reason to keep.
    fn rank(&self, id: &Arc<str>) -> Option<Rank> {
        let has_reason = !self.wanted && (self.prefetch || self.held.is_some());
        has_reason.then(|| (Reverse(self.last_wanted), self.held.is_none(), Arc::clone(id)))
    }

    /// What the clock shows when it should be signed, if ever.
    fn due_at(&self, now: Moment) -> Option<OffsetDateTime> {
        if self.in_flight || !(self.wanted || self.prefetch) {
            return None;
        }
        let due = match self.held {
            Some(held) if !self.is_outdated => {
                let renewal = held.renewal.by_clock(now);
                self.replace_at
                    .map_or(renewal, |at| now.clock_at(at).min(renewal))
            }
            _ => OffsetDateTime::UNIX_EPOCH,
        };
        Some(self.retry_at.map_or(due, |retry| now.clock_at(retry).max(due)))
    }

    fn urgency(&self) -> Urgency {
        (
            !self.wanted,
            self.held.is_some(),
            !self.is_outdated && self.replace_at.is_none(),
            self.held.map(|held| held.expires_at),
        )
    }
}

/// A clock that is set back by less is not noticed.
const SET_BACK: Duration = Duration::SECOND;

#[cfg(test)]
mod tests {
    use super::super::tests::moment;
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn at(seconds: i64) -> OffsetDateTime {
        NOW + Duration::seconds(seconds)
    }

    fn state() -> RenewalState {
        RenewalState {
            wanted: false,
            prefetch: true,
            held: None,
            is_outdated: false,
            replace_at: None,
            in_flight: false,
            retry_at: None,
            last_wanted: 0,
        }
    }

    fn wanted() -> RenewalState {
        RenewalState {
            wanted: true,
            ..state()
        }
    }

    fn held(renew: i64, expire: i64) -> RenewalState {
        RenewalState {
            held: Some(HeldTimes {
                renewal: RenewalTime::at(at(renew)),
                expires_at: at(expire),
            }),
            ..state()
        }
    }

    fn schedule(states: &[(&str, RenewalState)], limit: usize) -> Schedule {
        let mut schedule = Schedule::new(limit, moment(OffsetDateTime::UNIX_EPOCH));
        for (id, state) in states {
            schedule.set(&Arc::from(*id), *state);
        }
        schedule
    }

    fn drop_at(schedule: &mut Schedule, now: OffsetDateTime) -> Vec<String> {
        let drop = schedule.advance(moment(now));
        drop.iter().map(ToString::to_string).collect()
    }

    fn ready(schedule: &Schedule) -> Vec<String> {
        schedule.ready().map(ToString::to_string).collect()
    }

    #[test]
    fn signs_what_is_missing_due_or_outdated_and_nothing_else() {
        let mut schedule = schedule(
            &[
                ("a-missing", state()),
                ("b-due", held(0, 100)),
                ("c-fresh", held(50, 100)),
                (
                    "d-outdated",
                    RenewalState {
                        is_outdated: true,
                        ..held(50, 100)
                    },
                ),
                (
                    "e-in-flight",
                    RenewalState {
                        in_flight: true,
                        ..state()
                    },
                ),
                (
                    "f-failed",
                    RenewalState {
                        retry_at: Some(moment(at(3)).passed),
                        ..state()
                    },
                ),
                (
                    "g-on-demand",
                    RenewalState {
                        prefetch: false,
                        ..state()
                    },
                ),
                (
                    "h-replaced-later",
                    RenewalState {
                        replace_at: Some(moment(at(5)).passed),
                        ..held(50, 100)
                    },
                ),
            ],
            100,
        );
        assert!(drop_at(&mut schedule, NOW).is_empty());
        assert_eq!(ready(&schedule), ["a-missing", "d-outdated", "b-due"]);
        assert_eq!(schedule.next(), Some(at(3)));
        schedule.advance(moment(at(5)));
        assert_eq!(
            ready(&schedule),
            ["a-missing", "f-failed", "d-outdated", "h-replaced-later", "b-due"]
        );
    }

    #[test]
    fn what_somebody_waits_for_comes_first() {
        let mut schedule = schedule(
            &[
                ("a", state()),
                (
                    "b",
                    RenewalState {
                        wanted: true,
                        ..held(-1, 10)
                    },
                ),
                (
                    "c",
                    RenewalState {
                        wanted: true,
                        ..held(-1, 5)
                    },
                ),
                (
                    "d",
                    RenewalState {
                        prefetch: false,
                        ..wanted()
                    },
                ),
            ],
            100,
        );
        schedule.advance(moment(NOW));
        assert_eq!(ready(&schedule), ["d", "c", "b", "a"]);
    }

    #[test]
    fn a_wanted_entry_is_issued_whatever_the_limit_and_others_fill_the_rest() {
        let states = [("c", state()), ("a", wanted()), ("b", wanted())];
        assert_eq!(ready(&schedule(&states, 1)), ["a", "b"]);
        let mut schedule = schedule(&states, 3);
        assert_eq!(ready(&schedule), ["a", "b", "c"]);
        schedule.set(&Arc::from("d"), wanted());
        assert_eq!(ready(&schedule), ["a", "b", "d"]);
        schedule.remove("a");
        assert_eq!(ready(&schedule), ["b", "d", "c"]);
    }

    #[test]
    fn above_the_limit_the_least_recently_wanted_goes() {
        let since = |last_wanted| RenewalState {
            last_wanted,
            ..held(50, 100)
        };
        let mut schedule = schedule(
            &[("a", since(1)), ("b", since(3)), ("c", since(2)), ("d", state())],
            2,
        );
        assert_eq!(drop_at(&mut schedule, NOW), ["a"]);
        assert!(ready(&schedule).is_empty());
        schedule.set(
            &Arc::from("a"),
            RenewalState {
                held: None,
                ..since(1)
            },
        );
        schedule.set(&Arc::from("e"), wanted());
        assert_eq!(drop_at(&mut schedule, NOW), ["c"]);
        assert_eq!(ready(&schedule), ["e"]);
    }

    #[test]
    fn a_wanted_svid_is_never_dropped_before_it_expires() {
        let used = RenewalState {
            wanted: true,
            ..held(50, 100)
        };
        let all: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
        let states: Vec<_> = all.iter().map(|id| (id.as_str(), used)).collect();
        let mut schedule = schedule(&states, 5);
        schedule.set(&Arc::from("other"), held(50, 100));
        assert_eq!(drop_at(&mut schedule, NOW), ["other"]);
        for id in &all[..18] {
            schedule.set(&Arc::from(id.as_str()), held(50, 100));
        }
        assert_eq!(drop_at(&mut schedule, NOW).len(), 15);
    }

    #[test]
    fn an_svid_is_dropped_when_it_expires_also_under_renewal() {
        let mut schedule = schedule(
            &[(
                "a",
                RenewalState {
                    in_flight: true,
                    ..held(-5, 7)
                },
            )],
            10,
        );
        assert!(drop_at(&mut schedule, NOW).is_empty());
        assert_eq!(schedule.next(), Some(at(7)));
        assert_eq!(drop_at(&mut schedule, at(7)), ["a"]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn an_on_demand_svid_that_nobody_wants_any_more_is_kept_but_not_renewed() {
        let mut schedule = schedule(
            &[(
                "a",
                RenewalState {
                    prefetch: false,
                    last_wanted: 4,
                    ..held(-5, 7)
                },
            )],
            10,
        );
        assert!(drop_at(&mut schedule, NOW).is_empty() && ready(&schedule).is_empty());
        assert_eq!(schedule.next(), Some(at(7)));
    }

    #[test]
    fn what_is_due_by_the_time_that_passed_does_not_wait_for_a_clock_that_was_set_back() {
        let after = |seconds| RenewalState {
            held: Some(HeldTimes {
                renewal: RenewalTime::of(at(seconds), moment(at(seconds)).passed),
                expires_at: at(4000),
            }),
            ..state()
        };
        let replaced = RenewalState {
            replace_at: Some(moment(at(500)).passed),
            ..held(3000, 4000)
        };
        let failed = RenewalState {
            retry_at: Some(moment(at(1500)).passed),
            ..state()
        };
        let states = [
            ("a", after(1000)),
            ("b", replaced),
            ("c", failed),
            ("d", held(3000, 4000)),
        ];
        let mut schedule = schedule(&states, 100);
        let by = |seconds, set: Duration| {
            let moment = moment(at(seconds));
            Moment {
                clock: moment.clock + set,
                ..moment
            }
        };
        let back = -Duration::hours(5);
        assert!(schedule.advance(by(0, Duration::ZERO)).is_empty());
        assert_eq!(schedule.next(), Some(at(500)));
        schedule.advance(by(400, back));
        assert_eq!(schedule.next(), Some(at(500) + back));
        schedule.advance(by(499, back));
        assert!(ready(&schedule).is_empty());
        schedule.advance(by(500, back));
        assert_eq!(ready(&schedule), ["b"]);
        // Right again, ahead, and back twice: a little at a time counts too.
        schedule.advance(by(600, Duration::ZERO));
        schedule.advance(by(700, Duration::minutes(1)));
        assert_eq!(ready(&schedule), ["b"]);
        for (seconds, set) in [(800, 59_400), (900, 58_800), (999, 0)] {
            schedule.advance(by(seconds, Duration::milliseconds(set)));
        }
        assert_eq!(ready(&schedule), ["b"]);
        schedule.advance(by(1000, Duration::ZERO));
        assert_eq!(ready(&schedule), ["b", "a"]);
        schedule.advance(by(1500, back));
        assert_eq!(ready(&schedule), ["c", "b", "a"]);
    }

    #[test]
    fn nothing_is_left_of_entries_that_are_gone_and_a_change_touches_few() {
        let mut schedule = Schedule::new(50, moment(OffsetDateTime::UNIX_EPOCH));
        let id = |n: u64| Arc::from(format!("{n:03}"));
        for n in 0..1000_u64 {
            let renewal = i64::try_from(n % 7).unwrap();
            let state = match n % 4 {
                0 => wanted(),
                1 => held(renewal, 100),
                2 => state(),
                _ => RenewalState {
                    last_wanted: n,
                    ..held(renewal, 100)
                },
            };
            let visited = visits::during(|| schedule.set(&id(n % 300), state));
            assert!(visited <= 7, "{visited}");
            schedule.advance(moment(at(i64::try_from(n % 5).unwrap())));
        }
        for n in 0..300 {
            schedule.remove(&id(n));
        }
        assert!(schedule.items.is_empty() && schedule.kept.is_empty() && schedule.spare.is_empty());
        assert!(schedule.ready.is_empty() && schedule.timers.is_empty() && schedule.surplus.is_empty());
        assert_eq!(schedule.wanted, 0);
    }
}
