//! The real program from outside: what an operator types, what a workload sees, what goes wrong.

mod admin;
mod authorization;
mod bad_input;
mod bench;
mod bench_compare;
mod broker;
mod cli;
mod delegated;
mod dev;
mod freeze;
mod full_disk;
mod helper;
mod hostile;
mod kill;
mod latency;
mod life;
mod log_selectors;
mod openssl;
mod raw_http2;
mod rotation;
mod scrape;
mod telemetry;
mod traces;
mod why;
mod wire;
mod wit;
