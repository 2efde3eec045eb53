//! How much work of a kind may be under way for one user, so that no user makes others wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AttestorError;

/// Permits by user id.
#[derive(Debug)]
pub(super) struct PermitsByUid {
    each: usize,
    in_use: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

impl PermitsByUid {
    /// So many at a time for each user.
    pub(super) fn new(each: usize) -> Self {
        Self {
            each,
            in_use: Mutex::default(),
        }
    }

    /// Waits for this user's turn, which lasts until the permit is dropped.
    ///
    /// # Errors
    /// Never; the semaphore is not closed.
    pub(super) async fn acquire(&self, uid: u32) -> Result<OwnedSemaphorePermit, AttestorError> {
        let semaphore = {
            let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waits or works has a reference of its own, taken under this lock.
            in_use.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            let semaphore = in_use
                .entry(uid)
                .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
            Arc::clone(semaphore)
        };
        semaphore
            .acquire_owned()
            .await
            .map_err(|_closed| AttestorError::CutOff)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_user_waits_for_itself_and_for_nobody_else() {
        let permits = PermitsByUid::new(1);
        let first = permits.acquire(1).await.unwrap();
        let mut second = Box::pin(permits.acquire(1));
        assert!(second.as_mut().now_or_never().is_none());
        let _other = permits.acquire(2).await.unwrap();
        assert!(
            second.as_mut().now_or_never().is_none(),
            "forgotten while it waits"
        );
        drop(first);
        drop(second.await.unwrap());
        let _again = permits.acquire(2).now_or_never();
        assert_eq!(
            permits.in_use.lock().unwrap().len(),
            1,
            "an idle user is forgotten"
        );
    }
}
