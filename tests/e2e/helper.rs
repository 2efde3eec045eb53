//! `finial agent helper` with a real agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use finial_identity::key::PrivateKey;
use finial_identity::x509::Certificate;
use finial_tests::{Entry, Output, Peer, Program, Stack, StackOptions, finial, free_port, wait_until};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(90);

/// A stack and a directory for the helper's files.
struct Beside {
    stack: Stack,
    certs: PathBuf,
}

impl Beside {
    fn start(options: StackOptions) -> Self {
        let stack = Stack::start(options);
        let certs = stack.dir().join("certs");
        fs::create_dir(&certs).expect("a directory");
        Beside { stack, certs }
    }

    /// With SVIDs of so many seconds.
    fn with_lives(x509: &str) -> Self {
        Self::start(StackOptions {
            x509_svid_ttl: x509.into(),
            ..StackOptions::default()
        })
    }

    /// Writes `helper.conf` with the three files of the X.509-SVID and `extra`.
    fn configure(&self, extra: &str) -> PathBuf {
        let path = self.stack.dir().join("helper.conf");
        let text = format!(
            r#"agent_address = "{socket}"
cert_dir = "{certs}"
svid_file_name = "svid.pem"
svid_key_file_name = "svid_key.pem"
svid_bundle_file_name = "svid_bundle.pem"
{extra}
"#,
            socket = self.stack.agent_socket().display(),
            certs = self.certs.display(),
        );
        fs::write(&path, text).expect("helper.conf is written");
        path
    }

    fn command(&self, extra: &str) -> Command {
        let mut command = Command::new(finial());
        command
            .args(["agent", "helper", "-config"])
            .arg(self.configure(extra));
        command
    }

    fn start_helper(&self, extra: &str) -> Program {
        Program::start("helper", &mut self.command(extra))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.certs.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn wait_file(&self, name: &str) {
        wait_until(name, LIMIT, || !self.read(name).is_empty());
    }

    fn told(&self) -> Vec<String> {
        let text = fs::read_to_string(self.stack.dir().join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// `cmd` and `cmd_args` of a shell script in which `$T` is the file of [`Beside::told`].
    fn script(&self, text: &str) -> String {
        let path = self.stack.dir().join("script.sh");
        let told = self.stack.dir().join("told");
        fs::write(&path, format!("T={}\n{text}\n", told.display())).expect("a script");
        format!("cmd = \"sh\"\ncmd_args = \"{}\"\n", path.display())
    }
}

/// Whether the first certificate is of that key.
fn is_pair(svid_pem: &str, key_pem: &str) -> bool {
    let leaf = Certificate::from_pem(svid_pem).expect("a certificate").remove(0);
    let key = PrivateKey::from_pem(key_pem).expect("a key");
    leaf.public_key() == key.public_key()
}

#[test]
fn files_are_what_openssl_verifies_and_the_agent_validates() {
    let beside = Beside::start(StackOptions::default());
    beside.stack.create_entry(&Entry::for_me("/web"));
    let extra = r#"
        jwt_bundle_file_name = "jwt_bundle.json"
        jwt_svids = [{ jwt_audience = "api", jwt_extra_audiences = ["db"], jwt_svid_file_name = "api.token" }]
        key_file_mode = 0640
    "#;
    let mut helper = beside.start_helper(extra);
    for name in ["svid.pem", "jwt_bundle.json", "api.token"] {
        beside.wait_file(name);
    }
    let mode = |name: &str| {
        fs::metadata(beside.file(name))
            .expect("a file")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        [
            "svid.pem",
            "svid_key.pem",
            "svid_bundle.pem",
            "jwt_bundle.json",
            "api.token"
        ]
        .map(mode),
        [0o644, 0o640, 0o644, 0o600, 0o600]
    );
    for audience in ["api", "db"] {
        let token = beside.read("api.token");
        let valid = ["api", "validate", "jwt", "-audience", audience, "-svid", &token];
        let printed = beside.stack.agent_cli_ok(&valid).stdout;
        assert!(printed.contains("spiffe://example.org/web"), "{printed}");
    }
    let bundle: serde_json::Value = serde_json::from_str(&beside.read("jwt_bundle.json")).expect("JSON");
    let jwks = bundle["example.org"].as_str().expect("the own trust domain");
    let jwks = data_encoding::BASE64.decode(jwks.as_bytes()).expect("base64");
    assert!(String::from_utf8_lossy(&jwks).contains("\"kid\""));
    assert!(!beside.read("api.token").ends_with('\n'));

    if let Some(openssl) = Peer::find("FINIAL_TEST_OPENSSL", "openssl", &["version"]) {
        let run = |args: &[&str]| {
            let output = Output::of(openssl.command().args(args).current_dir(&beside.certs));
            output.ok(format!("openssl {args:?}")).stdout
        };
        let verdict = run(&["verify", "-x509_strict", "-CAfile", "svid_bundle.pem", "svid.pem"]);
        assert!(verdict.contains("OK"), "{verdict}");
        let of_key = run(&["pkey", "-in", "svid_key.pem", "-pubout"]);
        assert_eq!(run(&["x509", "-in", "svid.pem", "-noout", "-pubkey"]), of_key);
    }
    let printed = helper.lines().join("\n");
    for secret in ["PRIVATE KEY", &beside.read("api.token")] {
        assert!(!printed.contains(secret), "a secret is in the log");
    }
    assert_eq!(helper.terminate().code(), Some(0));
    assert!(!beside.read("svid.pem").is_empty(), "files stay behind");
}

#[test]
fn under_rotation_a_reader_that_resolves_the_link_once_always_sees_a_pair() {
    let beside = Beside::with_lives("20s");
    beside.stack.create_entry(&Entry::for_me("/web"));
    // What spiffe-helper would have left: plain files of another pair.
    let (before, key) = plain_pair(&beside);
    let mut helper = beside.start_helper("");
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut seen = std::collections::BTreeSet::new();
    let link = beside.file("..svid.pem.data");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let Ok(version) = fs::canonicalize(&link) else {
                    continue;
                };
                let read =
                    |name: &str| fs::read_to_string(version.join(name)).expect("the version is complete");
                assert!(is_pair(&read("svid.pem"), &read("svid_key.pem")));
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Through the plain names every file is whole at every moment.
        wait_until("four renewals", LIMIT, || {
            let (svid, key) = (beside.read("svid.pem"), beside.read("svid_key.pem"));
            assert!(
                svid.ends_with("-----END CERTIFICATE-----\n") && key.ends_with("-----END PRIVATE KEY-----\n")
            );
            seen.insert(svid);
            reader.is_finished() || seen.len() >= 5
        });
        done.store(true, Ordering::Relaxed);
        reader.join().expect("the reader saw only pairs");
    });
    assert!(seen.contains(&before) && !key.is_empty());
    assert!(reads.load(Ordering::Relaxed) > 100, "{reads:?}");
    assert_eq!(helper.terminate().code(), Some(0));
    let versions = fs::read_dir(&beside.certs)
        .expect("a directory")
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
        .count();
    assert!(
        versions <= 12,
        "old versions are removed after a minute: {versions}"
    );
}

/// Plain files as another program wrote them, taken from the agent itself.
fn plain_pair(beside: &Beside) -> (String, String) {
    beside.stack.wait_identity("/web");
    let dir = beside.stack.dir().join("before");
    fs::create_dir(&dir).expect("a directory");
    beside
        .stack
        .agent_cli_ok(&["api", "fetch", "x509", "-write", &dir.display().to_string()]);
    for (from, to) in [
        ("svid.0.pem", "svid.pem"),
        ("svid.0.key", "svid_key.pem"),
        ("bundle.0.pem", "svid_bundle.pem"),
    ] {
        fs::copy(dir.join(from), beside.file(to)).expect("a plain file");
    }
    (beside.read("svid.pem"), beside.read("svid_key.pem"))
}

#[test]
fn the_command_starts_with_the_files_hears_of_renewals_and_ends_with_the_helper() {
    let beside = Beside::with_lives("20s");
    let script = beside.script(
        r#"test -s "$(dirname "$T")/certs/svid.pem" && echo up >> "$T"
trap 'echo renewed >> "$T"' USR1
trap 'echo end >> "$T"; exit 0' TERM
while true; do sleep 0.05; done"#,
    );
    let mut helper = beside.start_helper(&format!("{script} renew_signal = \"SIGUSR1\""));
    helper.wait_for_line("no identity is issued to this process", LIMIT);
    assert!(beside.told().is_empty(), "nothing runs before there are files");
    beside.stack.create_entry(&Entry::for_me("/web"));
    wait_until("two renewals", LIMIT, || beside.told().len() >= 3);
    assert_eq!(beside.told()[..3], ["up", "renewed", "renewed"]);
    assert_eq!(helper.terminate().code(), Some(0));
    assert_eq!(beside.told().last().map(String::as_str), Some("end"));
}

#[test]
fn a_command_that_has_ended_runs_again_with_the_next_renewal_and_the_pid_file_is_told_too() {
    let beside = Beside::with_lives("20s");
    beside.stack.create_entry(&Entry::for_me("/web"));
    let heard = beside.stack.dir().join("heard");
    let mut other = Command::new("sh");
    other.args([
        "-c",
        r#"trap 'echo hup >> "$0"' HUP; while true; do sleep 0.05; done"#,
    ]);
    let other = Program::start("other", other.arg(&heard));
    let pid_file = beside.stack.dir().join("other.pid");
    fs::write(&pid_file, format!("{}\n", other.pid())).expect("a pid file");
    let script = beside.script(r#"echo "$PPID ran" >> "$T""#);
    let extra = format!("{script} renew_signal = \"SIGHUP\" pid_file_name = {pid_file:?}");
    let mut helper = beside.start_helper(&extra);
    wait_until("three runs", LIMIT, || beside.told().len() >= 3);
    assert!(
        beside
            .told()
            .iter()
            .all(|line| *line == format!("{} ran", helper.pid())),
        "{:?}",
        beside.told()
    );
    wait_until("the other process to hear of it", LIMIT, || {
        fs::read_to_string(&heard)
            .unwrap_or_default()
            .matches("hup")
            .count()
            >= 2
    });
    assert_eq!(zombies_of(helper.pid()), 0);
    helper.signal(Signal::INT);
    assert_eq!(helper.wait_exit(LIMIT).code(), Some(0));
}

fn zombies_of(parent: u32) -> usize {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            fields.next() == Some("Z") && fields.next() == Some(&parent.to_string())
        })
        .count()
}

#[test]
fn once_writes_and_ends_and_says_why_when_it_cannot() {
    let beside = Beside::start(StackOptions::default());
    let helper = beside.stack.dir().join("spiffe-helper");
    symlink(finial(), &helper).expect("a link");
    let config = beside.configure("daemon_mode = true\n cmd = \"/bin/false\"");
    let once = |flags: &[&str]| {
        let mut command = Command::new(&helper);
        Output::of(command.arg("-config").arg(&config).args(flags))
    };
    let flags = ["-daemon-mode=false", "-timeout", "1s"];
    let denied = once(&flags);
    let text = denied.stderr;
    assert_eq!(denied.status.code(), Some(1), "{text}");
    assert!(
        text.contains("Error: no X.509-SVID within 1s: agent answers PermissionDenied: no identity issued"),
        "{text}"
    );
    assert_eq!(fs::read_dir(&beside.certs).expect("a directory").count(), 0);

    beside.stack.create_entry(&Entry::for_me("/web"));
    let written = once(&["-daemon-mode=false"]);
    let text = written.stderr;
    assert_eq!(written.status.code(), Some(0), "{text}");
    assert!(
        text.contains("cmd: has no effect with daemon_mode = false"),
        "{text}"
    );
    assert!(written.stdout.is_empty(), "logs go to standard error");
    assert!(is_pair(&beside.read("svid.pem"), &beside.read("svid_key.pem")));

    assert_eq!(once(&["-noSuchFlag"]).status.code(), Some(2));
    assert_eq!(once(&["-version"]).status.code(), Some(0));
    fs::write(&config, "svid_file_name = \"a\" x = 1").expect("helper.conf is written");
    let wrong = once(&[]);
    let text = wrong.stderr;
    assert_eq!(wrong.status.code(), Some(1));
    for part in [
        "unknown configuration detected",
        "svid_key_file_name",
        "svid_bundle_file_name",
        "x (line 1)",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_denial_and_a_restart_of_the_agent_leave_the_files_alone() {
    let mut beside = Beside::start(StackOptions::default());
    let entry = beside.stack.create_entry(&Entry::for_me("/web"));
    let mut helper = beside.start_helper("");
    beside.wait_file("svid.pem");
    let (svid, key) = (beside.read("svid.pem"), beside.read("svid_key.pem"));
    beside.stack.delete_entry(&entry);
    let line = helper.wait_for_line("no identity is issued to this process", LIMIT);
    assert!(line.contains("files that are there stay as they are"), "{line}");
    beside.stack.agent().terminate();
    helper.wait_for_line("agent cannot be asked", LIMIT);
    assert_eq!(
        (beside.read("svid.pem"), beside.read("svid_key.pem")),
        (svid.clone(), key)
    );
    beside.stack.start_agent(&[]);
    beside.stack.wait_agent();
    beside.stack.create_entry(&Entry::for_me("/other"));
    helper.wait_for_line("agent answers again", LIMIT);
    wait_until("the new identity", LIMIT, || beside.read("svid.pem") != svid);
    assert!(is_pair(&beside.read("svid.pem"), &beside.read("svid_key.pem")));
    assert_eq!(helper.terminate().code(), Some(0));
}

#[test]
fn as_the_first_process_of_a_container_it_collects_orphans() {
    let beside = Beside::start(StackOptions::default());
    beside.stack.create_entry(&Entry::for_me("/web"));
    let unshare = [
        "--pid",
        "--kill-child",
        "--mount",
        "--propagation",
        "private",
        "--mount-proc",
    ];
    let probe = Command::new("unshare").args(unshare).arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        // Not a program that can be installed, but a right: nothing to require.
        finial_tests::skipped("unshare --pid needs rights that this user lacks");
        return;
    }
    // The script leaves a process that ends once it is an orphan. One that nobody collects stays in /proc for good.
    let script = beside.script(
        r#"orphan='while ! grep -q "^PPid:.1$" /proc/$$/status; do sleep 0.05; done
echo $$ > "$0.pid"; echo orphan >> "$0"'
sh -c 'sh -c "$1" "$0" &' "$T" "$orphan"
while ! grep -q orphan "$T" 2>/dev/null; do sleep 0.05; done
while [ -e "/proc/$(cat "$T.pid")" ]; do sleep 0.05; done
echo collected >> "$T""#,
    );
    let mut command = Command::new("unshare");
    command
        .args(unshare)
        .arg(finial())
        .args(["agent", "helper", "-config"]);
    let _helper = Program::start("helper", command.arg(beside.configure(&script)));
    wait_until("the orphan to be collected", LIMIT, || {
        beside.told().iter().any(|line| line == "collected")
    });
    assert_eq!(beside.told(), ["orphan", "collected"]);
}

#[test]
fn probes_follow_the_files() {
    let beside = Beside::start(StackOptions::default());
    let port = free_port();
    let _helper = beside.start_helper(&format!(
        "health_checks {{ listener_enabled = true bind_port = {port} }}"
    ));
    let ask = |path: &str| get(port, path).unwrap_or_default();
    wait_until("the listener", LIMIT, || ask("/live").starts_with("HTTP/1.1 200"));
    let ready = ask("/ready");
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("unwritten"),
        "{ready}"
    );
    beside.stack.create_entry(&Entry::for_me("/web"));
    wait_until("readiness", LIMIT, || ask("/ready").starts_with("HTTP/1.1 200"));
    assert!(ask("/ready").contains(r#""x509_write_status":"written""#));
}

/// The answer of a listener on loopback, headers first.
pub fn get(port: u16, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
