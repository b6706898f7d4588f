//! The door of links whose guests connect: a listening Unix socket.

use crate::sys::epoll::Epoll;
use crate::token::{Interest, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};

/// Who listens for clients, if anyone does.
#[derive(Debug, Default)]
pub(super) struct Door {
    listener: Option<UnixListener>,
    /// A descriptor to give up when there are no more: to accept a client just to send it away is
    /// better than to leave it waiting for ever.
    spare: Option<UnixListener>,
}

impl Door {
    /// Clients of `listener` will raise events under `token`.
    ///
    /// # Errors
    /// What epoll or fcntl say.
    pub(super) fn new(listener: UnixListener, epoll: &Epoll, token: Token) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // Edge-triggered: a client that cannot be accepted must not be reported for ever.
        let interest = Interest { readable: true, edge: true, ..Interest::default() };
        epoll.add(listener.as_fd(), token, interest)?;
        // A second descriptor of what we have anyway: the sandbox has no files to open.
        let spare = listener.try_clone().ok();
        Ok(Self { listener: Some(listener), spare })
    }

    /// The next client; `None` when none is left (an event will tell of more).
    pub(super) fn accept(&mut self) -> Option<UnixStream> {
        let listener = self.listener.as_ref()?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_out_of_descriptors(&e) && self.spare.take().is_some() => {
                    log::debug!("cannot accept a client: {e}");
                    drop(listener.accept());
                    self.spare = listener.try_clone().ok();
                }
                Err(_) => return None,
            }
        }
    }
}

/// Whether the other end, or we, have closed the connection.
pub(super) fn is_hung_up(stream: &UnixStream) -> bool {
    // A hang-up is reported without being asked for.
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
