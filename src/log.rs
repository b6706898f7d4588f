//! Where messages go: standard error, the system's log, or a file of limited size.
//!
//! The backend of the `log` crate's macros, made once by [`init`]. What is logged at which level
//! is up to the callers; what this module promises is that a message never costs the data path
//! much and never stops it:
//!
//! - No write waits once [`started`] was called. The system's log is a datagram socket that does
//!   not block. Standard error may be a pipe that nobody reads, and making it non-blocking would
//!   change it for everybody who shares it, so it is asked for room (poll) before each line, and a
//!   line is short enough for the room that poll promises. What finds no room is dropped, counted,
//!   and reported with the next line that does. Before [`started`] we wait: an error at start must
//!   reach the user.
//! - The file never outgrows its limit: its oldest part is cut off in place, by descriptors opened
//!   at start, because the sandbox has no files.
//! - [`limited!`](crate::log::limited) holds messages that traffic can cause to five a second and
//!   call site. Messages of the virtio crates, which a guest can cause too, are hidden unless `-d`
//!   is given, and limited even then.
//! - A line stays one line: control characters in it are shown escaped.
//!
//! The system's log is connected at start and cannot be connected again from the sandbox, whose
//! root is empty: when the syslog daemon replaces its socket, messages are lost.
//!
//! Reads the clock, by exception: lines carry the time. Nothing is decided by it except how many
//! lines of foreign crates pass.

mod file;
mod limit;

pub use file::FileError;
pub use limit::{Admission, Limiter};

pub use crate::config::options::Verbosity;
use crate::time::Instant;
use file::LogFile;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Longest line in bytes, line break included: what poll(2) promises that a pipe takes (PIPE_BUF).
const MAX_LINE: usize = 4096;

/// Most lines a second from other crates.
static FOREIGN: Limiter = Limiter::new();

/// The one logger of the process.
static LOGGER: Logger = Logger { state: Mutex::new(State::EARLY), clock: OnceLock::new() };

/// The least important level of which something is said.
const fn filter(verbosity: Verbosity) -> LevelFilter {
    match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Info => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
        Verbosity::Trace => LevelFilter::Trace,
    }
}

/// What [`init`] is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much is said.
    pub verbosity: Verbosity,
    /// The program's name and version, for the first line of a file: `passt`, `0.1.0`.
    pub program: &'static str,
    /// See `program`.
    pub version: &'static str,
    /// Log to this file (`-l`) and not to the system's log.
    pub file: Option<PathBuf>,
    /// Most bytes of the file (`--log-size`).
    pub file_limit: u64,
}

/// Why logging could not be set up.
#[derive(Debug)]
pub enum Error {
    /// The log file.
    File(PathBuf, FileError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => {
                write!(f, "Couldn't open log file {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

/// Sends messages where `options` say. To be called once, before the user is switched and the
/// sandbox entered, because it opens the file or the system's log. Messages that come earlier are
/// lost.
///
/// # Errors
/// The log file cannot be opened. A missing system log is no error: many containers have none.
pub fn init(options: &Options) -> Result<(), Error> {
    let clock = *LOGGER.clock.get_or_init(std::time::Instant::now);
    let mut state = LOGGER.lock();
    state.name = options.program;
    state.verbosity = options.verbosity;
    state.stderr = true;
    state.waits = true;
    state.remote = match &options.file {
        Some(path) => {
            let title = format!("{} {}", options.program, options.version);
            let file = LogFile::open(path, title, options.file_limit, clock)
                .map_err(|e| Error::File(path.clone(), e))?;
            Remote::File(file)
        }
        None if options.verbosity >= Verbosity::Debug => Remote::None,
        None => connect_syslog().map_or(Remote::None, Remote::Syslog),
    };
    drop(state);
    // Fails when it was set before, by an earlier call: then it is this very logger.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(filter(options.verbosity));
    Ok(())
}

/// From now on no message is waited for: the process serves its guest.
pub fn started() {
    LOGGER.lock().waits = false;
}

/// From now on standard error is a command's, and we say no more there than why we end, unless
/// debugging was asked for.
pub fn share_stderr() {
    LOGGER.lock().shared = true;
}

/// From now on this process, known to its starter as `pid`, runs in the background: standard
/// error is no longer ours.
pub fn in_background(pid: u32) {
    let mut state = LOGGER.lock();
    state.stderr = false;
    state.waits = false;
    if let Remote::File(file) = &mut state.remote {
        file.set_pid(pid);
    }
    drop(state);
    log::info!("in background as process {pid}");
}

/// Writes lines to standard error as they are, whatever is logged; none that would have to be waited
/// for once we serve a guest, and none in the background.
pub fn to_stderr(lines: &str) {
    let state = LOGGER.lock();
    if state.stderr {
        for line in lines.split_inclusive('\n') {
            // What is lost is lost: a table with gaps is followed by the next one.
            write_stderr(line.as_bytes(), state.waits);
        }
    }
}

fn connect_syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Where messages go besides standard error.
#[derive(Debug)]
enum Remote {
    None,
    Syslog(UnixDatagram),
    File(LogFile),
}

#[derive(Debug)]
struct State {
    name: &'static str,
    verbosity: Verbosity,
    stderr: bool,
    /// Standard error is somebody else's, too: errors only.
    shared: bool,
    /// Whether standard error may block us.
    waits: bool,
    remote: Remote,
    /// Lines that found no room on standard error, and in the system's log.
    lost: [u64; 2],
    /// The line being made; kept so that logging does not allocate.
    line: String,
}

impl State {
    const EARLY: Self = Self {
        name: "passt",
        verbosity: Verbosity::Info,
        stderr: true,
        shared: false,
        waits: true,
        remote: Remote::None,
        lost: [0; 2],
        line: String::new(),
    };
}

struct Logger {
    state: Mutex<State>,
    clock: OnceLock<std::time::Instant>,
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while logging leaves nothing half done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since start.
    fn elapsed(&self) -> std::time::Duration {
        self.clock.get_or_init(std::time::Instant::now).elapsed()
    }
}

/// Whether a record comes from our own code; others are the virtio crates'.
fn is_ours(target: &str) -> bool {
    target.split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
            && (is_ours(metadata.target()) || log::max_level() >= LevelFilter::Debug)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let elapsed = self.elapsed();
        if !is_ours(record.target()) {
            let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
            if FOREIGN.admit(Instant::from_nanos(nanos)) == Admission::Refused {
                return;
            }
        }
        self.lock().emit(record.level(), record.args(), elapsed);
    }

    fn flush(&self) {}
}

impl State {
    fn emit(&mut self, level: Level, text: &fmt::Arguments<'_>, elapsed: std::time::Duration) {
        let Self { name, verbosity, stderr, shared, waits, remote, lost, line } = self;
        let debug = *verbosity >= Verbosity::Debug;
        // With a file, the file gets the details and the user's terminal the news.
        let details = debug && !matches!(remote, Remote::File(_));
        let [lost_stderr, lost_syslog] = lost;
        let news = if *shared { Level::Error } else { Level::Info };
        if *stderr && (level <= news || details) {
            compose(line, Heading::Terminal(details.then_some(elapsed)), *lost_stderr, text);
            if write_stderr(line.as_bytes(), *waits) {
                *lost_stderr = 0;
            } else {
                *lost_stderr += 1;
            }
        }
        match remote {
            Remote::None => {}
            Remote::Syslog(socket) => {
                compose(line, Heading::Syslog(level, name), *lost_syslog, text);
                // MSG_DONTWAIT by way of O_NONBLOCK: the socket is ours alone.
                match socket.send(line.trim_end_matches('\n').as_bytes()) {
                    Ok(_) => *lost_syslog = 0,
                    Err(_) => *lost_syslog += 1,
                }
            }
            Remote::File(file) => {
                compose(line, Heading::File(level, elapsed), 0, text);
                file.append(line.as_bytes());
            }
        }
    }
}

/// What stands before the text of a message.
enum Heading<'a> {
    /// Nothing, or the time when debugging.
    Terminal(Option<std::time::Duration>),
    /// Priority and name, as syslog(3) sends them; the daemon adds time and process.
    Syslog(Level, &'a str),
    /// Time and level.
    File(Level, std::time::Duration),
}

/// Seconds with four decimals.
struct Seconds(std::time::Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04}", self.0.as_secs(), self.0.subsec_micros() / 100)
    }
}

/// A level as it stands in a file: nine columns.
const fn label(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR:   ",
        Level::Warn => "WARNING: ",
        Level::Info => "info:    ",
        Level::Debug | Level::Trace => "         ",
    }
}

/// `<PRI>` of RFC 5424 6.2.1: facility daemon (3) times 8, and the severity.
const fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    3 * 8 + severity
}

/// Makes one line: heading, how many were lost before it, text, line break.
fn compose(line: &mut String, heading: Heading<'_>, lost: u64, text: &fmt::Arguments<'_>) {
    line.clear();
    // Writing to a `OneLine` does not fail.
    let mut out = OneLine(line);
    let _ = match heading {
        Heading::Terminal(None) => Ok(()),
        Heading::Terminal(Some(elapsed)) => write!(out, "{}: ", Seconds(elapsed)),
        Heading::Syslog(level, name) => write!(out, "<{}>{name}: ", priority(level)),
        Heading::File(level, elapsed) => write!(out, "{}: {}", Seconds(elapsed), label(level)),
    };
    if lost > 0 {
        let _ = write!(out, "({lost} messages lost) ");
    }
    let _ = out.write_fmt(*text);
    line.push('\n');
}

/// A line that cannot become two, nor longer than [`MAX_LINE`] with its line break.
struct OneLine<'a>(&'a mut String);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            let mut plain = [0; 4];
            let escaped;
            let piece = if c.is_control() {
                escaped = c.escape_default().to_string();
                escaped.as_str()
            } else {
                c.encode_utf8(&mut plain)
            };
            if self.0.len() + piece.len() >= MAX_LINE {
                break;
            }
            self.0.push_str(piece);
        }
        Ok(())
    }
}

/// Writes a line to standard error; `false` when it was dropped, because that would have blocked
/// or failed.
fn write_stderr(line: &[u8], waits: bool) -> bool {
    let stderr = io::stderr();
    if !waits {
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let ready = nix::poll::poll(&mut fds, PollTimeout::ZERO);
        let writable = fds.iter().all(|fd| fd.revents() == Some(PollFlags::POLLOUT));
        if ready != Ok(1) || !writable {
            return false;
        }
    }
    stderr.lock().write_all(line).is_ok()
}

/// Logs what traffic can cause: at most five lines a second from this place, then the next line
/// says how many were held back.
///
/// `limited!(now, Level::Warn, "a reason: {}", x)`; `now` is the turn's [`Instant`]. The arguments
/// are not evaluated for a line that is held back.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_limited {
    ($now:expr, $level:expr, $($text:tt)+) => {{
        static LIMITER: $crate::log::Limiter = $crate::log::Limiter::new();
        let level: ::log::Level = $level;
        if level <= ::log::max_level() {
            match LIMITER.admit($now) {
                $crate::log::Admission::Refused => {}
                $crate::log::Admission::Passed => ::log::log!(level, $($text)+),
                $crate::log::Admission::PassedAfter(n) => ::log::log!(
                    level,
                    "{} (and {n} more like it suppressed)",
                    ::std::format_args!($($text)+)
                ),
            }
        }
    }};
}

pub use __log_limited as limited;

#[cfg(test)]
mod tests;
