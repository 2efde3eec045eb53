//! How much memory the process uses.

use std::fs;

use super::sys;

/// Bytes that the allocator has allocated and not got back; `None` where the C library does not say (musl).
pub fn allocated_bytes() -> Option<u64> {
    sys::allocated_bytes()
}

/// Bytes of memory that the process has in use (resident), from `/proc/self/statm`.
pub fn resident_bytes() -> Option<u64> {
    resident_of(&fs::read_to_string("/proc/self/statm").ok()?)
}

/// The second number of `statm` is in pages.
fn resident_of(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_counts_pages() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(resident_of("5000 300 200 10 0 400 0\n"), Some(300 * page));
        assert_eq!(resident_of("5000"), None);
        assert!(resident_bytes().unwrap() > page);
    }

    #[test]
    fn what_is_allocated_is_counted() {
        let Some(before) = allocated_bytes() else {
            return; // Not with this C library.
        };
        let large = vec![1_u8; 64 << 20];
        let during = allocated_bytes().unwrap();
        assert!(during >= before + (32 << 20), "{before} to {during}");
        drop(large);
    }
}
