//! The file mode creation mask of the process.

use rustix::fs::Mode;
use rustix::process::umask;

/// What SPIRE's programs raise their mask to: others get nothing, the group cannot write.
pub const UMASK_FLOOR: u32 = 0o027;

/// Adds `floor` to the mask that the process was started with; never takes a bit away. For the
/// start of a process: other threads could make files meanwhile. Returns the mask before.
pub fn raise_umask_floor(floor: u32) -> u32 {
    let floor = Mode::from_raw_mode(floor & 0o777);
    // The mask can only be read by setting it; set the strictest, so that there is no loose moment.
    let before = umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    umask(before | floor);
    before.as_raw_mode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    /// The mask belongs to the process, so the test runs itself again in a process of its own.
    #[test]
    fn adds_to_the_mask_and_never_takes_away() {
        if std::env::args().any(|argument| argument == "--skip=umask-child") {
            umask(Mode::from_raw_mode(0o100));
            assert_eq!(raise_umask_floor(UMASK_FLOOR), 0o100);
            assert_eq!(raise_umask_floor(0), 0o127);
            return;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "process::umask::tests::adds_to_the_mask_and_never_takes_away",
            "--skip=umask-child",
        ]);
        child.arg0("umask-child");
        let output = child.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}
