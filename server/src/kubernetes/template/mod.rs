//! Templates of SPIFFE IDs, DNS names and selectors: the language of Go's `text/template` over facts
//! about a pod and its node.
//!
//! `lexer` -> `parser` (with the check of field names) -> `eval`. We have our own engine, because
//! fields must have Go's names and Go's zero values, because unknown fields must be
//! refused when a rule is admitted and never rendered as empty, and because rendering must be limited;
//! the general crate for Go templates does none of these.

mod eval;
mod functions;
mod lexer;
mod parser;
mod printf;
mod schema;
mod value;

use thiserror::Error;

pub use schema::{Facts, Scope};

use parser::Node;

/// Longest source of a template in bytes.
pub const MAX_SOURCE: usize = 8 * 1024;
/// Longest result in bytes.
pub const MAX_OUTPUT: usize = 16 * 1024;
/// Blocks and parentheses within each other.
const MAX_DEPTH: usize = 32;
/// Steps of one rendering, so that loops within loops end.
const MAX_STEPS: usize = 20_000;

/// Why a template is refused or cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// The source is longer than [`MAX_SOURCE`].
    #[error("template is longer than {MAX_SOURCE} bytes: {0}")]
    TooLong(usize),
    /// The source is not of the language, or uses what this server does not know.
    #[error("template: line {line}: {text}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        text: String,
    },
    /// The facts do not fit what the template does with them.
    #[error("template: {0}")]
    Execution(String),
    /// The result would be longer than [`MAX_OUTPUT`].
    #[error("template: result is longer than {MAX_OUTPUT} bytes")]
    OutputTooLong,
    /// It does not end soon enough.
    #[error("template: more than {MAX_STEPS} steps")]
    TooManySteps,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
}

impl Template {
    /// Parses a template that will be rendered with facts of `scope`. Unknown functions, and unknown
    /// fields where the type is known, are refused here.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(source: &str, scope: Scope) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLong(source.len()));
        }
        let nodes = parser::parse(source)?;
        schema::check(&nodes, scope)?;
        Ok(Self { nodes })
    }

    /// Renders the template. As in Go a key that a map does not have is `<no value>` by `.Labels.key`, and the empty
    /// string by `index .Labels "key"`.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn render(&self, facts: &Facts<'_>) -> Result<String, TemplateError> {
        eval::render(&self.nodes, facts)
    }
}

#[cfg(test)]
mod tests;
