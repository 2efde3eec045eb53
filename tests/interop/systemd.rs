//! The workload attestor `systemd` over a real message bus. `FINIAL_TEST_DBUS_DAEMON` names the daemon. systemd
//! itself is a fake on a private bus; if this machine was started by systemd, the real one is used too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use finial_tests::{Entry, Output, Peer, Program, Stack, StackOptions, finial, wait_until};
use tokio::sync::oneshot;
use zbus::OwnedObjectPath;

const READY: Duration = Duration::from_secs(30);
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/web_2eservice";

#[test]
fn processes_get_identities_by_their_unit() {
    let Some(peer) = Peer::find("FINIAL_TEST_DBUS_DAEMON", "dbus-daemon", &["--version"]) else {
        return;
    };
    let dir = tempfile::TempDir::with_prefix("finial-bus-").expect("a temporary directory");
    let socket = dir.path().join("bus");
    let mut bus = start_bus(&peer, &socket);
    let systemd = StandIn::start(&socket);
    let stack = Stack::start(StackOptions {
        agent_plugins: "WorkloadAttestor \"systemd\" {}".into(),
        agent_env: vec![("DBUS_SYSTEM_BUS_ADDRESS".into(), address(&socket))],
        ..StackOptions::default()
    });
    let by = |path, selectors: [&str; 2]| {
        stack.create_entry(&Entry {
            path,
            selectors: selectors.map(str::to_owned).to_vec(),
            extra: Vec::new(),
        });
    };
    stack.create_entry(&Entry::for_me("/user"));
    by(
        "/unit",
        [
            "systemd:id:web.service",
            "systemd:fragment_path:/etc/systemd/system/web.service",
        ],
    );
    by(
        "/other",
        [
            "systemd:id:db.service",
            "systemd:fragment_path:/etc/systemd/system/web.service",
        ],
    );
    let fetch = || {
        let output = stack.agent_cli(&["api", "fetch", "x509"]);
        let has = |path| output.stdout.contains(&stack.id(path));
        if output.status.success() {
            Ok((has("/user"), has("/unit"), has("/other")))
        } else {
            Err(output.stderr)
        }
    };
    stack.wait_identity("/unit");
    assert_eq!(fetch(), Ok((true, true, false)));

    systemd.say(Says::NoUnit);
    assert_eq!(fetch(), Ok((true, false, false)), "known to be in no unit");

    systemd.say(Says::Trouble);
    let refused = fetch().expect_err("an identity although the unit is unknown");
    assert!(refused.contains("workload attestation failed"), "{refused}");

    systemd.say(Says::Unit);
    assert_eq!(fetch(), Ok((true, true, false)));
    drop(systemd);
    bus.kill_hard();
    drop(bus);
    let refused = fetch().expect_err("an identity although there is no bus");
    assert!(refused.contains("workload attestation failed"), "{refused}");

    let _bus = start_bus(&peer, &socket);
    let _systemd = StandIn::start(&socket);
    assert_eq!(fetch(), Ok((true, true, false)), "a new bus is connected to");
}

#[test]
fn the_systemd_that_started_this_machine_is_asked() {
    if !Path::new("/run/systemd/system").is_dir() {
        // Cannot be installed, so it is not required either.
        finial_tests::skipped("this machine was not started by systemd");
        return;
    }
    let stack = Stack::start(StackOptions {
        agent_plugins: "WorkloadAttestor \"systemd\" {}".into(),
        ..StackOptions::default()
    });
    let unit = format!("finial-test-{}.service", std::process::id());
    stack.create_entry(&Entry {
        path: "/unit",
        selectors: vec![format!("systemd:id:{unit}")],
        extra: Vec::new(),
    });
    wait_until("the identity of the unit", READY, || {
        let mut command = Command::new("systemd-run");
        command
            .args(["--wait", "--pipe", "--collect", "--quiet", "--unit", &unit])
            .arg(finial())
            .args(["agent", "api", "fetch", "x509", "-socketPath"])
            .arg(stack.agent_socket());
        Output::of(&mut command).stdout.contains(&stack.id("/unit"))
    });
}

fn address(socket: &Path) -> String {
    format!("unix:path={}", socket.display())
}

/// A bus on which everybody may do everything.
fn start_bus(peer: &Peer, socket: &Path) -> Program {
    let _from_before = std::fs::remove_file(socket);
    let config = socket.with_extension("conf");
    let text = format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#,
        address(socket)
    );
    std::fs::write(&config, text).expect("the bus's configuration is written");
    let mut command = peer.command();
    command
        .arg("--nofork")
        .arg("--nopidfile")
        .arg("--config-file")
        .arg(config);
    let bus = Program::start("dbus-daemon", &mut command);
    wait_until("the bus to listen", READY, || {
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    });
    bus
}

/// What the stand-in says about every process.
#[derive(Clone, Copy)]
enum Says {
    Unit,
    NoUnit,
    Trouble,
}

/// The part of systemd's interface that is used, by a thread of its own.
struct StandIn {
    says: Arc<AtomicU8>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    fn start(socket: &Path) -> Self {
        let says = Arc::new(AtomicU8::new(Says::Unit as u8));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let (address, manager) = (address(socket), Manager(Arc::clone(&says)));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let _connection = zbus::connection::Builder::address(address.as_str())
                    .serve_at("/org/freedesktop/systemd1", manager)
                    .serve_at(UNIT_PATH, Unit)
                    .name("org.freedesktop.systemd1")
                    .build()
                    .await
                    .expect("a name on the bus");
                ready.send(()).expect("the test waits");
                let _stopped = stopped.await;
            });
        });
        is_ready.recv().expect("the stand-in gets onto the bus");
        StandIn {
            says,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn say(&self, what: Says) {
        self.says.store(what as u8, Ordering::SeqCst);
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

struct Manager(Arc<AtomicU8>);

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum ManagerError {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoUnitForPID(String),
    LoadFailed(String),
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(name = "GetUnitByPID")]
    fn unit_by_pid(&self, pid: u32) -> Result<OwnedObjectPath, ManagerError> {
        assert!(
            PathBuf::from(format!("/proc/{pid}")).exists(),
            "asked about a living process"
        );
        let says = self.0.load(Ordering::SeqCst);
        if says == Says::NoUnit as u8 {
            let text = format!("PID {pid} does not belong to any loaded unit.");
            return Err(ManagerError::NoUnitForPID(text));
        }
        if says == Says::Trouble as u8 {
            return Err(ManagerError::LoadFailed("trouble".into()));
        }
        OwnedObjectPath::try_from(UNIT_PATH).map_err(ManagerError::ZBus)
    }
}

struct Unit;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn id(&self) -> &str {
        "web.service"
    }

    #[zbus(property)]
    fn fragment_path(&self) -> &str {
        "/etc/systemd/system/web.service"
    }
}
