//! Label selectors of Kubernetes, checked and ready to match.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector; all of its terms must hold. Without terms it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelFilter {
    terms: Vec<(String, Term)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelFilter {
    /// Checks a selector; an absent one selects everything.
    ///
    /// # Errors
    /// Which term is none that Kubernetes would take.
    pub fn of(selector: Option<&LabelSelector>) -> Result<Self, String> {
        let Some(selector) = selector else {
            return Ok(Self::default());
        };
        let mut terms = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            check_key(key)?;
            check_value(value)?;
            terms.push((key.clone(), Term::In(vec![value.clone()])));
        }
        for expression in selector.match_expressions.iter().flatten() {
            let key = &expression.key;
            check_key(key)?;
            let values = expression.values.clone().unwrap_or_default();
            values.iter().try_for_each(|value| check_value(value))?;
            let term = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Term::In(values),
                ("NotIn", false) => Term::NotIn(values),
                ("Exists", true) => Term::Exists,
                ("DoesNotExist", true) => Term::DoesNotExist,
                ("In" | "NotIn", true) => {
                    return Err(format!("{} of label {key:?} needs values", expression.operator));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(format!(
                        "{} of label {key:?} takes no values",
                        expression.operator
                    ));
                }
                (other, _) => return Err(format!("{other:?} is not an operator of label selectors")),
            };
            terms.push((key.clone(), term));
        }
        Ok(Self { terms })
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.terms.iter().all(|(key, term)| term.holds(labels.get(key)))
    }

    /// The terms that do not hold, in the order of the selector: the label's key, and what is wanted in words.
    pub fn failing<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = (&'a str, String)> {
        self.terms
            .iter()
            .filter(|(key, term)| !term.holds(labels.get(key)))
            .map(|(key, term)| (key.as_str(), term.to_string()))
    }
}

impl Term {
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(values) => match values.as_slice() {
                [one] => write!(f, "{one:?}"),
                values => write!(f, "one of {values:?}"),
            },
            Self::NotIn(values) => write!(f, "none of {values:?}"),
            Self::Exists => f.write_str("any value"),
            Self::DoesNotExist => f.write_str("none"),
        }
    }
}

/// `name` or `prefix/name`: the prefix a DNS name, the name at most 63 characters.
fn check_key(key: &str) -> Result<(), String> {
    let refuse = || format!("{key:?} is not a label's key");
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_prefix = |prefix: &str| {
        prefix.len() <= 253
            && prefix.split('.').all(|part| {
                is_bounded_by_alphanumerics(part)
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            })
    };
    if !is_name(name) || prefix.is_some_and(|prefix| !is_prefix(prefix)) {
        return Err(refuse());
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(format!("{value:?} is not a label's value"))
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 63
        && is_bounded_by_alphanumerics(name)
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_bounded_by_alphanumerics(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    edge(text.as_bytes().first()) && edge(text.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn filter(selector: Value) -> Result<LabelFilter, String> {
        LabelFilter::of(Some(&serde_json::from_value(selector).unwrap()))
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn terms_select_as_in_kubernetes() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        let none = labels(&[]);
        let expression = |operator: &str, values: &[&str]| {
            let mut term = json!({"key": "app", "operator": operator});
            if !values.is_empty() {
                term["values"] = json!(values);
            }
            json!({"matchExpressions": [term]})
        };
        for (selector, of_web, of_none) in [
            (json!({}), true, true),
            (json!({"matchLabels": {"app": "web"}}), true, false),
            (
                json!({"matchLabels": {"app": "web", "tier": "back"}}),
                false,
                false,
            ),
            (expression("In", &["a", "web"]), true, false),
            (expression("In", &["a"]), false, false),
            (expression("NotIn", &["web"]), false, true),
            (expression("NotIn", &["a"]), true, true),
            (expression("Exists", &[]), true, false),
            (expression("DoesNotExist", &[]), false, true),
            (
                json!({"matchLabels": {"tier": "front"}, "matchExpressions": [{"key": "app", "operator": "Exists"}]}),
                true,
                false,
            ),
        ] {
            let filter = filter(selector.clone()).unwrap();
            assert_eq!(filter.matches(&web), of_web, "{selector}");
            assert_eq!(filter.matches(&none), of_none, "{selector}");
        }
        assert!(LabelFilter::of(None).unwrap().matches(&none));
    }

    #[test]
    fn terms_that_fail_are_told_with_what_they_want() {
        let filter = filter(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "team", "operator": "NotIn", "values": ["x"]},
                {"key": "zone", "operator": "Exists"}
            ]
        }))
        .unwrap();
        let failing = |pairs: &[(&str, &str)]| {
            let labels = labels(pairs);
            let texts = filter
                .failing(&labels)
                .map(|(key, wanted)| format!("{key}: {wanted}"));
            texts.collect::<Vec<_>>()
        };
        assert_eq!(
            failing(&[("old", "1"), ("team", "x")]),
            [
                "app: \"web\"",
                "tier: one of [\"a\", \"b\"]",
                "old: none",
                "team: none of [\"x\"]",
                "zone: any value"
            ]
        );
        assert!(failing(&[("app", "web"), ("tier", "b"), ("zone", "1")]).is_empty());
    }

    #[test]
    fn selectors_that_kubernetes_would_not_take_are_refused() {
        for (selector, part) in [
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}),
                "operator",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "needs values",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
                "takes no values",
            ),
            (json!({"matchLabels": {"a b": "c"}}), "key"),
            (json!({"matchLabels": {"/a": "c"}}), "key"),
            (json!({"matchLabels": {"UP.example/a": "c"}}), "key"),
            (json!({"matchLabels": {"a": "-c"}}), "value"),
            (json!({"matchLabels": {"a": "c".repeat(64)}}), "value"),
        ] {
            let error = filter(selector.clone()).unwrap_err();
            assert!(error.contains(part), "{selector}: {error}");
        }
    }
}
