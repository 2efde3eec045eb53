//! Calls to the operating system for which no safe wrapper exists. The one file with `unsafe`.
#![allow(unsafe_code)] // Reason: SO_PEERPIDFD, malloc_trim, mallinfo2 and localtime_r are wrapped by no crate in use here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `SO_PEERPIDFD` of Linux 6.5, which libc does not name on every target.
const SO_PEERPIDFD: libc::c_int = 77;

/// A descriptor of the process at the other end of a connected Unix socket, as it was when it
/// connected; it can never come to mean another process. `None` when the kernel lacks this (before
/// Linux 6.5).
///
/// # Errors
/// What `getsockopt` says, for example that the peer is gone and was reaped (`ESRCH`, `EINVAL`).
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut pidfd: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).expect("a descriptor has 4 bytes");
    // SAFETY: the descriptor is open for the length of the borrow; the pointers are to live locals
    // and `length` is the size of the first. The kernel writes at most that many bytes.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast::<libc::c_void>(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOPROTOOPT) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    if pidfd < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it. It is
    // close-on-exec already.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Gives memory that the allocator keeps for later back to the system. Worth calling after a large
/// working set was dropped. Does nothing with allocators that lack it (musl).
pub fn malloc_trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes no pointer and may be called at any time from any thread (glibc, MT-Safe).
        let _released = unsafe { libc::malloc_trim(0) };
    }
}

/// Bytes that the allocator has allocated, from its arenas and by mapping. `None` with allocators that do not report it
/// (musl).
pub fn allocated_bytes() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes and returns plain numbers and may be called at any time from any thread (glibc 2.33).
        let info = unsafe { libc::mallinfo2() };
        Some(info.uordblks as u64 + info.hblkhd as u64)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}

/// The local time zone at a moment: its offset from UTC in seconds, to the east, and its abbreviation. As the C library
/// has them of `TZ` or `/etc/localtime`; `None` when it does not know.
pub fn local_zone(unix_seconds: i64) -> Option<(i32, String)> {
    #[allow(clippy::useless_conversion, reason = "time_t is narrower on some targets")]
    let time = libc::time_t::try_from(unix_seconds).ok()?;
    // SAFETY: numbers that are 0 and a pointer that is null are valid values of all members.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals. The environment, which it may read, is changed by nobody: that is unsafe
    // in this edition, and this is the only file with unsafe code.
    let done = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    if done.is_null() || local.tm_zone.is_null() {
        return None;
    }
    // SAFETY: it is not null, and the C library keeps the text, which ends in NUL, for as long as the program lives.
    let zone = unsafe { CStr::from_ptr(local.tm_zone) };
    Some((
        i32::try_from(local.tm_gmtoff).ok()?,
        zone.to_str().ok()?.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn pidfd_of_a_peer_in_this_process_is_ours() {
        let (near, _far) = UnixStream::pair().unwrap();
        let Some(pidfd) = peer_pidfd(near.as_fd()).unwrap() else {
            return; // This kernel is older than 6.5.
        };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
    }

    #[test]
    fn a_socket_that_is_not_connected_locally_is_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = peer_pidfd(listener.as_fd());
        assert!(matches!(&answer, Err(_) | Ok(None)), "{answer:?}");
    }

    #[test]
    fn the_local_zone_has_a_name_and_is_less_than_a_day_off() {
        let (offset, name) = local_zone(1_769_853_600).unwrap();
        assert!(offset.abs() < 24 * 3600 && !name.is_empty(), "{offset} {name}");
        assert_eq!(local_zone(i64::MAX), None, "no such year");
    }

    #[test]
    fn trimming_is_harmless() {
        let large = vec![1_u8; 8 << 20];
        drop(large);
        malloc_trim();
    }
}
