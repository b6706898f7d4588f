//! Being a well-behaved process: inherited descriptors, limits, signals, the PID file, and going
//! to the background.
//!
//! In the order of start-up:
//!
//! 1. [`take_over`] before anything is opened.
//! 2. [`Signals::block`] before any thread is made.
//! 3. [`PidFile::open`] and [`Launch::prepare`] before the user is switched and the sandbox
//!    entered, because they open files. From here on a start that fails removes the names that it
//!    has made in the file system, whoever and wherever we are by then.
//! 4. [`Launch::go`] after the sandbox was entered (a PID namespace begins with the next child)
//!    and before the last lock.
//! 5. [`Ready::report`] after the last lock, when everything works: only now is the PID file
//!    written and does the starter learn that we run, and exit status 0 means *ready*.
//!    [`Ready::fail`] otherwise.
//!
//! Knows processes and files; nothing of guests and networks.

mod janitor;

pub use janitor::Leftover;

use crate::sys::error_text;
use crate::sys::process::{self, Side};
use janitor::Janitor;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// What the child says when it is ready; other bytes are the text of its error.
const READY: u8 = 0;

/// Bytes of a PID file at most: a number of 32 bits and a line break.
const PID_LENGTH: libc::off_t = 11;

/// `si_code` of a signal that the kernel itself sends (include/uapi/asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;

/// Most bytes of an error's text from the child.
const MAX_MESSAGE: u64 = 16 << 10;

/// Why the process could not be set up.
#[derive(Debug)]
pub enum Error {
    /// The descriptor that was to be kept (`--fd`) is not open.
    InvalidFd(RawFd),
    /// Inherited descriptors could not be closed or filled.
    Descriptors(io::Error),
    /// Signals could not be set up.
    Signals(io::Error),
    /// The PID file could not be opened. A symbolic link is not followed (ELOOP).
    PidFileOpen(PathBuf, io::Error),
    /// The PID file could not be written.
    PidFileWrite(PathBuf, io::Error),
    /// The process that removes what is left could not be made.
    Janitor(io::Error),
    /// The child could not be made.
    Fork(io::Error),
    /// `/dev/null` could not take the place of the standard streams.
    Null(io::Error),
    /// The starter ended before we did.
    StarterGone,
    /// A signal asked the starter to end before we were ready.
    Asked(Signal),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidFd(fd) => write!(f, "Invalid --fd: {fd} is not open"),
            Self::Descriptors(e) => {
                write!(f, "Couldn't close inherited descriptors: {}", error_text(e))
            }
            Self::Signals(e) => write!(f, "Couldn't set up signals: {}", error_text(e)),
            Self::PidFileOpen(path, e) => {
                write!(f, "Couldn't open PID file {}: {}", path.display(), error_text(e))
            }
            Self::PidFileWrite(path, e) => {
                write!(f, "Couldn't write PID file {}: {}", path.display(), error_text(e))
            }
            Self::Janitor(e) => {
                write!(f, "Couldn't start a process to clean up: {}", error_text(e))
            }
            Self::Fork(e) => write!(f, "Couldn't go to the background: {}", error_text(e)),
            Self::Null(e) => write!(f, "Couldn't use /dev/null: {}", error_text(e)),
            Self::Asked(signal) => {
                write!(f, "Ended by {signal} before the background process was ready")
            }
            Self::StarterGone => f.write_str("The starting process ended too early"),
        }
    }
}

impl std::error::Error for Error {}

/// Makes the process our own: descriptors 0 to 2 are open, all others closed except `keep`, which
/// is returned; writing to a closed peer raises no signal; children are ours to wait for; we may
/// open as many files as anybody lets us.
pub fn take_over(keep: Option<RawFd>) -> Result<Option<OwnedFd>, Error> {
    process::fill_standard_streams().map_err(Error::Descriptors)?;
    let kept = process::take_inherited(keep).map_err(|e| match (e.raw_os_error(), keep) {
        (Some(libc::EBADF), Some(fd)) => Error::InvalidFd(fd),
        _ => Error::Descriptors(e),
    })?;
    process::ignore_sigpipe().map_err(Error::Signals)?;
    // Ignored by who started us, it would have our children vanish without a status.
    process::wait_for_children().map_err(Error::Signals)?;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("can't raise the limit of open files from {soft} to {hard}: {}", e.desc());
    }
    Ok(kept)
}

/// The signals that end us in order, as a descriptor to poll.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// It came from the kernel, which sends it to a whole group: somebody has typed Ctrl-C, or the
    /// terminal is gone. Otherwise a process sent it, to us.
    pub by_terminal: bool,
}

impl Signals {
    /// Blocks SIGTERM and SIGQUIT for this thread and those made later. Blocked, they also reach us
    /// as the first process of a PID namespace, where signals without a handler are discarded.
    pub fn block() -> Result<Self, Error> {
        Self::of([Signal::SIGTERM, Signal::SIGQUIT].into_iter().collect())
    }

    /// As [`Signals::block`], and besides what the user of a terminal sends, SIGINT and SIGHUP, as
    /// far as whoever started us has not had them ignored (nohup(1)).
    pub fn block_with_terminal() -> Result<Self, Error> {
        let heeded = |signal: &Signal| !process::is_ignored(*signal as libc::c_int);
        let more = [Signal::SIGINT, Signal::SIGHUP].into_iter().filter(heeded);
        Self::of([Signal::SIGTERM, Signal::SIGQUIT].into_iter().chain(more).collect())
    }

    fn of(set: SigSet) -> Result<Self, Error> {
        set.thread_block().map_err(|e| Error::Signals(e.into()))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Self).map_err(|e| Error::Signals(e.into()))
    }

    /// The next signal that came, if any.
    pub fn received(&self) -> io::Result<Option<Received>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        let by_terminal = info.ssi_code == SI_KERNEL;
        Ok(Signal::try_from(number).ok().map(|signal| Received { signal, by_terminal }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A PID file, open but not written yet. Dropped before it was written, it is removed again if
/// it did not exist before.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
    created: Leftover,
}

impl PidFile {
    /// Opens and empties `path`, for the user who starts us only.
    ///
    /// # Errors
    /// Whatever open(2) says; a symbolic link is not followed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |e| Error::PidFileOpen(path.to_owned(), e);
        let mut options = OpenOptions::new();
        // O_NONBLOCK: a FIFO that nobody reads is an error and not a reason to wait.
        options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let (file, created) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, Leftover::new(path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // The link itself "exists", too: without O_CREAT it is refused with ELOOP.
                (options.truncate(true).open(path).map_err(fail)?, Leftover::default())
            }
            Err(e) => return Err(fail(e)),
        };
        let file = Self { file, path: path.to_owned(), created };
        // A full disk must be known now, when it costs nothing. File systems that cannot reserve
        // room keep their secret.
        let reserved = fallocate(&file.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, PID_LENGTH);
        if let Err(e @ (Errno::ENOSPC | Errno::EDQUOT)) = reserved {
            return Err(Error::PidFileWrite(path.to_owned(), e.into()));
        }
        Ok(file)
    }

    /// Writes `pid`. The file stays when we end: whoever asked for it removes it.
    pub fn write(mut self, pid: u32) -> Result<(), Error> {
        let text = format!("{pid}\n");
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|e| Error::PidFileWrite(self.path.clone(), e))?;
        self.created.keep();
        Ok(())
    }
}

/// What others find of us in the file system once we are ready.
#[derive(Debug)]
struct Names {
    pid_file: Option<PidFile>,
    janitor: Janitor,
}

impl Names {
    /// We are ready: the PID file is written, and nothing is removed any more. When the file cannot
    /// be written, all is.
    fn settle(self, pid: u32) -> Result<(), Error> {
        self.pid_file.map_or(Ok(()), |file| file.write(pid))?;
        self.janitor.dismiss();
        Ok(())
    }
}

/// How we shall run, prepared while files can still be opened.
#[derive(Debug)]
pub struct Launch {
    names: Names,
    background: Option<Background>,
}

#[derive(Debug)]
struct Background {
    null: File,
    starter: UnixStream,
    daemon: UnixStream,
}

impl Launch {
    /// Prepares to run in the background, or in the foreground. What is in `leftovers`, and the PID
    /// file if it is new, is removed when this, or what it becomes, goes before
    /// [`Ready::report`], even if we are killed. To be called by the only thread.
    pub fn prepare(
        background: bool,
        mut pid_file: Option<PidFile>,
        mut leftovers: Vec<Leftover>,
    ) -> Result<Self, Error> {
        leftovers.extend(pid_file.as_mut().map(|file| std::mem::take(&mut file.created)));
        let janitor = Janitor::start(leftovers)?;
        let names = Names { pid_file, janitor };
        let background = if background {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null");
            let (starter, daemon) = UnixStream::pair().map_err(Error::Fork)?;
            Some(Background { null: null.map_err(Error::Null)?, starter, daemon })
        } else {
            None
        };
        Ok(Self { names, background })
    }

    /// Goes to the background, if that is how we shall run. Returns in the process that serves. The
    /// starting process waits for [`Ready`], writes the PID file with our PID as it sees it, and
    /// exits: with 0 when everything works, else with 1 and the reason on standard error. It ends
    /// us when one of `signals` comes before we are ready.
    pub fn go(self, signals: &Signals) -> Result<Ready, Error> {
        let Self { names, background } = self;
        let Some(Background { null, starter, daemon }) = background else {
            return Ok(Ready(Told::Nobody(names)));
        };
        if let Ok(Some(Received { signal, .. })) = signals.received() {
            return Err(Error::Asked(signal));
        }
        match process::fork().map_err(Error::Fork)? {
            Side::Parent(pid) => {
                drop(daemon);
                process::exit_now(wait_for(pid, starter, signals, names))
            }
            Side::Child => {
                // The names are the starter's to keep or remove.
                drop((starter, names));
                let ready = Ready(Told::Starter(daemon));
                match become_daemon(&ready, &null) {
                    Ok(()) => Ok(ready),
                    // Returned, the error would be reported on a stream that may be gone.
                    Err(error) => ready.fail(&error),
                }
            }
        }
    }
}

/// The child's part: own session, no terminal, standard streams to nowhere.
fn become_daemon(ready: &Ready, null: &File) -> Result<(), Error> {
    let mut pid = [0; 4];
    if let Ready(Told::Starter(starter)) = ready {
        let mut starter = starter;
        starter.read_exact(&mut pid).map_err(|_| Error::StarterGone)?;
    }
    nix::unistd::setsid().map_err(|e| Error::Fork(e.into()))?;
    crate::log::in_background(u32::from_ne_bytes(pid));
    nix::unistd::dup2_stdin(null)
        .and_then(|()| nix::unistd::dup2_stdout(null))
        .and_then(|()| nix::unistd::dup2_stderr(null))
        .map_err(|e| Error::Null(e.into()))
}

/// The parent's part: its exit status. When that is not 0, the child has ended and nothing is left.
fn wait_for(pid: u32, mut child: UnixStream, signals: &Signals, names: Names) -> i32 {
    // An error shows as missing bytes below.
    let _ = child.write_all(&pid.to_ne_bytes());
    let settled = match hear(&child, signals) {
        Heard::Ready => names.settle(pid).map_err(|e| e.to_string()),
        Heard::Failure(text) => Err(text),
        Heard::Nothing => Err(how_it_ended(pid)),
        Heard::Signal(signal) => {
            // It may be in the middle of something that takes long.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            Err(Error::Asked(signal).to_string())
        }
    };
    match settled {
        Ok(()) => {
            // It may have been killed meanwhile; it was ready.
            let _ = child.write_all(&[READY]);
            0
        }
        Err(text) => {
            eprintln!("{text}");
            drop(child);
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), None);
            1
        }
    }
}

/// What the starter hears of the child.
enum Heard {
    Ready,
    /// Why it is not.
    Failure(String),
    /// It has ended without a word.
    Nothing,
    /// Somebody wants us to end before it says anything.
    Signal(Signal),
}

fn hear(mut child: &UnixStream, signals: &Signals) -> Heard {
    let mut fds = [child.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
    // Who is ready is ready. When poll fails there is still the child to be waited for.
    let [told, asked] = fds.map(|fd| fd.any().unwrap_or(false));
    if !told
        && asked
        && let Ok(Some(Received { signal, .. })) = signals.received()
    {
        return Heard::Signal(signal);
    }
    let mut first = [0];
    if child.read_exact(&mut first).is_err() {
        return Heard::Nothing;
    }
    if first == [READY] {
        return Heard::Ready;
    }
    let mut message = first.to_vec();
    let _ = child.take(MAX_MESSAGE).read_to_end(&mut message);
    Heard::Failure(String::from_utf8_lossy(&message).into_owned())
}

/// Says how the child `pid` ended without a word.
fn how_it_ended(pid: u32) -> String {
    let status = waitpid(Pid::from_raw(pid.cast_signed()), None);
    let how = match status {
        Ok(WaitStatus::Exited(_, code)) => format!("with status {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("by {signal}"),
        _ => "somehow".to_owned(),
    };
    format!("The background process ended {how} before it was ready")
}

/// Whom to tell that we are ready.
#[derive(Debug)]
#[must_use = "the starter waits for the report"]
pub struct Ready(Told);

#[derive(Debug)]
enum Told {
    /// The starting process, which then writes the PID file and says so.
    Starter(UnixStream),
    /// In the foreground, nobody: there are only our names.
    Nobody(Names),
}

impl Ready {
    /// Everything works: the PID file is written, and the starting process exits with 0. From now
    /// on no message is waited for. If the file cannot be written, or the starting process has
    /// ended, nobody can know of us, and we end.
    pub fn report(self) {
        let failed = match self.0 {
            Told::Starter(mut starter) => {
                let settled =
                    starter.write_all(&[READY]).and_then(|()| starter.read_exact(&mut [0]));
                settled.is_err().then_some(Error::StarterGone)
            }
            Told::Nobody(names) => names.settle(std::process::id()).err(),
        };
        if let Some(error) = failed {
            log::error!("{error}");
            process::exit_now(1);
        }
        crate::log::started();
    }

    /// It does not work: the starting process says why and exits with 1, as do we.
    pub fn fail(self, why: &dyn fmt::Display) -> ! {
        let message = format!("{why}");
        match self.0 {
            Told::Starter(mut starter) => {
                let _ = starter.write_all(message.as_bytes());
            }
            Told::Nobody(names) => {
                eprintln!("{message}");
                drop(names);
            }
        }
        process::exit_now(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("passt-pid-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_pid_file_is_its_owners_and_holds_one_line() {
        let path = path("plain");
        PidFile::open(&path).expect("opens").write(4711).expect("writes");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "4711\n");
        assert_eq!(fs::metadata(&path).expect("exists").mode() & 0o7777, 0o600);
        PidFile::open(&path).expect("opens again").write(8).expect("writes");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "8\n");
        fs::remove_file(path).expect("removes");
    }

    #[test]
    fn a_start_that_fails_leaves_no_pid_file_but_keeps_one_that_was_there() {
        let path = path("failed");
        drop(PidFile::open(&path).expect("opens"));
        assert!(!path.exists());
        fs::write(&path, "").expect("made by the starter");
        drop(PidFile::open(&path).expect("opens"));
        assert!(path.exists());
        fs::remove_file(path).expect("removes");
    }

    #[test]
    fn a_pid_file_is_not_opened_through_a_link() {
        let (path, target) = (path("link"), path("target"));
        fs::write(&target, "precious").expect("writes");
        std::os::unix::fs::symlink(&target, &path).expect("links");
        let error = PidFile::open(&path).expect_err("a link is refused").to_string();
        assert!(error.starts_with("Couldn't open PID file /"), "{error}");
        assert!(error.ends_with(": Too many levels of symbolic links"), "{error}");
        assert_eq!(fs::read_to_string(&target).expect("reads"), "precious");
        fs::remove_file(path).expect("removes");
        fs::remove_file(target).expect("removes");
    }
}
