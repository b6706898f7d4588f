//! Start-up of `passt`: a virtual machine, of which we see nothing but its link. So it is with
//! `pasta --fd` alone.

use super::unix::Bound;
use super::{
    Error, Given, NewCapture, Service, engine_settings, open_control, open_sockets, random_key,
    watch_host,
};
use crate::config::{Machine, Socket};
use crate::control::Policy;
use crate::daemon::{Launch, PidFile, Signals};
use crate::engine::Engine;
use crate::flow::rules::Rules;
use crate::link::stream::{StreamControl, StreamLink};
use crate::link::tap::{self, Tap, TapControl, TapLink};
use crate::link::vhost::{Settings, VhostControl, VhostLink};
use crate::link::{Control, Parts};
use crate::runtime::Clock;
use crate::runtime::host_watch::Planner;
use crate::sandbox::{Identity, Jail, Role, RunAs, Started, WithoutUserNamespace};
use crate::sys::epoll::Epoll;
use crate::time::Duration;
use crate::wire::MacAddr;
use log::info;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

/// A guest's link, and what else is known of it before it says anything.
pub(super) struct Met<C: Control> {
    link: Parts<C>,
    bound: Option<Bound>,
    mac: Option<MacAddr>,
}

/// Meets a guest on its rings.
pub(super) fn meet_on_rings(
    config: &Machine,
    given: Option<Given>,
    epoll: Rc<Epoll>,
) -> Result<Met<VhostControl>, Error> {
    let settings = Settings { mtu: config.network.guest.mtu, ..Settings::default() };
    let (door, bound) = open_door(&config.socket, given)?;
    let link = match door {
        Door::Listener(l) => VhostLink::listen(l, config.one_off, epoll, settings),
        Door::Connected(stream) => VhostLink::connected(stream, epoll, settings.handed_over()),
    };
    let link = link.map_err(|e| Error::System("watch the socket", e))?;
    Ok(Met { link, bound, mac: None })
}

/// Meets a guest on a stream of frames.
pub(super) fn meet_on_stream(
    config: &Machine,
    given: Option<Given>,
    epoll: Rc<Epoll>,
) -> Result<Met<StreamControl>, Error> {
    let (door, bound) = open_door(&config.socket, given)?;
    let link = match door {
        Door::Listener(l) => StreamLink::listen(l, config.one_off, epoll),
        Door::Connected(stream) => StreamLink::connected(stream, epoll),
    };
    let link = link.map_err(|e| Error::System("watch the socket", e))?;
    Ok(Met { link, bound, mac: None })
}

/// Meets whoever has the other end of a tap.
pub(super) fn meet_on_tap(
    given: Option<Given>,
    epoll: Rc<Epoll>,
) -> Result<Met<TapControl>, Error> {
    let tap = adopt(given)?;
    let mac = tap.mac().ok();
    let link = TapLink::new(tap, epoll).map_err(|e| Error::System("watch the tap", e))?;
    Ok(Met { link, bound: None, mac })
}

/// The tap that we were given.
pub(super) fn adopt(given: Option<Given>) -> Result<Tap, Error> {
    let Given { fd, number } = given.ok_or(Error::NothingGiven)?;
    let tap = Tap::adopt(fd).map_err(|e| match e {
        tap::Error::Given(what) => Error::Given(number, what),
        other => other.into(),
    })?;
    info!("Namespace interface: {}", tap.name());
    Ok(tap)
}

/// Where the client comes from.
enum Door {
    Listener(UnixListener),
    Connected(UnixStream),
}

fn open_door(socket: &Socket, given: Option<Given>) -> Result<(Door, Option<Bound>), Error> {
    let (bound, listener) = match socket {
        Socket::Connected(_) => {
            let Given { fd, number } = given.ok_or(Error::NothingGiven)?;
            let stream = UnixStream::from(fd);
            if !is_stream(&stream) {
                return Err(Error::Given(number, "no connected UNIX domain stream socket"));
            }
            return Ok((Door::Connected(stream), None));
        }
        Socket::Listen(path) => Bound::at(path)?,
        Socket::ListenAnywhere => Bound::anywhere()?,
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

/// Serves the guest that `meet` meets.
pub(super) fn serve<C: Control>(
    started: Started,
    signals: Signals,
    config: &Machine,
    planner: Planner,
    role: Role,
    meet: impl FnOnce(Rc<Epoll>) -> Result<Met<C>, Error>,
) -> Result<u8, Error> {
    let Machine { process: own, network, .. } = config;
    let run_as = own.runas.as_deref().map(str::parse::<RunAs>).transpose()?;
    let identity = Identity::choose(run_as.as_ref())?;
    let jail = Jail {
        pid_namespace: !own.foreground,
        chroot_fallback: own.chroot_fallback,
        without_user_namespace: match own.userns_fallback {
            true => WithoutUserNamespace::GoOn,
            false => WithoutUserNamespace::Fail,
        },
    };
    let epoll = Rc::new(Epoll::new().map_err(|e| Error::System("make an epoll", e))?);

    // Everything that has a name in the file system or a low port, before we lose the right to.
    let (control_name, control) = open_control(own, Policy::new(network, false), &epoll)?.unzip();
    let Met { link, bound, mac } = meet(Rc::clone(&epoll))?;
    let pid_file = own.pid.as_deref().map(PidFile::open).transpose()?;
    let (capture, capture_name) = network.pcap.as_deref().and_then(NewCapture::open).unzip();
    let names = [control_name, bound.map(Bound::into_leftover), capture_name];
    let names = names.into_iter().flatten().collect();
    let launch = Launch::prepare(!own.foreground, pid_file, names)?;
    let rules = Rules::from(network.forwards.clone());
    let sockets = open_sockets(&epoll, network, &rules)?;
    let host_watch = watch_host(&epoll, network, planner);
    let hash_key = random_key().map_err(|e| Error::System("get random numbers", e))?;
    network.summary().iter().for_each(|line| info!("{line}"));
    let capture = capture.and_then(NewCapture::begin);

    let jailed = started.identify(identity)?.jail(&jail)?;
    let stats = own.stats.map(|seconds| Duration::from_secs(seconds.into()));
    let (watches, held) = (Vec::new(), None);
    let service =
        Service { jailed, launch, control, signals, epoll, role, stats, watches, held, host_watch };
    let clock = Clock::start();
    let mut settings = engine_settings(network, rules, hash_key);
    settings.guest_mac = mac;
    let engine = Engine::new(sockets, settings, clock.now());
    service.run_captured(link, capture, engine, clock)
}
