//! Signals by their names, as `renew_signal` has them.

use rustix::process::Signal;

/// A text that names no signal.
#[derive(Debug, thiserror::Error)]
#[error("is not the name of a signal, like SIGHUP: {0}")]
pub(super) struct UnknownSignal(String);

/// The names that spiffe-helper takes.
const NAMES: &[(&str, Signal)] = &[
    ("SIGABRT", Signal::ABORT),
    ("SIGALRM", Signal::ALARM),
    ("SIGBUS", Signal::BUS),
    ("SIGCHLD", Signal::CHILD),
    ("SIGCLD", Signal::CHILD),
    ("SIGCONT", Signal::CONT),
    ("SIGFPE", Signal::FPE),
    ("SIGHUP", Signal::HUP),
    ("SIGILL", Signal::ILL),
    ("SIGINT", Signal::INT),
    ("SIGIO", Signal::IO),
    ("SIGIOT", Signal::ABORT),
    ("SIGKILL", Signal::KILL),
    ("SIGPIPE", Signal::PIPE),
    ("SIGPOLL", Signal::IO),
    ("SIGPROF", Signal::PROF),
    ("SIGPWR", Signal::POWER),
    ("SIGQUIT", Signal::QUIT),
    ("SIGSEGV", Signal::SEGV),
    ("SIGSTKFLT", Signal::STKFLT),
    ("SIGSTOP", Signal::STOP),
    ("SIGSYS", Signal::SYS),
    ("SIGTERM", Signal::TERM),
    ("SIGTRAP", Signal::TRAP),
    ("SIGTSTP", Signal::TSTP),
    ("SIGTTIN", Signal::TTIN),
    ("SIGTTOU", Signal::TTOU),
    ("SIGURG", Signal::URG),
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGVTALRM", Signal::VTALARM),
    ("SIGWINCH", Signal::WINCH),
    ("SIGXCPU", Signal::XCPU),
    ("SIGXFSZ", Signal::XFSZ),
];

/// The signal of that name.
pub(super) fn parse(name: &str) -> Result<Signal, UnknownSignal> {
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, signal)| *signal)
        .ok_or_else(|| UnknownSignal(name.to_owned()))
}

/// The name of a signal, for a log.
pub(super) fn name(signal: Signal) -> &'static str {
    NAMES
        .iter()
        .find(|(_, known)| *known == signal)
        .map_or("a signal", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_signals_and_back() {
        assert_eq!(parse("SIGUSR1").unwrap(), Signal::USR1);
        assert_eq!(name(Signal::HUP), "SIGHUP");
        for (known, signal) in NAMES {
            assert_eq!(parse(name(*signal)).unwrap(), *signal, "{known}");
        }
    }

    #[test]
    fn numbers_and_short_names_are_none() {
        for text in ["HUP", "1", "sighup", "SIGNOTHING", ""] {
            let error = parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("is not the name of a signal, like SIGHUP: {text}"));
        }
    }
}
