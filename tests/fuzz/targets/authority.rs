//! The adapter that makes `:authority` parseable on Unix sockets, over arbitrary bytes in arbitrary pieces.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use finial_identity::process::AuthorityAdapter;
use tokio::io::{AsyncRead, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first two bytes choose the pieces and the reader's buffer; the rest is the connection.
pub fn run(data: &[u8]) {
    let Some(([pieces, reader], sent)) = data.split_first_chunk::<2>() else {
        return;
    };
    let whole = pass(sent, usize::MAX, 64 * 1024);
    assert_eq!(whole.len(), sent.len(), "a byte was lost or made");
    let split = pass(sent, usize::from(*pieces) + 1, usize::from(*reader) + 1);
    assert_eq!(split, whole, "the outcome depends on how the bytes arrive");
    assert_eq!(
        pass(&whole, usize::MAX, 64 * 1024),
        whole,
        "what was repaired is repaired again"
    );

    let headers = header_frames(sent);
    for (at, (before, after)) in sent.iter().zip(&whole).enumerate() {
        // In what is Huffman-coded the bits of a symbol change, elsewhere a byte becomes '-'.
        if before != after {
            assert!(
                headers.iter().any(|frame| frame.contains(&at)),
                "byte {at} is outside of header blocks"
            );
        }
    }
}

/// What a reader with a buffer of `reader` bytes gets when the bytes come in pieces of about `piece`.
fn pass(sent: &[u8], piece: usize, reader: usize) -> Vec<u8> {
    let mut adapter = AuthorityAdapter::new(Pieces {
        rest: sent,
        piece,
        state: 1,
    });
    let mut cx = Context::from_waker(Waker::noop());
    let (mut out, mut space) = (Vec::with_capacity(sent.len()), vec![0; reader]);
    loop {
        let mut buf = ReadBuf::new(&mut space);
        match Pin::new(&mut adapter).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return out,
            Poll::Ready(Ok(())) => out.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => panic!("{error}"),
            // The source was not ready; its next answer will be.
            Poll::Pending => {}
        }
    }
}

/// The payloads of frames that may hold header blocks.
fn header_frames(sent: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = PREFACE.len();
    if !sent.starts_with(PREFACE) {
        return found;
    }
    while let Some([a, b, c, kind, ..]) = sent.get(at..).and_then(|rest| rest.first_chunk::<9>()) {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if matches!(kind, 1 | 9) {
            found.push(at + 9..at + 9 + length);
        }
        at += 9 + length;
    }
    found
}

/// Gives what it has in pieces of varying size, and now and then is not ready.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
    state: u32,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if self.state >> 30 == 0 && !self.rest.is_empty() {
            return Poll::Pending;
        }
        let varied = (self.state >> 16) as usize % self.piece + 1;
        let count = varied.min(self.rest.len()).min(buf.remaining());
        let (now, later) = self.rest.split_at(count);
        buf.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}
