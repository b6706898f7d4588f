//! Start-up of `passt`: a virtual machine, of which we see nothing but its link.

use super::unix::Bound;
use super::{
    Error, Service, engine_settings, open_capture, open_control, open_sockets, random_key,
    watch_host,
};
use crate::config::{Machine, Socket};
use crate::control::Policy;
use crate::daemon::{Launch, PidFile, Signals};
use crate::engine::Engine;
use crate::flow::rules::Rules;
use crate::link::{Control, Parts};
use crate::runtime::Clock;
use crate::runtime::host_watch::Planner;
use crate::sandbox::{Identity, Jail, Role, RunAs, Started};
use crate::sys::epoll::Epoll;
use crate::sys::process::{self, Side};
use crate::time::Duration;
use log::{error, info};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

/// Where the client comes from.
pub(super) enum Door {
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

/// Whether what we were given is what we take it for.
fn is_stream(fd: &UnixStream) -> bool {
    // Only a Unix socket has addresses that the library understands, and only one that was
    // connected has that of a peer.
    fd.peer_addr().is_ok()
        && getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

/// Serves a virtual machine on the link that `open` makes.
pub(super) fn serve<C: Control>(
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
