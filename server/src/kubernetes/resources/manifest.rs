//! Writes JSON values as YAML in block style, for the chart's files. Strings that YAML could read as
//! anything else are quoted as in JSON, which is YAML too.

use std::fmt::Write;

use serde_json::Value;

/// The value as a YAML document.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0, false);
    text
}

/// Writes a value after `key:` or `-`, or at the start; `inline` when something stands before it.
fn write_value(text: &mut String, value: &Value, depth: usize, inline: bool) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (n, (key, value)) in map.iter().enumerate() {
                if !(inline && n == 0) {
                    indent(text, depth);
                }
                text.push_str(&scalar(key));
                text.push(':');
                write_member(text, value, depth + 1);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(text, depth);
                text.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        text.push(' ');
                        write_value(text, item, depth + 1, true);
                    }
                    other => write_member(text, other, depth + 1),
                }
            }
        }
        other => {
            // A document that is one scalar.
            write_member(text, other, depth);
        }
    }
}

fn write_member(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            write_value(text, value, depth, false);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            write_value(text, value, depth, false);
        }
        Value::Object(_) => text.push_str(" {}\n"),
        Value::Array(_) => text.push_str(" []\n"),
        Value::String(string) => {
            // Writing to a string cannot fail.
            let _ = writeln!(text, " {}", scalar(string));
        }
        other => {
            let _ = writeln!(text, " {other}");
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.push_str(&"  ".repeat(depth));
}

fn scalar(string: &str) -> String {
    let is_plain = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && string
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '-' | '_' | '/' | ','))
        && !string.ends_with(' ')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&string.to_ascii_lowercase().as_str());
    if is_plain {
        string.to_owned()
    } else {
        Value::String(string.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::settings::{Document, Format};
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_are_written_in_block_style() {
        let value = json!({"a": {"b": [1, "x y", {"c": true, "d": []}], "e": "no"}, "f-g": "a: b"});
        let expected =
            "a:\n  b:\n    - 1\n    - x y\n    - c: true\n      d: []\n  e: \"no\"\nf-g: \"a: b\"\n";
        assert_eq!(to_yaml(&value), expected);
    }

    #[test]
    fn every_definition_is_yaml_to_another_reader() {
        for (name, text) in super::super::manifests() {
            assert!(Document::parse(&text, Format::Yaml).is_ok(), "{name}");
        }
    }
}
