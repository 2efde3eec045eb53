//! Messages that are encoded once and sent on many streams.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes};
use futures_util::stream::{self, Stream};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::limits::MAX_REQUEST_BYTES;

/// Bytes that each stream's buffer has at first, instead of tonic's 8 KiB: most streams are idle most of the time.
const BUFFER_BYTES: usize = 512;
/// Bytes that are put together before they are sent.
const YIELD_BYTES: usize = 32 * 1024;
/// What a message begins with: a flag and four bytes of length (gRPC over HTTP/2, `Length-Prefixed-Message`).
const HEAD_BYTES: usize = 5;

/// A message as gRPC sends it: not compressed, its length, itself. All streams that send it share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Framed(Bytes);

/// Nothing of the message, which may hold private keys.
impl fmt::Debug for Framed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Framed({} bytes)", self.message_len())
    }
}

impl Framed {
    /// Encodes a message.
    pub(super) fn new(message: &impl Message) -> Self {
        Self(Bytes::from(frame(message)))
    }

    /// Encodes a message with private keys or tokens, into memory that is zeroised when its last user drops it.
    pub(super) fn secret(message: &impl Message) -> Self {
        Self(Bytes::from_owner(Zeroizing::new(frame(message))))
    }

    /// Bytes of the message itself.
    pub(super) fn message_len(&self) -> usize {
        self.0.len().saturating_sub(HEAD_BYTES)
    }

    /// The message itself, encoded.
    #[cfg(test)]
    pub(super) fn message(&self) -> Bytes {
        self.0.slice(HEAD_BYTES..)
    }

    /// The bytes to send. Of a message that is too long the head is wrong.
    fn into_bytes(self) -> Result<Bytes, Status> {
        if u32::try_from(self.message_len()).is_err() {
            let text = format!("message is too long: {} bytes", self.message_len());
            return Err(Status::resource_exhausted(text));
        }
        Ok(self.0)
    }
}

fn frame(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(HEAD_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed
}

/// Exactly one value, exactly the one that is asked for: a browser or a proxy that was tricked into a request cannot
/// send it.
///
/// # Errors
/// `InvalidArgument` without it.
pub(super) fn require_security_header(
    headers: &http::HeaderMap,
    (name, value): (&'static str, &str),
) -> Result<(), Status> {
    let mut values = headers.get_all(name).iter();
    let is_first = values
        .next()
        .is_some_and(|only| only.as_bytes() == value.as_bytes());
    if is_first && values.next().is_none() {
        return Ok(());
    }
    Err(Status::invalid_argument("security header missing from request"))
}

/// Answers a call with one message.
pub(super) async fn unary<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + 'static,
    F: FnOnce(Request<M>) -> A + Clone,
    A: Future<Output = Result<Bytes, Status>>,
{
    let service = tower::service_fn(move |request: Request<M>| {
        let answer = answer.clone()(request);
        async move { answer.await.map(Response::new) }
    });
    grpc::<M>().unary(service, request).await
}

/// Answers a call with a stream, once its first message is at hand: a refusal is the answer to the call.
pub(super) async fn streaming<M, F, A, S>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + 'static,
    F: FnOnce(Request<M>) -> A,
    A: Future<Output = Result<S, Status>>,
    S: Stream<Item = Result<Framed, Status>> + Send + 'static,
{
    let mut messages = None;
    // tonic reads the request and writes the head of the answer; its body would keep each message in a buffer of its
    // own until the next one.
    let mut once = Some((answer, &mut messages));
    let service = tower::service_fn(move |request: Request<M>| {
        let once = once.take();
        async move {
            let (answer, messages) = once.ok_or_else(|| Status::internal("call was answered before"))?;
            *messages = Some(answer(request).await?);
            Ok(Response::new(stream::empty()))
        }
    });
    let response = grpc::<M>().server_streaming(service, request).await;
    match messages {
        Some(messages) => response.map(|_empty| Body::new(EncodedMessages::new(messages))),
        None => response, // A refusal.
    }
}

fn grpc<M: Message + Default + 'static>() -> Grpc<PreEncoded<M>> {
    Grpc::new(PreEncoded::new()).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// The body of an answer: messages that are encoded already, and the status in the trailers (gRPC over HTTP/2).
struct EncodedMessages<S> {
    /// Until its end, or until an error.
    messages: Option<Pin<Box<S>>>,
}

impl<S> EncodedMessages<S> {
    fn new(messages: S) -> Self {
        Self {
            messages: Some(Box::pin(messages)),
        }
    }
}

impl<S: Stream<Item = Result<Framed, Status>>> HttpBody for EncodedMessages<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(messages) = &mut self.messages else {
            return Poll::Ready(None);
        };
        let end = match ready!(messages.as_mut().poll_next(cx))
            .map(|message| message.and_then(Framed::into_bytes))
        {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.messages = None;
        let mut trailers = http::HeaderMap::new();
        end.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none()
    }
}

/// Reads requests `M`, writes answers that are encoded already.
#[derive(Debug)]
pub(super) struct PreEncoded<M>(PhantomData<fn() -> M>);

impl<M> PreEncoded<M> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + Send + 'static> Codec for PreEncoded<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Passer;
    type Decoder = Reader<M>;

    fn encoder(&mut self) -> Passer {
        Passer
    }

    fn decoder(&mut self) -> Reader<M> {
        Reader(PhantomData)
    }
}

/// Copies the bytes.
#[derive(Debug)]
pub(super) struct Passer;

impl Encoder for Passer {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(item.len());
        dst.put_slice(&item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

/// Decodes a request.
#[derive(Debug)]
pub(super) struct Reader<M>(PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for Reader<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        // Such bytes will never be a request, so the client must not try again.
        M::decode(src)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("request is malformed: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}
