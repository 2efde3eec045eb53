//! The contents of a configuration file, independent of its format.

use super::position::Position;

/// A value and where it stands. Two nodes are equal when their values are, wherever they stand.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where its key, or the value itself in a list, begins.
    pub at: Position,
}

/// A value of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing; JSON and YAML only.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written, for example `0600`.
    Number(String),
    /// A text.
    String(String),
    /// Values in order.
    List(Vec<Node>),
    /// Keys in order. In HCL a key may be repeated; in JSON and YAML that is an error.
    Map(Vec<(String, Node)>),
}

/// A text that is not what its format demands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct ParseError {
    /// Where.
    pub at: Position,
    /// What is wrong.
    pub message: String,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Node {}

impl Value {
    /// What the value is, for an error text.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a block",
        }
    }
}

impl ParseError {
    pub(super) fn new(at: Position, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
        }
    }
}
