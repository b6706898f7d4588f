//! Start-up in order, and the way out.
//!
//! The only module that knows everything: it reads the command line, asks the host, opens what
//! needs a name in the file system, takes our privileges away, goes to the background and runs.
//! What fails before that ends in one line on standard error and status 1, with no socket left.

mod error;
mod machine;
mod pasta;
mod unix;

use crate::config::facts::HostFacts;
pub use crate::config::options::Program;
use crate::config::options::{self, Mode, Request, Typed};
use crate::config::resolv::Resolv;
use crate::config::{self, Config, Network, Process, ports};
use crate::control::{self, Policy};
use crate::daemon::{self, Launch, Leftover, Signals};
use crate::engine::{self, Engine};
use crate::flow::forward::Splicing;
use crate::flow::rules::Rules;
use crate::host::netlink;
use crate::host::sockets::{Setup, Sockets};
use crate::link::capture::{self, Capture};
use crate::link::{Control, Link, Parts};
use crate::pasta::command::{Held, Inherited};
use crate::pasta::watch::{End, Watch};
pub use crate::pesto::main as pesto;
use crate::runtime::host_watch::{HostWatch, Planner};
use crate::runtime::resolv::ResolvFile;
use crate::runtime::worker::{Exit, Worker};
use crate::runtime::{self, Clock};
use crate::sandbox::{Jailed, Role, Started};
use crate::sys::epoll::Epoll;
use crate::sys::error_text;
use crate::sys::socket::{self, Family, Kind};
use crate::time::Duration;
use crate::translate::datagram::Timeouts;
use crate::translate::tcp::Patience;
use ::log::{error, info, warn};
use error::Error;
use nix::sys::signal::Signal;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use unix::Bound;

/// Bytes of a small file of the system's that are read at most.
const MAX_FILE: u64 = 1 << 16;

/// Where the host says who its resolvers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Flows of each protocol at most; descriptors usually run out before.
const MAX_FLOWS: usize = 1 << 17;

/// Runs `program`, or the one by whose name it was called, with the arguments of the process, and
/// returns its exit status.
pub fn main(program: Program) -> ExitCode {
    let mut args = std::env::args_os();
    let argv0 = args.next().unwrap_or_else(|| OsString::from(program.name()));
    let program = called(&argv0).unwrap_or(program);
    let args: Vec<_> = args.collect();
    match options::parse(program, &argv0.to_string_lossy(), &args) {
        Ok(Request::Print(text)) => print(&text),
        Ok(Request::Run(mode, typed)) => match run(program, mode, &typed) {
            Ok(status) => ExitCode::from(status),
            Err(e) => {
                error!("{e}");
                ExitCode::FAILURE
            }
        },
        Err(e) => {
            complain(&e);
            complain(&e.usage.as_deref().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// The program that a name stands for: one may be a link to the other.
fn called(argv0: &OsStr) -> Option<Program> {
    let name = Path::new(argv0).file_name()?.to_string_lossy();
    let is = |program: &Program| name.contains(program.name());
    [Program::Pasta, Program::Passt].into_iter().find(is)
}

fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes to standard error, which may be closed: then there is nobody to tell.
fn complain(text: &dyn fmt::Display) {
    let text = text.to_string();
    if !text.is_empty() {
        let _ = writeln!(io::stderr(), "{}", text.trim_end());
    }
}

/// The descriptor of `--fd`, and its number there.
struct Given {
    fd: OwnedFd,
    number: i32,
}

/// Runs to the end; returns the exit status.
fn run(program: Program, mode: Mode, typed: &Typed) -> Result<u8, Error> {
    let before = Inherited::new();
    let process = Process::new(typed);
    // Descriptors that we inherited go first, before we have any of our own.
    let kept = daemon::take_over(typed.fd).inspect_err(|e| complain(e))?;
    let given = kept.zip(typed.fd).map(|(fd, number)| Given { fd, number });
    crate::log::init(&log_options(program, &process)).inspect_err(|e| complain(e))?;
    // The command of a namespace inherits what we have, so there that is given up later.
    let started = (mode != Mode::Pasta).then(Started::begin).transpose()?;
    let signals = match &typed.namespace {
        Some(asked) if asked.target.runs() => Signals::block_with_terminal()?,
        _ => Signals::block()?,
    };
    let facts = facts()?;
    let (config, warnings) = Config::new(mode, typed, &facts)?;
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let begun = || started.map_or_else(Started::begin, Ok);
    let planner = |network: &Network, configured| Planner {
        typed: config::implied(mode, typed),
        facts,
        resolv: ResolvFile::open(Path::new(RESOLV_CONF), network.uses_resolvers()),
        configured,
    };
    match config {
        Config::Pasta(config) => {
            let planner = planner(&config.network, config.config_net.is_some());
            pasta::serve(&config, before, given, signals, planner)
        }
        Config::VhostUser(config) => {
            let planner = planner(&config.network, false);
            let meet = |epoll| machine::meet_on_rings(&config, given, epoll);
            machine::serve(begun()?, signals, &config, planner, Role::VhostUser, meet)
        }
        Config::Stream(config) => {
            let planner = planner(&config.network, false);
            let meet = |epoll| machine::meet_on_stream(&config, given, epoll);
            machine::serve(begun()?, signals, &config, planner, Role::Stream, meet)
        }
        Config::Tap(config) => {
            let planner = planner(&config.network, false);
            let meet = |epoll| machine::meet_on_tap(given, epoll);
            machine::serve(begun()?, signals, &config, planner, Role::Stream, meet)
        }
    }
}

fn log_options(program: Program, process: &Process) -> crate::log::Options {
    crate::log::Options {
        verbosity: process.verbosity,
        program: program.name(),
        version: env!("CARGO_PKG_VERSION"),
        file: process.log_file.clone(),
        file_limit: process.log_size,
    }
}

/// What the host says, by netlink and in files.
fn facts() -> Result<HostFacts, Error> {
    let mut facts = netlink::facts().map_err(Error::Netlink)?;
    facts.ipv6 = socket::open(Family::V6, Kind::Datagram).is_ok();
    if let Some(text) = read_file(RESOLV_CONF) {
        facts.resolv = Resolv::parse(&text);
    }
    let range = read_file("/proc/sys/net/ipv4/ip_local_port_range");
    if let Some(range) = range.as_deref().and_then(ports::parse_ephemeral) {
        facts.ephemeral = range;
    }
    Ok(facts)
}

/// When this host's connection tracking, if it is there, would forget UDP exchanges.
fn timeouts() -> Timeouts {
    let read = |name| read_file(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    Timeouts::new(read("udp_timeout").as_deref(), read("udp_timeout_stream").as_deref())
}

/// How long this host's kernel would try a guest.
fn patience() -> Patience {
    let read = |name| read_file(&format!("/proc/sys/net/ipv4/tcp_{name}"));
    Patience::new(
        read("syn_retries").as_deref(),
        read("syn_linear_timeouts").as_deref(),
        read("rto_max_ms").as_deref(),
    )
}

/// The beginning of a file; `None` when there is none to be read.
fn read_file(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The control socket, if one is asked for, and its name.
fn open_control(
    own: &Process,
    policy: Policy,
    epoll: &Rc<Epoll>,
) -> Result<Option<(Leftover, control::Server)>, Error> {
    let Some(path) = &own.conf_path else { return Ok(None) };
    let (bound, listener) = Bound::at(path)?;
    let server = control::Server::new(listener, Rc::clone(epoll), policy)
        .map_err(|e| Error::System("watch the control socket", e))?;
    info!("Control socket bound at {}", path.display());
    Ok(Some((bound.into_leftover(), server)))
}

/// The file of a capture. One that cannot be made costs a warning only: the guest is served all the
/// same.
struct NewCapture<'a> {
    file: File,
    path: &'a Path,
    /// It was there before, and what is in it is lost to nobody before a start succeeds.
    old: bool,
}

impl<'a> NewCapture<'a> {
    /// Opens the file as who starts us. A new one is begun at once: whether the disk is full shows
    /// while the file can be removed.
    fn open(path: &'a Path) -> Option<(Self, Leftover)> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let (file, old) = match options.clone().create_new(true).open(path) {
            // A link "exists", too, and is refused with ELOOP.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (options.open(path), true),
            made => (made, false),
        };
        let warn =
            |e: &io::Error| warn!("Couldn't open capture {}: {}", path.display(), error_text(e));
        let file = file.inspect_err(warn).ok()?;
        let name = if old { Leftover::default() } else { Leftover::new(path) };
        let capture = Self { file, path, old };
        match old {
            true => Some((capture, name)),
            false => capture.write().map(|capture| (capture, name)),
        }
    }

    /// Empties a file that was there before. To be called when hardly anything is left that can
    /// fail.
    fn begin(self) -> Option<File> {
        let capture = if self.old { self.write()? } else { self };
        Some(capture.file)
    }

    fn write(self) -> Option<Self> {
        let written = capture::begin(&self.file);
        let path = self.path.display();
        written.inspect_err(|e| warn!("Couldn't write capture {path}: {}", error_text(e))).ok()?;
        Some(self)
    }
}

fn open_sockets(epoll: &Rc<Epoll>, network: &Network, rules: &Rules) -> Result<Sockets, Error> {
    let setup = Setup {
        v4: network.guest.v4.is_some(),
        v6: network.guest.v6.is_some(),
        outbound_v4: network.translation.v4.outbound,
        outbound_v6: network.translation.v6.outbound,
        device_v4: device_name(network.devices.v4.as_ref()),
        device_v6: device_name(network.devices.v6.as_ref()),
        scope: network.scope(),
        freebind: network.freebind,
        ..Setup::default()
    };
    let opened = Sockets::new(Rc::clone(epoll), setup);
    let mut sockets = opened.map_err(|e| Error::System("set up sockets", e))?;
    listen(&mut sockets, rules)?;
    Ok(sockets)
}

fn listen(sockets: &mut Sockets, rules: &Rules) -> Result<(), Error> {
    let listened = sockets.listen(rules).map_err(|failure| {
        error!("{failure}");
        Error::Listen
    })?;
    listened.warnings.iter().for_each(|warning| warn!("{warning}"));
    Ok(())
}

/// The guest is served without, if that cannot be.
fn watch_host(epoll: &Epoll, network: &Network, planner: Planner) -> Option<HostWatch> {
    HostWatch::open(epoll, network.clone(), planner)
        .inspect_err(|e| warn!("Couldn't watch the host's network: {}", error_text(e)))
        .ok()
}

fn device_name(device: Option<&config::Device>) -> Option<CString> {
    // Interface names have no NUL: these were found on the host.
    CString::new(device?.name.as_str()).ok()
}

/// 128 bits that nobody else knows.
fn random_key() -> io::Result<[u8; 16]> {
    let mut key = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

fn engine_settings(network: &Network, rules: Rules, hash_key: [u8; 16]) -> engine::Settings {
    engine::Settings {
        view: network.guest.clone(),
        translation: network.translation.clone(),
        rules,
        protocols: network.protocols,
        guest_mac: None,
        max_flows: MAX_FLOWS,
        timeouts: timeouts(),
        patience: patience(),
        splicing: Splicing::default(),
        hash_key,
    }
}

/// The status of who was asked to end by `signal`: that is how SIGTERM and SIGQUIT end us in order;
/// others say that what was asked of us was not done.
const fn status_after(signal: Signal) -> u8 {
    match signal {
        Signal::SIGTERM | Signal::SIGQUIT => 0,
        other => 128 + other as u8,
    }
}

/// All that is ready to serve, but for the last steps that have to be taken in this order.
struct Service {
    jailed: Jailed,
    launch: Launch,
    /// Where `pesto` is met.
    control: Option<control::Server>,
    signals: Signals,
    epoll: Rc<Epoll>,
    role: Role,
    stats: Option<Duration>,
    /// What we serve and what it takes, as far as that can end by itself.
    watches: Vec<Watch>,
    /// The command that waits until we are ready.
    held: Option<Held>,
    /// Who our neighbours are, and what becomes of the host's network.
    host_watch: Option<HostWatch>,
}

impl Service {
    /// As [`Service::run`], with a capture of all frames if there is a file for it, and in the log
    /// if that is to have them.
    fn run_captured<C: Control>(
        self,
        link: Parts<C>,
        capture: Option<File>,
        engine: Engine<Sockets>,
        clock: Clock,
    ) -> Result<u8, Error> {
        let link = match capture {
            Some(file) => Capture::new(link, file, Box::new(runtime::time_of_day)),
            None if ::log::log_enabled!(::log::Level::Trace) => Capture::into_log(link),
            None => return self.run(link, engine, clock),
        };
        self.run(link, engine, clock)
    }

    /// Goes to the background, locks up, says that we are ready, and serves. Returns the exit
    /// status.
    fn run<L: Link>(self, link: L, engine: Engine<Sockets>, clock: Clock) -> Result<u8, Error> {
        // The starter exits in here.
        let ready = self.launch.go(&self.signals)?;
        let mut worker = Worker::new(link, engine, self.epoll, clock);
        // A signalfd wakes the process that added it to the epoll, so not before the fork.
        if let Err(e) = worker.heed(self.signals) {
            ready.fail(&Error::System("watch signals", e));
        }
        if let Some(every) = self.stats {
            worker.show_statistics(every);
        }
        if let Err(e) = self.watches.into_iter().try_for_each(|watch| worker.until(watch)) {
            ready.fail(&Error::System("watch for the end", e));
        }
        if let Some(control) = self.control {
            worker.serve_control(control);
        }
        if let Some(watch) = self.host_watch {
            worker.watch_host(watch);
        }
        if let Err(e) = self.jailed.lock(self.role) {
            ready.fail(&e);
        }
        ready.report();
        if let Some(held) = self.held {
            crate::log::share_stderr();
            if let Some(signal) = worker.signalled().map_err(|e| Error::System("go on", e))? {
                // The command has not begun, and does not any more.
                drop(held);
                return Ok(status_after(signal));
            }
            held.release();
        }
        match worker.run().map_err(|e| Error::System("go on", e))? {
            Exit::ClientGone if matches!(self.role, Role::Namespace | Role::Command) => {
                return Err(Error::TapGone);
            }
            Exit::ClientGone => info!("Client gone, exiting"),
            Exit::Signal => info!("Asked by a signal, exiting"),
            Exit::Ended(End::NamespaceGone) => info!("Namespace gone, exiting"),
            Exit::Ended(End::Command(status)) => return Ok(status),
            Exit::Ended(End::InsideGone) => return Err(Error::InsideGone),
        }
        Ok(0)
    }
}
