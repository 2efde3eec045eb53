//! Filters of agent listings.

use finial_identity::selector::{MatchBehavior, Selector};
use finial_proto::spire::api::server::agent::v1 as pb;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::entry_filter::selector_match;
use super::status::Refusal;
use crate::store::AgentRecord;

/// Which agents are asked for; all conditions must hold.
#[derive(Debug, Default)]
pub struct AgentFilter {
    attestation_type: Option<String>,
    selectors: Option<(MatchBehavior, Vec<Selector>)>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: Option<i64>,
}

impl AgentFilter {
    /// The filter of `ListAgents`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for malformed selectors.
    pub fn of_list(filter: Option<pb::list_agents_request::Filter>) -> Result<Self, Refusal> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        Ok(Self {
            attestation_type: Some(filter.by_attestation_type).filter(|kind| !kind.is_empty()),
            selectors: filter.by_selector_match.map(selector_match).transpose()?,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before: parse_time(&filter.by_expires_before),
        })
    }

    /// The filter of `CountAgents`.
    ///
    /// # Errors
    /// As [`AgentFilter::of_list`].
    pub fn of_count(filter: Option<pb::count_agents_request::Filter>) -> Result<Self, Refusal> {
        Self::of_list(filter.map(|filter| pb::list_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        }))
    }

    /// Whether the agent is among those asked for.
    pub fn matches(&self, agent: &AgentRecord) -> bool {
        self.attestation_type
            .as_ref()
            .is_none_or(|kind| *kind == agent.attestation_type)
            && self.banned.is_none_or(|banned| banned == agent.is_banned())
            && self.can_reattest.is_none_or(|can| can == agent.can_reattest)
            && self.expires_before.is_none_or(|before| agent.expires_at < before)
            && self
                .selectors
                .as_ref()
                .is_none_or(|(how, given)| how.matches(&agent.selectors, given))
    }
}

/// Reads Go's layout `2006-01-02 15:04:05 -0700 -07`; what cannot be read is no filter, as in SPIRE.
pub fn parse_time(text: &str) -> Option<i64> {
    let (time, zone_name) = text.rsplit_once(' ')?;
    let well_formed = zone_name.len() == 3
        && zone_name.starts_with(['+', '-'])
        && zone_name.bytes().skip(1).all(|b| b.is_ascii_digit());
    if !well_formed {
        return None;
    }
    let time = OffsetDateTime::parse(time, LAYOUT).ok()?;
    Some(time.unix_timestamp())
}

const LAYOUT: &[BorrowedFormatItem<'static>] = format_description!(
    "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_gos_layout_and_ignores_anything_else() {
        assert_eq!(parse_time("2026-01-31 10:00:00 +0000 +00"), Some(1_769_853_600));
        assert_eq!(parse_time("2026-01-31 12:00:00 +0200 +02"), Some(1_769_853_600));
        for text in [
            "",
            "2026-01-31",
            "2026-01-31T10:00:00Z",
            "2026-01-31 10:00:00 +0000",
            "2026-01-31 10:00:00 +0000 UTC",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
