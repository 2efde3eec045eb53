//! Counts what a call's request occupies until the call is over, and ends requests that do not become whole.
//!
//! A message that is whole when it is looked at first, and short, costs no lock and no timer: that is how clients send
//! nearly all.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::{AdmittedCall, MAX_REQUEST_BYTES};

/// How long a request's message may take to become whole, from when it is waited for.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a message that nobody counts.
const UNCOUNTED: usize = 1024;
/// Bytes of the longest message of a stream of requests that are not counted once it was read. The room for it stays
/// as long as the stream: an Envoy says in its first message all that it is.
const UNCOUNTED_AFTERWARDS: usize = 32 * 1024;
/// The head of a message: a flag and four bytes of length (gRPC over HTTP/2, `Length-Prefixed-Message`).
const HEAD_BYTES: usize = 5;

/// Methods whose requests are streams, open for as long as the client likes; all others have one message and its end.
const STREAMS_OF_REQUESTS: [&str; 4] = [
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
    "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The body of a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Body,
    call: Arc<AdmittedCall>,
    is_stream: bool,
    messages: Messages,
    /// Runs while something is waited for that is owed.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where in a request its messages begin and end.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    head_bytes: usize,
    /// Bytes of the message that are not.
    missing: usize,
    /// What the present message announced.
    announced: usize,
    longest: usize,
    has_whole: bool,
}

impl RequestBody {
    /// The body of a request for the method at `path`, which `call` lets in.
    pub(super) fn new(body: Body, call: Arc<AdmittedCall>, path: &str) -> Self {
        Self {
            body,
            call,
            is_stream: STREAMS_OF_REQUESTS.contains(&path),
            messages: Messages::default(),
            timer: None,
        }
    }

    /// Whether the client is to send more, now that it has sent no more yet.
    fn owes(&self) -> bool {
        !self.is_stream || !self.messages.has_whole || self.messages.is_partial()
    }

    /// Room is made for a message as soon as it is announced, so what is announced counts.
    fn count(&self) -> Result<(), Status> {
        let messages = &self.messages;
        let bytes = if self.is_stream {
            let kept = messages.longest.saturating_sub(UNCOUNTED_AFTERWARDS);
            messages.announced.max(kept)
        } else {
            messages.longest
        };
        // What is longer is refused before any room is made.
        let bytes = if bytes <= UNCOUNTED || bytes > MAX_REQUEST_BYTES {
            0
        } else {
            bytes
        };
        if self.call.hold(bytes) {
            return Ok(());
        }
        Err(Status::unavailable(
            "too many bytes of open requests of this user or container",
        ))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // What has come while this program was stopped is not late.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                this.messages.take(data);
                this.count()?;
                if this.is_stream && !this.messages.is_partial() {
                    this.timer = None;
                }
            }
            return Poll::Ready(frame);
        }
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(late())));
        }
        if this.timer.is_none() && this.owes() {
            let mut timer = Box::pin(tokio::time::sleep(WHOLE_WITHIN));
            // So that it wakes this task.
            let _pending = timer.as_mut().poll(cx);
            this.timer = Some(timer);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Messages {
    /// Takes note of the next bytes.
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.head_bytes < HEAD_BYTES {
                let taken = data.len().min(HEAD_BYTES - self.head_bytes);
                let (head, rest) = data.split_at(taken);
                let room = self.head.iter_mut().skip(self.head_bytes);
                room.zip(head).for_each(|(into, byte)| *into = *byte);
                self.head_bytes += taken;
                data = rest;
                if self.head_bytes < HEAD_BYTES {
                    return;
                }
                let [_flag, length @ ..] = self.head;
                self.announced = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.longest = self.longest.max(self.announced);
                self.missing = self.announced;
            }
            let taken = data.len().min(self.missing);
            self.missing -= taken;
            data = data.split_at(taken).1;
            if self.missing == 0 {
                (self.head_bytes, self.announced) = (0, 0);
                self.has_whole = true;
            }
        }
    }

    /// Whether a message has begun and is not there in whole.
    fn is_partial(&self) -> bool {
        self.head_bytes > 0
    }
}

fn late() -> Status {
    Status::deadline_exceeded(format!(
        "request was not complete within {} s",
        WHOLE_WITHIN.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use futures_util::FutureExt as _;
    use futures_util::future::poll_fn;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;
    use crate::endpoints::limits::{Admission, Admitted, MAX_BYTES_PER_HOLDER};

    const FETCH: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
    const STREAM: &str = STREAMS_OF_REQUESTS[0];

    /// Gives these bytes, and then nothing for as long as `is_open`.
    struct Sent {
        parts: VecDeque<Vec<u8>>,
        is_open: bool,
    }

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.parts.pop_front() {
                Some(part) => Poll::Ready(Some(Ok(Frame::data(part.into())))),
                None if self.is_open => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn head(length: usize) -> Vec<u8> {
        let length = u32::try_from(length).unwrap();
        [&[0], &length.to_be_bytes()[..]].concat()
    }

    fn message(length: usize) -> Vec<u8> {
        [head(length), vec![7; length]].concat()
    }

    fn body(admitted: &Admitted, path: &str, parts: Vec<Vec<u8>>, is_open: bool) -> RequestBody {
        let parts = parts.into();
        let call = Arc::new(admitted.call(path).unwrap());
        RequestBody::new(Body::new(Sent { parts, is_open }), call, path)
    }

    fn caller() -> Admitted {
        Admission::new(8).admit(1000).unwrap()
    }

    async fn next(body: &mut RequestBody) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    /// Reads all that is there.
    fn read(body: &mut RequestBody) -> Result<(), Status> {
        while let Some(Some(part)) = next(body).now_or_never() {
            part?;
        }
        Ok(())
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let bytes = [message(300), message(0), message(7)].concat();
        for length in [1, 2, 3, 5, 6, 299, 305, 1000] {
            let mut messages = Messages::default();
            for part in bytes.chunks(length) {
                messages.take(part);
            }
            assert!(!messages.is_partial() && messages.has_whole, "{length}");
            assert_eq!(messages.longest, 300);
        }
        let mut messages = Messages::default();
        messages.take(&bytes[..304]);
        assert!(messages.is_partial() && !messages.has_whole);
        assert_eq!(messages.announced, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_ten_seconds_to_become_whole_however_slowly_it_comes() {
        let unfinished = [
            vec![],
            vec![vec![0]],
            vec![head(0)],
            vec![head(9)],
            vec![message(9)],
            vec![head(9), vec![7; 8]],
        ];
        for parts in unfinished {
            let begun = Instant::now();
            let mut body = body(&caller(), FETCH, parts.clone(), true);
            let error = loop {
                match next(&mut body).await.unwrap() {
                    Ok(_part) => tokio::time::advance(Duration::from_secs(1)).await,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.code(), Code::DeadlineExceeded, "{parts:?}");
            let waited = begun.elapsed().as_secs();
            assert!((10..=12).contains(&waited), "{parts:?}: {waited}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_requests_stays_open_between_messages_and_not_within_one() {
        let admitted = caller();
        let within = |parts| {
            let mut body = body(&admitted, STREAM, parts, true);
            async move {
                let end = async {
                    loop {
                        if let Err(error) = next(&mut body).await.unwrap() {
                            return error.code();
                        }
                    }
                };
                let hour = Duration::from_secs(3600);
                tokio::time::timeout(hour, end).await.ok()
            }
        };
        assert_eq!(within(vec![message(9)]).await, None);
        assert_eq!(within(vec![head(0), message(2000)]).await, None);
        let late = Some(Code::DeadlineExceeded);
        assert_eq!(within(vec![]).await, late, "it never began");
        assert_eq!(within(vec![message(9), vec![0]]).await, late);
        assert_eq!(within(vec![message(9), head(9)]).await, late);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_counts_for_its_caller_until_the_call_is_over() {
        let admission = Admission::new(16);
        let (one, other) = (admission.admit(1000).unwrap(), admission.admit(1001).unwrap());
        let announces = |admitted: &Admitted| {
            let mut body = body(admitted, FETCH, vec![head(MAX_REQUEST_BYTES)], true);
            read(&mut body).map(|()| body)
        };
        let mut held: Vec<_> = (0..MAX_BYTES_PER_HOLDER / MAX_REQUEST_BYTES)
            .map(|_| announces(&one).unwrap())
            .collect();
        let error = announces(&one).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("too many bytes"), "{error}");
        assert!(announces(&other).is_ok());
        // Short requests do not need to be counted.
        let mut short = body(&one, FETCH, vec![message(100)], false);
        assert!(read(&mut short).is_ok());
        held.pop();
        assert!(announces(&one).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_request_counts_while_it_is_answered_and_one_too_long_does_not() {
        let admitted = caller();
        let held = || admitted.shared.lock().bytes.values().sum::<usize>();
        let mut whole = body(&admitted, FETCH, vec![message(5000)], false);
        read(&mut whole).unwrap();
        assert_eq!(held(), 5000);
        let mut refused = body(&admitted, FETCH, vec![head(MAX_REQUEST_BYTES + 1)], true);
        read(&mut refused).unwrap();
        assert_eq!(held(), 5000, "its codec refuses it");
        drop(whole);
        assert_eq!(held(), 0);
        assert!(admitted.shared.lock().bytes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_requests_counts_what_it_is_sending_and_the_room_of_its_longest() {
        let admitted = caller();
        let held = || admitted.shared.lock().bytes.values().sum::<usize>();
        let mut stream = body(&admitted, STREAM, vec![head(50_000)], true);
        read(&mut stream).unwrap();
        assert_eq!(held(), 50_000);
        let mut stream = {
            drop(stream);
            body(&admitted, STREAM, vec![head(50_000), vec![7; 50_000]], true)
        };
        read(&mut stream).unwrap();
        assert_eq!(held(), 50_000 - UNCOUNTED_AFTERWARDS);
    }

    #[test]
    fn every_method_that_streams_its_requests_is_known() {
        let schema = FileDescriptorSet::decode(finial_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut streams: BTreeSet<String> = BTreeSet::new();
        for file in &schema.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                for method in service.method.iter().filter(|method| method.client_streaming()) {
                    streams.insert(format!("/{name}/{}", method.name()));
                }
            }
        }
        // The server's own, which no agent serves.
        streams.retain(|path| !path.starts_with("/spire.api.server."));
        let known: BTreeSet<String> = STREAMS_OF_REQUESTS
            .iter()
            .filter(|path| !path.starts_with("/grpc.reflection."))
            .map(|path| (*path).to_owned())
            .collect();
        assert_eq!(streams, known);
    }
}
