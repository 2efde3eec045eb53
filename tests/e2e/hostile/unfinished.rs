//! Requests that never become whole.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use finial_tests::StackOptions;

use super::http2::resident;
use super::{ONE, TWO, open_to_users, play, processors, scene};

/// Calls on eight connections, each of whose messages lacks its last byte. Keeps to the windows and stops sending what was
/// reset, so that nothing but the limit on bytes is in the way, and says how many calls were refused and, once all are
/// over, how long that took.
const SENDER: &str = "
import select, time
EACH, LENGTH, WINDOW_UPDATE = 100, 200_000, 8
class Sender:
    def __init__(self):
        self.sock = accepted(connect(path))
        self.window, self.streams, self.ended = 65535, {}, set()

    def hear(self):
        kind, flags, stream, payload = receive(self.sock)
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, 'big')
            if stream == 0:
                self.window += more
            elif stream in self.streams:
                self.streams[stream] += more
        elif stream and (kind == RST_STREAM or (kind == HEADERS and flags & 1)):
            self.ended.add(stream)

    def send(self, stream):
        self.sock.sendall(frame(HEADERS, 4, stream, REQUEST))
        self.streams[stream] = 65535
        left = b'\\0' + LENGTH.to_bytes(4, 'big') + bytes(LENGTH - 1)
        while left and stream not in self.ended:
            while select.select([self.sock], [], [], 0)[0]:
                self.hear()
            room = min(self.window, self.streams[stream], 16384)
            if room == 0:
                self.hear()
                continue
            part, left = left[:room], left[room:]
            self.sock.sendall(frame(DATA, 0, stream, part))
            self.window -= len(part)
            self.streams[stream] -= len(part)

senders = [Sender() for _ in range(8)]
for sender in senders:
    for number in range(EACH):
        sender.send(2 * number + 1)
begun = time.monotonic()
say(sum(len(sender.ended) for sender in senders))
for sender in senders:
    while len(sender.ended) < EACH:
        sender.hear()
say(int(time.monotonic() - begun))
say(call(connect(path)))
";

#[test]
fn requests_that_never_become_whole_occupy_little_and_not_for_long() {
    let Some((mut stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    let _quiet = processors();
    let agent = stack.agent().pid();
    let before = resident(agent);
    let mut command = scene(&stack, &python, &[], &format!("os.setuid({ONE}){SENDER}"));
    let mut sender = command.stdout(Stdio::piped()).spawn().expect("the sender starts");
    let said = BufReader::new(sender.stdout.take().expect("stdout is piped"));
    let mut said = said.lines().map_while(Result::ok);
    let refused: usize = said.next().expect("all was sent").parse().expect("a number");
    let grown = resident(agent).saturating_sub(before);
    println!("{refused} of 800 calls refused, {} KiB more", grown >> 10);
    // 160 MB were offered.
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert!(refused > 600, "{refused} of 800");

    let begun = Instant::now();
    let neighbour = play(
        &stack,
        &python,
        &[],
        &format!("os.setuid({TWO})\nsay(call(connect(path)))"),
    );
    assert_eq!(neighbour, [stack.id("/two")]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    let ended: u64 = said.next().expect("all calls end").parse().expect("a number");
    assert!(ended < 25, "the last call ended after {ended} s");
    assert_eq!(said.next(), Some(stack.id("/one")));
    let status = sender.wait().expect("the sender is a child");
    assert!(status.success(), "{status}");
}
