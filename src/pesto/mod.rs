//! `pesto`: shows and changes the forwarding rules of a `passt` or `pasta` that runs, over its
//! control socket.
//!
//! It reads all tables, changes them as the options say, and sends all of them back: a daemon
//! takes tables as they are or not at all. Understands the daemon of the original as well, which
//! does not tell what became of an update.
//!
//! It needs no privileges and trusts nobody: before it connects it gives up what it could gain,
//! and its system calls are filtered.

mod edit;
pub mod options;

use crate::config::ports::{DEFAULT_EPHEMERAL, parse_ephemeral};
use crate::config::rules_wire::{
    About, Greeting, HOST, Malformed, Outcome, ResultReader, SPLICE, Table, emit_update,
};
use crate::sandbox::{self, Role};
use crate::sys::error_text;
use options::{Request, Typed};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may be silent: it may have another client, or many ports to bind.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the program ends with status 1. Each is one line for the user.
#[derive(Debug)]
enum Error {
    Sandbox(sandbox::Error),
    Connect(PathBuf, io::Error),
    /// The daemon speaks something else.
    Malformed(Malformed),
    /// The connection failed.
    Io(&'static str, io::Error),
    /// The daemon has hung up.
    Closed,
    /// Nothing came in time.
    Silent(&'static str),
    Edit(edit::Error),
    /// The daemon says why it does not want the new rules.
    Refused(String),
    Print(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(e) => e.fmt(f),
            Self::Connect(path, e) => {
                write!(f, "Couldn't connect to {}: {}", path.display(), error_text(e))
            }
            Self::Malformed(e) => write!(f, "Unexpected answer: {e}"),
            Self::Io(what, e) => write!(f, "Couldn't {what}: {}", error_text(e)),
            Self::Closed => f.write_str("The connection was closed before the rules were complete"),
            Self::Silent(what) => {
                write!(f, "No answer within {} s: {what}", PATIENCE.as_secs())
            }
            Self::Edit(e) => e.fmt(f),
            Self::Refused(why) => f.write_str(why),
            Self::Print(e) => write!(f, "Couldn't print: {}", error_text(e)),
        }
    }
}

impl std::error::Error for Error {}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// Runs the program with the arguments of the process and returns its exit status.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let argv0 = args.next().unwrap_or_else(|| OsString::from("pesto"));
    let args: Vec<_> = args.collect();
    let outcome = match options::parse(&argv0.to_string_lossy(), &args) {
        Ok(Request::Print(text)) => print(&text),
        Ok(Request::Run(typed)) => run(&typed),
        Err(e) => {
            complain(&e);
            complain(&e.usage.as_deref().unwrap_or_default());
            return ExitCode::FAILURE;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Print)
}

/// Writes to standard error, which may be closed: then there is nobody to tell.
fn complain(text: &dyn fmt::Display) {
    let text = text.to_string();
    if !text.is_empty() {
        let _ = writeln!(io::stderr(), "{}", text.trim_end());
    }
}

fn run(typed: &Typed) -> Result<(), Error> {
    let debug = |text: fmt::Arguments<'_>| {
        if typed.debug {
            complain(&text);
        }
    };
    // The only file that is read: with the others out of reach, they need not be trusted.
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let ephemeral = range.as_deref().and_then(parse_ephemeral).unwrap_or(DEFAULT_EPHEMERAL);
    sandbox::lock_client(Role::Client).map_err(Error::Sandbox)?;

    let mut daemon = Daemon::connect(&typed.path)?;
    debug(format_args!("Connected to {}", typed.path.display()));
    let mut tables = daemon.tables()?;
    for Table { pif, about, rules } in &tables {
        let (name, caps) = (&about.name, about.caps.to_bits());
        debug(format_args!("Table {pif} ({name}), capabilities {caps:#x}: {} rules", rules.len()));
    }
    if typed.steps.is_empty() {
        return print(&describe(&tables));
    }
    let before = typed.show.then(|| describe(&tables));
    edit::apply(&mut tables, &typed.steps, &ephemeral).map_err(Error::Edit)?;
    match daemon.update(&tables)? {
        Some(Ok(warnings)) => {
            debug(format_args!("The daemon has the new rules"));
            complain(&warnings);
        }
        Some(Err(why)) => return Err(Error::Refused(why)),
        None => debug(format_args!("The daemon doesn't tell what became of the new rules")),
    }
    match before {
        Some(before) => print(&format!("Before:\n{before}After:\n{}", describe(&tables))),
        None => Ok(()),
    }
}

/// All rules, as they stand in a daemon's log.
fn describe(tables: &[Table<About>]) -> String {
    let mut lines = Vec::new();
    for table in tables {
        let name = &table.about.name;
        lines.push(match table.pif {
            HOST => format!("Inbound forwarding rules ({name}):\n"),
            SPLICE => format!("Outbound forwarding rules ({name}):\n"),
            _ => format!("Forwarding rules ({name}):\n"),
        });
        lines.extend(table.rules.iter().map(|rule| format!("    {rule}\n")));
    }
    lines.concat()
}

/// The connection to a daemon.
struct Daemon {
    stream: UnixStream,
}

impl Daemon {
    fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(|e| Error::Connect(path.to_owned(), e))?;
        let patience = Some(PATIENCE);
        stream
            .set_read_timeout(patience)
            .and_then(|()| stream.set_write_timeout(patience))
            .map_err(|e| Error::Io("set up the connection", e))?;
        Ok(Self { stream })
    }

    /// What the daemon says first.
    fn tables(&mut self) -> Result<Vec<Table<About>>, Error> {
        let mut greeting = Greeting::new();
        loop {
            let mut bytes = [0; 4096];
            let n = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::Silent("is another client being served?"));
                }
                Err(e) => return Err(Error::Io("read the rules", e)),
            };
            if let Some(tables) = greeting.push(bytes.get(..n).unwrap_or_default())? {
                return Ok(tables);
            }
        }
    }

    /// Sends `tables` and waits for the result; `None` where the daemon does not tell.
    fn update(&mut self, tables: &[Table<About>]) -> Result<Option<Outcome>, Error> {
        let plain =
            |table: &Table<About>| Table { pif: table.pif, about: (), rules: table.rules.clone() };
        let tables: Vec<Table> = tables.iter().map(plain).collect();
        let sent = self.stream.write_all(&emit_update(&tables));
        // The daemon may have said why before it hung up.
        let result = self.result();
        match (sent, result) {
            (_, Ok(Some(result))) => Ok(Some(result)),
            (Err(e), _) => Err(Error::Io("send the new rules", e)),
            (Ok(()), result) => result,
        }
    }

    fn result(&mut self) -> Result<Option<Outcome>, Error> {
        // That is all of it: the original's daemon, too, may end here.
        let _ = self.stream.shutdown(Shutdown::Write);
        let (mut reader, mut begun) = (ResultReader::default(), false);
        loop {
            let mut bytes = [0; 4096];
            let n = match self.stream.read(&mut bytes) {
                Ok(n) => n,
                Err(e) => match e.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => {
                        return Err(Error::Silent(
                            "it is not known whether the rules are in force",
                        ));
                    }
                    io::ErrorKind::ConnectionReset => 0,
                    _ => return Err(Error::Io("read the result", e)),
                },
            };
            if n == 0 {
                return if begun { Err(Error::Closed) } else { Ok(None) };
            }
            begun = true;
            if let Some(result) = reader.push(bytes.get(..n).unwrap_or_default())? {
                return Ok(Some(result));
            }
        }
    }
}
