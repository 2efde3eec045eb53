//! Who may call, and by which references: the list of the configuration, and nobody else.

use std::sync::Arc;

use finial_identity::spiffe_id::SpiffeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Transport;
use super::reference::ReferenceType;
use super::refusal::Refusal;
use crate::config::AllowedBroker;

/// The brokers of the configuration.
#[derive(Debug)]
pub(super) struct AllowedBrokers {
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    allowed: AllowedBroker,
    /// How many more workloads may be held for it.
    workloads: Arc<Semaphore>,
}

impl AllowedBrokers {
    /// These, each with the same part of the workloads that may be held at a time.
    pub(super) fn new(brokers: &[AllowedBroker], workloads: usize) -> Self {
        let part = (workloads / brokers.len().max(1)).max(1);
        let brokers = brokers.iter().map(|allowed| Broker {
            allowed: allowed.clone(),
            workloads: Arc::new(Semaphore::new(part)),
        });
        Self {
            brokers: brokers.collect(),
        }
    }

    /// Their SPIFFE IDs.
    pub(super) fn ids(&self) -> Vec<SpiffeId> {
        self.brokers
            .iter()
            .map(|broker| broker.allowed.id.clone())
            .collect()
    }

    /// The place of a broker in the list, if it has one.
    pub(super) fn place(&self, id: &SpiffeId) -> Option<usize> {
        self.brokers.iter().position(|broker| broker.allowed.id == *id)
    }

    /// Whether the broker at this place may use such a reference over this transport.
    ///
    /// # Errors
    /// [`Refusal::TypeNotAllowed`], [`Refusal::NotOverTcp`].
    pub(super) fn check(
        &self,
        place: usize,
        reference: ReferenceType,
        transport: Transport,
    ) -> Result<(), Refusal> {
        let Some(Broker { allowed, .. }) = self.brokers.get(place) else {
            return Err(Refusal::NotEntitled); // Cannot be: places come from this list.
        };
        let (broker, type_url) = (allowed.id.clone(), reference.url());
        let mut listed = allowed.references.iter();
        let named = listed.find(|one| one.type_url.as_deref().is_none_or(|url| url == type_url));
        match named {
            None => Err(Refusal::TypeNotAllowed { broker, type_url }),
            Some(one) if transport == Transport::Tcp && !one.allow_over_tcp => {
                Err(Refusal::NotOverTcp { broker, type_url })
            }
            Some(_) => Ok(()),
        }
    }

    /// The right to hold one more workload for the broker at this place.
    ///
    /// # Errors
    /// [`Refusal::TooMany`].
    pub(super) fn hold(&self, place: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let broker = self.brokers.get(place).ok_or(Refusal::TooMany)?;
        Arc::clone(&broker.workloads)
            .try_acquire_owned()
            .map_err(|_full| Refusal::TooMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AllowedReference;

    fn broker(name: &str, references: &[(Option<ReferenceType>, bool)]) -> AllowedBroker {
        AllowedBroker {
            id: SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap(),
            references: references
                .iter()
                .map(|(kind, allow_over_tcp)| AllowedReference {
                    type_url: kind.map(|kind| kind.url().to_owned()),
                    allow_over_tcp: *allow_over_tcp,
                })
                .collect(),
        }
    }

    /// Covers BRK-28.
    #[test]
    fn only_who_is_listed_may_and_only_what_is_listed() {
        use ReferenceType::{KubernetesObject, Pid};
        let listed = [
            broker("local", &[(Some(Pid), false)]),
            broker("remote", &[(Some(Pid), false), (Some(KubernetesObject), true)]),
            broker("all", &[(None, false)]),
            broker("all-remote", &[(None, true)]),
        ];
        let brokers = AllowedBrokers::new(&listed, 8);
        let id = |name: &str| SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap();
        assert_eq!(brokers.place(&id("remote")), Some(1));
        assert_eq!(brokers.place(&id("remote/more")), None);
        let may = |place, kind| {
            [Transport::Unix, Transport::Tcp].map(|transport| brokers.check(place, kind, transport).is_ok())
        };
        assert_eq!(
            (may(0, Pid), may(0, KubernetesObject)),
            ([true, false], [false; 2])
        );
        assert_eq!(
            (may(1, Pid), may(1, KubernetesObject)),
            ([true, false], [true; 2])
        );
        assert_eq!(
            (may(2, Pid), may(2, KubernetesObject)),
            ([true, false], [true, false])
        );
        assert_eq!((may(3, Pid), may(3, KubernetesObject)), ([true; 2], [true; 2]));
        assert_eq!(may(4, Pid), [false; 2]);
    }

    #[test]
    fn no_broker_can_use_up_what_another_needs() {
        let listed = [broker("a", &[(None, true)]), broker("b", &[(None, true)])];
        let brokers = AllowedBrokers::new(&listed, 5);
        let held = [brokers.hold(0).unwrap(), brokers.hold(0).unwrap()];
        assert!(matches!(brokers.hold(0), Err(Refusal::TooMany)));
        assert!(brokers.hold(1).is_ok());
        drop(held);
        assert!(brokers.hold(0).is_ok());
    }
}
