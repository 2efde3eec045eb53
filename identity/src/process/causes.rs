//! Errors with what caused them.

use std::error::Error;

/// An error and all its sources in one line: those of transports say nothing by themselves. What an error's own text ends
/// with is not said again.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let inner = source.to_string();
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read file: {source}")]
    struct Said {
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Silent(#[source] Said);

    #[test]
    fn every_cause_is_said_once() {
        let source = std::io::Error::other("no disk");
        let text = with_causes(&Silent(Said { source }));
        assert_eq!(text, "transport error: read file: no disk");
    }
}
