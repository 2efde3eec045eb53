//! Call counters: how often something was done, how it ended, how long it took.

use std::future::Future;

use tokio::time::Instant;
use tonic::Code;

use super::{Label, Recorder, STATUS};

/// A call under way. Dropped before it ended, it counts as canceled.
#[derive(Debug)]
#[must_use = "a call that is dropped counts as canceled"]
pub struct CallTimer {
    recorder: &'static Recorder,
    name: &'static str,
    label: Option<Label>,
    started: Instant,
    ended: bool,
}

impl CallTimer {
    pub(super) fn new(recorder: &'static Recorder, name: &'static str) -> Self {
        Self {
            recorder,
            name,
            label: None,
            started: Instant::now(),
            ended: false,
        }
    }

    /// With one more label than the status.
    pub fn labelled(self, name: &'static str, value: &'static str) -> Self {
        let mut timer = self;
        timer.label = Some((name, value));
        timer
    }

    /// The call ended.
    pub fn end(mut self, code: Code) {
        self.record(code);
    }

    /// It was no call after all.
    pub fn discard(mut self) {
        self.ended = true;
    }

    /// The call ended well, or with an error that `code` translates.
    pub fn end_with<T, E>(self, result: &Result<T, E>, code: impl FnOnce(&E) -> Code) {
        self.end(result.as_ref().err().map_or(Code::Ok, code));
    }

    /// Counts a whole piece of work.
    pub async fn around<T, E>(
        self,
        work: impl Future<Output = Result<T, E>>,
        code: impl FnOnce(&E) -> Code,
    ) -> Result<T, E> {
        let result = work.await;
        self.end_with(&result, code);
        result
    }

    fn record(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let status = (STATUS, code_name(code));
        let took = self.started.elapsed();
        match self.label {
            None => self.recorder.called(self.name, &[status], took),
            Some(label) => self.recorder.called(self.name, &[label, status], took),
        }
    }
}

impl Drop for CallTimer {
    fn drop(&mut self) {
        self.record(Code::Cancelled);
    }
}

/// The code's name, as gRPC's Go library prints it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_is_counted_once_with_its_status_and_its_time() {
        static RECORDER: Recorder = Recorder::new();
        let timer = RECORDER.start("work").labelled("attestor", "unix");
        let work = async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            Err::<(), _>("no")
        };
        timer.around(work, |_| Code::NotFound).await.unwrap_err();
        drop(RECORDER.start("work"));
        let families = RECORDER.families();
        let series = families[0].1.series();
        let shown: Vec<_> = series
            .iter()
            .map(|(labels, series)| (labels.to_vec(), series.number, series.measured.sum()))
            .collect();
        assert_eq!(
            shown,
            [
                (vec![("attestor", "unix"), ("status", "NotFound")], 1.0, 250.0),
                (vec![("status", "Canceled")], 1.0, 0.0),
            ]
        );
    }
}
