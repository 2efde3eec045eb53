//! Every rule that binds us is named by a test, or listed as not observable with the reason.
//!
//! A test names rules in a line of its doc comment: `/// Covers ID-01, ID-02.` The rows of the table of edge cases
//! are named so as well (`Covers E-23.`), or by a part of the test's name: `e23`, `e_23`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const RULES: &str = include_str!("rules.txt");
const NOT_OBSERVABLE: &str = include_str!("not_observable.txt");

/// The rows of the table of edge cases: E-01 to this one.
const EDGE_CASES: u32 = 60;

const MARKER: &str = "/// Covers ";

#[test]
fn coverage() {
    let rules = rules();
    let not_observable = not_observable();
    let mut problems = Vec::new();
    let mut covered: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let scan = Scan::of(&text);
        for line in scan.stray {
            problems.push(format!(
                "{path}:{line}: a marker must stand directly above a test"
            ));
        }
        for (name, ids) in scan.tests {
            for id in ids {
                covered.entry(id).or_default().push(format!("{path} {name}"));
            }
        }
    }

    let wanted = wanted(&rules);
    for id in &wanted {
        match (covered.contains_key(id), not_observable.contains_key(id)) {
            (false, false) => problems.push(format!(
                "{id}: no test names it and it is not listed as not observable"
            )),
            (true, true) => problems.push(format!(
                "{id}: listed as not observable, but {:?} observes it",
                covered[id]
            )),
            _ => {}
        }
    }
    let is_edge_case = |id: &str| number("E-", id).is_some_and(|number| (1..=EDGE_CASES).contains(&number));
    let known = |id: &str| rules.contains_key(id) || is_edge_case(id);
    for (id, tests) in covered.iter().filter(|(id, _)| !known(id)) {
        problems.push(format!("{id}: no such rule, but {tests:?} names it"));
    }
    for id in not_observable.keys().filter(|id| !wanted.contains(*id)) {
        problems.push(format!(
            "{id}: not observable, but no MUST and no edge case has that id"
        ));
    }

    println!("{}", table(&wanted, &covered, &not_observable));
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

#[test]
fn a_marker_counts_only_directly_above_a_test() {
    let text = concat!(
        "/// Says something.\n/// Covers ID-01, ID-02.\n#[test]\nfn e01_e_02_first() {}\n\n",
        "#[tokio::test]\n/// Covers WL-01.\nasync fn second() {}\n\n",
        "/// Covers ID-03.\nfn no_test() {}\n\n",
        "/// Covers ID-04.\n\n#[test]\nfn apart() {}\n",
    );
    let scan = Scan::of(text);
    let tests: Vec<(&str, Vec<&str>)> = scan
        .tests
        .iter()
        .map(|(name, ids)| (name.as_str(), ids.iter().map(String::as_str).collect()))
        .collect();
    assert_eq!(
        tests,
        [
            ("e01_e_02_first", vec!["E-01", "E-02", "ID-01", "ID-02"]),
            ("second", vec!["WL-01"]),
            ("apart", vec![]),
        ]
    );
    assert_eq!(scan.stray, [10, 13]);
}

/// What a source file says about coverage.
#[derive(Debug, Default)]
struct Scan {
    /// Each test by name with the ids that it names.
    tests: Vec<(String, Vec<String>)>,
    /// Lines (from 1) of markers that belong to no test.
    stray: Vec<usize>,
}

impl Scan {
    fn of(text: &str) -> Self {
        let mut scan = Scan::default();
        let mut markers: Vec<(usize, Vec<String>)> = Vec::new();
        let mut is_test = false;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(ids) = line.strip_prefix(MARKER) {
                let ids = ids
                    .trim_end_matches('.')
                    .split(',')
                    .map(|id| id.trim().to_owned())
                    .collect();
                markers.push((index + 1, ids));
            } else if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if !line.starts_with("///") && !line.starts_with("#[") {
                let name = function_name(line).filter(|_| is_test);
                match name {
                    Some(name) => {
                        let mut ids = edge_cases_in(name);
                        ids.extend(markers.drain(..).flat_map(|(_, ids)| ids));
                        scan.tests.push((name.to_owned(), ids));
                    }
                    None => scan.stray.extend(markers.drain(..).map(|(line, _)| line)),
                }
                is_test = false;
            }
        }
        scan
    }
}

fn function_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// `e23_…` and `e_23_…`, anywhere in the name.
fn edge_cases_in(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('_').collect();
    let two_digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut found = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let digits = match part.strip_prefix('e') {
            Some("") => parts.get(at + 1).copied().unwrap_or_default(),
            Some(digits) => digits,
            None => continue,
        };
        if two_digits(digits) {
            found.push(format!("E-{digits}"));
        }
    }
    found
}

#[derive(Debug)]
struct Rule {
    level: &'static str,
}

fn rules() -> BTreeMap<&'static str, Rule> {
    let mut rules = BTreeMap::new();
    for line in lines(RULES) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, level, _binds, _section, ..] = words[..] else {
            panic!("rules.txt: four words are wanted: {line}")
        };
        assert!(
            ["MUST", "MUST_NOT", "SHOULD", "SHOULD_NOT", "req", "advice"].contains(&level),
            "rules.txt: unknown level: {line}"
        );
        assert!(
            rules.insert(id, Rule { level }).is_none(),
            "rules.txt: {id} stands twice"
        );
    }
    rules
}

/// What a test or a reason is wanted for: each MUST and each edge case.
fn wanted(rules: &BTreeMap<&str, Rule>) -> BTreeSet<String> {
    let musts = rules
        .iter()
        .filter(|(_, rule)| rule.level.starts_with("MUST"))
        .map(|(id, _)| (*id).to_owned());
    musts
        .chain((1..=EDGE_CASES).map(|number| format!("E-{number:02}")))
        .collect()
}

fn not_observable() -> BTreeMap<String, &'static str> {
    let mut reasons = BTreeMap::new();
    for line in lines(NOT_OBSERVABLE) {
        let (id, reason) = line.split_once(' ').unwrap_or((line, ""));
        assert!(
            reason.trim().len() > 10,
            "not_observable.txt: {id} needs a reason"
        );
        assert!(
            reasons.insert(id.to_owned(), reason.trim()).is_none(),
            "not_observable.txt: {id} stands twice"
        );
    }
    reasons
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn number(prefix: &str, id: &str) -> Option<u32> {
    id.strip_prefix(prefix)
        .filter(|digits| digits.len() == 2)?
        .parse()
        .ok()
}

/// One line a prefix, then the reasons.
fn table(
    wanted: &BTreeSet<String>,
    covered: &BTreeMap<String, Vec<String>>,
    not_observable: &BTreeMap<String, &str>,
) -> String {
    let mut out = String::from("document   MUST and MUST NOT rules, and edge cases (E)\n");
    let prefixes: BTreeSet<&str> = wanted.iter().filter_map(|id| id.split('-').next()).collect();
    for prefix in prefixes {
        let of_prefix = || wanted.iter().filter(|id| id.split('-').next() == Some(prefix));
        let tested = of_prefix().filter(|id| covered.contains_key(*id)).count();
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for id in of_prefix().filter(|id| !covered.contains_key(*id)) {
            by_reason
                .entry(not_observable.get(id).copied().unwrap_or("MISSING"))
                .or_default()
                .push(id);
        }
        let reasons: Vec<String> = by_reason
            .iter()
            .map(|(reason, ids)| format!("\n             {}: {reason}", ids.join(" ")))
            .collect();
        let hidden: usize = by_reason.values().map(Vec::len).sum();
        out += &format!(
            "{prefix:<10} covered {tested:>2} / not observable {hidden:>2}{}\n",
            reasons.concat()
        );
    }
    out
}

/// All Rust files of the repository's packages, with their path from the root.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie one level below the root");
    let mut files = Vec::new();
    for package in ["proto", "identity", "server", "agent", "cli", "tests"] {
        walk(&root.join(package), &mut files);
    }
    files.sort();
    assert!(
        files.len() > 100,
        "only {} Rust files found: the layout moved",
        files.len()
    );
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source file is readable UTF-8");
            let name = path
                .strip_prefix(root)
                .expect("walked below the root")
                .display()
                .to_string();
            (name, text)
        })
        .collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
