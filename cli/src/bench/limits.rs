//! What the machine can do at best, measured in the same run: cryptographic operations alone, and the gRPC library
//! alone.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Command;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::first_svid::TOKEN_BYTES;
use super::fleet::Fleet;
use super::report::{Report, Row};
use super::run::{Run, benchmark, number};
use super::samples::{Samples, median};
use super::workload::OpenStream;

const ROUNDS: usize = 15;
const OPENS: usize = 500;
const PUSHES: usize = 10;

/// As many bytes as a CSR or the signed part of a certificate has.
const MESSAGE_BYTES: usize = 300;

/// As long as the answer to a workload with one SVID.
const SVID_BYTES: usize = 2300;

/// The command.
pub fn command() -> Command {
    benchmark(
        "limits",
        "What this machine can do at best: bare cryptography, bare gRPC",
    )
    .arg(number("calls", "Calls of cryptography a round", 1_000_000).default_value("200"))
    .arg(number("streams", "How many streams, each on its own connection", 20_000).default_value("1000"))
}

/// Measures; needs no other program.
///
/// # Errors
/// When the bare server can not be started.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let mut report = Report::new("limits");
    for row in crypto(u32::try_from(run.count("calls")).unwrap_or(u32::MAX))? {
        report.add(row);
    }
    let mut bare = Bare::start(&bare::message(SVID_BYTES, 0), TOKEN_BYTES).await?;
    let socket = bare.socket();
    let mut opens = Samples::new();
    for _ in 0..OPENS {
        let start = Instant::now();
        OpenStream::open(&socket).await?;
        opens.push(start.elapsed());
    }
    report.add(Row::new("bare gRPC, connect and first message").times(&opens));
    let mut fleet = Fleet::open(&socket, run.count("streams"), Arc::new(bare::mark)).await?;
    fleet.agree(Instant::now()).await?;
    let mut pushes = Samples::new();
    for _ in 0..PUSHES {
        let start = Instant::now();
        bare.push()?;
        pushes.push(fleet.agree(start).await?.times.worst());
    }
    report.add(Row::new(format!("bare gRPC, push to {} streams", fleet.len())).times(&pushes));
    Ok(report)
}

/// P-256 of the library that signs SVIDs, per second of CPU time of one thread; medians of rounds in turn.
///
/// # Errors
/// When the system gives no random bytes.
pub fn crypto(calls: u32) -> anyhow::Result<Vec<Row>> {
    let failed = |_| anyhow!("the P-256 key is refused");
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let random = SystemRandom::new();
    let message = [7; MESSAGE_BYTES];
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| anyhow!("no key was made"))?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).map_err(failed)?;
    let signature = pair
        .sign(&random, &message)
        .map_err(|_| anyhow!("signing failed"))?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref());
    let sign = || {
        let _ = black_box(pair.sign(&random, black_box(&message)));
    };
    let verify = || {
        let _ = black_box(public.verify(black_box(&message), signature.as_ref()));
    };
    let generate = || {
        let _ = black_box(EcdsaKeyPair::generate_pkcs8(algorithm, &random));
    };
    let kinds: [(&str, &dyn Fn()); 3] = [
        ("P-256 sign", &sign),
        ("P-256 verify", &verify),
        ("P-256 key", &generate),
    ];
    let mut spent = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, call), spent) in kinds.iter().zip(&mut spent) {
            let start = cpu_time();
            for _ in 0..calls {
                call();
            }
            let nanos = cpu_time().saturating_sub(start).as_nanos();
            spent.push(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
    }
    let rows = kinds.iter().zip(spent).map(|((name, _), spent)| {
        let each = Duration::from_nanos(median(spent)) / calls.max(1);
        let rate = Duration::from_secs(1).as_nanos() / each.as_nanos().max(1);
        Row::new(*name)
            .time("cpu per call", each)
            .count("per cpu second", usize::try_from(rate).unwrap_or(usize::MAX))
    });
    Ok(rows.collect())
}

/// Of the calling thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cryptography_takes_time() {
        let rows = crypto(1).unwrap();
        assert_eq!(rows.len(), 3);
        let before = cpu_time();
        let sum: u64 = black_box((0..200_000_u64).map(black_box).sum());
        assert!(sum > 0 && cpu_time() > before);
    }
}
