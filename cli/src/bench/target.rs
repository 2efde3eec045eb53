//! Which programs are measured: those of the first column, and with `-compare` those of the other one.

use std::path::PathBuf;

use anyhow::ensure;
use clap::{ArgMatches, Command};
use finial_identity::command::dial::AGENT;
use finial_identity::command::flags::text;

use super::run::number;

/// The programs of one column.
#[derive(Debug, Clone)]
pub struct Target {
    /// The Workload API.
    pub socket: PathBuf,
    /// The server's private socket.
    pub server_socket: Option<PathBuf>,
    /// The agent's SPIFFE ID, when it was named.
    pub parent: Option<String>,
    /// The agent's process, when it was named.
    pub pid: Option<u32>,
}

impl Target {
    /// The columns that the flags name; none for a benchmark that has no such flags.
    ///
    /// # Errors
    /// When one column has a server and the other has none: they would not be measured alike.
    pub fn columns(matches: &ArgMatches) -> anyhow::Result<Vec<Self>> {
        let first = Self::named(matches, ["socketPath", "serverSocketPath", "parentID", "pid"]);
        let other = first.as_ref().and_then(|_| {
            let flags = [
                "compare",
                "compareServerSocketPath",
                "compareParentID",
                "comparePid",
            ];
            Self::named(matches, flags)
        });
        let columns: Vec<Self> = first.into_iter().chain(other).collect();
        let with_server = columns
            .iter()
            .filter(|column| column.server_socket.is_some())
            .count();
        ensure!(
            with_server == 0 || with_server == columns.len(),
            "name the servers of both columns or of none: -serverSocketPath and -compareServerSocketPath"
        );
        Ok(columns)
    }

    /// What the report calls it.
    pub fn name(&self) -> String {
        self.socket.display().to_string()
    }

    fn named(matches: &ArgMatches, [socket, server, parent, pid]: [&str; 4]) -> Option<Self> {
        let text = |name| matches.try_get_one::<String>(name).ok().flatten();
        let given = |name| text(name).filter(|value| !value.is_empty());
        Some(Target {
            // An empty path is the default, where there is one.
            socket: match text(socket)?.as_str() {
                "" => AGENT.default.into(),
                path => path.into(),
            },
            server_socket: given(server).map(PathBuf::from),
            parent: given(parent).cloned(),
            pid: matches.try_get_one::<u32>(pid).ok().flatten().copied(),
        })
    }
}

/// Adds the flags that name the programs.
pub fn with_flags(command: Command) -> Command {
    let pid = |name, about| text(name, about).value_parser(clap::value_parser!(u32));
    command
        .arg(text("socketPath", "The Workload API to measure").default_value(AGENT.default))
        .arg(
            text(
                "serverSocketPath",
                "The server's private socket, to make entries for the time of the run",
            )
            .alias("server-socket"),
        )
        .arg(text(
            "parentID",
            "The agent's SPIFFE ID, when the server knows several",
        ))
        .arg(pid("pid", "The process to measure; default the one that listens"))
        .arg(text(
            "compare",
            "Another Workload API, which is measured in turn with the first",
        ))
        .arg(text("compareServerSocketPath", "The other server's private socket").requires("compare"))
        .arg(text("compareParentID", "The other agent's SPIFFE ID").requires("compare"))
        .arg(pid("comparePid", "The other process; default the one that listens").requires("compare"))
        .arg(
            number(
                "rounds",
                "Turns of each, when there is something to compare",
                1000,
            )
            .default_value("3"),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(args: &[&str]) -> anyhow::Result<Vec<Target>> {
        let matches = with_flags(Command::new("x")).try_get_matches_from([&["x"], args].concat())?;
        Target::columns(&matches)
    }

    #[test]
    fn flags_name_one_column_or_two() {
        let one = columns(&["--serverSocketPath", "/s", "--pid", "7"]).unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].name(), AGENT.default);
        assert_eq!((one[0].pid, one[0].parent.as_deref()), (Some(7), None));

        let two = columns(&[
            "--socketPath",
            "/a",
            "--compare",
            "/b",
            "--comparePid",
            "8",
            "--compareParentID",
            "spiffe://td/x",
        ]);
        let two = two.unwrap();
        assert_eq!([two[0].name(), two[1].name()], ["/a", "/b"]);
        assert_eq!((two[0].pid, two[1].pid), (None, Some(8)));
        assert_eq!(two[1].parent.as_deref(), Some("spiffe://td/x"));
    }

    #[test]
    fn columns_that_would_not_be_measured_alike_are_refused() {
        for args in [
            &["--compare", "/b", "--serverSocketPath", "/s"][..],
            &["--compare", "/b", "--compareServerSocketPath", "/s"],
            &["--comparePid", "8"],
        ] {
            columns(args).expect_err("one side alone");
        }
    }
}
