//! Messages that were encoded once and go to many streams.

use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes that each stream's buffer has at first, instead of tonic's 8 KiB: most streams are idle most of the time.
const BUFFER_BYTES: usize = 512;
/// Bytes that are put together before they are sent.
const YIELD_BYTES: usize = 32 * 1024;

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
        // Such bytes will never be a request, so the client shall not try again.
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
