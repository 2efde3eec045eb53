//! What issuing costs, compared with the cryptographic operations that it needs: X.509-SVIDs from CSRs with one P-256
//! verification and one signature, JWT-SVIDs with one signature.
//!
//! Both sides alternate in one run on one thread and are measured in CPU time of that thread, so the ratio means the
//! same on every machine. `cargo bench -p finial-server --bench issue`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints"
)]

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::key::manager::MemoryKeyManager;
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::Clock;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::spire::api::types;
use finial_server::authority::{AuthorityConfig, AuthorityManager, JwtRequest, X509Request};
use finial_server::store::SqliteStore;
use prost::Message as _;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustix::time::{ClockId, clock_gettime};

/// Odd, so that the median is one of them.
const ROUNDS: usize = 15;
/// Each round takes turns this often, so that a change of the machine's speed hits both sides.
const TURNS: usize = 20;
const CALLS_PER_TURN: usize = 25;

/// Speed relative to the bare cryptography below which the bench fails.
const X509_TARGET: f64 = 0.80;
const JWT_TARGET: f64 = 0.85;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let authority = runtime.block_on(authority());
    let entry = entry();
    let workload = PrivateKey::generate(KeyType::EcP256).unwrap();
    let csr = Csr::build(&workload, CsrSubject::spire(), None, &[]).unwrap();
    let bare = Bare::new(&csr);

    let x509 = compare(
        "X.509-SVID",
        || issue(&authority, &entry, &csr),
        || {
            bare.verify();
            bare.sign();
        },
    );
    let jwt = compare("JWT-SVID", || mint(&authority, &entry), || bare.sign());
    if x509 >= X509_TARGET && jwt >= JWT_TARGET {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The way from a request to the bytes of its answer.
fn issue(authority: &AuthorityManager, entry: &Entry, csr_der: &[u8]) {
    let csr = Csr::parse(csr_der).unwrap();
    csr.verify_self_signature().unwrap();
    let request = X509Request::for_entry(entry, csr.public_key().clone());
    let chain = authority.sign_x509(&request).unwrap();
    let answer = types::X509svid {
        expires_at: chain.first().unwrap().not_after().unix_timestamp(),
        id: Some(wire::spiffe_id_to_wire(&entry.spiffe_id)),
        cert_chain: chain
            .iter()
            .map(|certificate| certificate.der().to_vec())
            .collect(),
        hint: String::new(),
    };
    black_box(answer.encode_to_vec());
}

fn mint(authority: &AuthorityManager, entry: &Entry) {
    let request = JwtRequest::for_entry(entry, vec!["spiffe://example.org/db".to_owned()]);
    black_box(authority.sign_jwt(&request).unwrap().token);
}

/// One P-256 verification and one signature, over as many bytes as a CSR has.
struct Bare {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Bare {
    fn new(message: &[u8]) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let signature = pair.sign(&random, message).unwrap().as_ref().to_vec();
        Self {
            pair,
            random,
            message: message.to_vec(),
            signature,
        }
    }

    fn verify(&self) {
        use ring::signature::KeyPair as _;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.pair.public_key().as_ref());
        key.verify(black_box(&self.message), &self.signature).unwrap();
    }

    fn sign(&self) {
        black_box(self.pair.sign(&self.random, black_box(&self.message)).unwrap());
    }
}

/// The median of the rounds' ratios of CPU time, `bare` to `ours`.
fn compare(name: &str, ours: impl Fn(), bare: impl Fn()) -> f64 {
    for _ in 0..CALLS_PER_TURN * TURNS {
        ours();
        bare();
    }
    let mut ratios = Vec::with_capacity(ROUNDS);
    let (mut ours_total, mut bare_total) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let (mut ours_spent, mut bare_spent) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..TURNS {
            ours_spent += spent(&ours);
            bare_spent += spent(&bare);
        }
        ratios.push(bare_spent.as_secs_f64() / ours_spent.as_secs_f64());
        ours_total += ours_spent;
        bare_total += bare_spent;
    }
    ratios.sort_by(f64::total_cmp);
    let calls = u32::try_from(ROUNDS * TURNS * CALLS_PER_TURN).unwrap();
    let (lowest, median, highest) = (ratios[0], ratios[ROUNDS / 2], ratios[ROUNDS - 1]);
    println!(
        "{name:<12} {:>7.1} us, bare {:>6.1} us, ratio {median:.3} ({lowest:.3} to {highest:.3} in {ROUNDS} rounds)",
        (ours_total / calls).as_secs_f64() * 1e6,
        (bare_total / calls).as_secs_f64() * 1e6,
    );
    median
}

fn spent(call: &impl Fn()) -> Duration {
    let start = cpu_time();
    for _ in 0..CALLS_PER_TURN {
        call();
    }
    cpu_time() - start
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

async fn authority() -> Arc<AuthorityManager> {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let clock = Clock::system();
    let store = SqliteStore::in_memory(&trust_domain, clock.clone())
        .await
        .unwrap();
    let keys = Arc::new(MemoryKeyManager::new());
    AuthorityManager::start(AuthorityConfig::new(trust_domain), keys, Arc::new(store), clock)
        .await
        .unwrap()
}

fn entry() -> Entry {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let id = |path| SpiffeId::new(&trust_domain, path).unwrap();
    let parts = EntryParts {
        id: "1f0a6c3e-5b1d-4a8e-9c58-3a1f6a0d2b11".to_owned(),
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        ..EntryParts::new(
            id("/ns/production/sa/payments"),
            id("/spire/agent/join_token/node-1"),
            vec![Selector::new("unix", "uid:1000").unwrap()],
        )
    };
    Entry::check(parts, &trust_domain).unwrap()
}
