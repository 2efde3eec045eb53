//! Peers without an SVID: how many connections each address may have, and how much each call may send.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;

use super::gate::ATTEST;
use crate::api::call::Peer;

/// Connections without an SVID that one address may have at once.
pub const MAX_CONNECTIONS: usize = 64;

/// Counts connections without an SVID by address. An IPv6 address counts as its /64, which one
/// machine has as a whole.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// A counted connection, until it is dropped.
#[derive(Debug)]
pub struct Counted {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

/// An address has as many connections as it may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("address has {MAX_CONNECTIONS} connections without an SVID")]
pub struct TooMany;

impl Strangers {
    /// Counts a connection with this peer, if it has no SVID.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn admit_peer(self: &Arc<Self>, peer: &Peer) -> Result<Option<Counted>, TooMany> {
        match peer {
            Peer::Remote { addr, svid: None, .. } => self.admit(addr.ip()).map(Some).ok_or(TooMany),
            _ => Ok(None),
        }
    }

    /// Counts a connection, `None` when the address has enough.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let address = site(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= MAX_CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Counted {
            strangers: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// How many bytes of a call's messages are read; the services have a limit of their own for others.
pub fn max_request(peer: &Peer, method: &str) -> usize {
    match (peer.is_stranger(), method) {
        (false, _) => usize::MAX,
        (true, ATTEST) => 256 * 1024,
        (true, _) => 64 * 1024,
    }
}

/// A request's body, of which no more than some bytes are read.
#[derive(Debug)]
pub struct LimitedBody<B> {
    body: Pin<Box<B>>,
    left: usize,
}

impl<B> LimitedBody<B> {
    /// At most `limit` bytes of this body.
    pub fn new(body: B, limit: usize) -> Self {
        Self {
            body: Box::pin(body),
            left: limit,
        }
    }
}

impl<B> HttpBody for LimitedBody<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.remaining()) {
                Some(left) => self.left = left,
                None => {
                    let refused =
                        Status::resource_exhausted("request of a caller without an SVID is too large");
                    return Poll::Ready(Some(Err(refused.into())));
                }
            }
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_connections_and_gets_them_back() {
        let strangers = Arc::new(Strangers::default());
        let one = address("192.0.2.1");
        let mut held: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| strangers.admit(one).unwrap())
            .collect();
        assert!(strangers.admit(one).is_none());
        assert!(strangers.admit(address("::ffff:192.0.2.1")).is_none());
        assert!(strangers.admit(address("192.0.2.2")).is_some());
        held.pop();
        assert!(strangers.admit(one).is_some());
        held.clear();
        assert!(strangers.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_ipv6_site_counts_as_one_address() {
        assert_eq!(
            site(address("2001:db8::1")),
            site(address("2001:db8::ffff:0:0:2"))
        );
        assert_ne!(site(address("2001:db8::1")), site(address("2001:db8:0:1::1")));
    }
}
