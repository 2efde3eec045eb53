//! Paths of the Kubernetes API.

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    pub api_version: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

impl Resource {
    /// `/api/v1/…` and `/apis/<group>/<version>/…`; none for what is not below these.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let api_version = match parts.next()? {
            "api" => parts.next()?.to_owned(),
            "apis" => format!("{}/{}", parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        let text = |n: usize| rest.get(n).map(|part| (*part).to_owned()).unwrap_or_default();
        // `namespaces/x` is a namespace, `namespaces/x/pods` what is in it.
        let is_inside = rest.first() == Some(&"namespaces") && rest.len() > 2 && rest[2] != "status";
        let (namespace, first) = if is_inside {
            (text(1), 2)
        } else {
            (String::new(), 0)
        };
        Some(Self {
            api_version,
            plural: text(first),
            namespace,
            name: text(first + 1),
            subresource: text(first + 2),
        })
    }
}

/// The plural of a kind.
pub(super) fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.as_str() {
        "endpoints" => lower,
        "clusterstaticentry" => "clusterstaticentries".to_owned(),
        _ if lower.ends_with('s') => lower + "es",
        _ => lower + "s",
    }
}
