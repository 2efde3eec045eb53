//! The cache in paused time, with a server that can be made to fail or not to answer.

mod forgetting;
mod limits;
mod renewal;
mod requests;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use finial_identity::jwt::sign;
use finial_identity::key::{KeyType, PrivateKey};
use time::macros::datetime;

use super::*;
use crate::upstream::UpstreamError;

/// Signs after a while; can be told to fail.
#[derive(Debug)]
struct Signing {
    clock: Clock,
    calls: AtomicUsize,
    lifetime: time::Duration,
    failure: Mutex<Option<UpstreamError>>,
    is_silent: AtomicBool,
}

#[async_trait]
impl JwtSource for Signing {
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if self.is_silent.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        if let Some(error) = self.failure.lock().unwrap().clone() {
            return Err(error);
        }
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let claims = serde_json::json!({
            "sub": web().as_str(), "aud": audiences, "exp": 4_000_000_000_i64, "jti": call
        });
        let token = sign(&key, &format!("key-{entry_id}"), claims.as_object().unwrap()).unwrap();
        Ok(SignedJwt {
            token: token.into(),
            spiffe_id: web(),
            issued_at: self.clock.now(),
            expires_at: self.clock.now() + self.lifetime,
        })
    }
}

fn web() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/web").unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

impl Signing {
    fn fail(&self) {
        *self.failure.lock().unwrap() = Some(UpstreamError::Unavailable("down".to_owned()));
    }
}

fn cache(max_size: usize) -> (JwtCache, Arc<Signing>) {
    cache_drawing(max_size, || 0.5)
}

fn cache_drawing(
    max_size: usize,
    draw: impl Fn() -> f64 + Send + Sync + 'static,
) -> (JwtCache, Arc<Signing>) {
    let clock = Clock::paused_at(datetime!(2030-01-01 00:00 UTC));
    let signing = Arc::new(Signing {
        clock: clock.clone(),
        calls: AtomicUsize::new(0),
        lifetime: time::Duration::seconds(100),
        failure: Mutex::new(None),
        is_silent: AtomicBool::new(false),
    });
    let settings = JwtCacheSettings {
        max_size,
        hit_timeout: Duration::from_secs(5),
    };
    let source = Arc::clone(&signing) as Arc<dyn JwtSource>;
    (JwtCache::new(source, settings, clock, Jitter::new(draw)), signing)
}

/// Does `work` while tokens are renewed in the background.
async fn renewing<W>(cache: &JwtCache, work: impl Future<Output = W>) -> W {
    tokio::select! {
        () = cache.renew() => unreachable!("it never ends"),
        done = work => done,
    }
}

async fn fetch(cache: &JwtCache, entry_id: &str, audiences: &[&str]) -> Result<SignedJwt, JwtError> {
    cache.fetch(entry_id, &web(), &names(audiences), true).await
}
