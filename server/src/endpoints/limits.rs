//! Rate limits by remote address, with SPIRE's buckets: a call waits for its tokens, and is refused
//! only when they can never come or not before its deadline.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::authorization::Bucket;
use crate::api::status::Refusal;

/// Which of SPIRE's switchable limits are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// `ratelimit.attestation`.
    pub attestation: bool,
    /// `ratelimit.signing`.
    pub signing: bool,
}

/// All buckets of all addresses.
#[derive(Debug)]
pub struct Limits {
    settings: LimitSettings,
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Levels {
    by_key: HashMap<(Bucket, IpAddr), Level>,
    sweep_at: usize,
}

/// How many tokens there were at a time; negative while calls wait.
#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

impl Limits {
    /// Full buckets.
    pub fn new(settings: LimitSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            levels: Mutex::new(Levels {
                by_key: HashMap::new(),
                sweep_at: SWEEP_MIN,
            }),
        })
    }

    /// Waits for `count` tokens.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when `count` exceeds the burst or the wait does not fit into the deadline.
    pub async fn take(
        self: &Arc<Self>,
        bucket: Bucket,
        address: IpAddr,
        count: u32,
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        let Some(rate) = self.rate(bucket) else {
            return Ok(());
        };
        if f64::from(count) > rate {
            return Err(Refusal::exhausted(format!(
                "rate (or burst) limit exceeded: {count} at once, limit {rate}"
            )));
        }
        // IPv4 clients of a dual-stack socket share a bucket with themselves.
        let key = (bucket, address.to_canonical());
        let wait = self.reserve(key, rate, f64::from(count));
        if wait.is_zero() {
            return Ok(());
        }
        let mut reservation = Reservation {
            limits: self,
            key,
            count: f64::from(count),
        };
        if deadline.is_some_and(|deadline| Instant::now() + wait > deadline) {
            return Err(Refusal::exhausted(
                "rate (or burst) limit exceeded: wait would exceed the deadline",
            ));
        }
        tokio::time::sleep(wait).await;
        reservation.count = 0.0;
        Ok(())
    }

    fn rate(&self, bucket: Bucket) -> Option<f64> {
        match bucket {
            Bucket::Unlimited => None,
            Bucket::Attestation => self.settings.attestation.then_some(1.0),
            Bucket::X509Signing
            | Bucket::X509SigningPerItem
            | Bucket::JwtSigning
            | Bucket::WitSigningPerItem => self.settings.signing.then_some(500.0),
            Bucket::KeyPublishing => Some(500.0),
            Bucket::Status => Some(10.0),
        }
    }

    /// Takes the tokens, possibly below zero, and returns how long the caller must wait for them.
    fn reserve(&self, key: (Bucket, IpAddr), rate: f64, count: f64) -> Duration {
        let now = Instant::now();
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.sweep(now, |bucket| self.rate(bucket));
        let level = levels.by_key.entry(shared(key)).or_insert(Level {
            tokens: rate,
            at: now,
        });
        level.refill(now, rate);
        level.tokens -= count;
        if level.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-level.tokens / rate)
        }
    }

    fn give_back(&self, key: (Bucket, IpAddr), count: f64) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(level) = levels.by_key.get_mut(&shared(key)) {
            level.tokens += count;
        }
    }
}

/// Both ways to pay for X.509 signatures draw from one bucket.
fn shared((bucket, address): (Bucket, IpAddr)) -> (Bucket, IpAddr) {
    match bucket {
        Bucket::X509SigningPerItem => (Bucket::X509Signing, address),
        other => (other, address),
    }
}

impl Levels {
    /// Forgets full buckets once there are many: an absent bucket is a full one.
    fn sweep(&mut self, now: Instant, rate: impl Fn(Bucket) -> Option<f64>) {
        if self.by_key.len() < self.sweep_at {
            return;
        }
        self.by_key.retain(|(bucket, _), level| {
            rate(*bucket).is_some_and(|rate| {
                level.refill(now, rate);
                level.tokens < rate
            })
        });
        self.sweep_at = (self.by_key.len() * 2).max(SWEEP_MIN);
    }
}

impl Level {
    fn refill(&mut self, now: Instant, rate: f64) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(rate);
        self.at = now;
    }
}

/// Returns the tokens of a call that gave up waiting.
struct Reservation<'a> {
    limits: &'a Limits,
    key: (Bucket, IpAddr),
    count: f64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.count > 0.0 {
            self.limits.give_back(self.key, self.count);
        }
    }
}

const SWEEP_MIN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tonic::Code;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn limits() -> Arc<Limits> {
        Limits::new(LimitSettings {
            attestation: true,
            signing: true,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_attestation_of_an_address_waits_a_second() {
        let limits = limits();
        let start = Instant::now();
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        assert_eq!(start.elapsed().as_millis(), 1000);
        let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        limits.take(Bucket::Attestation, other, 1, None).await.unwrap();
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_burst_is_refused_outright() {
        let refusal = limits()
            .take(Bucket::X509SigningPerItem, ADDRESS, 501, None)
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn single_and_batched_signatures_share_one_bucket() {
        let limits = limits();
        limits
            .take(Bucket::X509SigningPerItem, ADDRESS, 500, None)
            .await
            .unwrap();
        let start = Instant::now();
        limits.take(Bucket::X509Signing, ADDRESS, 1, None).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_the_deadline_is_refused_and_costs_nothing() {
        let limits = limits();
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(500);
        let refusal = limits
            .take(Bucket::Attestation, ADDRESS, 1, Some(deadline))
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        let start = Instant::now();
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_while_waiting_gets_its_tokens_back() {
        let limits = limits();
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        let impatient = limits.take(Bucket::Attestation, ADDRESS, 1, None);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), impatient)
                .await
                .is_err()
        );
        let start = Instant::now();
        limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_switched_off_never_waits() {
        let limits = Limits::new(LimitSettings {
            attestation: false,
            signing: false,
        });
        for _ in 0..10 {
            limits.take(Bucket::Attestation, ADDRESS, 1, None).await.unwrap();
        }
        limits
            .take(Bucket::X509SigningPerItem, ADDRESS, 100_000, None)
            .await
            .unwrap();
        assert!(limits.take(Bucket::Status, ADDRESS, 11, None).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten() {
        let limits = limits();
        for n in 0..10_000_u32 {
            let address = IpAddr::V4(Ipv4Addr::from(n));
            limits.take(Bucket::Status, address, 1, None).await.unwrap();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let count = limits.levels.lock().unwrap().by_key.len();
        assert!(count < 5000, "{count}");
    }
}
