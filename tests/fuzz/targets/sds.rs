//! Entry points of the fuzzer into Envoy's secret discovery: a client that says anything, and secrets that come and go.
//!
//! The input is a list of steps, each a byte that tells what and a byte that tells how long: `0` is a request of that
//! many bytes, in which a nonce `=` stands for the last one that was sent; `1` is followed by one byte whose bits are
//! the secrets that there are, and their edition is its length. Other steps do nothing. After each step the stream
//! looks at what there is, as it does for an Envoy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use finial_agent::config::SdsSettings;
use finial_agent::endpoints::sds::{Asked, Delta, Found, Protocol, Secret, StateOfTheWorld, Validator};
use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::Message as _;

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[
    ("sds_delta", run_delta),
    ("sds_state_of_the_world", run_state_of_the_world),
];

/// Names of secrets that there may be.
const NAMES: [&str; 8] = [
    "default",
    "ROOTCA",
    "ALL",
    "spiffe://example.org/a",
    "spiffe://example.org/b",
    "spiffe://example.org",
    "spiffe://other.org",
    "x",
];
/// What a stream may remember of its client's words.
const MAX_NAMES: usize = 256;
const MAX_NAMES_BYTES: usize = 32 * 1024;

/// One step of the input.
enum Step<'a> {
    Request(&'a [u8]),
    Secrets { present: u8, edition: u8 },
}

/// Each response has all that is asked for and there, and is sent once.
fn run_state_of_the_world(data: &[u8]) {
    let mut stream = StateOfTheWorld::new(settings());
    let (mut secrets, mut last, mut sent) = (Found::new(), String::new(), 0);
    for step in steps(data) {
        match step {
            Step::Secrets { present, edition } => secrets = there_are(present, edition),
            Step::Request(bytes) => {
                let Ok(mut request) = DiscoveryRequest::decode(bytes) else {
                    continue;
                };
                if request.response_nonce == "=" {
                    request.response_nonce.clone_from(&last);
                }
                let before = stream.asked().cloned();
                let is_of_the_past = before.is_some() && request.response_nonce != last;
                if stream.receive(request).is_err() {
                    return; // The stream ends.
                }
                assert!(
                    !is_of_the_past || stream.asked() == before.as_ref(),
                    "a request of the past was obeyed"
                );
            }
        }
        let Some(asked) = stream.asked() else {
            assert_eq!(sent, 0, "nothing was asked yet");
            continue;
        };
        check(asked);
        let found = find(asked, &secrets);
        sent += 1;
        let nonce = format!("{sent:08x}");
        let Some(reply) = stream.reply(&found, &|_| true, nonce.clone()) else {
            continue;
        };
        let response = DiscoveryResponse::decode(stream.sent(reply)).expect("a message");
        assert_eq!(response.resources.len(), found.len());
        assert!(!found.is_empty() && !response.version_info.is_empty());
        assert_eq!(response.nonce, nonce);
        last = nonce;
        assert!(
            stream.reply(&found, &|_| true, "again".to_owned()).is_none(),
            "the same was sent twice"
        );
    }
}

/// Whatever the client says, it has what it asks for and may have as soon as the stream has looked.
fn run_delta(data: &[u8]) {
    let mut stream = Delta::new(settings());
    // What the client has, by name: its version.
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    let (mut secrets, mut last, mut sent) = (Found::new(), String::new(), 0);
    for step in steps(data) {
        match step {
            Step::Secrets { present, edition } => secrets = there_are(present, edition),
            Step::Request(bytes) => {
                let Ok(mut request) = DeltaDiscoveryRequest::decode(bytes) else {
                    continue;
                };
                if request.response_nonce == "=" {
                    request.response_nonce.clone_from(&last);
                }
                if stream.asked().is_none() {
                    let versions = request.initial_resource_versions.iter();
                    held = versions
                        .map(|(name, version)| (name.clone(), version.clone()))
                        .collect();
                }
                if stream.receive(request).is_err() {
                    return; // The stream ends.
                }
            }
        }
        let Some(asked) = stream.asked().cloned() else {
            continue;
        };
        check(&asked);
        // What it no longer asks for, it forgets.
        held.retain(|name, _version| is_asked(&asked, name));
        let found = find(&asked, &secrets);
        let is_gone = |name: &str| !secrets.contains_key(name);
        sent += 1;
        let nonce = format!("{sent:08x}");
        if let Some(reply) = stream.reply(&found, &is_gone, nonce.clone()) {
            let response = DeltaDiscoveryResponse::decode(stream.sent(reply)).expect("a message");
            assert_eq!(response.nonce, nonce);
            assert!(!response.resources.is_empty() || !response.removed_resources.is_empty());
            for resource in response.resources {
                let secret = found.get(&resource.name).expect("what was asked for");
                assert_eq!(secret.version, resource.version);
                held.insert(resource.name, resource.version);
            }
            for name in response.removed_resources {
                assert!(!found.contains_key(&name), "{name} is there");
                assert!(held.remove(&name).is_some(), "{name} was never there");
            }
            last = nonce;
            let again = stream.reply(&found, &is_gone, "again".to_owned());
            assert!(again.is_none(), "the same was sent twice");
        }
        for (name, secret) in &found {
            assert_eq!(held.get(name), Some(&secret.version), "{name} is missing or old");
        }
    }
}

fn settings() -> Arc<SdsSettings> {
    Arc::new(SdsSettings::default())
}

fn steps(data: &[u8]) -> impl Iterator<Item = Step<'_>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        loop {
            let [what, size, more @ ..] = rest else {
                return None;
            };
            let length = match what {
                0 => usize::from(*size),
                1 => 1,
                _ => 0,
            };
            let (part, after) = more.split_at(length.min(more.len()));
            rest = after;
            match (what, part) {
                (0, part) => return Some(Step::Request(part)),
                (1, [present]) => {
                    return Some(Step::Secrets {
                        present: *present,
                        edition: *size,
                    });
                }
                _ => {}
            }
        }
    })
}

/// The secrets whose bits are set. Another edition has other versions.
fn there_are(present: u8, edition: u8) -> Found {
    let bundle = |name: String| Arc::new(Bundle::new(TrustDomain::parse(&name).expect("a name")));
    NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _name)| present >> bit & 1 == 1)
        .map(|(bit, name)| {
            let content = vec![bundle(format!("edition-{edition}.of-{bit}"))];
            ((*name).to_owned(), Secret::bundles(Validator::Spiffe, content))
        })
        .collect()
}

fn is_asked(asked: &Asked, name: &str) -> bool {
    asked.everything || asked.names.contains(name)
}

fn find(asked: &Asked, secrets: &Found) -> Found {
    let found = secrets.iter().filter(|(name, _secret)| is_asked(asked, name));
    found
        .map(|(name, secret)| (name.clone(), secret.clone()))
        .collect()
}

fn check(asked: &Asked) {
    let names: &BTreeSet<String> = &asked.names;
    assert!(names.len() <= MAX_NAMES);
    assert!(names.iter().map(String::len).sum::<usize>() <= MAX_NAMES_BYTES);
}
