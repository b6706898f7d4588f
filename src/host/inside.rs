//! Sockets of a network namespace that is not ours.
//!
//! A socket belongs to the namespace of the thread that made it, and an ordinary user who has left
//! the host's namespace cannot come back to it. So a small process of ours, forked early, enters
//! the namespace and stays there: it makes sockets when asked and passes them over. Everything
//! else (bind, listen, connect, options) works from anywhere, and is done by whoever asked.
//!
//! It knows kinds of sockets, and nothing of what they are for.

use crate::sys::process::{self, KEPT_FD, Side};
use crate::sys::socket::{self, Family, Kind};
use crate::sys::unix;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, recv,
    send, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// Streams that are fetched at once; fits in one message ([`unix::MAX_DESCRIPTORS`]).
const FETCHED: u8 = 16;

/// How long an answer may take at run time. It takes microseconds, and for ever if somebody has
/// stopped the process: that must not stop everything else.
const PATIENCE_SECONDS: i64 = 1;

/// What can be had from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wanted {
    /// A TCP socket over IPv4, non-blocking as all of them.
    Stream4,
    /// A TCP socket over IPv6.
    Stream6,
    /// A UDP socket over IPv4.
    Datagram4,
    /// A UDP socket over IPv6.
    Datagram6,
    /// A netlink socket for addresses, routes and links; blocking.
    Route,
    /// A netlink socket that tells who listens; blocking.
    Diag,
    /// `/dev/net/tun`: what is made of it belongs to the namespace.
    Tun,
}

impl Wanted {
    const ALL: [Self; 7] = [
        Self::Stream4,
        Self::Stream6,
        Self::Datagram4,
        Self::Datagram6,
        Self::Route,
        Self::Diag,
        Self::Tun,
    ];

    /// The stream of a family.
    pub const fn stream(family: Family) -> Self {
        match family {
            Family::V4 => Self::Stream4,
            Family::V6 => Self::Stream6,
        }
    }

    /// The datagram socket of a family.
    pub const fn datagram(family: Family) -> Self {
        match family {
            Family::V4 => Self::Datagram4,
            Family::V6 => Self::Datagram6,
        }
    }

    fn make(self) -> io::Result<OwnedFd> {
        let netlink = |protocol| {
            nix::sys::socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                protocol,
            )
            .map_err(io::Error::from)
        };
        match self {
            Self::Stream4 => socket::open(Family::V4, Kind::Stream),
            Self::Stream6 => socket::open(Family::V6, Kind::Stream),
            Self::Datagram4 => socket::open(Family::V4, Kind::Datagram),
            Self::Datagram6 => socket::open(Family::V6, Kind::Datagram),
            Self::Route => netlink(SockProtocol::NetlinkRoute),
            Self::Diag => netlink(SockProtocol::NetlinkSockDiag),
            Self::Tun => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
                options.open("/dev/net/tun").map(OwnedFd::from)
            }
        }
    }
}

/// Instead of a [`Wanted`]: lock up.
const CONFINE: u8 = 0xff;

/// Why there is no process inside.
#[derive(Debug)]
pub enum StartError {
    /// It could not be made.
    Process(io::Error),
    /// It could not get inside.
    Enter(io::Error),
}

/// The process inside, as seen from here. It ends when this is dropped.
#[derive(Debug)]
pub struct Inside {
    channel: OwnedFd,
    pid: Pid,
    streams4: Vec<OwnedFd>,
    streams6: Vec<OwnedFd>,
    /// An answer has not come in time, and comes before any other.
    owed: bool,
}

impl Inside {
    /// Forks the process, which runs `enter` to get inside; `confine` is what it does when
    /// [`Inside::confine`] asks. Of our descriptors and terminal it keeps nothing.
    ///
    /// # Errors
    /// Those of fork, also when there are other threads, and of `enter`: told apart.
    pub fn start(
        enter: impl FnOnce() -> io::Result<()>,
        confine: impl FnOnce() -> io::Result<()>,
    ) -> Result<Self, StartError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|e| StartError::Process(e.into()))?;
        match process::fork().map_err(StartError::Process)? {
            Side::Child => {
                drop(ours);
                if reports(theirs.as_fd(), &enter()) && reports(theirs.as_fd(), &leave_everything())
                {
                    serve(theirs, confine);
                }
                process::exit_now(0)
            }
            Side::Parent(pid) => {
                drop(theirs);
                let pid = Pid::from_raw(pid.cast_signed());
                let (streams4, streams6) = (Vec::new(), Vec::new());
                let mut inside = Self { channel: ours, pid, streams4, streams6, owed: false };
                inside.reply(&mut Vec::new()).map_err(|e| match e.raw_os_error() {
                    Some(_) => StartError::Enter(e),
                    // It has said nothing.
                    None => StartError::Process(e),
                })?;
                inside.reply(&mut Vec::new()).map_err(StartError::Process)?;
                Ok(inside)
            }
        }
    }

    /// A socket, or whatever is wanted, made inside.
    ///
    /// # Errors
    /// What its making said there; `BrokenPipe` or `UnexpectedEof` when nobody is inside any more,
    /// `TimedOut` when there is no answer: at once for those who ask before the process goes on.
    pub fn get(&mut self, wanted: Wanted) -> io::Result<OwnedFd> {
        let pool = match wanted {
            Wanted::Stream4 => &mut self.streams4,
            Wanted::Stream6 => &mut self.streams6,
            _ => return self.fetch(wanted, 1)?.pop().ok_or_else(gone),
        };
        if let Some(stream) = pool.pop() {
            return Ok(stream);
        }
        let mut fetched = self.fetch(wanted, FETCHED)?;
        let stream = fetched.pop().ok_or_else(gone);
        match wanted {
            Wanted::Stream4 => self.streams4 = fetched,
            _ => self.streams6 = fetched,
        }
        stream
    }

    /// Locks the process inside up. From now on it makes streams and datagram sockets only, and is
    /// not waited for without end.
    ///
    /// # Errors
    /// What locking up said.
    pub fn confine(&mut self) -> io::Result<()> {
        self.ask(CONFINE, 0)?;
        self.reply(&mut Vec::new())?;
        let patience = TimeVal::seconds(PATIENCE_SECONDS);
        setsockopt(&self.channel, sockopt::ReceiveTimeout, &patience)?;
        Ok(())
    }

    /// Our end of the channel, which hangs up when nobody is inside any more.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn fetch(&mut self, wanted: Wanted, count: u8) -> io::Result<Vec<OwnedFd>> {
        self.forget_late_answer()?;
        self.ask(wanted as u8, count)?;
        let mut made = Vec::with_capacity(count.into());
        self.reply(&mut made)?;
        Ok(made)
    }

    fn ask(&self, what: u8, count: u8) -> io::Result<()> {
        send(self.channel.as_raw_fd(), &[what, count], MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// An answer that came too late was to another question.
    fn forget_late_answer(&mut self) -> io::Result<()> {
        if self.owed {
            match unix::receive(self.channel.as_fd(), &mut [0; 4], &mut Vec::new()) {
                Ok(_) => self.owed = false,
                Err(e) => return Err(in_time(e)),
            }
        }
        Ok(())
    }

    fn reply(&mut self, made: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut code = [0; 4];
        let received = unix::wait_and_receive(self.channel.as_fd(), &mut code, made);
        self.owed = matches!(&received, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        match received.map_err(in_time)? {
            0 => Err(gone()),
            _ => match i32::from_ne_bytes(code) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It ends when it sees the end of the channel. Left to others it would stay in the table of
        // processes where nobody cares for orphans, as in many containers. A daemon is not its
        // parent, and is told so at once.
        let _ = shutdown(self.channel.as_raw_fd(), Shutdown::Both);
        let _ = waitpid(self.pid, None);
    }
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// What "not yet" means to those who cannot wait for more.
fn in_time(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Lets go of the standard streams, so that nobody waits for them to close, and of the session, so
/// that no terminal takes the process with it.
fn leave_everything() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    // A session of its own; it cannot fail in a process that has just been forked.
    setsid()?;
    Ok(())
}

/// Says how a step of the start went, and whether it is worth to go on.
fn reports(channel: BorrowedFd<'_>, outcome: &io::Result<()>) -> bool {
    answer(channel, outcome, &[]).is_ok() && outcome.is_ok()
}

/// Says how it went, with what was made.
fn answer(channel: BorrowedFd<'_>, outcome: &io::Result<()>, made: &[OwnedFd]) -> io::Result<()> {
    let code = match outcome {
        Ok(()) => 0,
        Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
    };
    let raw: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let code = code.to_ne_bytes();
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&code)], control, flags, None)?;
    Ok(())
}

/// The life of the process inside: it ends with the channel.
fn serve(channel: OwnedFd, confine: impl FnOnce() -> io::Result<()>) {
    // Closes all but the channel: its owners are never dropped, for this process ends by _exit.
    let Ok(Some(channel)) = process::take_inherited(Some(channel.into_raw_fd())) else { return };
    debug_assert_eq!(channel.as_raw_fd(), KEPT_FD);
    let mut confine = Some(confine);
    loop {
        let mut request = [0; 2];
        match recv(channel.as_raw_fd(), &mut request, MsgFlags::empty()) {
            Ok(2) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            _ => return,
        }
        let [what, count] = request;
        let mut made = Vec::new();
        let outcome = if what == CONFINE {
            confine.take().map_or(Ok(()), |confine| confine())
        } else {
            make(what, count, &mut made)
        };
        if answer(channel.as_fd(), &outcome, &made).is_err() {
            return;
        }
    }
}

/// Makes `count` of what is wanted. Some is enough: the last failure counts if there is none.
fn make(what: u8, count: u8, made: &mut Vec<OwnedFd>) -> io::Result<()> {
    let wanted = Wanted::ALL.into_iter().find(|wanted| *wanted as u8 == what);
    let wanted = wanted.ok_or(io::ErrorKind::InvalidInput)?;
    for _ in 0..count {
        match wanted.make() {
            Ok(fd) => made.push(fd),
            Err(e) if made.is_empty() => return Err(e),
            Err(_) => break,
        }
    }
    Ok(())
}
