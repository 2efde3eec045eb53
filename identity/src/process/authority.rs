//! Makes gRPC clients of every language acceptable on a Unix socket.
//!
//! On a Unix socket many clients put the socket's path into the pseudo-header `:authority`: gRPC
//! C-core (Python, C++, PHP, Ruby) percent-encoded, Netty (Java) raw, older Go Huffman-coded. `h2` refuses a request whose
//! `:authority` is not an RFC 3986 authority and has no option for this. [`AuthorityAdapter`] stands
//! between the socket and `h2` and replaces, byte for byte, what an authority cannot hold. Lengths
//! stay, so the HPACK tables (RFC 7541) of both ends stay equal and later indexed references work.
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
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// Gives its pieces one read at a time, however large the reader's buffer is.
    #[derive(Debug)]
    struct Pieces(VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.0.pop_front() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.0.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frame(4, 0, 0, &[]), frames.concat()].concat()
    }

    /// A request's block, its `:authority` as C-core writes it: literal name, raw value.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x87, 0x84, 0x40, 10];
        block.extend(b":authority");
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority);
        block
    }

    async fn pass(bytes: &[u8], piece: usize, reader: usize) -> Vec<u8> {
        let pieces = Pieces(bytes.chunks(piece).map(<[u8]>::to_vec).collect());
        let mut adapter = AuthorityAdapter::new(pieces);
        let (mut out, mut space) = (Vec::new(), vec![0; reader]);
        loop {
            match adapter.read(&mut space).await.unwrap() {
                0 => return out,
                count => out.extend(&space[..count]),
            }
        }
    }

    /// Passes `bytes` in pieces of many sizes; the outcome must not depend on them.
    async fn passed(bytes: &[u8]) -> Vec<u8> {
        let whole = pass(bytes, bytes.len().max(1), 1 << 20).await;
        for (piece, reader) in [
            (1, 1),
            (1, 1000),
            (bytes.len().max(1), 1),
            (3, 7),
            (10, 4),
            (100, 64),
        ] {
            assert_eq!(
                pass(bytes, piece, reader).await,
                whole,
                "pieces of {piece}, reader of {reader}"
            );
        }
        whole
    }

    #[tokio::test]
    async fn repairs_paths_in_pieces_of_any_size() {
        let sent = connection(&[
            frame(1, 5, 1, &block(b"tmp%2Fa.sock")),
            frame(1, 5, 3, &block(b"/tmp/a.sock")),
        ]);
        let got = passed(&sent).await;
        let expected = connection(&[
            frame(1, 5, 1, &block(b"tmp-2Fa.sock")),
            frame(1, 5, 3, &block(b"-tmp-a.sock")),
        ]);
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn leaves_valid_authorities_data_and_other_frames_alone() {
        let sent = connection(&[
            frame(1, 4, 1, &block(b"localhost")),
            frame(0, 0, 1, &block(b"/looks/like/headers")),
            frame(0, 1, 1, &frame(1, 5, 1, &block(b"/nested"))),
            frame(8, 0, 0, &[0, 0, 1, 0]),
            frame(1, 4, 3, &block(b"[::]:50051")),
            frame(6, 0, 0, &[0; 8]),
        ]);
        assert_eq!(passed(&sent).await, sent);
    }

    #[tokio::test]
    async fn finds_the_block_within_padding_and_priority() {
        let padded = |authority: &[u8]| [&[3, 0, 0, 0, 0, 16][..], &block(authority), b"/|\0"].concat();
        let sent = connection(&[frame(1, 5 | PADDED | PRIORITY, 1, &padded(b"/a"))]);
        assert_eq!(
            passed(&sent).await,
            connection(&[frame(1, 5 | PADDED | PRIORITY, 1, &padded(b"-a"))])
        );
    }

    #[tokio::test]
    async fn repairs_a_value_that_is_split_over_continuations() {
        let frames = |authority: &[u8]| {
            let block = block(authority);
            let (a, rest) = block.split_at(2);
            let (b, c) = rest.split_at(block.len() - 7);
            connection(&[
                frame(1, 1, 1, a),
                frame(9, 0, 1, b),
                frame(9, 0, 1, &[]),
                frame(9, 4, 1, c),
                frame(1, 5, 3, &self::block(authority)),
            ])
        };
        assert_eq!(
            passed(&frames(b"/run/spire/a.sock")).await,
            frames(b"-run-spire-a.sock")
        );
    }

    #[tokio::test]
    async fn passes_what_is_malformed_untouched() {
        let bad = block(b"/a");
        let cases = [
            connection(&[frame(1, 0, 1, &bad), frame(9, 4, 3, &[])]),
            connection(&[frame(1, 0, 1, &bad), frame(0, 0, 1, &bad)]),
            connection(&[frame(1, 5 | PADDED, 1, &[200, 1, 2])]),
            connection(&[frame(1, 5 | PADDED | PRIORITY, 1, &[])]),
            connection(&[frame(9, 4, 1, &bad)]),
            connection(&[frame(1, 5, 1, &bad[..bad.len() - 1])]),
            [
                &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
                &connection(&[frame(1, 5, 1, &bad)]),
            ]
            .concat(),
        ];
        for sent in cases {
            assert_eq!(passed(&sent).await, sent);
        }
    }

    #[tokio::test]
    async fn passes_too_large_blocks_untouched_and_repairs_the_next() {
        let many = vec![frame(9, 0, 1, &[]); MAX_FRAGMENTS];
        let sent = connection(&[
            frame(1, 5, 1, &[block(b"/a"), vec![0x88; MAX_HELD]].concat()),
            [frame(1, 1, 1, &block(b"/b")), many.concat(), frame(9, 4, 1, &[])].concat(),
            frame(1, 5, 3, &block(b"/c")),
        ]);
        let mut expected = sent.clone();
        let last = expected.len() - 2;
        expected[last] = b'-';
        assert_eq!(passed(&sent).await, expected);
    }

    #[tokio::test]
    async fn gives_out_what_is_held_when_the_peer_ends() {
        let whole = connection(&[frame(1, 5, 1, &block(b"/a.sock"))]);
        for length in 0..whole.len() {
            let sent = &whole[..length];
            assert_eq!(passed(sent).await, sent);
        }
    }

    #[tokio::test]
    async fn holds_no_memory_between_header_blocks() {
        let pieces = connection(&[frame(1, 5, 1, &block(b"/a"))]);
        let mut adapter = AuthorityAdapter::new(Pieces(pieces.chunks(1).map(<[u8]>::to_vec).collect()));
        let mut out = Vec::new();
        adapter.read_to_end(&mut out).await.unwrap();
        assert_eq!((adapter.held.capacity(), adapter.released.capacity()), (0, 0));
    }

    #[tokio::test]
    async fn writes_pass_through_and_the_inner_connection_is_reachable() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut adapter = AuthorityAdapter::new(near);
        assert!(adapter.inner().is_write_vectored());
        assert!(adapter.is_write_vectored());
        let count = adapter
            .write_vectored(&[IoSlice::new(b"/a"), IoSlice::new(b"|b")])
            .await
            .unwrap();
        assert_eq!(count, 4);
        adapter.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"/a|b");
    }

    /// The `:authority` that a real server sees for a raw request, or what it says.
    async fn seen_by_h2(block: &[u8]) -> Result<Option<String>, String> {
        served(block, AuthorityAdapter::new).await
    }

    async fn served<IO>(block: &[u8], wrap: fn(DuplexStream) -> IO) -> Result<Option<String>, String>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(&connection(&[frame(1, 5, 1, block)]))
            .await
            .unwrap();
        let mut server = h2::server::handshake(wrap(near))
            .await
            .map_err(|error| error.to_string())?;
        // A refused stream is not told to us: then nothing comes, and the paused time runs out.
        match tokio::time::timeout(std::time::Duration::from_secs(1), server.accept()).await {
            Ok(Some(Ok((request, _respond)))) => Ok(request.uri().authority().map(ToString::to_string)),
            Ok(Some(Err(error))) => Err(error.to_string()),
            Ok(None) | Err(_) => Err("refused".to_owned()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_adapter_a_real_server_refuses_paths() {
        for path in [&b"tmp%2Fa.sock"[..], b"/tmp/a.sock"] {
            assert_eq!(served(&block(path), |io| io).await, Err("refused".to_owned()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_real_server_accepts_what_every_client_sends() {
        let cases: [(&[u8], &str); 8] = [
            (b"tmp%2Fa.sock", "tmp-2Fa.sock"),
            (b"/tmp/a.sock", "-tmp-a.sock"),
            (b"localhost", "localhost"),
            (b"[::]:50051", "[::]:50051"),
            (b"spire|agent cluster", "spire-agent-cluster"),
            (b"a:b:c", "a-b-c"),
            (b"user@", "user-"),
            (b"\xff\x00]", "---"),
        ];
        for (sent, expected) in cases {
            assert_eq!(
                seen_by_h2(&block(sent)).await,
                Ok(Some(expected.to_owned())),
                "{sent:?}"
            );
        }
        assert_eq!(seen_by_h2(&[0x83, 0x87, 0x84]).await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_real_server_agrees_on_every_coding_of_the_name() {
        for name in [&[0x41][..], &[0x01], &[0x11]] {
            let block = [&[0x83, 0x87, 0x84], name, &[2], b"/a"].concat();
            assert_eq!(seen_by_h2(&block).await, Ok(Some("-a".to_owned())), "{name:?}");
        }
        let block = [
            &[0x83, 0x87, 0x84, 0x40, 0x88],
            &header_block::HUFFMAN_AUTHORITY[..],
            &[2],
            b"/a",
        ]
        .concat();
        assert_eq!(seen_by_h2(&block).await, Ok(Some("-a".to_owned())));
        // The value in the Huffman code, as Go writes it.
        let block = [0x83, 0x87, 0x84, 0x41, 0x82, 0x60, 0x7f];
        assert_eq!(seen_by_h2(&block).await, Ok(Some("-a".to_owned())));
    }
}
