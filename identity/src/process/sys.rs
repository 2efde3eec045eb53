//! Calls to the operating system for which no safe wrapper exists. The one file with `unsafe`.
#![allow(unsafe_code)] // Reason: SO_PEERPIDFD, malloc_trim and mallinfo2 are wrapped by no crate that is in use here.

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

/// Bytes that the allocator has handed out, from its arenas and by mapping. `None` with allocators that do not tell
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
    fn trimming_is_harmless() {
        let large = vec![1_u8; 8 << 20];
        drop(large);
        malloc_trim();
    }
}
