//! What a benchmark found: rows of named values, as a text table or as JSON.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::samples::Samples;

/// One measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    /// How many.
    Count(u64),
    /// How long; microseconds in JSON.
    Time(Duration),
    /// How much memory or disk.
    Bytes(u64),
    /// Events per second.
    Rate(f64),
    /// One value divided by another.
    Ratio(f64),
}

/// The values of one case.
#[derive(Debug, Clone)]
pub struct Row {
    case: String,
    cells: Vec<(&'static str, Cell)>,
}

/// All rows of one benchmark.
#[derive(Debug, Clone)]
pub struct Report {
    benchmark: String,
    rows: Vec<Row>,
}

impl Row {
    /// A case without values.
    pub fn new(case: impl Into<String>) -> Self {
        Row {
            case: case.into(),
            cells: Vec::new(),
        }
    }

    /// Adds a value under a name.
    pub fn with(mut self, name: &'static str, cell: Cell) -> Self {
        self.cells.push((name, cell));
        self
    }

    /// Adds a number of things.
    pub fn count(self, name: &'static str, count: usize) -> Self {
        self.with(name, Cell::Count(u64::try_from(count).unwrap_or(u64::MAX)))
    }

    /// Adds a length of time.
    pub fn time(self, name: &'static str, time: Duration) -> Self {
        self.with(name, Cell::Time(time))
    }

    /// Adds how many there were, median, 99th percentile and worst.
    pub fn times(self, samples: &Samples) -> Self {
        self.count("n", samples.len())
            .time("p50", samples.p50())
            .time("p99", samples.p99())
            .time("worst", samples.worst())
    }

    /// Adds `one` divided by `other`, when that is a number.
    pub fn ratio(self, name: &'static str, one: f64, other: f64) -> Self {
        if other > 0.0 {
            self.with(name, Cell::Ratio(one / other))
        } else {
            self
        }
    }

    /// Adds the ratios of median and 99th percentile of two kinds of times.
    pub fn ratios(self, ours: &Samples, limit: &Samples) -> Self {
        self.ratio("p50", ours.p50().as_secs_f64(), limit.p50().as_secs_f64())
            .ratio("p99", ours.p99().as_secs_f64(), limit.p99().as_secs_f64())
    }
}

impl Report {
    /// A report without rows.
    pub fn new(benchmark: impl Into<String>) -> Self {
        Report {
            benchmark: benchmark.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Writes the report to standard output.
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

    /// Every value with its case and name, in order.
    pub fn values(&self) -> impl Iterator<Item = (&str, &'static str, Cell)> {
        self.rows.iter().flat_map(|row| {
            let cells = row.cells.iter();
            cells.map(|(name, cell)| (row.case.as_str(), *name, *cell))
        })
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let mut object = Map::new();
            object.insert("case".to_owned(), json!(row.case));
            for (name, cell) in &row.cells {
                object.insert(key(name, *cell), cell.json());
            }
            Value::Object(object)
        });
        json!({ "benchmark": self.benchmark, "results": rows.collect::<Vec<_>>() })
    }

    /// Rows with the same names stand below one heading.
    fn table(&self) -> String {
        let mut text = format!("{}\n", self.benchmark);
        let mut rest = &self.rows[..];
        while let Some(first) = rest.first() {
            let same = rest
                .iter()
                .take_while(|row| row.names().eq(first.names()))
                .count();
            let (group, others) = rest.split_at(same);
            text.push('\n');
            push_group(&mut text, group);
            rest = others;
        }
        text
    }
}

impl Row {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.cells.iter().map(|(name, _)| *name)
    }
}

impl Cell {
    /// What it measures, in the unit of its JSON.
    pub fn number(self) -> f64 {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "it is compared and divided")]
            Cell::Count(count) | Cell::Bytes(count) => count as f64,
            Cell::Time(time) => time.as_secs_f64() * 1e6,
            Cell::Rate(number) | Cell::Ratio(number) => number,
        }
    }

    /// The bare number.
    pub fn json(self) -> Value {
        match self {
            Cell::Count(count) | Cell::Bytes(count) => json!(count),
            Cell::Time(_) | Cell::Rate(_) | Cell::Ratio(_) => json!(self.number()),
        }
    }

    /// As text with its unit.
    pub fn text(self) -> String {
        match self {
            Cell::Count(count) => count.to_string(),
            Cell::Time(time) => time_text(time),
            Cell::Bytes(bytes) => bytes_text(bytes),
            Cell::Rate(rate) => format!("{rate:.0}/s"),
            Cell::Ratio(ratio) => format!("{ratio:.2}x"),
        }
    }
}

/// Writes to standard output.
///
/// # Errors
/// When it is closed.
pub fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

/// The name in JSON, with the unit.
pub fn key(name: &str, cell: Cell) -> String {
    let unit = match cell {
        Cell::Count(_) => "",
        Cell::Time(_) => "_us",
        Cell::Bytes(_) => "_bytes",
        Cell::Rate(_) => "_per_second",
        Cell::Ratio(_) => "_ratio",
    };
    format!("{}{unit}", name.replace([' ', '-'], "_").to_ascii_lowercase())
}

fn push_group(text: &mut String, rows: &[Row]) {
    let mut lines: Vec<Vec<String>> = Vec::with_capacity(rows.len() + 1);
    if let Some(first) = rows.first() {
        let names = first.names().map(str::to_owned);
        lines.push(std::iter::once(String::new()).chain(names).collect());
    }
    for row in rows {
        let cells = row.cells.iter().map(|(_, cell)| cell.text());
        lines.push(std::iter::once(row.case.clone()).chain(cells).collect());
    }
    align(text, &lines);
}

/// Adds lines of as many cells each, one below the other; the first to the left, the others to the right.
pub fn align(text: &mut String, lines: &[Vec<String>]) {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for line in lines {
        let first = line.first().map_or("", String::as_str);
        let mut shown = format!("  {first:<width$}", width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            shown.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
}

fn time_text(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..1e3 => format!("{micros:.1} us"),
        ..1e6 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

fn bytes_text(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let number = bytes as f64;
    match number {
        ..1e3 => format!("{bytes} B"),
        ..1e6 => format!("{:.1} kB", number / 1e3),
        ..1e9 => format!("{:.1} MB", number / 1e6),
        _ => format!("{:.2} GB", number / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let samples: Samples = (1..=100).map(Duration::from_micros).collect();
        let mut report = Report::new("first-svid");
        report.add(Row::new("this socket").times(&samples));
        report.add(Row::new("bare").times(&samples));
        report.add(
            Row::new("memory")
                .with("RssAnon per stream", Cell::Bytes(28_500))
                .with("calls", Cell::Rate(1234.4))
                .ratio("to bare", 3.0, 2.0)
                .ratio("to nothing", 3.0, 0.0),
        );
        report
    }

    #[test]
    fn json_names_the_units() {
        let json = report().json();
        assert_eq!(json["benchmark"], "first-svid");
        assert_eq!(json["results"][0]["case"], "this socket");
        assert_eq!(json["results"][0]["n"], 100);
        assert_eq!(json["results"][1]["p99_us"], 99.0);
        let memory = &json["results"][2];
        assert_eq!(memory["rssanon_per_stream_bytes"], 28_500);
        assert_eq!(memory["calls_per_second"], 1234.4);
        assert_eq!(memory["to_bare_ratio"], 1.5);
        assert!(memory.get("to_nothing_ratio").is_none(), "no ratio to nothing");
    }

    #[test]
    fn rows_of_one_kind_share_a_heading() {
        assert_eq!(
            report().table(),
            "first-svid\n\
             \n\
             \x20                n      p50      p99     worst\n\
             \x20 this socket  100  50.0 us  99.0 us  100.0 us\n\
             \x20 bare         100  50.0 us  99.0 us  100.0 us\n\
             \n\
             \x20         RssAnon per stream   calls  to bare\n\
             \x20 memory             28.5 kB  1234/s    1.50x\n"
        );
    }

    #[test]
    fn sizes_and_times_are_shown_in_their_own_unit() {
        let texts = [
            Cell::Time(Duration::from_millis(12)),
            Cell::Time(Duration::from_secs(3)),
            Cell::Bytes(999),
            Cell::Bytes(20_900_000),
            Cell::Bytes(1_080_000_000),
        ]
        .map(Cell::text);
        assert_eq!(texts, ["12.00 ms", "3.00 s", "999 B", "20.9 MB", "1.08 GB"]);
    }
}
