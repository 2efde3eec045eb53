//! Prometheus's text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;

use tokio::time::Instant;

use super::recorder::Series;
use super::summary::Summary;
use super::{Filter, Kind, Recorder};

/// The quantiles of summaries, as SPIRE has them.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// How metrics are shown.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    /// Begins every name (`MetricPrefix`).
    pub prefix: String,
    /// Labels that every series has: `host`, `trust_domain`.
    pub labels: Vec<(&'static str, String)>,
    /// What is left out.
    pub filter: Filter,
    /// Name without prefix, and what it means.
    pub help: &'static [(&'static str, &'static str)],
}

/// Numbers that are looked up for one scrape. Their label values come from the program or its configuration.
#[derive(Debug, Default)]
pub struct Polled {
    families: Families,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

#[derive(Debug)]
struct Family {
    kind: Kind,
    series: BTreeMap<Labels, Series>,
}

impl Polled {
    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, labels: &[(&'static str, &str)], value: f64) {
        self.put(name, Kind::Gauge, labels, value);
    }

    /// A number that only grows.
    pub fn counter(&mut self, name: &str, labels: &[(&'static str, &str)], value: u64) {
        self.put(name, Kind::Counter, labels, value as f64);
    }

    fn put(&mut self, name: &str, kind: Kind, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let series = Series {
            number: value,
            measured: Summary::default(),
        };
        self.families.add(name.to_owned(), kind, labels, series);
    }
}

impl Families {
    /// Adds a series to its family, or to the series that has the same labels.
    fn add(&mut self, name: String, kind: Kind, mut labels: Labels, series: Series) {
        labels.sort_unstable();
        let family = self.0.entry(name).or_insert_with(|| Family {
            kind,
            series: BTreeMap::new(),
        });
        if family.kind != kind {
            return;
        }
        let held = family.series.entry(labels).or_default();
        held.number += series.number;
        held.measured.merge(series.measured);
    }
}

impl Exposition {
    /// Everything as text. Equal series, as they are when a label is left out, are added up.
    pub fn render(&self, recorder: &Recorder, polled: Polled) -> String {
        let mut shown = Families::default();
        for (name, family) in recorder.families() {
            for (labels, series) in &*family.series() {
                let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
                self.show(&mut shown, name, family.kind, labels.collect(), series.clone());
            }
        }
        for (name, family) in polled.families.0 {
            for (labels, series) in family.series {
                self.show(&mut shown, &name, family.kind, labels, series);
            }
        }
        let now = Instant::now();
        let mut text = String::new();
        for (name, family) in &shown.0 {
            self.write_family(&mut text, name, family, now);
        }
        text
    }

    fn show(&self, shown: &mut Families, name: &str, kind: Kind, labels: Labels, series: Series) {
        let full = self.full_name(name);
        if !self.filter.shows(&full) {
            return;
        }
        let labels = labels
            .into_iter()
            .chain(self.labels.iter().cloned())
            .filter(|(name, _)| self.filter.shows_label(name))
            .collect();
        shown.add(name.to_owned(), kind, labels, series);
    }

    fn full_name(&self, name: &str) -> String {
        let joined = if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}_{name}", self.prefix)
        };
        let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | ':');
        joined.replace(|character| !allowed(character), "_")
    }

    fn write_family(&self, text: &mut String, name: &str, family: &Family, now: Instant) {
        let full = self.full_name(name);
        let help = self.help.iter().find(|(named, _)| *named == name);
        let help = help.map_or_else(|| generic_help(name), |(_, help)| (*help).to_owned());
        match family.kind {
            Kind::Counter => self.write_numbers(text, &full, "counter", &help, family),
            Kind::Gauge => self.write_numbers(text, &full, "gauge", &help, family),
            Kind::Sample => write_summaries(text, &full, &help, family, now),
            Kind::Call => {
                self.write_numbers(text, &full, "counter", &help, family);
                let timed = format!("{full}_elapsed_time");
                let help = format!("{help} How long it took, in milliseconds.");
                write_summaries(text, &timed, &help, family, now);
            }
        }
    }

    fn write_numbers(&self, text: &mut String, name: &str, kind: &str, help: &str, family: &Family) {
        write_head(text, name, kind, help);
        for (labels, series) in &family.series {
            write_line(text, name, labels, None, series.number);
        }
    }
}

fn generic_help(name: &str) -> String {
    match name.strip_prefix("rpc_") {
        Some(rpc) => format!("Calls of the RPC {rpc}."),
        None => format!("See the documentation of {name}."),
    }
}

fn write_summaries(text: &mut String, name: &str, help: &str, family: &Family, now: Instant) {
    write_head(text, name, "summary", help);
    for (labels, series) in &family.series {
        let values = series.measured.quantiles(QUANTILES, now);
        for (quantile, value) in QUANTILES.iter().zip(values) {
            write_line(text, name, labels, Some(*quantile), value);
        }
        write_line(text, &format!("{name}_sum"), labels, None, series.measured.sum());
        let count = series.measured.count() as f64;
        write_line(text, &format!("{name}_count"), labels, None, count);
    }
}

fn write_head(text: &mut String, name: &str, kind: &str, help: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    // Writing to a String cannot fail, here and below.
    let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn write_line(text: &mut String, name: &str, labels: &Labels, quantile: Option<f64>, value: f64) {
    text.push_str(name);
    let mut pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    pairs.extend(quantile.map(|quantile| format!("quantile=\"{quantile}\"")));
    if !pairs.is_empty() {
        let _written = write!(text, "{{{}}}", pairs.join(","));
    }
    let _written = writeln!(text, " {}", number(value));
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn exposition() -> Exposition {
        Exposition {
            prefix: "spire_server".to_owned(),
            labels: vec![("host", "a\"b\\c".to_owned())],
            filter: Filter::default(),
            help: &[("started", "The version that runs.")],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_counter_is_a_counter_and_a_summary_with_quantiles() {
        let recorder = Recorder::new();
        let status = [("status", "OK")];
        recorder.called("rpc_x_y", &status, Duration::from_micros(1500));
        recorder.called("rpc_x_y", &status, Duration::from_micros(500));
        let mut polled = Polled::default();
        polled.gauge("started", &[("version", "1.0")], 1.0);
        let text = exposition().render(&recorder, polled);
        let expected = r#"# HELP spire_server_rpc_x_y Calls of the RPC x_y.
# TYPE spire_server_rpc_x_y counter
spire_server_rpc_x_y{host="a\"b\\c",status="OK"} 2
# HELP spire_server_rpc_x_y_elapsed_time Calls of the RPC x_y. How long it took, in milliseconds.
# TYPE spire_server_rpc_x_y_elapsed_time summary
spire_server_rpc_x_y_elapsed_time{host="a\"b\\c",status="OK",quantile="0.5"} 0.5
spire_server_rpc_x_y_elapsed_time{host="a\"b\\c",status="OK",quantile="0.9"} 1.5
spire_server_rpc_x_y_elapsed_time{host="a\"b\\c",status="OK",quantile="0.99"} 1.5
spire_server_rpc_x_y_elapsed_time_sum{host="a\"b\\c",status="OK"} 2
spire_server_rpc_x_y_elapsed_time_count{host="a\"b\\c",status="OK"} 2
# HELP spire_server_started The version that runs.
# TYPE spire_server_started gauge
spire_server_started{host="a\"b\\c",version="1.0"} 1
"#;
        assert_eq!(text, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn series_that_differ_in_a_label_left_out_are_added_up() {
        let recorder = Recorder::new();
        for (status, took) in [("OK", 1), ("NotFound", 3)] {
            recorder.called("rpc_x", &[("status", status)], Duration::from_millis(took));
        }
        recorder.count("blocked_thing", &[], 1);
        let mut exposition = exposition();
        exposition.filter.blocked_labels = vec!["status".to_owned(), "host".to_owned()];
        exposition.filter.blocked_prefixes = vec!["spire_server.blocked".to_owned()];
        let text = exposition.render(&recorder, Polled::default());
        assert!(text.contains("\nspire_server_rpc_x 2\n"), "{text}");
        assert!(
            text.contains("\nspire_server_rpc_x_elapsed_time_sum 4\n"),
            "{text}"
        );
        assert!(
            text.contains("rpc_x_elapsed_time{quantile=\"0.9\"} 3\n"),
            "{text}"
        );
        assert!(!text.contains("blocked"), "{text}");
    }

    #[test]
    fn a_prefix_with_what_names_may_not_have_is_made_to_fit() {
        let exposition = Exposition {
            prefix: "my-corp.spire".to_owned(),
            ..Exposition::default()
        };
        assert_eq!(exposition.full_name("started"), "my_corp_spire_started");
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NAN), "NaN");
    }
}
