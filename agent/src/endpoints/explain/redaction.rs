//! Values of selectors that are hidden in the answers of `finial why`.

use finial_identity::selector::Selector;

/// What is hidden unless the configuration says otherwise: the environment of containers holds secrets.
const DEFAULT: &[&str] = &["docker:env"];

/// Beginnings of selectors whose values are hidden, as `docker:env` or `k8s:pod-label:secret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction(Vec<String>);

impl Default for Redaction {
    fn default() -> Self {
        Self(DEFAULT.iter().map(ToString::to_string).collect())
    }
}

impl Redaction {
    /// Hides the values behind these beginnings.
    pub fn new(prefixes: Vec<String>) -> Self {
        Self(prefixes)
    }

    /// The selector as text. Of a hidden one the name stays: what stands before the value that was asked to be hidden.
    pub fn show(&self, selector: &Selector) -> String {
        let text = selector.to_string();
        let hides = |prefix: &&String| {
            let rest = text.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || prefix.ends_with(':') || rest.starts_with([':', '=']))
        };
        match self.0.iter().filter(hides).max_by_key(|prefix| prefix.len()) {
            None => text,
            Some(prefix) => {
                let rest = text.get(prefix.len()..).unwrap_or_default();
                // `docker:env:NAME=value`: the name helps, the value is the secret.
                match rest.split_once('=') {
                    Some((name, _value)) => format!("{prefix}{name}=…"),
                    None => format!("{}:…", prefix.trim_end_matches(':')),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(redaction: &Redaction, text: &str) -> String {
        redaction.show(&Selector::parse(text).unwrap())
    }

    #[test]
    fn hides_values_and_keeps_names() {
        let redaction = Redaction::default();
        assert_eq!(
            shown(&redaction, "docker:env:API_KEY=secret=x"),
            "docker:env:API_KEY=…"
        );
        assert_eq!(shown(&redaction, "docker:env:odd"), "docker:env:…");
        assert_eq!(shown(&redaction, "docker:environment:x"), "docker:environment:x");
        assert_eq!(shown(&redaction, "unix:uid:1"), "unix:uid:1");
        let own = Redaction::new(vec!["k8s:pod-label:key".to_owned(), "unix".to_owned()]);
        assert_eq!(shown(&own, "k8s:pod-label:key:v"), "k8s:pod-label:key:…");
        assert_eq!(shown(&own, "k8s:pod-label:keys:v"), "k8s:pod-label:keys:v");
        assert_eq!(shown(&own, "unix:uid:1"), "unix:…");
        assert_eq!(shown(&own, "docker:env:A=b"), "docker:env:A=b");
    }
}
