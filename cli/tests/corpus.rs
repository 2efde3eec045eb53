//! Replays the fuzzer's corpus for the targets that enter the agent and the server; `tests/corpus` has the others.
#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../tests/fuzz/targets/agent.rs"]
mod agent;
#[path = "../../tests/fuzz/targets/sds.rs"]
mod sds;
#[path = "../../tests/fuzz/targets/server.rs"]
mod server;
#[path = "../../tests/fuzz/targets/workload.rs"]
mod workload;

/// How many cuts and how many flips are tried of each file.
const VARIANTS: usize = 48;

#[test]
fn every_file_of_the_corpus_passes_its_target() {
    for (name, run) in targets() {
        let files = files(name);
        assert!(files.len() >= 2, "{name} has no corpus");
        for path in files {
            println!("{}", path.display());
            run(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn files_cut_short_or_with_a_bit_flipped_pass_too() {
    for (name, run) in targets() {
        for path in files(name) {
            println!("{}", path.display());
            let whole = fs::read(path).unwrap();
            for at in (0..whole.len()).step_by(whole.len() / VARIANTS + 1) {
                run(&whole[..at]);
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                run(&flipped);
            }
        }
    }
}

fn targets() -> impl Iterator<Item = &'static agent::Target> {
    agent::TARGETS
        .iter()
        .chain(sds::TARGETS)
        .chain(server::TARGETS)
        .chain(workload::TARGETS)
}

fn files(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fuzz/corpus")
        .join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder of a corpus")
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    paths.sort();
    paths
}
