//! Four libraries of other projects, each in a small program; see `session` for their commands.

use std::path::{Path, PathBuf};
use std::process::Command;

use finial_tests::{Output, Peer, Stack, absent};

/// A client program that is here.
#[derive(Debug)]
pub struct Client {
    pub name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Client {
    /// Over the `spiffe` and `spiffe-rustls` crates; always here.
    pub fn rust() -> Self {
        Client {
            name: "rust",
            program: env!("CARGO_BIN_EXE_rust-spiffe-client").into(),
            arguments: Vec::new(),
        }
    }

    /// Over the `spiffe` and `spiffe-tls` packages; `FINIAL_TEST_PYTHON` names an interpreter that has them.
    pub fn python() -> Option<Self> {
        let variable = "FINIAL_TEST_PYTHON";
        Peer::find(variable, "python3", &["-c", "import spiffe, spiffetls, jwt"])?;
        let program = std::env::var_os(variable).map_or_else(|| "python3".into(), PathBuf::from);
        Some(Client {
            name: "python",
            program,
            arguments: vec![source("python/client.py")],
        })
    }

    /// Over go-spiffe; `FINIAL_TEST_GO_CLIENT` names the built program.
    pub fn go() -> Option<Self> {
        let Some(program) = std::env::var_os("FINIAL_TEST_GO_CLIENT") else {
            absent("go-spiffe: FINIAL_TEST_GO_CLIENT does not name the program built from tests/interop/go");
            return None;
        };
        Some(Client {
            name: "go",
            program: program.into(),
            arguments: Vec::new(),
        })
    }

    /// Over java-spiffe; `FINIAL_TEST_JAVA_LIB` names the folder in which tests/interop/java was built.
    pub fn java() -> Option<Self> {
        let Some(built) = std::env::var_os("FINIAL_TEST_JAVA_LIB") else {
            absent(
                "java-spiffe: FINIAL_TEST_JAVA_LIB does not name the folder in which tests/interop/java was built",
            );
            return None;
        };
        Peer::find("FINIAL_TEST_JAVA", "java", &["-version"])?;
        let target = PathBuf::from(built).join("target");
        let path = format!(
            "{}:{}/*",
            target.join("classes").display(),
            target.join("lib").display()
        );
        Some(Client {
            name: "java",
            program: "java".into(),
            arguments: vec!["-cp".into(), path, "Client".into()],
        })
    }

    pub fn command(&self, stack: &Stack, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", stack.endpoint());
        command
    }

    /// Runs to the end; gives the lines of standard output, or everything that was printed.
    pub fn run(&self, stack: &Stack, arguments: &[&str]) -> Result<Vec<String>, String> {
        let output = Output::of(&mut self.command(stack, arguments));
        let text = output.stdout;
        if output.status.success() && text.lines().any(|line| line == "done") {
            return Ok(text.lines().map(str::to_owned).collect());
        }
        Err(format!(
            "{} {arguments:?} ({})\n{text}{}",
            self.name, output.status, output.stderr
        ))
    }

    /// [`Client::run`], which must succeed.
    pub fn run_ok(&self, stack: &Stack, arguments: &[&str]) -> Vec<String> {
        self.run(stack, arguments)
            .unwrap_or_else(|printed| panic!("{printed}"))
    }
}

/// A file of this suite.
pub fn source(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("interop")
        .join(path)
        .display()
        .to_string()
}

/// What follows `word` on the first line that begins with it.
pub fn after<'a>(lines: &'a [String], word: &str) -> &'a str {
    lines
        .iter()
        .find_map(|line| line.strip_prefix(word).and_then(|rest| rest.strip_prefix(' ')))
        .unwrap_or_else(|| panic!("no line begins with {word:?}: {lines:?}"))
}
