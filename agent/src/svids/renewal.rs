//! Which entries need an SVID signed now, which SVIDs go, and when to look again. Pure: no clock, no network.

use time::OffsetDateTime;

/// Where one entry stands.
#[derive(Clone, Debug)]
pub struct Standing<'a> {
    /// The entry's id.
    pub entry_id: &'a str,
    /// A subscriber's selectors match it.
    pub wanted: bool,
    /// May be issued before anybody wants it.
    pub prefetch: bool,
    /// The SVID held, if any.
    pub held: Option<HeldTimes>,
    /// The SVID held is of an earlier revision, or signed by an authority that no longer counts.
    pub outdated: bool,
    /// A signature is under way.
    pub in_flight: bool,
    /// Not to be tried before, after a failure.
    pub retry_at: Option<OffsetDateTime>,
    /// Grows with each time somebody wanted it; 0 when nobody ever did.
    pub last_wanted: u64,
}

/// When an SVID is due and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTimes {
    /// To be replaced from then on.
    pub renew_at: OffsetDateTime,
    /// Not to be handed out from then on.
    pub expires_at: OffsetDateTime,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries to have signed, the most urgent first.
    pub due: Vec<String>,
    /// SVIDs to drop: expired, or more than the cache is to hold.
    pub drop: Vec<String>,
    /// When something becomes due or expires; `None` when nothing will.
    pub next: Option<OffsetDateTime>,
}

/// Plans for all entries. Wanted entries are always issued; of the others, at most so many that `limit` SVIDs
/// are held in all, those that were wanted last and those already held before the rest.
pub fn plan(standings: &[Standing<'_>], now: OffsetDateTime, limit: usize) -> Plan {
    let mut plan = Plan::default();
    let (wanted, mut others): (Vec<_>, Vec<_>) = standings.iter().partition(|standing| standing.wanted);
    others.sort_by(|a, b| {
        let rank = |standing: &Standing<'_>| (standing.last_wanted, standing.live_at(now));
        rank(b).cmp(&rank(a)).then_with(|| a.entry_id.cmp(b.entry_id))
    });
    let mut room = limit.saturating_sub(wanted.len());
    let mut due = Vec::new();
    for standing in wanted.into_iter().chain(others) {
        let live = standing.live_at(now);
        if standing.held.is_some() && !live {
            plan.drop.push(standing.entry_id.to_owned());
        }
        let keep = standing.wanted || (room > 0 && (standing.prefetch || live));
        if !keep {
            if live {
                plan.drop.push(standing.entry_id.to_owned());
            }
            continue;
        }
        if !standing.wanted {
            room -= 1;
        }
        if let Some(held) = standing.held.filter(|_| live) {
            plan.look_at(held.expires_at);
        }
        if standing.in_flight || !(standing.wanted || standing.prefetch) {
            continue;
        }
        let at = standing.due_at(now);
        if at <= now {
            due.push(standing);
        } else {
            plan.look_at(at);
        }
    }
    due.sort_by_key(|standing| {
        let missing = !standing.live_at(now);
        (
            !standing.wanted,
            !missing,
            !standing.outdated,
            standing.held.map(|held| held.expires_at),
        )
    });
    plan.due = due
        .into_iter()
        .map(|standing| standing.entry_id.to_owned())
        .collect();
    plan
}

impl Standing<'_> {
    fn live_at(&self, now: OffsetDateTime) -> bool {
        self.held.is_some_and(|held| held.expires_at > now)
    }

    /// From when on it should be signed.
    fn due_at(&self, now: OffsetDateTime) -> OffsetDateTime {
        let due = match self.held {
            Some(held) if held.expires_at > now && !self.outdated => held.renew_at,
            _ => now,
        };
        self.retry_at.map_or(due, |retry| retry.max(due))
    }
}

impl Plan {
    fn look_at(&mut self, at: OffsetDateTime) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn at(seconds: i64) -> OffsetDateTime {
        NOW + Duration::seconds(seconds)
    }

    fn standing(entry_id: &str) -> Standing<'_> {
        Standing {
            entry_id,
            wanted: false,
            prefetch: true,
            held: None,
            outdated: false,
            in_flight: false,
            retry_at: None,
            last_wanted: 0,
        }
    }

    fn held(renew: i64, expire: i64) -> Option<HeldTimes> {
        Some(HeldTimes {
            renew_at: at(renew),
            expires_at: at(expire),
        })
    }

    #[test]
    fn signs_what_is_missing_due_or_outdated_and_nothing_else() {
        let standings = [
            standing("a-missing"),
            Standing {
                held: held(0, 100),
                ..standing("b-due")
            },
            Standing {
                held: held(50, 100),
                ..standing("c-fresh")
            },
            Standing {
                held: held(50, 100),
                outdated: true,
                ..standing("d-outdated")
            },
            Standing {
                in_flight: true,
                ..standing("e-in-flight")
            },
            Standing {
                retry_at: Some(at(3)),
                ..standing("f-failed")
            },
            Standing {
                prefetch: false,
                ..standing("g-on-demand")
            },
        ];
        let plan = plan(&standings, NOW, 100);
        assert_eq!(plan.due, ["a-missing", "d-outdated", "b-due"]);
        assert_eq!(plan.drop, Vec::<String>::new());
        assert_eq!(plan.next, Some(at(3)));
    }

    #[test]
    fn what_somebody_waits_for_comes_first() {
        let standings = [
            standing("a"),
            Standing {
                wanted: true,
                held: held(-1, 10),
                ..standing("b")
            },
            Standing {
                wanted: true,
                held: held(-1, 5),
                ..standing("c")
            },
            Standing {
                wanted: true,
                prefetch: false,
                ..standing("d")
            },
        ];
        assert_eq!(plan(&standings, NOW, 100).due, ["d", "c", "b", "a"]);
    }

    #[test]
    fn a_wanted_entry_is_issued_whatever_the_limit_and_others_fill_the_rest() {
        let standings = [
            Standing {
                wanted: true,
                ..standing("a")
            },
            Standing {
                wanted: true,
                ..standing("b")
            },
            standing("c"),
        ];
        assert_eq!(plan(&standings, NOW, 1).due, ["a", "b"]);
        assert_eq!(plan(&standings, NOW, 3).due, ["a", "b", "c"]);
    }

    #[test]
    fn above_the_limit_the_least_recently_wanted_goes() {
        let standings = [
            Standing {
                held: held(50, 100),
                last_wanted: 1,
                ..standing("a")
            },
            Standing {
                held: held(50, 100),
                last_wanted: 3,
                ..standing("b")
            },
            Standing {
                held: held(50, 100),
                last_wanted: 2,
                ..standing("c")
            },
            standing("d"),
        ];
        let plan = plan(&standings, NOW, 2);
        assert_eq!(plan.drop, ["a"]);
        assert!(plan.due.is_empty());
    }

    #[test]
    fn an_expired_svid_is_dropped_and_signed_anew() {
        let standings = [Standing {
            wanted: true,
            held: held(-50, 0),
            ..standing("a")
        }];
        let plan = plan(&standings, NOW, 10);
        assert_eq!((plan.drop.len(), plan.due.len()), (1, 1));
    }

    #[test]
    fn an_svid_under_renewal_is_still_dropped_when_it_expires() {
        let standings = [Standing {
            in_flight: true,
            held: held(-5, 7),
            ..standing("a")
        }];
        assert_eq!(plan(&standings, NOW, 10).next, Some(at(7)));
        assert_eq!(plan(&standings, at(7), 10).drop, ["a"]);
    }

    #[test]
    fn an_on_demand_svid_that_nobody_wants_any_more_is_kept_but_not_renewed() {
        let standings = [Standing {
            prefetch: false,
            held: held(-5, 7),
            last_wanted: 4,
            ..standing("a")
        }];
        let plan = plan(&standings, NOW, 10);
        assert_eq!((plan.due.len(), plan.drop.len(), plan.next), (0, 0, Some(at(7))));
    }
}
