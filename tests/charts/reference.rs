//! values.yaml, its schema and what users read name the same keys.
//!
//! After a change of values.yaml: `cargo test -p finial-tests --test charts -- --ignored` writes the tables again.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::engine::{chart, engine, repository};
use crate::values::{renamed, schema, walk};

const BEGIN: &str = "<!-- made from values.yaml -->";
const END: &str = "<!-- end -->";

/// Every value that has a comment, and that comment. Values below it belong to it.
pub fn documented() -> Vec<(String, String)> {
    let text = fs::read_to_string(chart().join("values.yaml")).expect("values.yaml is text");
    let (mut path, mut comment, mut found) = (Vec::new(), String::new(), Vec::new());
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim_start();
        if let Some(more) = line.strip_prefix("# ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(more);
            continue;
        }
        if let Some((key, _)) = line.split_once(':') {
            path.truncate(depth / 2);
            path.push(key);
            if !comment.is_empty() {
                found.push((path.join("."), comment.clone()));
            }
        }
        comment.clear();
    }
    found
}

#[test]
fn every_value_has_a_comment_line() {
    let Some(engine) = engine() else { return };
    let documented: BTreeSet<_> = documented().into_iter().map(|(path, _)| path).collect();
    let mut bare = Vec::new();
    leaves(&engine.defaults(), "", &documented, &mut bare);
    assert!(bare.is_empty(), "without a comment in values.yaml: {bare:?}");
}

#[test]
fn schema_and_values_name_the_same_keys_and_say_the_same() {
    let mut in_schema = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        if let Some(says) = node["description"].as_str() {
            in_schema.push((path.to_owned(), says.to_owned()));
        }
    });
    in_schema.sort();
    let mut in_values = documented();
    in_values.sort();
    assert_eq!(in_schema, in_values);
    // And nothing that is neither described, nor gone, nor a group of such.
    walk(&schema(), "", &mut |path, node| {
        let known = node.get("description").is_some() || node["deprecated"] == true;
        assert!(
            known || node.get("properties").is_some(),
            "{path} is not in values.yaml"
        );
    });
}

#[test]
fn the_readme_of_the_chart_has_every_value_with_its_default() {
    let Some(engine) = engine() else { return };
    let (path, table) = values_table(&engine.defaults());
    assert_eq!(
        between(&path),
        table,
        "{} is old; see the head of this file",
        path.display()
    );
}

#[test]
fn the_documentation_has_every_old_name() {
    let (path, table) = renamed_table();
    assert_eq!(
        between(&path),
        table,
        "{} is old; see the head of this file",
        path.display()
    );
}

/// A page that names a value names one that there is.
#[test]
fn values_in_the_documentation_exist() {
    let text = fs::read_to_string(repository().join("docs/kubernetes.md")).expect("the page is text");
    let (before, rest) = text.split_once(BEGIN).expect("the table of old names");
    let (_, after) = rest.split_once(END).expect("its end");
    let mut known = BTreeSet::new();
    walk(&schema(), "", &mut |path, node| {
        if node["deprecated"] != true {
            known.insert(path.to_owned());
        }
    });
    let tops = [
        "global.",
        "image.",
        "crds.",
        "networkPolicy.",
        "spire-server.",
        "spire-agent.",
        "spiffe-csi-driver.",
    ];
    let mut looked_at = 0;
    for part in [before, after] {
        let words = part.split(|c: char| !(c.is_alphanumeric() || "-._".contains(c)));
        for word in words.map(|word| word.trim_matches('.')) {
            if tops.iter().any(|top| word.starts_with(top)) && !word.ends_with(".sock") {
                looked_at += 1;
                assert!(known.contains(word), "docs/kubernetes.md names {word}");
            }
        }
    }
    assert!(looked_at > 10, "{looked_at}");
}

#[test]
#[ignore = "writes the tables of README.md and docs/kubernetes.md"]
fn write_the_tables() {
    let Some(engine) = engine() else { return };
    for (path, table) in [values_table(&engine.defaults()), renamed_table()] {
        let text = fs::read_to_string(&path).expect("the page is text");
        let (head, rest) = text.split_once(BEGIN).expect("the mark before the table");
        let (_, tail) = rest.split_once(END).expect("the mark after the table");
        fs::write(&path, format!("{head}{BEGIN}\n{table}\n{END}{tail}")).expect("write the page");
    }
}

fn values_table(defaults: &Value) -> (PathBuf, String) {
    let mut table = String::from("| value | default | what it does |\n|---|---|---|");
    for (path, comment) in documented() {
        let default = defaults
            .pointer(&format!("/{}", path.replace('.', "/")))
            .unwrap_or(&Value::Null);
        // A pipe ends a cell.
        let default = default.to_string().replace('|', "\\|");
        table.push_str(&format!(
            "\n| `{path}` | `{default}` | {} |",
            comment.replace('|', "\\|")
        ));
    }
    (chart().join("README.md"), table)
}

fn renamed_table() -> (PathBuf, String) {
    let mut table = String::from("| value of SPIRE's charts | here |\n|---|---|");
    for (path, says) in renamed() {
        let says = says
            .strip_prefix(&format!("{path} is "))
            .expect("it begins with its name");
        table.push_str(&format!("\n| `{path}` | {says} |"));
    }
    (repository().join("docs/kubernetes.md"), table)
}

fn between(path: &PathBuf) -> String {
    let text = fs::read_to_string(path).expect("the page is text");
    let (_, rest) = text.split_once(BEGIN).expect("the mark before the table");
    let (table, _) = rest.split_once(END).expect("the mark after the table");
    table.trim().to_owned()
}

fn leaves(value: &Value, path: &str, documented: &BTreeSet<String>, bare: &mut Vec<String>) {
    if documented.contains(path) {
        return;
    }
    match value.as_object() {
        Some(object) if !object.is_empty() => {
            for (key, inner) in object {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(inner, &path, documented, bare);
            }
        }
        _ => bare.push(path.to_owned()),
    }
}
