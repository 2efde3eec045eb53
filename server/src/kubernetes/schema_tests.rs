//! Specs as an API server with rules in CEL checks them, beside `admission`: what the definitions refuse is refused here
//! too, on the same field, and what is taken here passes there.

use cel::{Context, Program};
use regex::Regex;
use serde_json::{Value, json};

use super::admission;
use super::resources::definitions;

/// Who refuses a spec, by the field.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Good,
    /// A rule in CEL and `admission`.
    Rule(&'static str),
    /// Another word of the schema and `admission`.
    Schema(&'static str),
    /// `admission` alone: no schema can say it.
    Admission(&'static str),
}

use Verdict::{Admission, Good, Rule, Schema};

#[test]
fn rules_in_cel_and_admission_agree_on_rules() {
    let base = json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/x"});
    let templates = |templates: &[&str]| json!({ "workloadSelectorTemplates": templates });
    compare(
        "clusterspiffeids",
        base,
        &|spec| {
            admission::rule(&serde_json::from_value(spec)?)
                .map(drop)
                .map_err(Into::into)
        },
        vec![
            (json!({}), Good),
            (templates(&[]), Good),
            (
                templates(&[
                    "k8s:ns:{{ .PodMeta.Namespace }}",
                    "{{ .PodMeta.Annotations.selector }}",
                ]),
                Good,
            ),
            (
                templates(&["k8s:ns:a", "nocolon"]),
                Rule("workloadSelectorTemplates"),
            ),
            (templates(&[""]), Rule("workloadSelectorTemplates")),
            (
                templates(&["{ .PodMeta.Name }"]),
                Rule("workloadSelectorTemplates"),
            ),
            (templates(&["a:{{ if }}"]), Admission("workloadSelectorTemplates")),
            (json!({"spiffeIDTemplate": ""}), Schema("spiffeIDTemplate")),
            (json!({"hint": "h".repeat(1025)}), Schema("hint")),
            (
                json!({"dnsNameTemplates": vec!["a"; 257]}),
                Schema("dnsNameTemplates"),
            ),
            (
                json!({"federatesWith": vec!["a.example"; 257]}),
                Schema("federatesWith"),
            ),
            (json!({"ttl": "1 hour"}), Admission("ttl")),
        ],
    );
}

#[test]
fn rules_in_cel_and_admission_agree_on_static_entries() {
    let base = json!({
        "spiffeID": "spiffe://example.org/db", "parentID": "spiffe://example.org/spire/agent/a",
        "selectors": ["unix:uid:70"],
    });
    compare(
        "clusterstaticentries",
        base,
        &|spec| {
            admission::static_entry(&serde_json::from_value(spec)?)
                .map(drop)
                .map_err(Into::into)
        },
        vec![
            (json!({}), Good),
            (
                json!({"selectors": ["unix:uid:70", "k8s:pod-label:a:b", "x: "]}),
                Good,
            ),
            (json!({"spiffeID": "http://example.org/db"}), Rule("spiffeID")),
            (json!({"spiffeID": ""}), Rule("spiffeID")),
            (json!({"spiffeID": "SPIFFE://example.org/db"}), Rule("spiffeID")),
            (json!({"parentID": "x"}), Rule("parentID")),
            (json!({"selectors": ["unix"]}), Rule("selectors")),
            (json!({"selectors": [":70"]}), Rule("selectors")),
            (json!({"selectors": ["unix:"]}), Rule("selectors")),
            (json!({"selectors": ["unix:uid:70", ""]}), Rule("selectors")),
            (
                json!({"spiffeID": format!("spiffe://example.org/{}", "a".repeat(2048))}),
                Schema("spiffeID"),
            ),
            (
                json!({"selectors": vec!["unix:uid:70"; 257]}),
                Schema("selectors"),
            ),
            (json!({"selectors": []}), Admission("selectors")),
            (
                json!({"spiffeID": "spiffe://example.org/../db"}),
                Admission("spiffeID"),
            ),
            (json!({"dnsNames": ["-bad-.example"]}), Admission("dnsNames")),
        ],
    );
}

#[test]
fn rules_in_cel_and_admission_agree_on_federations() {
    const ID: &str = "bundleEndpointProfile.endpointSPIFFEID";
    let base = json!({
        "trustDomain": "partner.example", "bundleEndpointURL": "https://partner.example/bundle",
        "bundleEndpointProfile": {"type": "https_web"},
    });
    let url = |url: &str| json!({ "bundleEndpointURL": url });
    let web = |id: &str| json!({"bundleEndpointProfile": {"type": "https_web", "endpointSPIFFEID": id}});
    let spiffe =
        |id: &str| json!({"bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": id}});
    compare(
        "clusterfederatedtrustdomains",
        base,
        &|spec| {
            admission::federation(&serde_json::from_value(spec)?)
                .map(drop)
                .map_err(Into::into)
        },
        vec![
            (json!({}), Good),
            (web(""), Good),
            (spiffe("spiffe://partner.example/spire/server"), Good),
            (url("https://partner.example:8443"), Good),
            (url("https://[2001:db8::1]:8443/a?b=c"), Good),
            (url("http://partner.example"), Rule("bundleEndpointURL")),
            (url("HTTP://partner.example"), Rule("bundleEndpointURL")),
            (url("https://"), Rule("bundleEndpointURL")),
            (url("https:///bundle"), Rule("bundleEndpointURL")),
            (url("https://?a"), Rule("bundleEndpointURL")),
            (url("https://u:p@partner.example"), Rule("bundleEndpointURL")),
            (url(" https://partner.example"), Rule("bundleEndpointURL")),
            (
                json!({"bundleEndpointProfile": {"type": "https_spiffe"}}),
                Rule(ID),
            ),
            (spiffe(""), Rule(ID)),
            (spiffe("partner.example/spire/server"), Rule(ID)),
            (web("spiffe://partner.example/spire/server"), Rule(ID)),
            (json!({"trustDomain": "no/slash"}), Schema("trustDomain")),
            (json!({"trustDomain": "UPPER"}), Schema("trustDomain")),
            (json!({"trustDomain": ""}), Schema("trustDomain")),
            (url("https://:8443"), Admission("bundleEndpointURL")),
            (
                url("https://partner.example:99999"),
                Admission("bundleEndpointURL"),
            ),
            (spiffe("spiffe://"), Admission(ID)),
            (json!({"trustDomainBundle": "{"}), Admission("trustDomainBundle")),
        ],
    );
}

/// What none of the tables has would go unnoticed.
#[test]
fn every_rule_of_the_definitions_is_compiled_and_run() {
    let all: Vec<Value> = definitions()
        .iter()
        .map(|definition| serde_json::to_value(definition).unwrap())
        .collect();
    let mut expressions = Vec::new();
    for definition in &all {
        collect(definition, &mut expressions);
    }
    assert_eq!(expressions.len(), 7, "{expressions:?}");
    for expression in expressions {
        Program::compile(&expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    }
}

type Check<'a> = &'a dyn Fn(Value) -> anyhow::Result<()>;

fn compare(plural: &str, base: Value, admission: Check<'_>, cases: Vec<(Value, Verdict)>) {
    let all = definitions();
    let definition = all.iter().find(|one| one.spec.names.plural == plural).unwrap();
    let definition = serde_json::to_value(definition).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for (change, verdict) in cases {
        let mut spec = base.clone();
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut found = Found::default();
        check(&spec, schema, "", &mut found);
        let ours = admission(spec).err().map(|error| error.to_string());
        let fits = match verdict {
            Good => found.rules.is_empty() && found.schema.is_empty() && ours.is_none(),
            Admission(field) => found.rules.is_empty() && found.schema.is_empty() && names(&ours, field),
            Rule(field) => found.schema.is_empty() && is_of(&found.rules, field) && names(&ours, field),
            Schema(field) => is_of(&found.schema, field) && names(&ours, field),
        };
        let change = change.to_string();
        let change = &change[..change.len().min(200)];
        assert!(
            fits,
            "{plural}: {change}: want {verdict:?}, found {found:?}, admission: {ours:?}"
        );
    }
}

/// Where the schema refuses a value, each by its path.
#[derive(Debug, Default)]
struct Found {
    rules: Vec<String>,
    schema: Vec<String>,
}

/// One place, which is the field or has it.
fn is_of(places: &[String], field: &str) -> bool {
    matches!(places, [place] if place == field || field.strip_prefix(place.as_str()).is_some_and(|rest| rest.starts_with('.')))
}

fn names(refusal: &Option<String>, field: &str) -> bool {
    let prefix = format!("spec.{field}: ");
    refusal.as_ref().is_some_and(|text| text.starts_with(&prefix))
}

/// As an API server does it: what is absent is not looked at, patterns match anywhere in a text, and lengths are counted
/// in characters.
fn check(value: &Value, schema: &Value, path: &str, found: &mut Found) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    let at_most = |key: &str, count: usize| schema[key].as_u64().is_none_or(|most| count as u64 <= most);
    let fits = match (value, schema["type"].as_str()) {
        (Value::Object(object), Some("object")) => {
            for (key, value) in object {
                let inner = &schema["properties"][key];
                assert!(!inner.is_null(), "{path}.{key} is not in the schema");
                check(value, inner, &below(key), found);
            }
            let required = schema["required"].as_array().into_iter().flatten();
            required
                .filter_map(Value::as_str)
                .all(|key| object.contains_key(key))
        }
        (Value::Array(list), Some("array")) => {
            for value in list {
                check(value, &schema["items"], path, found);
            }
            at_most("maxItems", list.len())
        }
        (Value::String(text), Some("string")) => {
            let length = text.chars().count();
            let pattern = schema["pattern"].as_str();
            at_most("maxLength", length)
                && schema["minLength"]
                    .as_u64()
                    .is_none_or(|least| length as u64 >= least)
                && pattern.is_none_or(|pattern| Regex::new(pattern).unwrap().is_match(text))
                && schema["enum"]
                    .as_array()
                    .is_none_or(|choices| choices.contains(value))
        }
        (Value::Bool(_), Some("boolean")) => true,
        _ => false,
    };
    if !fits {
        found.schema.push(path.to_owned());
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if !holds(rule["rule"].as_str().unwrap(), value) {
            found.rules.push(path.to_owned());
        }
    }
}

fn holds(expression: &str, value: &Value) -> bool {
    let program = Program::compile(expression).unwrap();
    let mut context = Context::default();
    context.add_variable("self", value).unwrap();
    match program.execute(&context) {
        Ok(cel::Value::Bool(holds)) => holds,
        other => panic!("{expression} of {value}: {other:?}"),
    }
}

fn collect(node: &Value, expressions: &mut Vec<String>) {
    if let Some(object) = node.as_object() {
        for rule in object
            .get("x-kubernetes-validations")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            expressions.push(rule["rule"].as_str().unwrap().to_owned());
        }
        object.values().for_each(|inner| collect(inner, expressions));
    } else if let Some(list) = node.as_array() {
        list.iter().for_each(|inner| collect(inner, expressions));
    }
}
