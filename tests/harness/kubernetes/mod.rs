//! An API server of Kubernetes for tests, in this process: list, watch, get, create, patch, status and apply of any
//! kind, over plain HTTP, with a kubeconfig to reach it. It checks nothing and has no controllers.
//!
//! `FakeCluster::put` and `delete` are what a user does; `outage`, `hang`, `break_watches` and `forget_history` are
//! failures of an API server; `on_create` answers what other programs create, like a TokenReview.

mod http;
mod kubelet;
mod path;
mod state;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::oneshot;

pub use kubelet::FakeKubelet;
pub use path::Resource;
use state::State;

/// See the module's text. Dropping it stops the server.
#[derive(Debug)]
pub struct FakeCluster {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeCluster {
    /// An empty cluster on a free port of loopback.
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || http::serve(listener, served, stopped));
        Self {
            address,
            state,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig into a directory.
    pub fn kubeconfig(&self, directory: &Path) -> PathBuf {
        let path = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\nclusters:\n- name: fake\n  cluster:\n    server: http://{}\ncontexts:\n- name: fake\n  context:\n    cluster: fake\n    user: fake\nusers:\n- name: fake\n  user: {{}}\n",
            self.address
        );
        std::fs::write(&path, text).expect("the kubeconfig is written");
        path
    }

    /// Creates or changes an object, as a user with kubectl does. Gives it as it is stored.
    pub fn put(&self, object: Value) -> Value {
        self.state.put(object)
    }

    /// [`FakeCluster::put`] of many, of which nobody sees some without the others.
    pub fn put_all(&self, objects: Vec<Value>) {
        self.state.put_all(objects);
    }

    /// Deletes an object; the namespace of what has none is empty.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.state.delete(plural, namespace, name);
    }

    /// An object as it is stored.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.get(plural, namespace, name)
    }

    /// All objects of a kind.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        self.state.list(plural)
    }

    /// Answers the creation of a kind, by its plural, in place of storing it.
    pub fn on_create(&self, plural: &str, answer: impl Fn(Value) -> Value + Send + Sync + 'static) {
        self.state.on_create(plural, Arc::new(answer));
    }

    /// Lets every request fail, and ends every watch, or ends that.
    pub fn outage(&self, is_out: bool) {
        self.state.outage(is_out);
    }

    /// Takes every request from now on and never answers it, or ends that; what was taken meanwhile stays without an
    /// answer. Open watches stay open.
    pub fn hang(&self, is_hanging: bool) {
        self.state.hang(is_hanging);
    }

    /// How many requests were taken without an answer so far.
    pub fn hung(&self) -> u64 {
        self.state.hung()
    }

    /// Ends every open watch.
    pub fn break_watches(&self) {
        self.state.break_watches();
    }

    /// Ends every open watch, and makes each one begin with a new list.
    pub fn forget_history(&self) {
        self.state.forget_history();
    }

    /// Leaves objects out of the next lists of a kind, though they are there.
    pub fn hide_from_lists(&self, plural: &str, is_hidden: bool) {
        self.state.hide_from_lists(plural, is_hidden);
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
