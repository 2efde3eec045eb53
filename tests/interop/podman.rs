//! The workload attestor `docker` with a real Podman: real containers, made of an image that is made here without
//! a network, whose processes call the Workload API through a socket that is mounted into them.
//!
//! `FINIAL_TEST_PODMAN` names the program. It needs root, and everything it keeps is in the temporary directory.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use finial_tests::{Entry, Output, Peer, Program, Stack, StackOptions, absent, finial, wait_until};

const IMAGE: &str = "localhost/finial-test:1";
const READY: Duration = Duration::from_secs(30);
/// Each Podman of this process has a cgroup of its own.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Runs a command where cgroup v2 beside v1 is out of sight: crun refuses a mixture of both that has controllers
/// in v2.
const WITHOUT_MIXTURE: &str =
    "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified || exit 1; fi; exec \"$@\"";

#[test]
fn processes_in_containers_get_identities_by_what_the_engine_knows() {
    let Some(podman) = Podman::find() else { return };
    let digest = podman.make_image();
    let mut service = podman.serve();
    let stack = podman.stack();
    stack.create_entry(&Entry::for_me("/user"));
    let by = |path, selectors: &[&str]| {
        stack.create_entry(&Entry {
            path,
            selectors: selectors.iter().map(|selector| (*selector).to_owned()).collect(),
            extra: Vec::new(),
        });
    };
    by(
        "/web",
        &["docker:label:tier:web", "docker:env:STAGE=prod", "unix:uid:0"],
    );
    by(
        "/image",
        &[&format!("docker:image_id:{IMAGE}"), "docker:label:made:here"],
    );
    by(
        "/digest",
        &[&format!("docker:image_config_digest:sha256:{digest}")],
    );
    by("/never", &["docker:label:tier:other"]);
    stack.wait_identity("/user");

    let web = podman.run(&stack, &["--label", "tier=web", "--env", "STAGE=prod"]);
    let ids = podman
        .fetch(&stack, &web)
        .expect("a container's process has identities");
    assert_eq!(ids, ["/digest", "/image", "/user", "/web"]);

    let db = podman.run(&stack, &["--label", "tier=db", "--env", "STAGE=prod"]);
    let ids = podman
        .fetch(&stack, &db)
        .expect("another container's process has some");
    assert_eq!(ids, ["/digest", "/image", "/user"]);

    let host = stack.agent_cli_ok(&["api", "fetch", "x509"]);
    assert_eq!(
        paths(&stack, &host.stdout),
        ["/user"],
        "a process in no container"
    );

    a_name_is_not_enough(&stack, &web);

    // An engine that cannot be asked leaves the facts unknown: nothing is given rather than less.
    service.kill_hard();
    drop(service);
    let refused = podman
        .fetch(&stack, &web)
        .expect_err("an identity without its engine");
    assert!(refused.contains("workload attestation failed"), "{refused}");
    stack.agent_cli_ok(&["api", "fetch", "x509"]);
    let _service = podman.serve();
    assert_eq!(podman.fetch(&stack, &web).expect("the engine is back").len(), 4);
}

/// Root is the user here: where containers run and whose socket it is makes an engine a user's own.
#[test]
fn a_users_own_podman_is_believed_only_where_the_operator_trusts_that_user() {
    let Some(podman) = Podman::find_below("user.slice/user-0.slice/") else {
        return;
    };
    podman.make_image();
    let _service = podman.serve();
    let template = format!(
        "podman_socket_path_template = \"unix://{}\"",
        podman.socket("%d").display()
    );
    for (trusted, expected) in [
        ("", &["/user"][..]),
        ("rootless_podman { trusted_uids = [\"64001\"] }", &["/user"]),
        (
            "rootless_podman { trusted_uids = [\"0\"] }",
            &["/label", "/own", "/user"],
        ),
    ] {
        let mut stack = stack_with(&format!("{template}\n{trusted}"));
        for (path, selector) in [
            ("/user", "unix:uid:0"),
            ("/label", "docker:label:tier:web"),
            ("/own", "docker:podman_user:0"),
        ] {
            stack.create_entry(&Entry {
                path,
                selectors: vec![selector.to_owned()],
                extra: Vec::new(),
            });
        }
        stack.wait_identity("/user");
        let web = podman.run(&stack, &["--label", "tier=web"]);
        let ids = podman.fetch(&stack, &web).expect("the user's identity at least");
        assert_eq!(ids, expected, "{trusted}");
        if expected.len() == 1 {
            stack.agent().wait_for_line("rootless_podman.trusted_uids", READY);
        }
    }
}

/// A process of the host in a cgroup that is named like the container's, elsewhere.
fn a_name_is_not_enough(stack: &Stack, container: &str) {
    let impostor = Cgroup::make(&format!("finial-test-{}-impostor", std::process::id()), container);
    let output = Output::of(
        impostor
            .enter()
            .arg(finial())
            .args(["agent", "api", "fetch", "x509", "-socketPath"])
            .arg(stack.agent_socket()),
    );
    let printed = output.stderr;
    assert!(!output.status.success(), "an impostor got an identity");
    assert!(printed.contains("workload attestation failed"), "{printed}");
}

/// Podman with a directory of its own.
struct Podman {
    program: PathBuf,
    dir: tempfile::TempDir,
    parent: String,
    /// Cgroups above it that were not there before, the innermost first.
    made_above: Vec<PathBuf>,
}

impl Podman {
    fn find() -> Option<Self> {
        Self::find_below("")
    }

    /// A Podman whose containers' cgroups are below another one, named with a slash at its end.
    fn find_below(cgroup: &str) -> Option<Self> {
        let peer = Peer::find("FINIAL_TEST_PODMAN", "podman", &["--version"])?;
        if !rustix::process::geteuid().is_root() {
            absent("podman: this test runs containers as root");
            return None;
        }
        let podman = Podman {
            program: peer.command().get_program().into(),
            dir: tempfile::TempDir::with_prefix("finial-podman-").expect("a temporary directory"),
            parent: format!(
                "{cgroup}finial-test-{}-{}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
            made_above: hierarchies()
                .iter()
                .flat_map(|hierarchy| Path::new(cgroup).ancestors().map(|path| hierarchy.join(path)))
                .filter(|path| !path.exists())
                .collect(),
        };
        // Its own locks, and no limit above what this process may have.
        let conf = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
                    [containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        std::fs::write(podman.path("containers.conf"), conf).expect("the configuration is written");
        Some(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket of the service, as that of the user with this id.
    fn socket(&self, uid: &str) -> PathBuf {
        self.path(&format!("podman-{uid}.sock"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = if Path::new("/sys/fs/cgroup/unified").is_dir() {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", WITHOUT_MIXTURE, "sh"])
                .arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.path(name));
        }
        command.args(["--storage-driver", "vfs"]).args(args);
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        let output = Output::of(&mut self.command(args));
        Output {
            stdout: output.stdout.trim().to_owned(),
            ..output
        }
    }

    fn ok(&self, args: &[&str]) -> String {
        self.output(args).ok(format!("podman {args:?}")).stdout
    }

    /// An image without programs: those of this machine are mounted into it. Gives the digits of its id.
    fn make_image(&self) -> String {
        let tree = self.path("image");
        for name in ["usr", "run/finial", "proc", "sys", "dev", "etc", "tmp"] {
            std::fs::create_dir_all(tree.join(name)).expect("a directory of the image");
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), tree.join(name)).expect("a link of the image");
        }
        let archive = self.path("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        assert!(packed.expect("tar starts").success());
        let archive = archive.display().to_string();
        let id = self.ok(&[
            "import",
            "--quiet",
            "--change",
            "LABEL made=here",
            &archive,
            IMAGE,
        ]);
        id.trim_start_matches("sha256:").to_owned()
    }

    /// The service that answers for this Podman.
    fn serve(&self) -> Program {
        let socket = self.socket("0");
        let _from_before = std::fs::remove_file(&socket);
        let address = format!("unix://{}", socket.display());
        let service = Program::start(
            "podman",
            &mut self.command(&["system", "service", "--time=0", &address]),
        );
        wait_until("podman to listen", READY, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        service
    }

    /// A server, and an agent that asks this Podman.
    fn stack(&self) -> Stack {
        stack_with(&format!(
            "podman_socket_path = \"unix://{}\"",
            self.socket("0").display()
        ))
    }

    /// Starts a container that waits and has the agent's socket; gives its id.
    fn run(&self, stack: &Stack, flags: &[&str]) -> String {
        let mount = |from: &Path, to: &str| format!("{}:{to}", from.display());
        let socket = mount(stack.dir(), "/run/finial");
        let program = mount(finial(), "/finial:ro");
        let parent = format!("/{}", self.parent);
        let mut args = vec!["run", "--detach", "--cgroup-parent", &parent];
        args.extend([
            "--volume",
            "/usr:/usr:ro",
            "--volume",
            &program,
            "--volume",
            &socket,
        ]);
        args.extend(flags);
        args.extend([IMAGE, "/bin/sleep", "600"]);
        self.ok(&args)
    }

    /// The paths of the identities that a process in the container gets, or what it printed.
    fn fetch(&self, stack: &Stack, container: &str) -> Result<Vec<String>, String> {
        let fetch = [
            "/finial",
            "agent",
            "api",
            "fetch",
            "x509",
            "-socketPath",
            "/run/finial/agent.sock",
        ];
        let output = self.output(&[&["exec", container][..], &fetch].concat());
        if output.status.success() {
            Ok(paths(stack, &output.stdout))
        } else {
            Err(output.stdout + &output.stderr)
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _removed = self.output(&["rm", "--all", "--force", "--time", "0"]);
        let mut left = hierarchies();
        let mut is_clean = || {
            left.retain(|hierarchy| {
                let parent = hierarchy.join(&self.parent);
                let _removed = std::fs::remove_dir(parent.join("conmon"));
                let is_left = parent.exists() && std::fs::remove_dir(&parent).is_err();
                for path in &self.made_above {
                    let _removed = std::fs::remove_dir(path);
                }
                is_left
            });
            left.is_empty()
        };
        // What watched the containers ends soon after them.
        if !is_clean() && !std::thread::panicking() {
            wait_until("the cgroups of the containers to be empty", READY, is_clean);
        }
    }
}

/// A server, and an agent whose attestor `docker` has these settings.
fn stack_with(docker: &str) -> Stack {
    Stack::start(StackOptions {
        agent_plugins: format!("WorkloadAttestor \"docker\" {{ plugin_data {{ {docker} }} }}"),
        ..StackOptions::default()
    })
}

/// A control group of the host, with a name that says it is a container's.
struct Cgroup {
    paths: Vec<PathBuf>,
}

impl Cgroup {
    fn make(parent: &str, container: &str) -> Self {
        let mut paths = Vec::new();
        for hierarchy in hierarchies() {
            let path = hierarchy.join(parent).join(format!("libpod-{container}"));
            // What a new group of this controller needs first is of no interest here: one hierarchy suffices.
            if std::fs::create_dir_all(&path).is_ok() && path.join("cgroup.procs").exists() {
                paths.push(path);
            }
        }
        Cgroup { paths }
    }

    /// A shell that enters the group and becomes the command that is added.
    fn enter(&self) -> Command {
        let mut script = String::new();
        for path in &self.paths {
            script += &format!("echo $$ > {} && entered=1; ", path.join("cgroup.procs").display());
        }
        script += "[ \"$entered\" ] && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in &self.paths {
            let _removed = std::fs::remove_dir(path);
            let _removed = path.parent().map(std::fs::remove_dir);
        }
    }
}

/// Where cgroup file systems are mounted, v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts of this process");
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (path, kind) = (fields.nth(1)?, fields.next()?);
            kind.starts_with("cgroup").then(|| path.into())
        })
        .collect()
}

/// The paths of the SPIFFE IDs in what `fetch x509` printed, in order.
fn paths(stack: &Stack, printed: &str) -> Vec<String> {
    let prefix = stack.id("/");
    let mut found: Vec<String> = printed
        .lines()
        .filter(|line| line.starts_with("SPIFFE ID"))
        .filter_map(|line| Some(format!("/{}", line.split_once(&prefix)?.1)))
        .collect();
    found.sort();
    found
}
