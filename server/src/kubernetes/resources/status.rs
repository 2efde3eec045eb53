//! Conditions in the statuses of the three kinds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The one type of condition that we write.
pub const READY: &str = "Ready";

/// Longest message of a condition, in bytes.
const MAX_MESSAGE: usize = 1024;

/// One aspect of an object's state, in the usual form of Kubernetes.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` changed last, in RFC 3339.
    pub last_transition_time: String,
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// That is not known.
    Unknown,
}

/// The conditions with `Ready` as given: `Ok`, or why not as a word and a text. The time of the last
/// transition stays when the status does.
pub fn set_ready(
    before: &[Condition],
    ready: Result<(), (&str, &str)>,
    generation: Option<i64>,
    now: OffsetDateTime,
) -> Vec<Condition> {
    let (status, reason, message) = match ready {
        // Not empty: API servers as old as Kubernetes 1.20 make null of an empty text in a patch, and refuse that.
        Ok(()) => (ConditionStatus::True, "Applied", "the object is acted on"),
        Err((reason, message)) => (ConditionStatus::False, reason, message),
    };
    let old = before.iter().find(|condition| condition.kind == READY);
    let last_transition_time = match old {
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => now
            .replace_nanosecond(0)
            .unwrap_or(now)
            .format(&Rfc3339)
            .unwrap_or_default(),
    };
    let others = before.iter().filter(|condition| condition.kind != READY).cloned();
    let ready = Condition {
        kind: READY.to_owned(),
        status,
        reason: reason.to_owned(),
        message: cut(message).to_owned(),
        last_transition_time,
        observed_generation: generation,
    };
    others.chain([ready]).collect()
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_time_of_transition_moves_with_the_status_only() {
        let (first, later) = (
            datetime!(2030-01-01 00:00:00 UTC),
            datetime!(2030-01-02 00:00:00 UTC),
        );
        let broken = set_ready(&[], Err(("Invalid", "a")), Some(1), first);
        assert_eq!(broken[0].last_transition_time, "2030-01-01T00:00:00Z");
        let still = set_ready(&broken, Err(("Invalid", "b")), Some(2), later);
        assert_eq!(still[0].last_transition_time, "2030-01-01T00:00:00Z");
        assert_eq!(
            (still[0].message.as_str(), still[0].observed_generation),
            ("b", Some(2))
        );
        let fine = set_ready(&still, Ok(()), Some(2), later);
        assert_eq!(fine[0].last_transition_time, "2030-01-02T00:00:00Z");
        assert!(!fine[0].message.is_empty());
        assert_eq!(fine.len(), 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ä".repeat(MAX_MESSAGE);
        let cut = set_ready(
            &[],
            Err(("Invalid", &long)),
            None,
            datetime!(2030-01-01 00:00:00 UTC),
        );
        assert_eq!(cut[0].message.len(), MAX_MESSAGE);
        let odd = format!("x{long}");
        let cut = set_ready(
            &[],
            Err(("Invalid", &odd)),
            None,
            datetime!(2030-01-01 00:00:00 UTC),
        );
        assert_eq!(cut[0].message.len(), MAX_MESSAGE - 1);
    }
}
