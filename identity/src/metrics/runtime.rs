//! The runtime metrics of Go programs, as far as there is an equivalent here.

use super::Polled;
use crate::process::{memory, tasks};

/// `runtime_alloc_bytes`: what the allocator has allocated. `runtime_sys_bytes`: memory of the process that is
/// in use. `runtime_num_goroutines`: tasks of the runtime that serves the scrape. `runtime_heap_objects` is always
/// 0: nothing here counts objects.
pub(super) fn poll(polled: &mut Polled) {
    let used = memory::resident_bytes().unwrap_or_default();
    let allocated = memory::allocated_bytes().unwrap_or(used);
    polled.gauge("runtime_alloc_bytes", &[], allocated as f64);
    polled.gauge("runtime_sys_bytes", &[], used as f64);
    polled.gauge("runtime_heap_objects", &[], 0.0);
    polled.gauge("runtime_num_goroutines", &[], tasks::alive() as f64);
}
