//! One user with ten thousand streams, and the others.

use std::time::Duration;

use finial_tests::{Peer, Program, Stack, StackOptions};

use super::{LIMIT, ONE, TWO, open_to_users, play, processors, scene};

/// How much more the agent may work while a neighbour's call is open than without the flood: in the median, where it was
/// measured to be 0.9 to 1.3 times as much, and for nine calls of ten. Without limits both are 500 times as much.
const MORE_WORK: u32 = 2;
const MORE_WORK_FOR_MOST: u32 = 3;
/// How much longer a call may take in the median, and what a busy machine may take for one without any flood. Only that a
/// neighbour is kept waiting by nothing but the agent's work.
const SLOWER: u32 = 3;
const NOISE: Duration = Duration::from_millis(4);
/// Answers that the flood gets at least meanwhile.
const ANSWERS: usize = 1000;

/// Calls of the second user one after the other, each on a connection of its own. Says the processor time that the agent
/// uses while a call is open, in the median and for nine of ten, which is all that it does before the answer, on a machine
/// however busy with other things; and the median of the time that a call takes. In nanoseconds, from the connection on.
const NEIGHBOUR: &str = "
import time
SAMPLES, SECONDS = 2000, 20
# The clock of the processor time of a process (clock_getcpuclockid).
agent_clock = (~AGENT << 3) | 2
def once():
    work, begun = time.clock_gettime_ns(agent_clock), time.monotonic_ns()
    answer = call(connect(path))
    assert answer.startswith('spiffe://'), answer
    return time.clock_gettime_ns(agent_clock) - work, time.monotonic_ns() - begun
begun, works, times = time.monotonic(), [], []
while len(times) < SAMPLES and time.monotonic() < begun + SECONDS:
    work, took = once()
    works.append(work)
    times.append(took)
middle, most = len(times) // 2, len(times) * 9 // 10
works.sort()
times.sort()
say(works[middle], works[most], times[middle])
";

/// Ten connections of a thousand streams each; half of the requests never say their message. What was answered or
/// refused is asked again, and a connection that was closed is made again, for as long as the flood lasts. Says each
/// hundred answers, and what the first refusal is.
const FLOOD: &str = "
import select
COUNT, EACH = 10, 1000
CANCEL, WINDOW_UPDATE = struct.pack('>I', 8), 8
class Flood:
    def __init__(self):
        self.sock = connect(path)
        self.sock.setblocking(False)
        self.opened, self.received, self.pending = 0, b'', bytearray()
        for number in range(EACH):
            self.open(is_whole=number % 2)

    def open(self, is_whole):
        stream = 2 * self.opened + 1
        self.pending += request(stream) if is_whole else frame(HEADERS, 4, stream, REQUEST)
        self.opened += 1

    def send(self):
        del self.pending[:self.sock.send(self.pending[:65536])]

    def receive(self):
        '''How many streams were served, and how many refused.'''
        new = self.sock.recv(65536)
        if not new:
            raise ConnectionError
        data, at, served, refused = self.received + new, 0, 0, 0
        while len(data) >= at + 9:
            length = int.from_bytes(data[at:at + 3], 'big')
            if len(data) < at + 9 + length:
                break
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5:at + 9], 'big')
            if kind == DATA and length:
                self.pending += frame(RST_STREAM, 0, stream, CANCEL)
                self.pending += frame(WINDOW_UPDATE, 0, 0, struct.pack('>I', length))
                self.open(is_whole=True)
                served += 1
            elif (kind == HEADERS and flags & 1) or kind == RST_STREAM:
                self.open(is_whole=True)
                refused += 1
            at += 9 + length
        self.received = data[at:]
        return served, refused

floods = [Flood() for _ in range(COUNT)]
answers, refusals = 0, 0
while True:
    readable, writable, _ = select.select([one.sock for one in floods], [one.sock for one in floods if one.pending], [])
    for index, one in enumerate(floods):
        try:
            if one.sock in readable:
                served, refused = one.receive()
                if refused and not refusals:
                    say('refused')
                refusals += refused
                for _ in range(answers // 100, (answers + served + refused) // 100):
                    say('answered')
                answers += served + refused
            if one.sock in writable:
                one.send()
        except BlockingIOError:
            pass
        except ConnectionError:
            floods[index] = Flood()
";

#[test]
fn ten_thousand_streams_of_one_user_do_not_slow_the_others_down() {
    let Some((mut stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    let _quiet = processors();
    let before = cost(&mut stack, &python);
    let mut flood = Program::start(
        "flood",
        &mut scene(&stack, &python, &[], &format!("os.setuid({ONE}){FLOOD}")),
    );
    flood.wait_for_line("answered", LIMIT);
    let answers = |flood: &Program| 100 * flood.lines().iter().filter(|line| *line == "answered").count();
    let at_first = answers(&flood);
    let during = cost(&mut stack, &python);
    let answers = answers(&flood) - at_first;
    println!("without the flood {before:?}, in it {during:?} while it was answered {answers} times");
    assert!(flood.is_running(), "{:?}", flood.lines());
    assert!(answers >= ANSWERS, "the flood was answered {answers} times");
    flood.kill_hard();
    // What else the machine does may have begun meanwhile.
    let after = cost(&mut stack, &python);
    let without = before.max(after);
    println!("after it {after:?}");
    assert!(
        during.work < MORE_WORK * without.work
            && during.work_for_most < MORE_WORK_FOR_MOST * without.work_for_most,
        "{without:?} without the flood, {during:?} with it"
    );
    assert!(
        during.time < SLOWER * without.time.max(NOISE),
        "{without:?} without the flood, {during:?} with it"
    );
    assert!(
        flood.lines().contains(&"refused".to_owned()),
        "it was within its limits"
    );
}

/// What a first answer costs.
#[derive(Clone, Copy, Debug)]
struct Cost {
    work: Duration,
    work_for_most: Duration,
    time: Duration,
}

impl Cost {
    fn max(self, other: Self) -> Self {
        Self {
            work: self.work.max(other.work),
            work_for_most: self.work_for_most.max(other.work_for_most),
            time: self.time.max(other.time),
        }
    }
}

/// Of an ordinary user, for whom all limits hold.
fn cost(stack: &mut Stack, python: &Peer) -> Cost {
    let agent = stack.agent().pid();
    let scenario = format!("os.setuid({TWO})\nAGENT = {agent}{NEIGHBOUR}");
    let said = play(stack, python, &[], &scenario);
    let numbers: Vec<Duration> = said[0]
        .split(' ')
        .map(|number| Duration::from_nanos(number.parse().expect("nanoseconds")))
        .collect();
    Cost {
        work: numbers[0],
        work_for_most: numbers[1],
        time: numbers[2],
    }
}
