//! The same benchmark of several programs, measured alternately: their columns, and the ratios of the first to the
//! others.

use serde_json::{Map, Value, json};

use super::report::{Cell, Report, align, key, write_out};

/// Letters of the columns in the table.
const LETTERS: std::ops::RangeInclusive<char> = 'A'..='Z';

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Comparison {
    benchmark: String,
    columns: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    rounds: Vec<Report>,
}

/// One value of one case, in each column that has it.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    case: &'a str,
    name: &'static str,
    cells: Vec<Option<Cell>>,
}

impl Comparison {
    /// Of programs with these names, before the first turn.
    pub fn new(benchmark: impl Into<String>, names: impl IntoIterator<Item = String>) -> Self {
        let column = |name| Column {
            name,
            rounds: Vec::new(),
        };
        Comparison {
            benchmark: benchmark.into(),
            columns: names.into_iter().map(column).collect(),
        }
    }

    /// Adds what one turn of a column gave.
    pub fn add(&mut self, column: usize, report: Report) {
        if let Some(column) = self.columns.get_mut(column) {
            column.rounds.push(report);
        }
    }

    /// Writes columns and ratios to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        write_out(&if json {
            format!("{}\n", self.json())
        } else {
            self.table()
        })
    }

    /// In the order in which the rounds have them, the first column's before those of others alone.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = Vec::new();
        let reports = self.columns.iter().flat_map(|column| &column.rounds);
        for (case, name, _) in reports.flat_map(Report::values) {
            if !lines.iter().any(|line| (line.case, line.name) == (case, name)) {
                let cells = self.columns.iter().map(|column| column.value(case, name));
                lines.push(Line {
                    case,
                    name,
                    cells: cells.collect(),
                });
            }
        }
        lines
    }

    fn json(&self) -> Value {
        let mut results: Vec<(&str, Map<String, Value>)> = Vec::new();
        for line in self.lines() {
            let Some(cell) = line.cells.iter().flatten().next() else {
                continue;
            };
            let columns = line.cells.iter().map(|cell| cell.map_or(Value::Null, Cell::json));
            let columns: Vec<Value> = columns.collect();
            let value = json!({ "columns": columns, "ratios": line.ratios() });
            let value = (key(line.name, *cell), value);
            match results.iter_mut().find(|(case, _)| *case == line.case) {
                Some((_, object)) => object.extend([value]),
                None => results.push((line.case, Map::from_iter([value]))),
            }
        }
        let results = results.into_iter().map(|(case, mut object)| {
            object.insert("case".to_owned(), json!(case));
            Value::Object(object)
        });
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        json!({
            "benchmark": self.benchmark,
            "rounds": self.rounds(),
            "columns": names,
            "results": results.collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let mut text = format!("{}, turn by turn, {} each\n\n", self.benchmark, self.rounds());
        let letters: Vec<String> = LETTERS
            .take(self.columns.len())
            .map(|letter| letter.to_string())
            .collect();
        for (letter, column) in letters.iter().zip(&self.columns) {
            text.push_str(&format!("  {letter}  {}\n", column.name));
        }
        text.push('\n');
        let ratios = letters.iter().skip(1).map(|letter| format!("A/{letter}"));
        let heading = std::iter::once(String::new())
            .chain(letters.iter().cloned())
            .chain(ratios);
        let mut lines = vec![heading.collect::<Vec<String>>()];
        for line in self.lines() {
            let cells = line
                .cells
                .iter()
                .map(|cell| cell.map_or("-".to_owned(), Cell::text));
            let ratios = line.ratios().into_iter();
            let ratios = ratios.map(|ratio| ratio.map_or(String::new(), |ratio| Cell::Ratio(ratio).text()));
            let name = format!("{}, {}", line.case, line.name);
            lines.push(std::iter::once(name).chain(cells).chain(ratios).collect());
        }
        align(&mut text, &lines);
        text
    }

    fn rounds(&self) -> usize {
        let rounds = self.columns.iter().map(|column| column.rounds.len());
        rounds.max().unwrap_or_default()
    }
}

impl Column {
    /// The median of the rounds; but the worst of the worst, and of what is counted the most.
    fn value(&self, case: &str, name: &str) -> Option<Cell> {
        let rounds = self.rounds.iter().flat_map(Report::values);
        let mut cells: Vec<Cell> = rounds
            .filter(|value| (value.0, value.1) == (case, name))
            .map(|value| value.2)
            .collect();
        cells.sort_by(|one, other| one.number().total_cmp(&other.number()));
        let last = cells.len().checked_sub(1)?;
        let is_counted = matches!(cells.first(), Some(Cell::Count(_)));
        let at = match name {
            _ if is_counted || name.contains("worst") => last,
            _ if name.contains("shortest") => 0,
            _ => last / 2,
        };
        cells.get(at).copied()
    }
}

impl Line<'_> {
    /// The first column divided by each other; nothing for what is counted.
    fn ratios(&self) -> Vec<Option<f64>> {
        let number = |cell: &Option<Cell>| match cell {
            None | Some(Cell::Count(_)) => None,
            Some(cell) => Some(cell.number()).filter(|number| *number > 0.0),
        };
        let (first, others) = match self.cells.split_first() {
            Some((first, others)) => (number(first), others),
            None => (None, &[][..]),
        };
        let others = others.iter().map(|other| Some(first? / number(other)?));
        others.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::Row;
    use super::*;

    fn round(millis: u64, failed: usize) -> Report {
        let mut report = Report::new("x");
        let time = Duration::from_millis(millis);
        report.add(
            Row::new("calls")
                .count("failed", failed)
                .time("p50", time)
                .time("worst", time),
        );
        report
    }

    fn comparison() -> Comparison {
        let mut comparison = Comparison::new("x", ["/a".to_owned(), "/b".to_owned()]);
        for (millis, failed) in [(9, 0), (1, 1), (2, 0)] {
            comparison.add(0, round(millis, failed));
            comparison.add(1, round(millis * 4, 0));
        }
        let mut more = Report::new("x");
        more.add(Row::new("alone").with("Rss", Cell::Bytes(1000)));
        comparison.add(1, more);
        comparison
    }

    #[test]
    fn columns_are_medians_of_rounds_and_the_worst_of_the_worst() {
        let json = comparison().json();
        assert_eq!(json["columns"], json!(["/a", "/b"]));
        let calls = &json["results"][0];
        assert_eq!(calls["case"], "calls");
        assert_eq!(
            calls["p50_us"],
            json!({ "columns": [2000.0, 8000.0], "ratios": [0.25] })
        );
        assert_eq!(calls["worst_us"]["columns"], json!([9000.0, 36000.0]));
        assert_eq!(
            calls["failed"],
            json!({ "columns": [1, 0], "ratios": [null] }),
            "one failure is not lost among the rounds"
        );
        let alone = &json["results"][1];
        assert_eq!(
            alone["rss_bytes"],
            json!({ "columns": [null, 1000], "ratios": [null] })
        );
    }

    #[test]
    fn the_table_has_a_line_for_each_value() {
        assert_eq!(
            comparison().table(),
            "x, turn by turn, 4 each\n\
             \n\
             \x20 A  /a\n\
             \x20 B  /b\n\
             \n\
             \x20                      A         B    A/B\n\
             \x20 calls, failed        1         0\n\
             \x20 calls, p50     2.00 ms   8.00 ms  0.25x\n\
             \x20 calls, worst   9.00 ms  36.00 ms  0.25x\n\
             \x20 alone, Rss           -    1.0 kB\n"
        );
    }
}
