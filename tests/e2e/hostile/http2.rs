//! What HTTP/2 allows a client to do to a server.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use finial_tests::{Entry, Stack, StackOptions};

use crate::raw_http2::{
    CONTINUATION, DATA, FETCH, GOAWAY, HEADERS, RST_STREAM, SECURITY, SETTINGS, connect, is_served, literal,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const ENHANCE_YOUR_CALM: u32 = 11;

#[test]
fn a_client_that_resets_what_it_opens_is_hung_up_on_and_its_neighbours_are_served() {
    let stack = serving();
    let mut client = greeted(&stack);
    let pairs = (0..2_000).flat_map(|number| {
        let stream = 2 * number + 1;
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        [frame(HEADERS, END_HEADERS, stream, &request()), reset].concat()
    });
    let written = client.write_all(&pairs.collect::<Vec<u8>>());
    let ended = ended(&mut client);
    assert!(
        matches!(ended, Ended::GoAway(ENHANCE_YOUR_CALM)) || written.is_err(),
        "{ended:?}, {written:?}"
    );
    is_served(&stack);
}

#[test]
fn a_client_whose_requests_are_all_malformed_is_hung_up_on_and_its_neighbours_are_served() {
    let stack = serving();
    let mut client = greeted(&stack);
    // Without a method, nor anything else. The agent resets each; the limit is also what hyper would have.
    let requests = (0..2_000).map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &[]));
    let written = client.write_all(&requests.collect::<Vec<_>>().concat());
    let ended = ended(&mut client);
    assert!(
        matches!(ended, Ended::GoAway(ENHANCE_YOUR_CALM)) || written.is_err(),
        "{ended:?}, {written:?}"
    );
    is_served(&stack);
}

#[test]
fn a_header_block_without_end_is_cut_off_and_costs_no_memory() {
    let mut stack = serving();
    let before = resident(stack.agent().pid());
    for payload in [&[0; 16 * 1024][..], &[0], &[]] {
        let mut client = greeted(&stack);
        client
            .write_all(&frame(HEADERS, 0, 1, &request()))
            .expect("the block begins");
        let more = frame(CONTINUATION, 0, 1, payload);
        let sent = (0..100_000).position(|_| client.write_all(&more).is_err());
        let ended = ended(&mut client);
        assert!(
            sent.is_some() || matches!(ended, Ended::GoAway(_)),
            "all frames of {} bytes were taken: {ended:?}",
            payload.len()
        );
    }
    let grown = resident(stack.agent().pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    is_served(&stack);
}

#[test]
fn a_request_with_more_metadata_than_is_read_is_refused_and_its_connection_lives() {
    let stack = serving();
    let mut client = greeted(&stack);
    // Ten headers of 4 KiB each, in one block of three frames.
    let mut block = request();
    for number in 0..10 {
        let value = vec![b'a'; 4096];
        block.extend([0, 2, b'x', b'0' + number, 127]);
        let mut length = value.len() - 127;
        while length >= 128 {
            block.push((length % 128 + 128) as u8);
            length /= 128;
        }
        block.push(length as u8);
        block.extend(value);
    }
    let parts: Vec<&[u8]> = block.chunks(16 * 1024).collect();
    for (index, part) in parts.iter().enumerate() {
        let kind = if index == 0 { HEADERS } else { CONTINUATION };
        let flags = if index + 1 == parts.len() { END_HEADERS } else { 0 };
        client
            .write_all(&frame(kind, flags, 1, part))
            .expect("a part is sent");
    }
    let refused = until(&mut client, |kind, flags, stream, _| {
        assert!(kind != DATA || stream != 1, "an answer to what was not read");
        stream == 1 && (kind == RST_STREAM || (kind == HEADERS && flags & END_STREAM != 0))
    });
    assert!(refused, "the request is refused");
    client
        .write_all(&frame(HEADERS, END_HEADERS, 3, &request()))
        .expect("another request");
    client
        .write_all(&frame(DATA, END_STREAM, 3, &[0; 5]))
        .expect("its message");
    let served = until(&mut client, |kind, _, stream, payload| {
        kind == DATA && stream == 3 && !payload.is_empty()
    });
    assert!(served, "the connection still serves");
}

#[test]
fn a_client_that_does_not_finish_its_greeting_is_hung_up_on() {
    let stack = serving();
    let begun = Instant::now();
    let mut clients = [&b""[..], &PREFACE[..12], PREFACE].map(|greeting| {
        let mut client = connect(&stack.agent_socket());
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout is set");
        client.write_all(greeting).expect("the greeting begins");
        client
    });
    let mut patient = greeted(&stack);
    for client in &mut clients {
        let ended = ended(client);
        assert!(matches!(ended, Ended::Closed | Ended::GoAway(_)), "{ended:?}");
    }
    assert!(
        begun.elapsed() > Duration::from_secs(8),
        "a slow machine has time"
    );
    // One that greeted and has not asked yet is not hung up on.
    patient
        .write_all(&frame(HEADERS, END_HEADERS, 1, &request()))
        .expect("a request");
    patient
        .write_all(&frame(DATA, END_STREAM, 1, &[0; 5]))
        .expect("its message");
    assert!(until(&mut patient, |kind, _, _, payload| kind == DATA
        && !payload.is_empty()));
}

#[test]
fn a_client_that_does_not_read_is_kept_the_newest_state_and_no_history() {
    let stack = serving();
    let mut client = connect(&stack.agent_socket());
    client.write_all(PREFACE).expect("the preface");
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing may be sent on any stream.
    client
        .write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]))
        .expect("settings");
    client
        .write_all(&frame(HEADERS, END_HEADERS, 1, &request()))
        .expect("a request");
    client
        .write_all(&frame(DATA, END_STREAM, 1, &[0; 5]))
        .expect("its message");
    let begun = until(&mut client, |kind, _, stream, _| kind == HEADERS && stream == 1);
    assert!(begun, "the answer begins");
    for number in 0..6 {
        let path = format!("/late-{number}");
        stack.create_entry(&Entry::for_me(&path));
        stack.wait_identity(&path);
    }
    let wide = (1_u32 << 24).to_be_bytes();
    client
        .write_all(&frame(WINDOW_UPDATE, 0, 0, &wide))
        .expect("the connection's window opens");
    client
        .write_all(&frame(WINDOW_UPDATE, 0, 1, &wide))
        .expect("the stream's window opens");
    let (mut bytes, newest) = (Vec::new(), b"/late-5");
    let complete = until(&mut client, |kind, _, _, payload| {
        if kind == DATA {
            bytes.extend_from_slice(payload);
        }
        let (_, rest) = messages(&bytes);
        rest && bytes.windows(newest.len()).any(|window| window == newest)
    });
    assert!(complete, "the newest state comes");
    let (count, _) = messages(&bytes);
    assert!(
        count <= 2,
        "{count} messages were kept: the one under way and the newest"
    );
}

/// How many gRPC messages these bytes begin with, and whether the last is whole.
fn messages(mut bytes: &[u8]) -> (usize, bool) {
    let mut count = 0;
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some(after) = rest.get(length..) else {
            return (count, false);
        };
        (count, bytes) = (count + 1, after);
    }
    (count, bytes.is_empty())
}

fn serving() -> Stack {
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    stack
}

fn greeted(stack: &Stack) -> UnixStream {
    let mut client = connect(&stack.agent_socket());
    client.write_all(PREFACE).expect("the preface");
    client.write_all(&frame(SETTINGS, 0, 0, &[])).expect("settings");
    client
}

fn request() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    literal(&mut block, Some(4), "", FETCH);
    literal(&mut block, None, "content-type", "application/grpc");
    literal(&mut block, None, "te", "trailers");
    literal(&mut block, None, SECURITY.0, SECURITY.1);
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[derive(Debug)]
enum Ended {
    GoAway(u32),
    Closed,
    /// It was not within the time that a read may take.
    NotAtAll,
}

/// Reads to the end.
fn ended(client: &mut UnixStream) -> Ended {
    loop {
        match receive(client) {
            Ok((GOAWAY, _, _, payload)) => {
                let code = payload[4..8].try_into().expect("a GOAWAY has a code");
                return Ended::GoAway(u32::from_be_bytes(code));
            }
            Ok(_) => {}
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ended::NotAtAll,
            Err(_) => return Ended::Closed,
        }
    }
}

/// Reads until a frame fits; `false` when the connection ends or falls silent before.
fn until(client: &mut UnixStream, mut fits: impl FnMut(u8, u8, u32, &[u8]) -> bool) -> bool {
    loop {
        match receive(client) {
            Ok((kind, flags, stream, payload)) if fits(kind, flags, stream, &payload) => return true,
            Ok((GOAWAY, ..)) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

fn receive(client: &mut UnixStream) -> Result<(u8, u8, u32, Vec<u8>), ErrorKind> {
    let mut head = [0; 9];
    client.read_exact(&mut head).map_err(|error| error.kind())?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    client.read_exact(&mut payload).map_err(|error| error.kind())?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok((head[3], head[4], stream, payload))
}

/// Bytes of memory that a process occupies.
pub(super) fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent's status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let kib: usize = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number of kB");
    kib * 1024
}
