//! What was counted and measured, by name and labels.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::call::CallTimer;
use super::summary::Summary;

/// Name and value. Both are fixed texts of the program: what comes from outside never makes a series.
pub type Label = (&'static str, &'static str);

/// What kind of metric a name is of. The first use of a name decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Sum, count and quantiles.
    Sample,
    /// A call counter: a counter, and a summary under the same name and `_elapsed_time`.
    Call,
}

/// Series of one name beyond this many are not kept: a mistake in the program must not eat the memory.
const MOST_SERIES: usize = 512;

/// Counters, gauges and summaries of one process. There is one for each program, shared by all its parts.
#[derive(Debug, Default)]
pub struct Recorder {
    families: RwLock<BTreeMap<&'static str, Arc<Family>>>,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) kind: Kind,
    pub(super) series: Mutex<BTreeMap<Box<[Label]>, Series>>,
}

/// `number` of counters, gauges and calls; `measured` of samples and calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) number: f64,
    pub(super) measured: Summary,
}

impl Recorder {
    /// One that knows nothing.
    pub const fn new() -> Self {
        Self {
            families: RwLock::new(BTreeMap::new()),
        }
    }

    /// Adds to a counter. Adding 0 makes it known.
    pub fn count(&self, name: &'static str, labels: &[Label], more: u64) {
        self.change(name, Kind::Counter, labels, |series| series.number += more as f64);
    }

    /// Adds to a gauge, or takes from it.
    pub fn add(&self, name: &'static str, labels: &[Label], difference: f64) {
        self.change(name, Kind::Gauge, labels, |series| series.number += difference);
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, labels: &[Label], value: f64) {
        self.change(name, Kind::Gauge, labels, |series| series.number = value);
    }

    /// Adds a measurement to a summary.
    pub fn sample(&self, name: &'static str, labels: &[Label], value: f64) {
        let now = Instant::now();
        self.change(name, Kind::Sample, labels, |series| {
            series.measured.add(value, now)
        });
    }

    /// Counts a call that ended, with its status among the labels.
    pub fn called(&self, name: &'static str, labels: &[Label], took: Duration) {
        let now = Instant::now();
        self.change(name, Kind::Call, labels, |series| {
            series.number += 1.0;
            series.measured.add(took.as_secs_f64() * 1000.0, now);
        });
    }

    /// Begins a call, which is counted when its timer gets the result, or is dropped.
    pub fn start(&'static self, name: &'static str) -> CallTimer {
        CallTimer::new(self, name)
    }

    pub(super) fn families(&self) -> Vec<(&'static str, Arc<Family>)> {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        families
            .iter()
            .map(|(name, family)| (*name, Arc::clone(family)))
            .collect()
    }

    fn change(&self, name: &'static str, kind: Kind, labels: &[Label], change: impl FnOnce(&mut Series)) {
        let family = self.family(name, kind);
        if family.kind != kind {
            return; // The same name for two things; the first one counts.
        }
        let mut series = family.series();
        if let Some(known) = series.get_mut(labels) {
            change(known);
        } else if series.len() < MOST_SERIES {
            change(series.entry(labels.into()).or_default());
        }
    }

    fn family(&self, name: &'static str, kind: Kind) -> Arc<Family> {
        let known = self.families.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(name) {
            return Arc::clone(family);
        }
        drop(known);
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            Arc::new(Family {
                kind,
                series: Mutex::default(),
            })
        };
        Arc::clone(families.entry(name).or_insert_with(made))
    }
}

impl Family {
    pub(super) fn series(&self) -> MutexGuard<'_, BTreeMap<Box<[Label]>, Series>> {
        // A panic leaves at most one number a little behind.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_name_are_bounded() {
        let recorder = Recorder::new();
        for value in 0..2 * MOST_SERIES {
            let value: &'static str = Box::leak(value.to_string().into_boxed_str());
            recorder.count("calls", &[("status", value)], 1);
        }
        let families = recorder.families();
        assert_eq!(families[0].1.series().len(), MOST_SERIES);
    }

    #[test]
    fn the_first_use_of_a_name_decides_what_it_is() {
        let recorder = Recorder::new();
        recorder.count("a", &[], 2);
        recorder.set("a", &[], 7.0);
        let families = recorder.families();
        assert_eq!(families[0].1.kind, Kind::Counter);
        assert_eq!(families[0].1.series()[&[] as &[Label]].number, 2.0);
    }
}
