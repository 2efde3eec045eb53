//! One libFuzzer program for all targets; `FINIAL_FUZZ_TARGET` names the one to run.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets/agent.rs"]
mod agent;
#[path = "../targets/mod.rs"]
mod identity;
#[path = "../targets/sds.rs"]
mod sds;
#[path = "../targets/server.rs"]
mod server;
#[path = "../targets/workload.rs"]
mod workload;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FINIAL_FUZZ_TARGET").unwrap_or_default();
    let all = || {
        [
            identity::TARGETS,
            agent::TARGETS,
            sds::TARGETS,
            server::TARGETS,
            workload::TARGETS,
        ]
        .into_iter()
        .flatten()
    };
    match all().find(|(known, _)| *known == name) {
        Some((_, run)) => *run,
        None => {
            let names: Vec<&str> = all().map(|(known, _)| *known).collect();
            panic!("FINIAL_FUZZ_TARGET={name:?} is none of {}", names.join(" "))
        }
    }
});

fuzz_target!(|data: &[u8]| (*TARGET)(data));
