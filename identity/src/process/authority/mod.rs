//! Makes gRPC clients of every language acceptable on a Unix socket.
//!
//! On a Unix socket many clients put the socket's path into the pseudo-header `:authority`: gRPC C-core (Python, C++,
//! PHP, Ruby) percent-encoded, Netty (Java) raw, older Go Huffman-coded. `h2` refuses a request whose `:authority` is
//! not an RFC 3986 authority and has no option for this. [`AuthorityAdapter`] is between the socket and `h2` and
//! replaces, byte for byte, what an authority cannot contain. Lengths do not change, so the HPACK tables (RFC 7541) of
//! both ends stay equal and later indexed references work.
//!
//! It reads frames (RFC 9113 §4.1) and headers only as far as that needs. Whatever is malformed or too
//! large passes untouched, for `h2` to refuse.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::header_block;

/// What every client of HTTP/2 sends first (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The most bytes of one header block, with its frame headers, that are held to be looked at.
const MAX_HELD: usize = 64 * 1024;
/// The most frames one header block may be made of to be looked at.
const MAX_FRAGMENTS: usize = 32;
/// How much is read at a time while bytes are held.
const READ_SIZE: usize = 4096;

/// An HTTP/2 server's connection whose read side has every `:authority` made parseable.
///
/// Everything else, and the write side, passes unchanged. Holds at most one header block of 64 KiB.
#[derive(Debug)]
pub struct AuthorityAdapter<IO> {
    io: IO,
    scan: Scan,
    /// Bytes that cannot be released before more have come.
    held: BytesMut,
    /// Bytes that are ready for the reader.
    released: BytesMut,
}

impl<IO> AuthorityAdapter<IO> {
    /// Wraps a connection of which nothing was read yet.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            scan: Scan::Preface { matched: 0 },
            held: BytesMut::new(),
            released: BytesMut::new(),
        }
    }

    /// The connection, for its peer credentials.
    pub fn inner(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for AuthorityAdapter<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.release_into(buf) {
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                // The usual way: straight into the reader's buffer, looked at in place.
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                let fresh = buf.filled_mut().get_mut(before..).unwrap_or_default();
                if fresh.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let whole = this.scan.advance(fresh);
                this.held
                    .extend_from_slice(fresh.get(whole..).unwrap_or_default());
                buf.set_filled(before + whole);
                if whole > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut space = [0; READ_SIZE];
                let mut fresh = ReadBuf::new(&mut space);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut fresh))?;
                this.held.extend_from_slice(fresh.filled());
                let whole = if fresh.filled().is_empty() {
                    this.held.len() // The end: nothing will complete what is held.
                } else {
                    this.scan.advance(&mut this.held)
                };
                this.released = this.held.split_to(whole);
                if this.held.is_empty() {
                    this.held = BytesMut::new();
                }
            }
        }
    }
}

impl<IO> AuthorityAdapter<IO> {
    fn release_into(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.released.len().min(buf.remaining());
        if count == 0 {
            return false;
        }
        buf.put_slice(self.released.get(..count).unwrap_or_default());
        self.released.advance(count);
        if self.released.is_empty() {
            self.released = BytesMut::new();
        }
        true
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for AuthorityAdapter<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO: Connected> Connected for AuthorityAdapter<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

/// Where in the stream of frames the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Scan {
    /// Within the client's preface.
    Preface { matched: usize },
    /// `skip` bytes before the header of a frame.
    Frames { skip: usize },
    /// This is not HTTP/2, or not any more.
    Opaque,
}

impl Scan {
    /// Looks at `bytes`, which follow what was released before, and repairs complete header blocks
    /// in place. Returns how many bytes can be released; the rest must be given again, with more.
    fn advance(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let step = match *self {
                Self::Opaque => rest.len(),
                Self::Preface { matched } => {
                    let expected = PREFACE.get(matched..).unwrap_or_default();
                    let count = expected.len().min(rest.len());
                    let matched = matched + count;
                    *self = if rest.get(..count) != expected.get(..count) {
                        Self::Opaque
                    } else if matched == PREFACE.len() {
                        Self::Frames { skip: 0 }
                    } else {
                        Self::Preface { matched }
                    };
                    count
                }
                Self::Frames { skip } if skip > 0 => {
                    let count = skip.min(rest.len());
                    *self = Self::Frames { skip: skip - count };
                    count
                }
                Self::Frames { .. } => match Frame::read(rest) {
                    None => return done,
                    Some(frame) if frame.kind == HEADERS => match gather(rest) {
                        Block::Incomplete => return done,
                        Block::Whole { length, fragments } => {
                            repair(rest.get_mut(..length).unwrap_or_default(), &fragments);
                            length
                        }
                        Block::NotOurs => {
                            *self = Self::Frames { skip: frame.length };
                            0
                        }
                    },
                    Some(frame) => {
                        *self = Self::Frames { skip: frame.length };
                        0
                    }
                },
            };
            done += step;
        }
        done
    }
}

/// The header of a frame; `length` counts header and payload.
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, d, e, f, g] = *bytes.first_chunk::<FRAME_HEADER>()?;
        let payload = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let stream = u32::from_be_bytes([d, e, f, g]) & (u32::MAX >> 1);
        Some(Self {
            length: FRAME_HEADER + payload,
            kind,
            flags,
            stream,
        })
    }
}

/// The frames that a header block is made of.
enum Block {
    /// More bytes must come.
    Incomplete,
    /// The frames take `length` bytes; the block's pieces stand at `fragments`.
    Whole {
        length: usize,
        fragments: Vec<std::ops::Range<usize>>,
    },
    /// Malformed or too large: not to be touched.
    NotOurs,
}

/// Finds the end of the header block that begins with the frame at the start of `bytes`.
fn gather(bytes: &[u8]) -> Block {
    let mut fragments = Vec::new();
    let (mut at, mut stream) = (0, None);
    loop {
        let Some(frame) = Frame::read(bytes.get(at..).unwrap_or_default()) else {
            return Block::Incomplete;
        };
        let end = at + frame.length;
        let in_order = match stream {
            None => frame.kind == HEADERS,
            Some(first) => frame.kind == CONTINUATION && frame.stream == first,
        };
        if !in_order || end > MAX_HELD || fragments.len() >= MAX_FRAGMENTS {
            return Block::NotOurs;
        }
        if end > bytes.len() {
            return Block::Incomplete;
        }
        let mut fragment = at + FRAME_HEADER..end;
        if frame.kind == HEADERS {
            if frame.flags & PADDED != 0 {
                let padding = bytes.get(fragment.start).copied().unwrap_or_default();
                fragment.start += 1;
                fragment.end = fragment.end.saturating_sub(usize::from(padding));
            }
            if frame.flags & PRIORITY != 0 {
                fragment.start += 5;
            }
        }
        if fragment.start > fragment.end {
            return Block::NotOurs;
        }
        fragments.push(fragment);
        if frame.flags & END_HEADERS != 0 {
            return Block::Whole {
                length: end,
                fragments,
            };
        }
        (at, stream) = (end, Some(frame.stream));
    }
}

/// Repairs the block that consists of `fragments` of `bytes`.
fn repair(bytes: &mut [u8], fragments: &[std::ops::Range<usize>]) {
    if let [only] = fragments {
        header_block::repair_authorities(bytes.get_mut(only.clone()).unwrap_or_default());
        return;
    }
    let mut block = Vec::new();
    for fragment in fragments {
        block.extend_from_slice(bytes.get(fragment.clone()).unwrap_or_default());
    }
    header_block::repair_authorities(&mut block);
    let mut rest = block.as_slice();
    for fragment in fragments {
        let Some((piece, remainder)) = rest.split_at_checked(fragment.len()) else {
            return;
        };
        if let Some(place) = bytes.get_mut(fragment.clone()) {
            place.copy_from_slice(piece);
        }
        rest = remainder;
    }
}

#[cfg(test)]
mod tests;
