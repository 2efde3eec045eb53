//! The source files of the workspace, as text.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie one level below the root")
        .to_owned()
}

/// Every Rust file below `dir` (a path from the root), with its path from the root and its text.
pub fn rust_files(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&root().join(dir), &mut found);
    found.sort();
    assert!(
        !found.is_empty(),
        "no Rust file below {dir}: the layout moved and this test looks at nothing"
    );
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a source file is readable UTF-8");
            let name = path
                .strip_prefix(root())
                .expect("walked below the root")
                .to_string_lossy()
                .into_owned();
            (name, text)
        })
        .collect()
}

/// Whether the file is compiled into tests alone: a module folder above it, or its parent, declares its module (or
/// the folder's) under `#[cfg(test)]`.
pub fn is_for_tests(path: &str) -> bool {
    let Some((_, inner)) = path.split_once("/src/") else {
        return false;
    };
    let base = path.len() - inner.len();
    let ends = inner
        .match_indices('/')
        .map(|(at, _)| base + at)
        .chain([path.len()]);
    ends.into_iter()
        .any(|end| declared_for_tests(path[..end].trim_end_matches(".rs")))
}

/// Whether `module`, a path without ending, is declared as `#[cfg(test)] mod`.
fn declared_for_tests(module: &str) -> bool {
    let Some((folder, name)) = module.rsplit_once('/') else {
        return false;
    };
    let parents = [
        format!("{folder}/mod.rs"),
        format!("{folder}/lib.rs"),
        format!("{folder}/main.rs"),
        format!("{folder}.rs"),
    ];
    parents
        .iter()
        .filter_map(|parent| fs::read_to_string(root().join(parent)).ok())
        .any(|text| {
            text.match_indices("#[cfg(test)]").any(|(at, mark)| {
                let declaration = text[at + mark.len()..].trim_start();
                let declaration = declaration
                    .trim_start_matches("pub ")
                    .trim_start_matches("pub(crate) ");
                declaration
                    .strip_prefix("mod ")
                    .is_some_and(|rest| rest.starts_with(&format!("{name};")))
            })
        })
}

/// The part of a source file before its unit tests: before `#[cfg(test)] mod name {`. A declaration `mod name;` of
/// tests in another file ends nothing.
pub fn without_tests(text: &str) -> &str {
    let inline = text.match_indices("#[cfg(test)]\nmod ").find(|(at, _)| {
        let declaration = text[*at..].lines().nth(1).unwrap_or_default();
        declaration.trim_end().ends_with('{')
    });
    inline.map_or(text, |(at, _)| &text[..at])
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn only_an_inline_module_of_tests_ends_the_code() {
    let declared = "#[cfg(test)]\nmod tests;\nuse crate::a;\n";
    assert_eq!(without_tests(declared), declared);
    let inline = format!("{declared}#[cfg(test)]\nmod tests {{\n}}\n");
    assert_eq!(without_tests(&inline), declared);
}
