//! The kubelet of a node for tests, in this process: its list of pods on a port without TLS.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// See the module's text. Dropping it stops it.
#[derive(Debug)]
pub struct FakeKubelet {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    pods: Mutex<Vec<Value>>,
    stops: AtomicBool,
}

impl FakeKubelet {
    /// A kubelet without pods on a free port of loopback.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port on loopback");
        let port = listener
            .local_addr()
            .expect("a bound listener has an address")
            .port();
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stops.load(Ordering::Relaxed) {
                    return;
                }
                // Who breaks off asks again.
                let _answered = stream.and_then(|stream| answer(stream, &served));
            }
        });
        Self {
            port,
            shared,
            thread: Some(thread),
        }
    }

    /// The block of the attestor that asks this kubelet.
    pub fn attestor(&self) -> String {
        format!(
            "WorkloadAttestor \"k8s\" {{ plugin_data {{ kubelet_read_only_port = {} {} }} }}",
            self.port, "poll_retry_interval = \"50ms\" max_poll_attempts = 2"
        )
    }

    /// What it lists from now on.
    pub fn set(&self, pods: Vec<Value>) {
        *self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let pods = shared.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (status, body) = match first.as_str() {
        "GET /pods HTTP/1.1" => ("200 OK", json!({"kind": "PodList", "items": pods}).to_string()),
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}
