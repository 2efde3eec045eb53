//! The sample configurations of the documentation are what this program takes, in each of the three formats.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use finial_identity::settings::{Document, Format, Node, Value};

/// A program, the command that it is, and the page that explains its keys.
const SIDES: [(&str, &[&str], &str); 3] = [
    ("server", &["server"], "configuration.md"),
    ("agent", &["agent"], "configuration.md"),
    ("helper", &["agent", "helper"], "helper.md"),
];

#[test]
fn validate_accepts_every_sample() {
    for (side, command, _page) in SIDES {
        for format in ["conf", "json", "yaml"] {
            let path = sample(side, format);
            let output = Command::new(env!("CARGO_BIN_EXE_finial"))
                .args(command)
                .args(["validate", "-config"])
                .arg(&path)
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}: {printed}", path.display());
        }
    }
}

#[test]
fn samples_of_a_side_say_the_same_in_every_format() {
    for (side, ..) in SIDES {
        let of = |format| settings(&sample(side, format));
        let hcl = of("conf");
        assert!(hcl.len() > 20, "{side}: {hcl:?}");
        assert_eq!(hcl, of("json"), "{side}");
        assert_eq!(hcl, of("yaml"), "{side}");
    }
}

#[test]
fn every_key_of_the_samples_is_explained() {
    for (side, _command, name) in SIDES {
        let page = fs::read_to_string(docs().join(name)).unwrap();
        for (path, _value) in settings(&sample(side, "conf")) {
            let key = path.rsplit('/').next().unwrap_or_default();
            assert!(
                page.contains(&format!("`{key}`")),
                "docs/{name} does not explain {path}"
            );
        }
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn sample(side: &str, format: &str) -> PathBuf {
    docs().join("samples").join(format!("{side}.{format}"))
}

/// Every setting with the keys that lead to it and its value as text. Blocks, maps and lists of maps are alike.
fn settings(path: &Path) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(path).expect("a sample is readable");
    let document = Document::parse(&text, Format::from_path(path)).expect("a sample parses");
    let mut found = BTreeSet::new();
    walk(document.root(), String::new(), &mut found);
    found
}

fn walk(node: &Node, path: String, found: &mut BTreeSet<(String, String)>) {
    let mut add = |value: &str| {
        found.insert((path.clone(), value.to_owned()));
    };
    match &node.value {
        Value::Null => {}
        Value::Bool(value) => add(&value.to_string()),
        Value::Number(text) | Value::String(text) => add(text),
        Value::List(items) => items.iter().for_each(|item| walk(item, path.clone(), found)),
        Value::Map(entries) => {
            for (key, value) in entries {
                walk(value, format!("{path}/{key}"), found);
            }
        }
    }
}
