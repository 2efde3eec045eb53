//! Input, output and environment variables of commands.

use std::io::{Read, Write};

use anyhow::Context;
use clap::ArgMatches;
use prost::Message;
use serde_json::Value;

use crate::json;

/// The surroundings of one command, handed in so that nothing else reads them.
pub struct Console<'a> {
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard error.
    pub err: &'a mut dyn Write,
    /// Standard input, for `-data -` and the like.
    pub input: &'a mut dyn Read,
    /// An environment variable, when it is set.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl Console<'_> {
    /// One line of standard output.
    pub fn line(&mut self, text: impl AsRef<str>) -> anyhow::Result<()> {
        writeln!(self.out, "{}", text.as_ref()).context("write to standard output")
    }

    /// One line of standard error.
    pub fn warn(&mut self, text: impl AsRef<str>) -> anyhow::Result<()> {
        writeln!(self.err, "{}", text.as_ref()).context("write to standard error")
    }

    /// Text as it is, without a line end.
    pub fn raw(&mut self, text: &str) -> anyhow::Result<()> {
        self.out
            .write_all(text.as_bytes())
            .context("write to standard output")
    }

    /// The file at `path`, or standard input for `-`.
    pub fn read(&mut self, path: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        if path == "-" {
            self.input
                .read_to_string(&mut text)
                .context("read standard input")?;
        } else {
            text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        }
        Ok(text)
    }

    /// One answer as one line of JSON.
    pub fn message<M: Message>(&mut self, name: &str, message: &M) -> anyhow::Result<()> {
        let value = json::render_message(name, message).context("render the answer as JSON")?;
        self.json(&value)
    }

    /// A JSON value on one line.
    pub fn json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.line(value.to_string())
    }
}

/// Whether `-output json` was asked for.
pub fn wants_json(matches: &ArgMatches) -> bool {
    matches
        .get_one::<String>("output")
        .is_some_and(|output| output == "json")
}
