#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::engine::ANSWER_TIME;
use super::*;
use crate::config::{CgroupPatterns, TrustedUsers, UserSocket};
use crate::workload::ProcFs;

const ID: &str = "ea69c0e9f97ac430707eab4e515c7c427f742c38f0b3cd56f5e54df538db8b49";
const OTHER: &str = "22b8eeb9d6af9bc9d92a806c38b0681de083daa439a6e4ad9c8a921a9f01670f";
/// The pid of the container's first process in the laid-out `/proc`.
const FIRST: u32 = 1;

/// A `/proc` in which this very process has chosen control groups, and the sockets of engines.
struct Machine {
    dir: tempfile::TempDir,
    settings: DockerSettings,
}

impl Machine {
    fn new(cgroup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        for pid in [own, FIRST] {
            std::fs::create_dir_all(dir.path().join(pid.to_string()).join("ns")).unwrap();
        }
        let settings = DockerSettings {
            docker_socket: dir.path().join("docker"),
            podman_socket: dir.path().join("podman"),
            ..DockerSettings::default()
        };
        let machine = Self { dir, settings };
        std::os::unix::fs::symlink("/proc/self/stat", machine.path(own, "stat")).unwrap();
        machine.write(own, "cgroup", cgroup);
        machine.write(own, "mountinfo", "");
        machine.write(FIRST, "cgroup", cgroup);
        machine
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.dir.path().join(pid.to_string()).join(name)
    }

    fn write(&self, pid: u32, name: &str, text: &str) {
        std::fs::write(self.path(pid, name), text).unwrap();
    }

    /// A socket for each user, called `u<uid>`.
    fn user_sockets(&self) -> UserSocket {
        UserSocket::new(&format!("{}/u", self.dir.path().display()), "")
    }

    fn namespaces(&self, own: &str, first: &str) {
        for (pid, target) in [(std::process::id(), own), (FIRST, first)] {
            std::os::unix::fs::symlink(target, self.path(pid, "ns/mnt")).unwrap();
        }
    }

    async fn attest(&self) -> Result<Vec<String>, AttestorError> {
        let pid = i64::from(std::process::id());
        let process = Process::open(pid, &ProcFs::at(self.dir.path())).unwrap();
        let attestor = DockerAttestor::new(self.settings.clone());
        let facts = attestor.attest(&Arc::new(process)).await?;
        Ok(facts.iter().map(ToString::to_string).collect())
    }

    /// The answer to one request at `socket`, and the request's first line.
    async fn asked(&self, socket: &Path, answer: &str) -> (Result<Vec<String>, AttestorError>, String) {
        let listener = UnixListener::bind(socket).unwrap();
        let (facts, request) = tokio::join!(self.attest(), serve(&listener, answer));
        std::fs::remove_file(socket).unwrap();
        (facts, request)
    }
}

/// Reads one request, answers and closes.
async fn serve(listener: &UnixListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.unwrap();
        request.push(byte);
    }
    // One that is cut off for its length does not read to the end.
    let _sent = stream.write_all(answer.as_bytes()).await;
    let request = String::from_utf8(request).unwrap();
    request.lines().next().unwrap_or_default().to_owned()
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn container(id: &str, pid: u32) -> String {
    let body = format!(r#"{{"Id":"{id}","State":{{"Pid":{pid}}},"Config":{{"Labels":{{"tier":"one"}}}}}}"#);
    http("200 OK", &body)
}

#[tokio::test]
async fn labels_of_the_processs_container_are_facts() {
    let machine = Machine::new(&format!("0::/system.slice/docker-{ID}.scope\n"));
    let (facts, request) = machine
        .asked(&machine.settings.docker_socket, &container(ID, FIRST))
        .await;
    assert_eq!(facts.unwrap(), ["docker:label:tier:one"]);
    assert_eq!(request, format!("GET /containers/{ID}/json HTTP/1.1"));
}

#[tokio::test]
async fn a_configured_version_of_the_api_is_spoken() {
    let mut machine = Machine::new(&format!("0::/docker/{ID}\n"));
    machine.settings.api_version = Some("1.41".to_owned());
    let (facts, request) = machine
        .asked(&machine.settings.docker_socket, &container(ID, FIRST))
        .await;
    assert!(facts.is_ok(), "{facts:?}");
    assert_eq!(request, format!("GET /v1.41/containers/{ID}/json HTTP/1.1"));
}

#[tokio::test]
async fn the_engine_that_made_the_container_is_asked() {
    let own = rustix::process::geteuid().as_raw();
    for (group, socket) in [
        (
            format!("/machine.slice/libpod-{ID}.scope/container"),
            "podman".to_owned(),
        ),
        (
            format!("/user.slice/user-{own}.slice/user@{own}.service/user.slice/libpod-{ID}.scope"),
            format!("u{own}"),
        ),
        // The outermost slice says whose it is.
        (
            format!("/user.slice/user-{own}.slice/user-77.slice/libpod-{ID}"),
            format!("u{own}"),
        ),
    ] {
        let mut machine = Machine::new(&format!("0::{group}\n"));
        machine.settings.podman_user_socket = machine.user_sockets();
        machine.settings.trusted_users = TrustedUsers::of([own]);
        let of_user = socket != "podman";
        let socket = machine.dir.path().join(socket);
        let (facts, _request) = machine.asked(&socket, &container(ID, FIRST)).await;
        let facts = facts.unwrap();
        let users = format!("docker:podman_user:{own}");
        assert_eq!(facts[0], "docker:label:tier:one", "{group}");
        assert_eq!(
            facts[1..].concat(),
            if of_user { users.as_str() } else { "" },
            "{group}"
        );
    }
}

#[tokio::test]
async fn the_engine_of_a_user_who_is_not_trusted_is_not_even_asked() {
    let own = rustix::process::geteuid().as_raw();
    let group = format!("0::/user.slice/user-{own}.slice/user@{own}.service/libpod-{ID}.scope\n");
    let mut machine = Machine::new(&group);
    machine.settings.podman_user_socket = machine.user_sockets();
    for trusted in [TrustedUsers::default(), TrustedUsers::of([own + 1])] {
        machine.settings.trusted_users = trusted;
        let listener = UnixListener::bind(machine.dir.path().join(format!("u{own}"))).unwrap();
        assert_eq!(machine.attest().await.unwrap(), [""; 0]);
        let asked = futures_util::FutureExt::now_or_never(listener.accept());
        assert!(asked.is_none(), "{asked:?}");
        std::fs::remove_file(machine.dir.path().join(format!("u{own}"))).unwrap();
    }
    machine.settings.trusted_users = TrustedUsers::everybody();
    let socket = machine.dir.path().join(format!("u{own}"));
    let (facts, _request) = machine.asked(&socket, &container(ID, FIRST)).await;
    assert_eq!(facts.unwrap().len(), 2);
}

#[tokio::test]
async fn a_users_engine_must_be_that_users() {
    let other = rustix::process::geteuid().as_raw() + 1;
    let mut machine = Machine::new(&format!("0::/user.slice/user-{other}.slice/libpod-{ID}.scope\n"));
    machine.settings.podman_user_socket = machine.user_sockets();
    machine.settings.trusted_users = TrustedUsers::everybody();
    let listener = UnixListener::bind(machine.dir.path().join(format!("u{other}"))).unwrap();
    let error = machine.attest().await.unwrap_err().to_string();
    assert!(error.contains("socket belongs to another user"), "{error}");
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "nothing was sent");
}

#[tokio::test]
async fn a_process_in_no_container_has_no_facts_and_nobody_is_asked() {
    let machine = Machine::new("1:name=systemd:/user.slice\n0::/user.slice/user-0.slice/session-1.scope\n");
    assert_eq!(machine.attest().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_container_that_the_engine_does_not_have_gives_no_facts() {
    let machine = Machine::new(&format!("0::/kubepods/{ID}\n"));
    let answer = http(
        "404 Not Found",
        &format!(r#"{{"message":"No such container: {ID}"}}"#),
    );
    let (facts, _request) = machine.asked(&machine.settings.docker_socket, &answer).await;
    assert_eq!(facts.unwrap(), [""; 0]);
}

#[tokio::test]
async fn an_engine_that_does_not_tell_fails_the_attestor() {
    let machine = Machine::new(&format!("0::/docker/{ID}\n"));
    let error = machine.attest().await.unwrap_err().to_string();
    assert!(
        error.contains("connect") && error.contains(ID),
        "no engine: {error}"
    );
    for (answer, expected) in [
        (
            http("404 Not Found", r#"{"message":"page not found"}"#),
            "page not found",
        ),
        (http("500 Internal Server Error", "{}"), "500"),
        (http("200 OK", "{}"), "cannot be understood"),
        (http("200 OK", ""), "cannot be understood"),
        (container(OTHER, FIRST), "about another"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_owned(),
            "read answer",
        ),
        (String::new(), "http"),
        ("SSH-2.0-x\r\n\r\n".to_owned(), "http"),
    ] {
        let (facts, _request) = machine.asked(&machine.settings.docker_socket, &answer).await;
        let error = facts.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected} in {error}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let machine = Machine::new(&format!("0::/docker/{ID}\n"));
    let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(5 * 1024 * 1024));
    let (facts, _request) = machine.asked(&machine.settings.docker_socket, &answer).await;
    let error = facts.unwrap_err().to_string();
    assert!(
        error.contains("read answer") && error.contains("limit"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_is_given_up() {
    let machine = Machine::new(&format!("0::/docker/{ID}\n"));
    let _listener = UnixListener::bind(&machine.settings.docker_socket).unwrap();
    let begun = tokio::time::Instant::now();
    let error = machine.attest().await.unwrap_err().to_string();
    assert!(error.contains("no answer within 10 s"), "{error}");
    assert!(begun.elapsed() < ANSWER_TIME + Duration::from_secs(1));
}

#[tokio::test]
async fn a_group_that_only_has_the_name_of_a_container_fails_the_attestor() {
    let machine = Machine::new(&format!("0::/user.slice/user-7.slice/docker-{ID}.scope\n"));
    let real = format!("0::/system.slice/docker-{ID}.scope\n");
    for (first, groups) in [(FIRST, real.as_str()), (FIRST, "0::/\n"), (0, ""), (2, "")] {
        machine.write(FIRST, "cgroup", groups);
        let (facts, _request) = machine
            .asked(&machine.settings.docker_socket, &container(ID, first))
            .await;
        assert!(matches!(facts, Err(AttestorError::ForeignCgroup(_))), "{facts:?}");
    }
}

#[tokio::test]
async fn a_mounted_group_counts_for_who_has_the_mounts_of_the_container() {
    let mount = format!("1 2 0:3 /docker/{ID} /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
    for (own, first, expected) in [("mnt:[1]", "mnt:[1]", true), ("mnt:[2]", "mnt:[1]", false)] {
        let machine = Machine::new("0::/\n");
        machine.write(std::process::id(), "mountinfo", &mount);
        machine.namespaces(own, first);
        for pid in [FIRST, 0, 2] {
            let (facts, _request) = machine
                .asked(&machine.settings.docker_socket, &container(ID, pid))
                .await;
            assert_eq!(facts.unwrap().len() == 1, expected && pid == FIRST, "{own} {pid}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_fails_the_attestor() {
    let machine = Machine::new("0::/\n");
    std::fs::remove_file(machine.path(std::process::id(), "mountinfo")).unwrap();
    assert!(matches!(machine.attest().await, Err(AttestorError::Io { .. })));
    std::fs::remove_file(machine.path(std::process::id(), "cgroup")).unwrap();
    assert!(matches!(machine.attest().await, Err(AttestorError::Io { .. })));
    let machine = Machine::new("nonsense\n");
    assert!(matches!(machine.attest().await, Err(AttestorError::Container(_))));
}

#[tokio::test]
async fn patterns_of_the_operators_find_the_container_instead() {
    let mut machine = Machine::new("0::/my.slice/web-1\n");
    machine.settings.patterns = CgroupPatterns::new(vec!["/my.slice/<id>".to_owned()]).unwrap();
    let (facts, request) = machine
        .asked(&machine.settings.docker_socket, &container("web-1234", FIRST))
        .await;
    assert_eq!(facts.unwrap(), ["docker:label:tier:one"]);
    assert_eq!(request, "GET /containers/web-1/json HTTP/1.1");
    machine.write(std::process::id(), "cgroup", &format!("0::/docker/{ID}\n"));
    assert_eq!(
        machine.attest().await.unwrap(),
        [""; 0],
        "nothing else is recognised then"
    );
}

#[test]
fn only_a_slice_of_a_user_names_one() {
    for (group, uid) in [
        ("/user.slice/user-1000.slice/x", Some(1000)),
        ("/user.slice/user-.slice/x", None),
        ("/user.slice/user-4294967296.slice/x", None),
        ("/user.slice/user-+1.slice/x", None),
        ("/xuser-1.slice/user-1.slicex/x", None),
    ] {
        assert_eq!(user_of_slice(group), uid, "{group}");
    }
}
