//! One user with ten thousand streams, and the others.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use finial_tests::{Stack, StackOptions};

use super::{ONE, open_to_users, processors, scene};
use crate::raw_http2::{FETCH, SECURITY, Split, exchange};

const SAMPLES: usize = 200;
/// What a machine that does other things as well may take for one call without any flood.
const NOISE: Duration = Duration::from_millis(10);

/// Ten connections of a thousand streams each; half of the requests never say their message. What is refused is
/// tried again for as long as the flood lasts.
const FLOOD: &str = "
import select
COUNT, EACH = 10, 1000
socks = [accepted(connect(path)) for _ in range(COUNT)]
for sock in socks:
    sock.setblocking(False)
opened, refused, buffers = [0] * COUNT, 0, [b''] * COUNT
pending = [b''] * COUNT
for index in range(COUNT):
    for number in range(EACH):
        stream = 2 * number + 1
        pending[index] += request(stream) if number % 2 else frame(HEADERS, 4, stream, REQUEST)
    opened[index] = EACH
told = False
while True:
    readable, writable, _ = select.select(socks, [s for i, s in enumerate(socks) if pending[i]], [], 1)
    for sock in writable:
        index = socks.index(sock)
        try:
            pending[index] = pending[index][sock.send(pending[index][:65536]):]
        except BlockingIOError:
            pass
    for sock in readable:
        index = socks.index(sock)
        try:
            data = buffers[index] + sock.recv(65536)
        except BlockingIOError:
            continue
        while len(data) >= 9:
            length = int.from_bytes(data[:3], 'big')
            if len(data) < 9 + length:
                break
            if (data[3] == HEADERS and data[4] & 1) or data[3] == RST_STREAM:
                refused += 1
                pending[index] += request(2 * opened[index] + 1)
                opened[index] += 1
            data = data[9 + length:]
        buffers[index] = data
    if not told and not any(pending):
        told = True
        say('flooding')
    if told and refused and refused < 10**9:
        say('refused'); refused = 10**9
";

#[test]
fn ten_thousand_streams_of_one_user_do_not_slow_the_others_down() {
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    let _quiet = processors();
    let before = latency(&stack);
    let mut command = scene(&stack, &python, &[], &format!("os.setuid({ONE}){FLOOD}"));
    let mut flood = Flood(command.stdout(Stdio::piped()).spawn().expect("the flood starts"));
    let said = BufReader::new(flood.0.stdout.take().expect("stdout is piped"));
    let said: Vec<String> = said.lines().map_while(Result::ok).take(2).collect();
    assert!(
        said.contains(&"flooding".to_owned()) && said.contains(&"refused".to_owned()),
        "{said:?}"
    );
    let during = latency(&stack);
    assert!(flood.0.try_wait().expect("the flood is a child").is_none());
    drop(flood);
    // What else the machine does may have begun meanwhile.
    let without = before.max(latency(&stack));
    println!("99 % of first answers within {without:?}, in the flood within {during:?}");
    assert!(
        during < 10 * without.max(NOISE),
        "{without:?} without the flood, {during:?} with it"
    );
}

/// Within which time 99 of 100 callers have their first answer, from the connection on.
fn latency(stack: &Stack) -> Duration {
    let socket = stack.agent_socket();
    let mut times: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let begun = Instant::now();
            let answer = exchange(&socket, Some("localhost"), FETCH, &[SECURITY], Split::Whole);
            assert!(answer.data_bytes > 100, "{answer:?}");
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[SAMPLES * 99 / 100]
}

struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
