//! Collects all mistakes of a configuration, so that they are reported together.

use std::cell::RefCell;
use std::fmt;

use super::position::Position;

/// Collects mistakes; shared by the sections of a document.
#[derive(Debug, Default)]
pub struct Problems {
    found: RefCell<Vec<Problem>>,
}

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with the sections that it is in.
    pub path: String,
    /// Where it stands, or where the section begins that lacks it.
    pub at: Option<Position>,
    /// What is wrong.
    pub text: String,
    /// Whether the key is unknown.
    pub is_unknown_key: bool,
}

/// All mistakes of a configuration, one a line.
///
/// Begins with `unknown configuration detected`, as SPIRE says, when there are unknown keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    problems: Vec<Problem>,
}

impl Problems {
    /// No problems.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a mistake. `at` is `None` for what was not in a file, like a flag.
    pub fn add(&self, path: impl Into<String>, at: Option<Position>, text: impl Into<String>) {
        self.push(Problem {
            path: path.into(),
            at,
            text: text.into(),
            is_unknown_key: false,
        });
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that was reported, in the order of the file.
    pub fn into_result(self) -> Result<(), SettingsError> {
        let mut problems = self.found.into_inner();
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(|problem| problem.at);
        Err(SettingsError { problems })
    }

    pub(super) fn add_unknown_key(&self, path: String, at: Position, text: String) {
        self.push(Problem {
            path,
            at: Some(at),
            text,
            is_unknown_key: true,
        });
    }

    pub(super) fn count(&self) -> usize {
        self.found.borrow().len()
    }

    fn push(&self, problem: Problem) {
        self.found.borrow_mut().push(problem);
    }
}

impl SettingsError {
    /// The mistakes in the order of the file; those without a place come first.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.text);
        }
        match self.at {
            Some(at) => write!(f, "{} (line {}): {}", self.path, at.line, self.text),
            None => write!(f, "{}: {}", self.path, self.text),
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = self.problems.iter().any(|problem| problem.is_unknown_key);
        let mut separator = "";
        if unknown {
            f.write_str("unknown configuration detected")?;
            separator = "\n";
        }
        for problem in &self.problems {
            write!(f, "{separator}{problem}")?;
            separator = "\n";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_all_in_the_order_of_the_file() {
        let at = |line| Some(Position { line, column: 1 });
        let problems = Problems::new();
        assert!(problems.is_empty());
        problems.add("agent.trust_domain", at(3), "is required");
        problems.add("agent.data_dir", at(2), "must be a string, is a list");
        problems.add("-logLevel", None, "is not a level: x");
        problems.add("", None, "plugins: exactly one KeyManager is needed");
        let error = problems.into_result().unwrap_err();
        assert_eq!(
            error.to_string(),
            "-logLevel: is not a level: x\nplugins: exactly one KeyManager is needed\n\
             agent.data_dir (line 2): must be a string, is a list\nagent.trust_domain (line 3): is required"
        );
        assert_eq!(error.problems().len(), 4);
        assert_eq!(Problems::new().into_result(), Ok(()));
    }
}
