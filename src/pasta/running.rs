//! The command while it runs: its status, and the signals that were meant for it.
//!
//! It is process 1 of its namespace, and for such a process the kernel discards signals that it has
//! made no arrangement for. Ctrl-C would end us and leave the command behind, without a network. So
//! we see to it that signals do what they would do to any other program: what it handles it gets,
//! what it ignores it does not notice, and what would end it ends it, and us with it. A shell that
//! has taken the terminal for itself handles its own; we are not in the terminal's group then, and
//! hear nothing.

use crate::sys::process::send_signal;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

/// Bytes of `/proc/PID/status` that are read: more than there are with a thousand groups.
const MAX_STATUS: usize = 16 << 10;

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    process: OwnedFd,
    /// `/proc/PID/status`: later there are no files to be opened. `None` where it is closed to us.
    facts: Option<File>,
    ended_by: Option<Signal>,
}

/// What a program does about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrangement {
    Handles,
    Ignores,
    None,
}

impl Running {
    /// The command with this PID, which `process` stands for.
    pub fn new(pid: i32, process: OwnedFd) -> Self {
        let facts = File::open(format!("/proc/{pid}/status")).ok();
        Self { process, facts, ended_by: None }
    }

    /// Has `signal`, which was sent to us, do what it would do to a program that is not process 1.
    /// What comes from the terminal has gone to all that are in front of it, also to the command.
    ///
    /// # Errors
    /// The command cannot be signalled.
    pub fn signal(&mut self, signal: Signal, by_terminal: bool) -> io::Result<()> {
        match self.arrangement(signal) {
            Arrangement::Handles if !by_terminal => self.send(signal),
            Arrangement::Handles | Arrangement::Ignores => Ok(()),
            Arrangement::None => {
                self.ended_by = Some(signal);
                self.send(Signal::SIGKILL)
            }
        }
    }

    fn send(&self, signal: Signal) -> io::Result<()> {
        match send_signal(self.process.as_fd(), signal as libc::c_int) {
            // It has ended meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    fn arrangement(&self, signal: Signal) -> Arrangement {
        let mut text = [0; MAX_STATUS];
        // One that has ended has no facts (ESRCH), and is past caring.
        let read = self.facts.as_ref().and_then(|facts| facts.read_at(&mut text, 0).ok());
        let n = read.unwrap_or(0);
        arrangement(&String::from_utf8_lossy(text.get(..n).unwrap_or_default()), signal)
    }

    /// The status of the command when it has ended, as a shell would say it; `None` when it has not.
    ///
    /// # Errors
    /// It is not our child.
    pub fn status(&self) -> io::Result<Option<u8>> {
        let status = super::command::status(&self.process)?;
        Ok(match (status, self.ended_by) {
            (Some(_), Some(signal)) => Some(128 + signal as u8),
            (status, _) => status,
        })
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// What the file of a process says about a signal: `SigCgt` and `SigIgn` are masks, signal 1 being
/// the lowest bit.
fn arrangement(status: &str, signal: Signal) -> Arrangement {
    let has = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal as u32 - 1) & 1 == 1)
    };
    match (has("SigCgt"), has("SigIgn")) {
        (true, _) => Arrangement::Handles,
        (_, true) => Arrangement::Ignores,
        _ => Arrangement::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_a_program_does_about_a_signal() {
        let text =
            "Name:\tbash\nSigQ:\t0/1\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000010002\n";
        for (signal, expected) in [
            (Signal::SIGHUP, Arrangement::None),
            (Signal::SIGINT, Arrangement::Handles),
            (Signal::SIGQUIT, Arrangement::Ignores),
            (Signal::SIGCHLD, Arrangement::Handles),
        ] {
            assert_eq!(arrangement(text, signal), expected, "{signal}");
        }
        assert_eq!(arrangement("", Signal::SIGINT), Arrangement::None);
    }
}
