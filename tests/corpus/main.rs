//! Replays the fuzzer's corpus with an ordinary compiler: every file of `tests/fuzz/corpus`, also truncated and with
//! bits flipped, goes through the functions that the fuzzer calls. Each must return.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/targets/mod.rs"]
mod targets;

mod seeds;

/// Targets that enter the agent or the server: their crates replay them.
const ELSEWHERE: &[&str] = &[
    "agent_config",
    "agent_data",
    "broker_reference",
    "container",
    "docker_answer",
    "helper_config",
    "mountinfo",
    "pod_list",
    "pod_record",
    "pod_template",
    "sds_delta",
    "sds_state_of_the_world",
    "server_config",
    "workload_files",
];

/// How many cuts and how many flips are tried of each file.
const VARIANTS: usize = 48;

#[test]
fn every_file_of_the_corpus_passes_its_target() {
    for (name, run) in targets::TARGETS {
        let files = files(&corpus().join(name));
        assert!(files.len() >= 2, "{name} has no corpus");
        for path in files {
            println!("{}", path.display());
            run(&fs::read(path).expect("a file of the corpus"));
        }
    }
}

#[test]
fn files_cut_short_or_with_a_bit_flipped_pass_too() {
    for (name, run) in targets::TARGETS {
        for path in files(&corpus().join(name)) {
            println!("{}", path.display());
            let whole = fs::read(path).expect("a file of the corpus");
            let step = whole.len() / VARIANTS + 1;
            for at in (0..whole.len()).step_by(step) {
                run(&whole[..at]);
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                run(&flipped);
            }
        }
    }
}

#[test]
fn every_corpus_has_a_target_and_small_files() {
    let known: BTreeSet<&str> = targets::TARGETS
        .iter()
        .map(|(name, _)| *name)
        .chain(ELSEWHERE.iter().copied())
        .collect();
    for folder in files(&corpus()) {
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name in ASCII");
        assert!(known.contains(name), "no target {name}");
        for path in files(&folder) {
            assert!(
                fs::metadata(&path).expect("a file").len() <= 4096,
                "{} is large",
                path.display()
            );
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    paths.sort();
    paths
}
