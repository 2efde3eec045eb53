//! What Prometheus would get: a request as it makes one, and a strict reader of the text format 0.0.4.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The series of a scrape by their full name and labels, as `name{a="b"}` with sorted labels.
#[derive(Debug)]
pub struct Scraped {
    series: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

/// Scrapes over plain HTTP.
pub fn scrape(port: u16) -> anyhow::Result<Scraped> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    get(&mut stream)
}

/// Scrapes over a connection that is there.
pub fn get(stream: &mut (impl Read + Write)) -> anyhow::Result<Scraped> {
    stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // A TLS peer may leave without a word; what counts is that the body is whole.
    let _ended = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| anyhow::anyhow!("no answer: {answer:?}"))?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let head = head.to_lowercase();
    anyhow::ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    anyhow::ensure!(length == Some(body.len().to_string().as_str()), "{head}");
    Ok(Scraped::parse(body))
}

impl Scraped {
    /// Reads the text, and panics at the first thing that the format does not allow.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line must end");
        let mut scraped = Scraped {
            series: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        let mut family = String::new();
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, _) = help.split_once(' ').expect("a help text");
                assert!(is_name(name) && helped.insert(name.to_owned()), "{line}");
                family = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, family, "HELP comes before TYPE");
                assert!(matches!(kind, "counter" | "gauge" | "summary"), "{line}");
                let known = scraped.kinds.insert(name.to_owned(), kind.to_owned());
                assert_eq!(known, None, "{line}");
            } else {
                scraped.sample(line, &family);
            }
        }
        scraped
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            None => (series, Vec::new()),
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').expect("a closing brace"))),
        };
        let kind = self.kinds.get(family).expect("TYPE comes before samples");
        let has_quantile = labels.iter().any(|(label, _)| label == "quantile");
        let fits = match kind.as_str() {
            "summary" if name == family => has_quantile,
            "summary" => {
                !has_quantile && (name == format!("{family}_sum") || name == format!("{family}_count"))
            }
            _ => name == family && !has_quantile,
        };
        assert!(is_name(name) && fits, "{line} does not belong to {kind} {family}");
        let value: f64 = match value {
            "NaN" => f64::NAN,
            "+Inf" => f64::INFINITY,
            "-Inf" => f64::NEG_INFINITY,
            other => other.parse().unwrap_or_else(|error| panic!("{line}: {error}")),
        };
        assert!(kind != "counter" || value >= 0.0, "{line}");
        let mut labels: Vec<String> = labels
            .into_iter()
            .map(|(label, value)| format!("{label}={value:?}"))
            .collect();
        labels.sort();
        let known = labels
            .windows(2)
            .any(|pair| pair[0].split('=').next() == pair[1].split('=').next());
        assert!(!known, "a label twice: {line}");
        let series = format!("{name}{{{}}}", labels.join(","));
        assert!(
            self.series.insert(series, value).is_none(),
            "a series twice: {line}"
        );
    }

    /// The sum of all series of this name.
    pub fn total(&self, name: &str) -> Option<f64> {
        let of_name: Vec<f64> = self
            .series
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .map(|(_, value)| *value)
            .collect();
        (!of_name.is_empty()).then(|| of_name.iter().sum())
    }

    /// The one series of this name that has all of these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}={value:?}"))
            .collect();
        let mut fitting = self.series.iter().filter(|(series, _)| {
            series.split('{').next() == Some(name) && wanted.iter().all(|label| series.contains(label))
        });
        let found = fitting.next().map(|(_, value)| *value);
        assert!(fitting.next().is_none(), "{name} {labels:?} names several series");
        found
    }

    /// `counter`, `gauge` or `summary`.
    pub fn kind(&self, name: &str) -> Option<&str> {
        self.kinds.get(name).map(String::as_str)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    pub fn series(&self) -> impl Iterator<Item = &str> {
        self.series.keys().map(String::as_str)
    }
}

fn labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a label with a value");
        assert!(is_name(name) && !name.contains(':'), "{text}");
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().expect("a closing quote") {
                (_, '\\') => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                    other => panic!("{text}: escape {other:?}"),
                },
                (at, '"') => break at + 1,
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, '_' | ':'))
        && characters.all(|other| other.is_ascii_alphanumeric() || matches!(other, '_' | ':'))
}

#[test]
fn the_reader_reads_and_refuses() {
    let text =
        "# HELP a_b x\n# TYPE a_b summary\na_b{h=\"q\\\"\",quantile=\"0.5\"} NaN\na_b_sum{h=\"q\\\"\"} 2.5\n";
    let scraped = Scraped::parse(text);
    assert_eq!(scraped.total("a_b_sum"), Some(2.5));
    assert!(
        scraped
            .value("a_b", &[("quantile", "0.5")])
            .expect("it is there")
            .is_nan()
    );
    for wrong in [
        "a 1\n",
        "# HELP a x\n# TYPE a counter\na -1\n",
        "# HELP a x\n# TYPE a counter\na 1\na 1\n",
        "# HELP a x\n# TYPE a counter\nb 1\n",
        "# HELP a x\n# TYPE a gauge\na{b=\"} 1\n",
        "# HELP a x\n# TYPE a gauge\na 1",
    ] {
        assert!(
            std::panic::catch_unwind(|| Scraped::parse(wrong)).is_err(),
            "{wrong}"
        );
    }
}
