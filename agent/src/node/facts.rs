//! What the agent's state is computed from. Each fact is independent of the others, and the state shows the most
//! serious one.

use tokio::time::Instant;

use super::saving::DiskTrouble;
use super::{NodeState, Shared};

#[derive(Clone, Debug, Default)]
pub(super) struct StateFacts {
    pub(super) banned: bool,
    pub(super) has_svid: bool,
    pub(super) attesting: bool,
    /// Why there is no SVID.
    pub(super) attest_trouble: Option<String>,
    /// The server proves itself by authorities that the bundle held lacks.
    pub(super) distrust: Option<Distrust>,
    /// The server no longer knows this agent.
    pub(super) evicted: Option<String>,
    pub(super) renewal_trouble: Option<String>,
    pub(super) link_trouble: Option<String>,
    /// What is not on disk, and why.
    pub(super) disk_trouble: Option<DiskTrouble>,
    /// Why pods have no socket.
    pub(super) pod_trouble: Option<String>,
}

/// A server whose certificate is not trusted.
#[derive(Clone, Debug)]
pub(super) struct Distrust {
    /// The first time since a server was trusted. Time during which the machine is suspended does not count.
    pub(super) since: Instant,
    /// How often since.
    pub(super) attempts: u64,
    why: String,
    /// What happens to it.
    advice: String,
}

impl StateFacts {
    pub(super) fn state(&self) -> NodeState {
        if self.banned {
            return NodeState::Banned;
        }
        let disk = self.disk_trouble.as_ref().map(ToString::to_string);
        if !self.has_svid {
            return match &self.attest_trouble {
                // Why it has come to this, what was tried, and what helps.
                Some(tried) => {
                    let advice = self.distrust.as_ref().map(|distrust| distrust.advice.clone());
                    degraded([self.evicted.clone(), Some(tried.clone()), advice])
                }
                None if self.attesting => NodeState::Attesting,
                None => NodeState::Bootstrapping,
            };
        }
        let distrust = self.distrust.as_ref().map(Distrust::to_string);
        let evicted = self.evicted.clone();
        let trouble = distrust
            .or(evicted)
            .or_else(|| self.renewal_trouble.clone())
            .or_else(|| self.link_trouble.clone());
        let pods = self.pod_trouble.clone();
        if trouble.is_none() && disk.is_none() && pods.is_none() {
            return NodeState::Serving;
        }
        // A disk is not repaired by what repairs the link, and the other way round.
        degraded([trouble, disk, pods])
    }

    /// Notes one more time that the server's authority is unknown, with what helps unless more is known already.
    pub(super) fn note_distrust(&mut self, why: String, advice: String) {
        match &mut self.distrust {
            Some(known) => {
                known.attempts = known.attempts.saturating_add(1);
                known.why = why;
            }
            None => {
                self.distrust = Some(Distrust {
                    since: Instant::now(),
                    attempts: 1,
                    why,
                    advice,
                });
            }
        }
    }

    /// Notes what came of an attempt to overcome it.
    pub(super) fn note_failed_return(&mut self, advice: String) {
        if let Some(distrust) = &mut self.distrust {
            distrust.advice = advice;
        }
    }
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server is not trusted: {}; {}", self.why, self.advice)
    }
}

impl Shared {
    /// Changes the facts and publishes the state that follows from them. A state is logged when it comes, not while
    /// it lasts.
    pub(super) fn note(&self, change: impl FnOnce(&mut StateFacts)) {
        let next = {
            let mut facts = self.facts();
            change(&mut facts);
            facts.state()
        };
        self.state.send_if_modified(|state| {
            let changes = *state != next && state.can_become(&next);
            if changes {
                match &next {
                    NodeState::Degraded(reason) => tracing::warn!(reason, "agent is degraded"),
                    other => tracing::info!(state = %other, "agent state changed"),
                }
                *state = next;
            }
            changes
        });
    }
}

fn degraded(parts: [Option<String>; 3]) -> NodeState {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    NodeState::Degraded(parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_names_what_matters_most() {
        let mut facts = StateFacts::default();
        assert_eq!(facts.state(), NodeState::Bootstrapping);
        facts.attesting = true;
        assert_eq!(facts.state(), NodeState::Attesting);
        facts.attest_trouble = Some("no bundle".to_owned());
        assert_eq!(facts.state(), NodeState::Degraded("no bundle".to_owned()));
        facts.has_svid = true;
        assert_eq!(facts.state(), NodeState::Serving);
        facts.link_trouble = Some("unreachable".to_owned());
        facts.evicted = Some("evicted".to_owned());
        assert_eq!(facts.state(), NodeState::Degraded("evicted".to_owned()));
        facts.pod_trouble = Some("too many pods".to_owned());
        let expected = "evicted; too many pods";
        assert_eq!(facts.state(), NodeState::Degraded(expected.to_owned()));
        facts.banned = true;
        assert_eq!(facts.state(), NodeState::Banned);
    }

    #[tokio::test]
    async fn distrust_is_counted_from_the_first_time_and_says_what_helps() {
        let mut facts = StateFacts {
            has_svid: true,
            ..StateFacts::default()
        };
        facts.note_distrust("unknown authority".to_owned(), "wait".to_owned());
        let first = facts.distrust.clone().unwrap();
        facts.note_distrust("unknown authority".to_owned(), "wait".to_owned());
        let second = facts.distrust.clone().unwrap();
        assert_eq!((first.since, first.attempts), (second.since, 1));
        assert_eq!(second.attempts, 2);
        let expected = "server is not trusted: unknown authority; wait";
        assert_eq!(facts.state(), NodeState::Degraded(expected.to_owned()));
        facts.has_svid = false;
        facts.evicted = Some("evicted".to_owned());
        facts.attest_trouble = Some("cannot attest".to_owned());
        let expected = "evicted; cannot attest; wait";
        assert_eq!(facts.state(), NodeState::Degraded(expected.to_owned()));
    }
}
