//! Values of selectors that are hidden in the answers of `finial why`.

use finial_identity::selector::Selector;

/// What is hidden unless the configuration says otherwise: the environment of containers holds secrets.
const DEFAULT: &[&str] = &[ENVIRONMENT];
/// What stands before `NAME=value` of a container's environment.
const ENVIRONMENT: &str = "docker:env";

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
                // `docker:env:NAME=value`: the name helps, the value is the secret. Elsewhere what stands before such a
                // sign is part of the value, as in `docker:label:note:a=b` or a path.
                match rest.split_once('=').filter(|_| is_of_environment(prefix)) {
                    Some((name, _value)) => format!("{prefix}{name}=…"),
                    None => format!("{}:…", prefix.trim_end_matches(':')),
                }
            }
        }
    }
}

/// Whether the selectors that begin so are variables of an environment, and their names are not told yet.
fn is_of_environment(prefix: &str) -> bool {
    let rest = prefix.strip_prefix(ENVIRONMENT);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !rest.contains('='))
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

    #[test]
    fn a_hidden_value_is_not_taken_for_a_name_because_it_has_the_sign_of_one() {
        let texts = [
            ("docker:label:note", "docker:label:note:secret=x"),
            ("systemd", "systemd:fragment_path:/secret=x/a"),
            ("unix:path", "unix:path:/secret/a=b"),
            ("k8s:pod-label:", "k8s:pod-label:token:c2VjcmV0=="),
            ("docker", "docker:env:secret=x"),
            ("docker:env:PATH=/bin", "docker:env:PATH=/bin:/secret=x"),
            ("docker:environment", "docker:environment:secret=x"),
        ];
        for (prefix, text) in texts {
            let shown = shown(&Redaction::new(vec![prefix.to_owned()]), text);
            let expected = format!("{}:…", prefix.trim_end_matches(':'));
            assert_eq!(shown, expected, "{text}");
        }
        let own = Redaction::new(vec!["docker:env:".to_owned(), "docker:env:API_KEY".to_owned()]);
        assert_eq!(shown(&own, "docker:env:API_KEY=secret"), "docker:env:API_KEY=…");
        assert_eq!(shown(&own, "docker:env:OTHER=secret"), "docker:env:OTHER=…");
    }
}
