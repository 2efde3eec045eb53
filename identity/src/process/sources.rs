//! Handshakes in progress at one listener. Their callers are not authenticated yet, so when there are too many, the
//! source with most of them loses one: an unknown caller's unfinished handshakes do not end those of a caller at
//! another address.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use tokio::task::{AbortHandle, JoinSet};

/// Bits of an IPv6 address that are one subscriber's (RFC 6177 §2): the others are that subscriber's to choose.
const SUBSCRIBER_BITS: u32 = 64;

/// Who began something, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A user, on the Unix socket.
    User(u32),
    /// An IPv4 address, or the network of an IPv6 address.
    Address(IpAddr),
}

/// Handshakes or connections under way, at most so many at a time.
#[derive(Debug)]
pub struct Begun<T> {
    most: usize,
    tasks: JoinSet<T>,
    /// In the order in which they began.
    begun: VecDeque<(Source, AbortHandle)>,
}

impl Source {
    /// Of a peer at this address.
    pub fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::MAX << (Ipv6Addr::BITS - SUBSCRIBER_BITS);
                Ipv6Addr::from_bits(address.to_bits() & network).into()
            }
            address => address,
        })
    }
}

impl<T: Send + 'static> Begun<T> {
    /// None under way yet; at most `most` at a time, which is one at least.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            tasks: JoinSet::new(),
            begun: VecDeque::new(),
        }
    }

    /// Begins one more. When there are too many, another makes room.
    pub fn begin(&mut self, source: Source, task: impl Future<Output = T> + Send + 'static) {
        self.begun.retain(|(_source, task)| !task.is_finished());
        if self.begun.len() >= self.most {
            let sources = self.begun.iter().map(|(source, _task)| *source);
            let ending = make_room(sources, source);
            if let Some((_source, task)) = self.begun.remove(ending) {
                task.abort();
            }
        }
        self.begun.push_back((source, self.tasks.spawn(task)));
    }

    /// The outcome of one that is done; `None` when there are none under way.
    pub async fn next(&mut self) -> Option<T> {
        loop {
            // Those that made room, or panicked, have no outcome.
            if let Ok(done) = self.tasks.join_next().await? {
                return Some(done);
            }
        }
    }
}

/// Which one makes room for one from `newcomer`: the oldest from where most are, the new one counted.
fn make_room(begun: impl Iterator<Item = Source> + Clone, newcomer: Source) -> usize {
    let mut counts: HashMap<Source, usize> = HashMap::from([(newcomer, 1)]);
    for source in begun.clone() {
        *counts.entry(source).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or_default();
    let is_of_most = |source: &Source| counts.get(source) == Some(&most);
    // Where several have most, whoever asks for more gives first.
    let of_newcomer = begun
        .clone()
        .position(|source| source == newcomer && is_of_most(&source));
    let of_others = || begun.clone().position(|source| is_of_most(&source));
    of_newcomer.or_else(of_others).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Source {
        Source::of_address(address.parse().unwrap())
    }

    #[test]
    fn a_flood_from_one_address_ends_its_own_handshakes() {
        let (broker, stranger) = (at("192.0.2.1"), at("192.0.2.2"));
        let begun = [broker, stranger, broker, stranger, stranger];
        assert_eq!(make_room(begun.into_iter(), stranger), 1);
        assert_eq!(
            make_room(begun.into_iter(), broker),
            0,
            "as many with the new one, which asks for more"
        );
        assert_eq!(make_room([broker, broker, stranger].into_iter(), stranger), 2);
        assert_eq!(
            make_room([broker, broker, stranger].into_iter(), at("192.0.2.3")),
            0
        );
    }

    #[test]
    fn where_all_have_equally_many_the_oldest_goes() {
        let begun = [at("192.0.2.1"), at("192.0.2.2"), at("192.0.2.3")];
        assert_eq!(make_room(begun.into_iter(), at("192.0.2.4")), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_an_ipv4_address_is_one_however_it_is_written() {
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[tokio::test]
    async fn the_one_that_makes_room_ends_and_the_others_go_on() {
        let most = 8;
        let mut handshakes = Begun::new(most);
        let (quiet, flood) = (Source::User(1), Source::User(2));
        let (done, wait) = tokio::sync::oneshot::channel();
        handshakes.begin(quiet, async move { wait.await.ok() });
        for _ in 0..2 * most {
            handshakes.begin(flood, std::future::pending());
        }
        assert_eq!(handshakes.begun.len(), most);
        done.send(7).unwrap();
        assert_eq!(handshakes.next().await, Some(Some(7)));
    }
}
