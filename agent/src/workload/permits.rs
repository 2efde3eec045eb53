//! How much work of a kind may run at a time for one caller, so that no caller delays the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits by whom they are for.
#[derive(Debug)]
pub struct Permits<K> {
    in_use: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K> Default for Permits<K> {
    fn default() -> Self {
        Self {
            in_use: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash> Permits<K> {
    /// Waits for a turn of this one, which has so many at a time, the same number always. The turn lasts until the
    /// permit is dropped.
    pub async fn acquire(&self, whose: K, each: usize) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waits or works has a reference of its own, taken under this lock.
            in_use.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            let semaphore = in_use
                .entry(whose)
                .or_insert_with(|| Arc::new(Semaphore::new(each)));
            Arc::clone(semaphore)
        };
        semaphore
            .acquire_owned()
            .await
            .expect("nothing here closes a semaphore")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn everybody_waits_for_itself_and_for_nobody_else() {
        let permits = Permits::default();
        let first = permits.acquire(1, 1).await;
        let mut second = Box::pin(permits.acquire(1, 1));
        assert!(second.as_mut().now_or_never().is_none());
        let _other = permits.acquire(2, 1).await;
        assert!(
            second.as_mut().now_or_never().is_none(),
            "forgotten while it waits"
        );
        drop(first);
        drop(second.await);
        let _again = permits.acquire(2, 1).now_or_never();
        assert_eq!(
            permits.in_use.lock().unwrap().len(),
            1,
            "who is idle is forgotten"
        );
    }
}
