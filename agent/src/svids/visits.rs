//! Counts the records that a step visits, to show that its work does not grow with the number of records.

use std::cell::Cell;

thread_local! {
    static VISITS: Cell<usize> = const { Cell::new(0) };
}

/// One more record was looked at.
pub(super) fn count() {
    VISITS.set(VISITS.get() + 1);
}

/// How many records `work` looks at.
pub(super) fn during(work: impl FnOnce()) -> usize {
    let before = VISITS.get();
    work();
    VISITS.get() - before
}
