//! A client program as a long-running workload: it takes commands and tells what it sees.
//!
//! Commands are lines of words on its standard input, answers and events lines of JSON on its standard output:
//!
//! | command | answer |
//! |---|---|
//! | `x509` | `ids` of all X.509-SVIDs, `serial` of the first, how many `authorities` its trust domain has |
//! | `watch` | empty at once; then events for as long as the program runs |
//! | `jwt AUDIENCE` | `ids` of the JWT-SVID and its `token` |
//! | `verify TOKEN AUDIENCE` | `ids` of a token that the library accepts with the bundles it fetched |
//! | `validate TOKEN AUDIENCE` | `ids` of a token that ValidateJWTSVID accepts |
//!
//! An answer has the command in `reply`, and in place of the rest an `error` with `code` and `message` when it
//! failed: of the gRPC status if the server refused, else with an empty code. Events have their kind in `event`:
//! `update` with the fields of `x509`; `ended` with the status with which the stream ended, which the library opens
//! again; `reconnect` when the library only says that it does so; `given up` when it does not.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For everything that a library does in its own time: the slowest pauses grow to some ten seconds.
const LIMIT: Duration = Duration::from_secs(90);

/// See the module's text. Dropping it kills the program.
#[derive(Debug)]
pub struct Session {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// All lines so far, for whoever reads a failure.
    printed: Vec<String>,
    events: Vec<Value>,
}

/// A place among the events.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

/// Why the server or the library refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the gRPC code in small letters alone; empty when the library itself refused.
    pub code: String,
    pub message: String,
}

impl Session {
    pub fn start(name: &'static str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let (sender, lines) = channel();
        let input = child.stdin.take().expect("stdin is piped");
        forward(child.stdout.take().expect("stdout is piped"), "", sender.clone());
        forward(child.stderr.take().expect("stderr is piped"), "stderr: ", sender);
        Session {
            name,
            child,
            input,
            lines,
            printed: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Gives a command and waits for its answer.
    pub fn ask(&mut self, words: &[&str]) -> Result<Value, Refusal> {
        writeln!(self.input, "{}", words.join(" ")).expect("the program reads commands");
        let until = Instant::now() + LIMIT;
        loop {
            let what = format!("the answer to {}", words[0]);
            let Some(message) = self.next(&what, until) else {
                continue;
            };
            assert_eq!(message["reply"], words[0], "{}: {message}", self.name);
            return match message.get("error") {
                Some(error) => Err(Refusal::of(error)),
                None => Ok(message),
            };
        }
    }

    /// [`Session::ask`], which must succeed.
    pub fn ask_ok(&mut self, words: &[&str]) -> Value {
        self.ask(words)
            .unwrap_or_else(|refusal| panic!("{}: {words:?}: {refusal:?}", self.name))
    }

    /// Here, among the events.
    pub fn mark(&mut self) -> Mark {
        while let Ok(line) = self.lines.try_recv() {
            let message = self.take(line);
            assert!(message.is_none(), "{}: not asked for: {message:?}", self.name);
        }
        Mark(self.events.len())
    }

    /// Waits for an update after `mark`, for which `is_it` holds.
    pub fn update(&mut self, mark: Mark, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        self.event(mark, what, |event| event["event"] == "update" && is_it(event))
    }

    /// Waits until the stream ends and gives its status.
    pub fn end(&mut self, mark: Mark) -> Refusal {
        Refusal::of(&self.event(mark, "the end of the stream", |event| event["event"] == "ended"))
    }

    /// Nothing but updates since `mark`: the stream is still the same.
    pub fn assert_uninterrupted(&self, mark: Mark) {
        let mut others = self.events[mark.0..]
            .iter()
            .filter(|event| event["event"] != "update");
        let other = others.next();
        assert!(other.is_none(), "{}: interrupted by {other:?}", self.name);
    }

    fn event(&mut self, mark: Mark, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        let until = Instant::now() + LIMIT;
        let mut at = mark.0;
        loop {
            while let Some(event) = self.events.get(at) {
                assert_ne!(event["event"], "given up", "{}: {event}", self.name);
                if is_it(event) {
                    return event.clone();
                }
                at += 1;
            }
            let message = self.next(what, until);
            assert!(message.is_none(), "{}: not asked for: {message:?}", self.name);
        }
    }

    /// Waits for a line; gives it if it is an answer.
    fn next(&mut self, what: &str, until: Instant) -> Option<Value> {
        let left = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => self.take(line),
            Err(error) => panic!("{} gave up waiting for {what}: {error}", self.name),
        }
    }

    fn take(&mut self, line: String) -> Option<Value> {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        self.printed.push(line);
        if message.get("event").is_some() {
            self.events.push(message);
            return None;
        }
        message.get("reply").is_some().then_some(message)
    }
}

impl Refusal {
    fn of(error: &Value) -> Self {
        let code = error["code"].as_str().unwrap_or_default();
        let letters = code.chars().filter(char::is_ascii_alphanumeric);
        Refusal {
            code: letters.map(|letter| letter.to_ascii_lowercase()).collect(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            while let Ok(line) = self.lines.try_recv() {
                self.printed.push(line);
            }
            eprintln!("---- {} printed:\n{}", self.name, self.printed.join("\n"));
        }
    }
}

fn forward(pipe: impl Read + Send + 'static, prefix: &'static str, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(format!("{prefix}{line}")).is_err() {
                return;
            }
        }
    });
}
