//! The RPCs of the schema, and the tables that say who serves or may call each of them.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// The RPCs of the server, and who may call each.
pub const WHO_MAY_CALL: &str = include_str!("../structure/who_may_call.txt");
/// The RPCs of the agent, the socket that serves each, and what a call needs.
pub const AGENT_SOCKETS: &str = include_str!("../structure/agent_sockets.txt");

/// The rows of a table: an RPC as `/package.Service/Method`, and the words behind it.
pub fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            (
                words.next().expect("a line that is not empty has a word"),
                words.collect(),
            )
        })
}

/// All RPCs of the packages that are meant.
pub fn rpcs(is_meant: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let set =
        FileDescriptorSet::decode(finial_proto::FILE_DESCRIPTOR_SET).expect("the exported descriptor set");
    let mut rpcs = BTreeSet::new();
    for file in set.file.iter().filter(|file| is_meant(file.package())) {
        for service in &file.service {
            let service_name = match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            for method in &service.method {
                rpcs.insert(format!("/{service_name}/{}", method.name()));
            }
        }
    }
    rpcs
}
