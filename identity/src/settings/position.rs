//! Positions in a text.

use std::fmt;

/// A place in a text; line and column begin with 1, columns count characters (bytes,
/// in lines of more than 4096).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// From this many bytes on, columns count bytes.
const LONG_LINE: usize = 4096;

/// Translates byte offsets of a text.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let after_breaks = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    pub(super) fn at(&self, offset: usize) -> Position {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = line
            .checked_sub(1)
            .and_then(|index| self.starts.get(index))
            .copied()
            .unwrap_or_default();
        // In a file that is one huge line, counting characters for each value would take forever.
        let before = self.text.get(start..offset).unwrap_or_default();
        let column = if before.len() > LONG_LINE {
            before.len()
        } else {
            before.chars().count()
        } + 1;
        Position { line, column }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_begin_with_one_and_count_characters() {
        let lines = Lines::of("ab\nçd\n\nx");
        let found: Vec<_> = [0, 1, 3, 5, 7, 8, 99]
            .iter()
            .map(|at| lines.at(*at))
            .map(|p| (p.line, p.column))
            .collect();
        assert_eq!(found, [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1), (4, 1)]);
        let long = format!("{}\u{e9}x", "a".repeat(LONG_LINE));
        assert_eq!(Lines::of(&long).at(LONG_LINE + 2).column, LONG_LINE + 3);
        assert_eq!(Lines::of("").at(0), Position { line: 1, column: 1 });
    }
}
