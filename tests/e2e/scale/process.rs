//! What the server uses.

use std::time::Duration;

/// Resident memory, now and at most.
pub struct Memory {
    pub rss: u64,
    pub peak: u64,
}

/// What a process uses, in bytes.
pub fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("the kernel tells it");
        let kibibytes = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse::<u64>().ok());
        kibibytes.expect("a number") * 1024
    };
    Memory {
        rss: field("VmRSS:"),
        peak: field("VmHWM:"),
    }
}

/// User and system time of a process, as fine as the scheduler counts.
pub fn cpu_time(pid: u32) -> Duration {
    let mut total = Duration::ZERO;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the server runs");
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanoseconds = text.split_whitespace().next().and_then(|text| text.parse().ok());
        total += Duration::from_nanos(nanoseconds.unwrap_or_default());
    }
    total
}
