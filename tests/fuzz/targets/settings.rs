//! Configuration files in their three formats.

use finial_identity::settings::{Document, Format, Node, Problems, Section, Value, expand_env};
use serde_json::{Map, Value as Json};

pub fn run_hcl(data: &[u8]) {
    run(data, Format::Hcl);
}

pub fn run_json(data: &[u8]) {
    run(data, Format::Json);
}

pub fn run_yaml(data: &[u8]) {
    run(data, Format::Yaml);
}

fn run(data: &[u8], format: Format) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _expanded = expand_env(text, &|name| Some(format!("<{name}>")));
    let document = match Document::parse(text, format) {
        Ok(document) => document,
        Err(error) => {
            assert!(error.at.line >= 1 && error.at.column >= 1, "{error}");
            assert!(error.at.line <= text.split(['\n', '\r']).count() + 1, "{error}");
            return;
        }
    };
    assert_eq!(
        Document::parse(text, format).as_ref(),
        Ok(&document),
        "reads the same twice"
    );
    if let Some(json) = to_json(document.root()) {
        // The same tree written as JSON reads as the same tree, in both readers of JSON and in the one of YAML.
        let printed = json.to_string();
        for other in [Format::Json, Format::Hcl, Format::Yaml] {
            match Document::parse(&printed, other) {
                Ok(again) => assert!(same(again.root(), document.root()), "{other:?}: {printed}"),
                // YAML bounds depth and reads some escapes otherwise; what it reads must be the same.
                Err(_) if other == Format::Yaml => {}
                Err(error) => panic!("{other:?}: {error}: {printed}"),
            }
        }
    }
    let problems = Problems::new();
    read_every_way(document.section(&problems), document.root(), 0);
    let _report = problems.into_result();
}

/// Reads each key as if it were of every kind; all that may happen is a problem in the list.
fn read_every_way(section: Section<'_>, node: &Node, depth: usize) {
    let Value::Map(entries) = &node.value else {
        return section.finish();
    };
    for (key, node) in entries.iter().take(16) {
        let _ = (
            section.has(key),
            section.string(key),
            section.bool(key),
            section.u16(key),
            section.u32(key),
        );
        let _ = (
            section.i64(key),
            section.usize(key),
            section.duration(key),
            section.strings(key),
        );
        let _ = (section.required_string(key), section.nodes(key).len());
        if depth < 3 {
            if let Some(inner) = section.section(key) {
                read_every_way(inner, node, depth + 1);
            }
            for inner in section.sections(key) {
                read_every_way(inner, node, depth + 1);
            }
            for (_, inner) in section.labelled(key) {
                inner.finish();
            }
        }
    }
    section.finish();
}

/// The tree as JSON; none when JSON cannot say it: repeated keys, or numbers that only HCL and YAML write so.
fn to_json(node: &Node) -> Option<Json> {
    Some(match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(text) => {
            let number: serde_json::Number = text.parse().ok()?;
            if number.to_string() != *text {
                return None;
            }
            Json::Number(number)
        }
        Value::String(text) => Json::String(text.clone()),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                if map.keys().any(|known| known.eq_ignore_ascii_case(key)) {
                    return None;
                }
                map.insert(key.clone(), to_json(value)?);
            }
            Json::Object(map)
        }
    })
}

/// Equal but for the order of keys, which JSON printed here sorts.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| {
                    b.iter()
                        .any(|(other, against)| key == other && same(value, against))
                })
        }
        (a, b) => a == b,
    }
}
