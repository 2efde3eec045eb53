//! Streams that are open already while SVIDs are renewed: how much later than the first of them the others have each.

use std::collections::HashMap;
use std::path::Path;

use finial_proto::workload::X509svidResponse;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::samples::Samples;
use super::workload::{OpenStream, mark_of};

/// Streams of this process, each on a connection of its own.
#[derive(Debug)]
pub struct HeldStreams {
    streams: Vec<OpenStream>,
    arrivals: Arrivals,
}

/// When each SVID came.
#[derive(Debug, Default)]
struct Arrivals {
    prefix: String,
    /// By stream, the mark of the last SVID of each identity.
    held: Vec<HashMap<String, u64>>,
    /// By the mark of an SVID, when the first stream had it.
    first: HashMap<u64, Instant>,
    behind: Samples,
}

impl HeldStreams {
    /// Opens so many, and looks at identities that begin with `prefix`.
    ///
    /// # Errors
    /// As [`OpenStream::open`].
    pub async fn open(socket: &Path, count: usize, prefix: String) -> anyhow::Result<Self> {
        let mut streams = Vec::with_capacity(count);
        let mut arrivals = Arrivals {
            prefix,
            held: vec![HashMap::new(); count],
            ..Arrivals::default()
        };
        for number in 0..count {
            let stream = OpenStream::open(socket).await?;
            arrivals.take(number, &stream.first, Instant::now());
            streams.push(stream);
        }
        Ok(Self { streams, arrivals })
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// When one ends.
    pub async fn forever(&mut self) -> anyhow::Result<()> {
        let next = |number: usize, mut stream: OpenStream| async move {
            let message = stream.next().await;
            (number, stream, message)
        };
        let streams = std::mem::take(&mut self.streams);
        let numbered = streams.into_iter().enumerate();
        let mut reads: FuturesUnordered<_> = numbered.map(|(number, stream)| next(number, stream)).collect();
        while let Some((number, stream, message)) = reads.next().await {
            self.arrivals.take(number, &message?, Instant::now());
            reads.push(next(number, stream));
        }
        std::future::pending().await
    }

    /// For each renewed SVID and each stream but the first that had it, how much later it came.
    pub fn behind(&self) -> &Samples {
        &self.arrivals.behind
    }
}

impl Arrivals {
    fn take(&mut self, number: usize, message: &X509svidResponse, now: Instant) {
        let Some(held) = self.held.get_mut(number) else {
            return;
        };
        for svid in &message.svids {
            if !svid.spiffe_id.starts_with(&self.prefix) {
                continue;
            }
            let mark = mark_of(&svid.x509_svid);
            let before = held.insert(svid.spiffe_id.clone(), mark);
            if before.is_none_or(|before| before == mark) {
                continue;
            }
            match self.first.get(&mark) {
                Some(first) => self.behind.push(now.saturating_duration_since(*first)),
                None => {
                    self.first.insert(mark, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use finial_proto::workload::X509svid;

    use super::*;

    fn message(svids: &[(&str, &'static [u8])]) -> X509svidResponse {
        let svid = |(id, leaf): &(&str, &'static [u8])| X509svid {
            spiffe_id: (*id).to_owned(),
            x509_svid: (*leaf).into(),
            ..X509svid::default()
        };
        X509svidResponse {
            svids: svids.iter().map(svid).collect(),
            ..X509svidResponse::default()
        }
    }

    #[test]
    fn what_came_later_than_at_the_first_stream_is_measured_for_each_renewal_once() {
        let mut arrivals = Arrivals {
            prefix: "ours/".to_owned(),
            held: vec![HashMap::new(); 3],
            ..Arrivals::default()
        };
        let begun = Instant::now();
        let mut take = |number, millis, svids: &[(&str, &'static [u8])]| {
            arrivals.take(number, &message(svids), begun + Duration::from_millis(millis));
            (arrivals.behind.len(), arrivals.behind.worst().as_millis())
        };
        for number in 0..3 {
            let first = take(number, 0, &[("ours/a", b"1"), ("other", b"1")]);
            assert_eq!(first, (0, 0), "a beginning is no renewal");
        }
        assert_eq!(take(1, 10, &[("ours/a", b"2"), ("other", b"2")]), (0, 0));
        assert_eq!(take(0, 14, &[("ours/a", b"2"), ("other", b"2")]), (1, 4));
        assert_eq!(take(0, 50, &[("ours/a", b"2"), ("other", b"3")]), (1, 4));
        assert_eq!(take(2, 40, &[("ours/a", b"2")]), (2, 30));
    }
}
