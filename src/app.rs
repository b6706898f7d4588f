//! Start-up in order, and the way out.
//!
//! The only module that knows everything: it reads the command line, asks the host, opens what
//! needs a name in the file system, takes our privileges away, goes to the background and runs.
//! What fails before that ends in one line on standard error and status 1, with no socket left.

mod pasta;
mod unix;

use crate::config::facts::HostFacts;
pub use crate::config::options::Program;
use crate::config::options::{self, Mode, Request, Typed};
use crate::config::resolv::Resolv;
use crate::config::{self, Config, Machine, Network, Process, Socket, ports};
use crate::control::{self, Policy};
use crate::daemon::{self, Launch, PidFile, Signals};
use crate::engine::{self, Engine};
use crate::flow::forward::Splicing;
use crate::flow::rules::Rules;
use crate::host::netlink;
use crate::host::sockets::{Setup, Sockets};
use crate::link::capture::Capture;
use crate::link::stream::StreamLink;
use crate::link::tap;
use crate::link::vhost::{Settings, VhostLink};
use crate::link::{Control, Link, Parts};
use crate::pasta::command::{Held, Inherited};
use crate::pasta::watch::{End, Watch};
pub use crate::pesto::main as pesto;
use crate::runtime::host_watch::{HostWatch, Planner};
use crate::runtime::worker::{Exit, Worker};
use crate::runtime::{self, Clock};
use crate::sandbox::{self, Identity, Jail, Jailed, Role, RunAs, RunAsError, Started};
use crate::sys::epoll::Epoll;
use crate::sys::error_text;
use crate::sys::process::{self, Side};
use crate::sys::socket::{self, Family, Kind};
use crate::time::Duration;
use crate::token::{Interest, Token};
use crate::translate::datagram::Timeouts;
use ::log::{error, info, warn};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use unix::Bound;

/// Bytes of a small file of the system's that are read at most.
const MAX_FILE: u64 = 1 << 16;

/// Flows of each protocol at most; descriptors usually run out before.
const MAX_FLOWS: usize = 1 << 17;

/// Why the program ends with status 1.
#[derive(Debug)]
enum Error {
    Config(config::Error),
    Log(crate::log::Error),
    Daemon(daemon::Error),
    Sandbox(sandbox::Error),
    RunAs(RunAsError),
    Unix(unix::Error),
    Netlink(io::Error),
    /// `--fd` names no Unix socket.
    NoSocket(i32),
    /// Something that works on every system we know of.
    System(&'static str, io::Error),
    /// The sandbox cannot be entered; said already.
    Rehearsal,
    /// A port that must be listened on cannot be; said already.
    Listen,
    /// There is no namespace to serve.
    Namespace(crate::pasta::Error),
    /// The namespace's network cannot be set up.
    Interface(crate::pasta::interface::Error),
    /// The interface inside cannot be made.
    Tap(tap::Error),
    /// What has to be done inside the namespace cannot be.
    Inside(&'static str, io::Error),
    /// There is no `/dev/net/tun`, or not for us.
    NoTun(io::Error),
    /// Somebody has removed our interface.
    TapGone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Log(e) => e.fmt(f),
            Self::Daemon(e) => e.fmt(f),
            Self::Sandbox(e) => e.fmt(f),
            Self::RunAs(e) => e.fmt(f),
            Self::Unix(e) => e.fmt(f),
            Self::Netlink(e) => write!(f, "Couldn't ask the kernel for routes: {}", error_text(e)),
            Self::NoSocket(fd) => {
                write!(f, "Invalid --fd: {fd} is no connected UNIX domain stream socket")
            }
            Self::System(what, e) => write!(f, "Couldn't {what}: {}", error_text(e)),
            Self::Rehearsal => f.write_str("Couldn't isolate the process"),
            Self::Namespace(e) => e.fmt(f),
            Self::Interface(e) => e.fmt(f),
            Self::Tap(e) => e.fmt(f),
            Self::Inside(what, e) => {
                write!(f, "Couldn't {what} inside the namespace: {}", error_text(e))
            }
            Self::NoTun(e) => {
                let reason = error_text(e);
                write!(
                    f,
                    "Couldn't open /dev/net/tun: {reason}; see that the module tun is loaded"
                )?;
                f.write_str(" and the device is there, or use --splice-only")
            }
            Self::TapGone => f.write_str("The interface in the namespace has gone, exiting"),
            Self::Listen => f.write_str("Couldn't listen on requested ports"),
        }
    }
}

macro_rules! errors_from {
    ($($variant:ident($source:ty)),* $(,)?) => {
        $(impl From<$source> for Error {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

errors_from! {
    Config(config::Error),
    Log(crate::log::Error),
    Daemon(daemon::Error),
    Sandbox(sandbox::Error),
    RunAs(RunAsError),
    Unix(unix::Error),
    Namespace(crate::pasta::Error),
    Interface(crate::pasta::interface::Error),
    Tap(tap::Error),
}

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

/// Runs to the end; returns the exit status.
fn run(program: Program, mode: Mode, typed: &Typed) -> Result<u8, Error> {
    let before = Inherited::new();
    let process = Process::new(typed);
    // Descriptors that we inherited go first, before we have any of our own.
    let inherited = daemon::take_over(typed.fd).inspect_err(|e| complain(e))?;
    crate::log::init(&log_options(program, &process)).inspect_err(|e| complain(e))?;
    // The command of a namespace inherits what we have, so there that is given up later.
    let started = (mode != Mode::Pasta).then(Started::begin).transpose()?;
    let signals = Signals::block()?;
    let facts = facts()?;
    let (config, warnings) = Config::new(mode, typed, &facts)?;
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let begun = || started.map_or_else(Started::begin, Ok);
    let planner = || {
        let resolv = File::open("/etc/resolv.conf").ok();
        Planner { typed: typed.clone(), facts, resolv }
    };
    match config {
        Config::Pasta(config) => pasta::serve(&config, before, signals),
        Config::VhostUser(config) => {
            let settings = Settings { mtu: config.network.guest.mtu, ..Settings::default() };
            let link = |door, one_off, epoll| match door {
                Door::Listener(l) => VhostLink::listen(l, one_off, epoll, settings),
                Door::Connected(stream) => VhostLink::connected(stream, epoll, settings),
            };
            machine(begun()?, signals, inherited, &config, planner(), Role::VhostUser, link)
        }
        Config::Stream(config) => {
            let link = |door, one_off, epoll| match door {
                Door::Listener(l) => StreamLink::listen(l, one_off, epoll),
                Door::Connected(stream) => StreamLink::connected(stream, epoll),
            };
            machine(begun()?, signals, inherited, &config, planner(), Role::Stream, link)
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
    if let Some(text) = read_file("/etc/resolv.conf") {
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

/// The beginning of a file; `None` when there is none to be read.
fn read_file(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where the client comes from.
enum Door {
    Listener(UnixListener),
    Connected(UnixStream),
}

fn open_door(socket: &Socket, inherited: Option<OwnedFd>) -> Result<(Door, Option<Bound>), Error> {
    let (bound, listener) = match (socket, inherited) {
        (Socket::Connected(number), Some(fd)) => {
            let stream = UnixStream::from(fd);
            if !is_stream(&stream) {
                return Err(Error::NoSocket(*number));
            }
            return Ok((Door::Connected(stream), None));
        }
        (Socket::Connected(fd), None) => return Err(Error::NoSocket(*fd)),
        (Socket::Listen(path), _) => Bound::at(path)?,
        (Socket::ListenAnywhere, _) => Bound::anywhere()?,
    };
    info!("UNIX domain socket bound at {}", bound.path().display());
    Ok((Door::Listener(listener), Some(bound)))
}

/// The control socket, if one is asked for.
fn open_control(
    own: &Process,
    policy: Policy,
    epoll: &Rc<Epoll>,
) -> Result<Option<(Bound, control::Server)>, Error> {
    let Some(path) = &own.conf_path else { return Ok(None) };
    let (bound, listener) = Bound::at(path)?;
    let server = control::Server::new(listener, Rc::clone(epoll), policy)
        .map_err(|e| Error::System("watch the control socket", e))?;
    info!("Control socket bound at {}", path.display());
    Ok(Some((bound, server)))
}

/// Whether what we were given is what we take it for.
fn is_stream(fd: &UnixStream) -> bool {
    // Only a Unix socket has addresses that the library understands, and only one that was
    // connected has that of a peer.
    fd.peer_addr().is_ok()
        && getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

/// Serves a virtual machine on the link that `open` makes.
fn machine<C: Control>(
    started: Started,
    signals: Signals,
    inherited: Option<OwnedFd>,
    config: &Machine,
    planner: Planner,
    role: Role,
    open: impl FnOnce(Door, bool, Rc<Epoll>) -> io::Result<Parts<C>>,
) -> Result<u8, Error> {
    let Machine { process: own, network, .. } = config;
    let run_as = own.runas.as_deref().map(str::parse::<RunAs>).transpose()?;
    let identity = Identity::choose(run_as.as_ref())?;
    let jail = Jail {
        pid_namespace: !own.foreground,
        chroot_fallback: own.chroot_fallback,
        ..Jail::default()
    };
    let started = rehearse(started, identity, &jail)?;
    let epoll = Rc::new(Epoll::new().map_err(|e| Error::System("make an epoll", e))?);

    // Everything that has a name in the file system or a low port, before we lose the right to.
    let control = open_control(own, Policy::new(network, false), &epoll)?;
    let (door, bound) = open_door(&config.socket, inherited)?;
    let pid_file = own.pid.as_deref().map(PidFile::open).transpose()?;
    let capture = network.pcap.as_deref().and_then(open_capture);
    let rules = Rules::from(network.forwards.clone());
    let sockets = open_sockets(&epoll, network, &rules)?;
    let host_watch = watch_host(&epoll, network, Some(planner));
    let hash_key = random_key().map_err(|e| Error::System("get random numbers", e))?;
    network.summary().iter().for_each(|line| info!("{line}"));
    let launch = Launch::prepare(!own.foreground, pid_file)?;

    let link = open(door, config.one_off, Rc::clone(&epoll))
        .map_err(|e| Error::System("watch the socket", e))?;
    let jailed = started.identify(identity)?.jail(&jail)?;
    let stats = own.stats.map(|seconds| Duration::from_secs(seconds.into()));
    let (watch, held) = (None, None);
    let own_sockets = (bound, control);
    let service = Service {
        jailed,
        launch,
        own_sockets,
        signals,
        epoll,
        role,
        stats,
        watch,
        held,
        host_watch,
    };
    let clock = Clock::start();
    let engine = Engine::new(sockets, engine_settings(network, rules, hash_key), clock.now());
    service.run_captured(link, capture, engine, clock)
}

/// Finds out in a child whether the sandbox can be entered, when we become someone else on the way:
/// then we could not remove what we have made by then. The child says what is wrong.
fn rehearse(started: Started, identity: Identity, jail: &Jail) -> Result<Started, Error> {
    if identity == Identity::current() {
        return Ok(started);
    }
    match process::fork().map_err(|e| Error::System("fork", e))? {
        Side::Child => {
            let outcome = started.identify(identity).and_then(|identified| identified.jail(jail));
            process::exit_now(match outcome {
                Ok(_) => 0,
                Err(e) => {
                    error!("{e}");
                    1
                }
            })
        }
        Side::Parent(pid) => match waitpid(Pid::from_raw(pid.cast_signed()), None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(started),
            _ => Err(Error::Rehearsal),
        },
    }
}

/// A capture that cannot be made costs a warning only: the guest is served all the same.
fn open_capture(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
        .open(path)
        .inspect_err(|e| warn!("Couldn't open capture {}: {}", path.display(), error_text(e)))
        .ok()
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
fn watch_host(epoll: &Epoll, network: &Network, planner: Option<Planner>) -> Option<HostWatch> {
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
        splicing: Splicing::default(),
        hash_key,
    }
}

/// All that is ready to serve, but for the last steps that have to be taken in this order.
struct Service {
    jailed: Jailed,
    launch: Launch,
    /// Where the guest is met, and where `pesto` is.
    own_sockets: (Option<Bound>, Option<(Bound, control::Server)>),
    signals: Signals,
    epoll: Rc<Epoll>,
    role: Role,
    stats: Option<Duration>,
    /// What we serve, if it can end by itself.
    watch: Option<Watch>,
    /// The command that waits until we are ready.
    held: Option<Held>,
    /// Who our neighbours are, and what becomes of the host's network.
    host_watch: Option<HostWatch>,
}

impl Service {
    /// As [`Service::run`], with a capture of all frames if there is a file for it.
    fn run_captured<C: Control>(
        self,
        link: Parts<C>,
        capture: Option<File>,
        engine: Engine<Sockets>,
        clock: Clock,
    ) -> Result<u8, Error> {
        let Some(file) = capture else { return self.run(link, engine, clock) };
        let link = Capture::new(link, file, Box::new(runtime::time_of_day));
        self.run(link.map_err(|e| Error::System("write the capture", e))?, engine, clock)
    }

    /// Goes to the background, locks up, says that we are ready, and serves. Returns the exit
    /// status.
    fn run<L: Link>(self, link: L, engine: Engine<Sockets>, clock: Clock) -> Result<u8, Error> {
        // The starter exits in here.
        let ready = self.launch.go()?;
        // A signalfd wakes the process that added it to the epoll, so not before the fork.
        let interest = Interest { readable: true, ..Interest::default() };
        if let Err(e) = self.epoll.add(self.signals.as_fd(), Token::Signal, interest) {
            ready.fail(&Error::System("watch signals", e));
        }
        let mut worker = Worker::new(link, engine, self.epoll, clock);
        if let Some(every) = self.stats {
            worker.show_statistics(every);
        }
        if let Some(watch) = self.watch
            && let Err(e) = worker.until(watch)
        {
            ready.fail(&Error::System("watch for the end", e));
        }
        let (bound, control) = self.own_sockets;
        let (bound_control, control) = control.unzip();
        if let Some(control) = control {
            worker.serve_control(control);
        }
        if let Some(watch) = self.host_watch {
            worker.watch_host(watch);
        }
        if let Err(e) = self.jailed.lock(self.role) {
            ready.fail(&e);
        }
        bound.into_iter().chain(bound_control).for_each(Bound::keep);
        ready.report();
        if let Some(held) = self.held {
            crate::log::share_stderr();
            held.release();
        }
        match worker.run().map_err(|e| Error::System("go on", e))? {
            Exit::ClientGone if self.role == Role::Namespace => return Err(Error::TapGone),
            Exit::ClientGone => info!("Client gone, exiting"),
            Exit::Signal => info!("Asked by a signal, exiting"),
            Exit::Ended(End::NamespaceGone) => info!("Namespace gone, exiting"),
            Exit::Ended(End::Command(status)) => return Ok(status),
        }
        Ok(0)
    }
}
