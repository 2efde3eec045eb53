//! Entries in a form in which those of two servers can be compared: everything but their own ids, times and revisions.

use serde_json::Value;

use super::TRUST_DOMAIN;

/// What an entry gives, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) spiffe_id: String,
    pub(super) parent_id: String,
    /// Sorted: they are a set.
    pub(super) selectors: Vec<String>,
    pub(super) x509_svid_ttl: i64,
    pub(super) jwt_svid_ttl: i64,
    /// In their order: the first is the common name.
    pub(super) dns_names: Vec<String>,
    /// Sorted: they are a set.
    pub(super) federates_with: Vec<String>,
    pub(super) hint: String,
    /// Those of `admin`, `downstream` and `store_svid` that are set.
    pub(super) flags: Vec<&'static str>,
}

impl Seen {
    /// An entry for the selectors below the parent, both without the trust domain, with nothing else.
    pub(super) fn new(path: &str, parent: &str, selectors: &[&str]) -> Self {
        let mut selectors: Vec<String> = selectors.iter().map(|text| (*text).to_owned()).collect();
        selectors.sort();
        Seen {
            spiffe_id: format!("spiffe://{TRUST_DOMAIN}{path}"),
            parent_id: format!("spiffe://{TRUST_DOMAIN}{parent}"),
            selectors,
            ..Seen::default()
        }
    }

    fn of(entry: &Value) -> Self {
        let id = |field: &str| {
            let id = &entry[field];
            format!("spiffe://{}{}", text(&id["trust_domain"]), text(&id["path"]))
        };
        let list = |field: &str| -> Vec<String> {
            let items = entry[field].as_array();
            items.into_iter().flatten().map(text).collect()
        };
        let selectors = entry["selectors"].as_array().into_iter().flatten();
        let mut selectors: Vec<String> = selectors
            .map(|selector| format!("{}:{}", text(&selector["type"]), text(&selector["value"])))
            .collect();
        selectors.sort();
        let mut federates_with = list("federates_with");
        federates_with.sort();
        let is_set = |field: &&str| entry[*field] == true;
        Seen {
            spiffe_id: id("spiffe_id"),
            parent_id: id("parent_id"),
            selectors,
            x509_svid_ttl: entry["x509_svid_ttl"].as_i64().unwrap_or_default(),
            jwt_svid_ttl: entry["jwt_svid_ttl"].as_i64().unwrap_or_default(),
            dns_names: list("dns_names"),
            federates_with,
            hint: entry["hint"].as_str().unwrap_or_default().to_owned(),
            flags: ["admin", "downstream", "store_svid"]
                .into_iter()
                .filter(is_set)
                .collect(),
        }
    }
}

/// The entries whose id begins with `prefix`, sorted, of what `entry show -output json` prints. What the agents' test
/// declares is left out.
pub(super) fn seen(shown: &str, prefix: &str) -> Vec<Seen> {
    let shown: Value = serde_json::from_str(shown).expect("entries are shown as JSON");
    let entries = shown["entries"].as_array().into_iter().flatten();
    let mut seen: Vec<Seen> = entries
        .filter(|entry| text(&entry["id"]).starts_with(prefix))
        .map(Seen::of)
        .filter(|seen| !seen.spiffe_id.contains(super::agent::PATH))
        .collect();
    seen.sort();
    seen
}

/// What is in one list and not in the other, for people.
pub(super) fn difference(one: (&str, &[Seen]), other: (&str, &[Seen])) -> String {
    let lacks = |(name, list): (&str, &[Seen]), (_, beside): (&str, &[Seen])| {
        let only = list.iter().filter(|seen| !beside.contains(seen));
        only.map(|seen| format!("only {name}: {seen:?}\n"))
            .collect::<String>()
    };
    lacks(one, other) + &lacks(other, one)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
