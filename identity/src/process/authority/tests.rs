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
