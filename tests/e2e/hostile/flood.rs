//! One user with ten thousand streams, and the others.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use finial_tests::{Peer, Stack, StackOptions};

use super::{ONE, TWO, open_to_users, play, processors, scene};

/// What a machine that does other things as well may take for one call of two, and for one of fifty, without any flood.
const NOISE: Times = Times {
    median: Duration::from_millis(4),
    most: Duration::from_millis(25),
};
/// How much slower the flood may make them.
const SLOWER: u32 = 3;

/// Calls of the second user one after the other, each on a connection of its own; says the median and what 98 of 100 did
/// not exceed, from the connection on, in microseconds.
const NEIGHBOUR: &str = "
import time
SAMPLES = 200
def once():
    begun = time.monotonic()
    answer = call(connect(path))
    assert answer.startswith('spiffe://'), answer
    return int((time.monotonic() - begun) * 1e6)
times = sorted(once() for _ in range(SAMPLES))
say(times[SAMPLES // 2], times[SAMPLES * 98 // 100])
";

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
    let before = latency(&stack, &python);
    let mut command = scene(&stack, &python, &[], &format!("os.setuid({ONE}){FLOOD}"));
    let mut flood = Flood(command.stdout(Stdio::piped()).spawn().expect("the flood starts"));
    let said = BufReader::new(flood.0.stdout.take().expect("stdout is piped"));
    let said: Vec<String> = said.lines().map_while(Result::ok).take(2).collect();
    assert!(
        said.contains(&"flooding".to_owned()) && said.contains(&"refused".to_owned()),
        "{said:?}"
    );
    let during = latency(&stack, &python);
    assert!(flood.0.try_wait().expect("the flood is a child").is_none());
    drop(flood);
    // What else the machine does may have begun meanwhile.
    let without = before.max(latency(&stack, &python));
    println!("without the flood {without:?}, in it {during:?}");
    let bound = without.max(NOISE);
    assert!(
        during.median < SLOWER * bound.median && during.most < SLOWER * bound.most,
        "{without:?} without the flood, {during:?} with it"
    );
}

/// How long a first answer takes.
#[derive(Clone, Copy, Debug)]
struct Times {
    median: Duration,
    most: Duration,
}

impl Times {
    fn max(self, other: Self) -> Self {
        Self {
            median: self.median.max(other.median),
            most: self.most.max(other.most),
        }
    }
}

/// Of an ordinary user, for whom all limits hold.
fn latency(stack: &Stack, python: &Peer) -> Times {
    let said = play(stack, python, &[], &format!("os.setuid({TWO}){NEIGHBOUR}"));
    let numbers: Vec<u64> = said[0]
        .split(' ')
        .map(|number| number.parse().expect("microseconds"))
        .collect();
    Times {
        median: Duration::from_micros(numbers[0]),
        most: Duration::from_micros(numbers[1]),
    }
}

struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
