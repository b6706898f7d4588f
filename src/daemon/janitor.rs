//! Whoever removes what a start that fails has left in the file system.
//!
//! Sockets, the PID file and a capture have names, and are made before the user is switched and the
//! sandbox entered. What fails later fails in a process that may be somebody else by then, sees an
//! empty root, or is dead. So a small process, forked in between, stays who and where we were. It
//! waits until it is told that the start has succeeded, and removes the names when it learns that
//! nobody can tell it any more. It does not outlive the start.

use super::Error;
use crate::sys::process::{self, Side};
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::io::{Read as _, Write as _};
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A name in the file system that goes with this, unless it is kept.
#[derive(Debug, Default)]
#[must_use = "what is dropped is removed"]
pub struct Leftover(Option<PathBuf>);

impl Leftover {
    /// Removes `path` in the end.
    pub fn new(path: &Path) -> Self {
        Self(Some(path.to_owned()))
    }

    /// The name stays when this goes.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Someone else may have removed it; there is nobody to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The process that removes what is left. Dropped, it has done so.
#[derive(Debug, Default)]
pub(super) struct Janitor(Option<(UnixStream, Pid)>);

impl Janitor {
    /// Leaves `leftovers`, and nothing else that we have, to a process of its own.
    pub(super) fn start(leftovers: Vec<Leftover>) -> Result<Self, Error> {
        if leftovers.iter().all(|left| left.0.is_none()) {
            return Ok(Self::default());
        }
        let (ours, theirs) = UnixStream::pair().map_err(Error::Janitor)?;
        match process::fork().map_err(Error::Janitor)? {
            Side::Child => wait_and_remove(theirs.into(), leftovers),
            Side::Parent(pid) => {
                leftovers.into_iter().for_each(Leftover::keep);
                Ok(Self(Some((ours, Pid::from_raw(pid.cast_signed())))))
            }
        }
    }

    /// There is nothing to remove: we are ready.
    pub(super) fn dismiss(mut self) {
        if let Some((channel, _)) = &mut self.0 {
            // Killed, it removes nothing either.
            let _ = channel.write_all(&[0]);
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some((channel, pid)) = self.0.take() {
            drop(channel);
            // When we have ended, nothing is left. In a daemon, whose child it is not, this returns
            // at once.
            let _ = waitpid(pid, None);
        }
    }
}

/// The life of the janitor.
fn wait_and_remove(channel: OwnedFd, leftovers: Vec<Leftover>) -> ! {
    // The terminal sends its signals to us, too, and that is when we are needed. It cannot fail for
    // a set that is valid.
    let _ = SigSet::all().thread_block();
    // Closes all but the channel: its owners are never dropped, for this process ends by _exit.
    // Without it, what our starter holds open would be open until we end, and that is soon.
    let channel = process::take_inherited(Some(channel.into_raw_fd()));
    let told = match channel {
        Ok(Some(channel)) => UnixStream::from(channel).read_exact(&mut [0]).is_ok(),
        // To remove what is in use would be worse.
        _ => true,
    };
    if !told {
        drop(leftovers);
    }
    process::exit_now(0)
}
