//! HTTP/2 written by hand: what gRPC clients of other languages put on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use finial_tests::{Entry, Stack, StackOptions};

use crate::admin::WithAdmin;

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const DATA: u8 = 0;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub(crate) const SECURITY: (&str, &str) = ("workload.spiffe.io", "true");

#[test]
fn every_authority_that_clients_send_is_accepted_on_every_unix_socket() {
    let with = WithAdmin::start();
    let stack = &with.stack;
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let authorities = [
        None,
        Some("localhost"),
        Some("tmp%2Fa.sock"),
        Some("/tmp/a.sock"),
        Some("[::]:50051"),
        Some("spire_agent|cluster name"),
    ];
    for authority in authorities {
        let answer = exchange(&stack.agent_socket(), authority, FETCH, &[SECURITY], Split::Whole);
        assert!(
            answer.data_bytes > 100,
            "Workload API with :authority {authority:?}: {answer:?}"
        );
        let answer = exchange(
            &stack.agent_socket(),
            authority,
            FETCH,
            &[SECURITY],
            Split::Continuation,
        );
        assert!(
            answer.data_bytes > 100,
            "Workload API, split headers, :authority {authority:?}: {answer:?}"
        );
        for (socket, name) in [
            (stack.server_socket(), "server's private socket"),
            (with.socket(), "agent's admin socket"),
        ] {
            let check = "/grpc.health.v1.Health/Check";
            let answer = exchange(&socket, authority, check, &[], Split::Whole);
            assert!(
                answer.data_bytes > 0,
                "{name} with :authority {authority:?}: {answer:?}"
            );
        }
    }
}

/// Covers WEP-08.
#[test]
fn the_security_header_must_be_there_once_and_exact() {
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let wrong: [&[(&str, &str)]; 6] = [
        &[],
        &[("workload.spiffe.io", "True")],
        &[("workload.spiffe.io", "1")],
        &[("workload.spiffe.io", "")],
        &[SECURITY, SECURITY],
        &[SECURITY, ("workload.spiffe.io", "false")],
    ];
    for headers in wrong {
        let answer = exchange(
            &stack.agent_socket(),
            Some("localhost"),
            FETCH,
            headers,
            Split::Whole,
        );
        assert_eq!(answer.data_bytes, 0, "{headers:?}: {answer:?}");
        assert!(
            answer.trailer_is("3"),
            "{headers:?} must give InvalidArgument: {answer:?}"
        );
    }
}

#[test]
fn a_broken_request_ends_its_connection_and_nothing_else() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x04",
    ] {
        let mut stream = connect(&stack.agent_socket());
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    assert!(stack.agent().is_running());
    is_served(&stack);
}

/// The agent still answers this user.
pub(crate) fn is_served(stack: &Stack) {
    let answer = exchange(
        &stack.agent_socket(),
        Some("localhost"),
        FETCH,
        &[SECURITY],
        Split::Whole,
    );
    assert!(answer.data_bytes > 100, "{answer:?}");
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Split {
    Whole,
    /// The header block in two frames, cut in the middle of the authority.
    Continuation,
}

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) data_bytes: usize,
    /// Header blocks as received, HPACK-coded.
    blocks: Vec<Vec<u8>>,
    reset: Option<u32>,
}

impl Answer {
    /// Whether a header block carries `grpc-status` with this value, as tonic codes it (literal, possibly Huffman).
    pub(crate) fn trailer_is(&self, status: &str) -> bool {
        let coded = huffman(status);
        let plain = [&[status.len() as u8][..], status.as_bytes()].concat();
        self.blocks.iter().any(|block| {
            block.windows(coded.len()).any(|window| window == coded)
                || block.windows(plain.len()).any(|window| window == plain)
        })
    }
}

/// A number in the Huffman code of HPACK with its length before it (RFC 7541 §5.2 and appendix B).
fn huffman(digits: &str) -> Vec<u8> {
    let mut bits = String::new();
    for digit in digits.bytes().map(|digit| digit - b'0') {
        match digit {
            0..=2 => bits.push_str(&format!("{digit:05b}")),
            _ => bits.push_str(&format!("{:06b}", 0b011001 + digit - 3)),
        }
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let bytes = (0..bits.len()).step_by(8);
    let bytes = bytes.map(|at| u8::from_str_radix(&bits[at..at + 8], 2).expect("eight bits"));
    let bytes: Vec<u8> = bytes.collect();
    [&[0x80 | bytes.len() as u8][..], &bytes].concat()
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the socket accepts");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout is set");
    stream
}

/// One gRPC call with an empty message; reads until data, the end of the stream or a reset.
pub(crate) fn exchange(
    socket: &Path,
    authority: Option<&str>,
    path: &str,
    extra: &[(&str, &str)],
    split: Split,
) -> Answer {
    let mut stream = connect(socket);
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .expect("the preface is sent");
    send(&mut stream, SETTINGS, 0, 0, &[]);

    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    literal(&mut block, Some(4), "", path);
    let before_authority = block.len();
    if let Some(authority) = authority {
        literal(&mut block, Some(1), "", authority);
    }
    literal(&mut block, None, "content-type", "application/grpc");
    literal(&mut block, None, "te", "trailers");
    for (name, value) in extra {
        literal(&mut block, None, name, value);
    }
    match split {
        Split::Whole => send(&mut stream, HEADERS, 0x4, 1, &block),
        Split::Continuation => {
            let (first, second) = block.split_at(before_authority + 3);
            send(&mut stream, HEADERS, 0, 1, first);
            send(&mut stream, CONTINUATION, 0x4, 1, second);
        }
    }
    send(&mut stream, DATA, 0x1, 1, &[0, 0, 0, 0, 0]);

    let mut answer = Answer::default();
    loop {
        let mut head = [0; 9];
        stream
            .read_exact(&mut head)
            .unwrap_or_else(|error| panic!("{authority:?} {path}: {error}, so far {answer:?}"));
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream
            .read_exact(&mut payload)
            .expect("a frame's payload follows its head");
        let end = head[4] & 0x1 != 0;
        match head[3] {
            DATA => answer.data_bytes += length,
            HEADERS => answer.blocks.push(payload),
            RST_STREAM => {
                answer.reset = Some(u32::from_be_bytes(payload[..4].try_into().expect("four bytes")))
            }
            GOAWAY => panic!("{authority:?} {path}: the connection was ended: {payload:?}"),
            SETTINGS if !end => send(&mut stream, SETTINGS, 0x1, 0, &[]),
            _ => {}
        }
        if answer.data_bytes > 0 || answer.reset.is_some() || (end && matches!(head[3], DATA | HEADERS)) {
            return answer;
        }
    }
}

pub(crate) fn send(stream: &mut UnixStream, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).expect("a frame is sent");
}

/// A literal without indexing, not Huffman-coded.
pub(crate) fn literal(block: &mut Vec<u8>, index: Option<u8>, name: &str, value: &str) {
    match index {
        Some(index) => block.push(index),
        None => {
            block.extend([0, name.len() as u8]);
            block.extend(name.as_bytes());
        }
    }
    assert!(value.len() < 127, "lengths over one byte are not written here");
    block.push(value.len() as u8);
    block.extend(value.as_bytes());
}
