//! Start-up of `pasta`: what a namespace needs besides what every guest does.
//!
//! In order: what has a name in the file system or a low port on the host; who we are, if
//! `--runas` says so; the namespaces, with the command held in new ones; the process that stays
//! inside; the interface and what is configured there; the sandbox. Up to the last step everything
//! goes away again by itself when a step fails: what is inside ends with its channel to us.

use super::machine::adopt;
use super::{
    Error, Given, NewCapture, Service, engine_settings, listen, open_control, open_sockets,
    random_key, watch_host,
};
use crate::config::{self, Pasta, Process};
use crate::control::Policy;
use crate::daemon::{Launch, PidFile, Signals};
use crate::engine::Engine;
use crate::flow::forward::Splicing;
use crate::flow::rules::{Rules, Tables};
use crate::host::inside::{Inside, StartError, Wanted};
use crate::link::none::NoLink;
use crate::link::tap::{Tap, TapLink};
use crate::pasta::command::{Held, Inherited};
use crate::pasta::namespace::Namespace;
use crate::pasta::watch::Watch;
use crate::pasta::{self, interface};
use crate::runtime::Clock;
use crate::runtime::host_watch::Planner;
use crate::sandbox::{self, Identity, Jail, Role, RunAs, Started};
use crate::sys::epoll::Epoll;
use crate::time::Duration;
use log::{info, warn};
use std::io;
use std::rc::Rc;

/// Serves a network namespace; returns the exit status. An interface that is `given` may go: then we
/// have no more to do.
pub(super) fn serve(
    config: &Pasta,
    before: Inherited,
    given: Option<Given>,
    signals: Signals,
    planner: Planner,
) -> Result<u8, Error> {
    match serve_namespace(config, before, given, signals, planner) {
        Err(Error::TapGone) if config.given => {
            info!("{}", Error::TapGone);
            Ok(0)
        }
        outcome => outcome,
    }
}

fn serve_namespace(
    config: &Pasta,
    before: Inherited,
    given: Option<Given>,
    signals: Signals,
    planner: Planner,
) -> Result<u8, Error> {
    let Pasta { process: own, network, .. } = config;
    let epoll = Rc::new(Epoll::new().map_err(|e| Error::System("make an epoll", e))?);

    // Everything that has a name in the file system or a low port, before we lose the right to.
    let (control_name, control) = open_control(own, Policy::new(network, true), &epoll)?.unzip();
    let pid_file = own.pid.as_deref().map(PidFile::open).transpose()?;
    let (capture, capture_name) = network.pcap.as_deref().and_then(NewCapture::open).unzip();
    let names = [control_name, capture_name].into_iter().flatten().collect();
    let launch = Launch::prepare(!own.foreground, pid_file, names)?;
    let outside = Rules::from(network.forwards.clone());
    let sockets = open_sockets(&epoll, network, &outside)?;
    let hash_key = random_key().map_err(|e| Error::System("get random numbers", e))?;
    config.summary().iter().for_each(|line| info!("{line}"));

    let identity = become_who_we_are(own)?;
    let Found { namespace, watch, held } = Found::new(config, before)?;
    let started = Started::begin_in_namespace()?;
    let mut inside = go_inside(&namespace, identity)?;
    let tap = set_up(&mut inside, config, given)?;
    let diag = inside.get(Wanted::Diag).map_err(|e| Error::Inside("open a netlink socket", e))?;
    inside.confine().map_err(|e| Error::Inside("lock up the process", e))?;

    let tables = Tables { outside: network.forwards.clone(), inside: config.inside.clone() };
    let rules = outside.followed_by(&tables);
    let end = inside.fd().try_clone_to_owned();
    let end = end.map_err(|e| Error::System("watch the process inside", e))?;
    let watches = watch.into_iter().chain([Watch::Inside(end)]).collect();
    let mut sockets = sockets.with_inside(inside);
    sockets
        .watch_services(diag, config.splice && config.lo_to_lo)
        .map_err(|e| Error::System("open a netlink socket", e))?;
    listen(&mut sockets, &rules)?;
    sockets.scan_all(&rules);

    let capture = capture.and_then(NewCapture::begin);
    let jail = Jail {
        pid_namespace: !own.foreground,
        chroot_fallback: own.chroot_fallback,
        ..Jail::default()
    };
    let mut settings = engine_settings(network, rules, hash_key);
    let role = if config.target.runs() { Role::Command } else { Role::Namespace };
    let jailed = started.jail_at(namespace.user(), identity, &jail, role)?;
    drop(namespace);

    let stats = own.stats.map(|seconds| Duration::from_secs(seconds.into()));
    let watched = Rc::clone(&epoll);
    let host_watch = config.tap.as_ref().and_then(|_| watch_host(&epoll, network, planner));
    let service =
        Service { jailed, launch, control, signals, epoll, role, stats, watches, held, host_watch };
    settings.splicing =
        Splicing { inwards: config.splice, lo_to_lo: config.lo_to_lo, only: config.tap.is_none() };
    let clock = Clock::start();
    let Some(tap) = tap else {
        let engine = Engine::new(sockets, settings, clock.now());
        return service.run_captured(NoLink::default(), capture, engine, clock);
    };
    settings.guest_mac = tap.mac().ok();
    let link = TapLink::new(tap, watched).map_err(|e| Error::System("watch the tap", e))?;
    let engine = Engine::new(sockets, settings, clock.now());
    service.run_captured(link, capture, engine, clock)
}

/// With `--runas`, everything that follows is that user's, also the command. Without it, root's
/// command is root's, and only we shall run as nobody. Returns whom we shall run as.
fn become_who_we_are(own: &Process) -> Result<Identity, Error> {
    let run_as = own.runas.as_deref().map(str::parse::<RunAs>).transpose()?;
    let identity = Identity::choose(run_as.as_ref())?;
    if run_as.is_some() && identity != Identity::current() {
        sandbox::start_as(identity)?;
    }
    Ok(identity)
}

/// What we serve, and what it ends with.
struct Found {
    namespace: Namespace,
    watch: Option<Watch>,
    held: Option<Held>,
}

impl Found {
    fn new(config: &Pasta, before: Inherited) -> Result<Self, Error> {
        let Some((namespace, life)) = Namespace::find(config)? else {
            let (held, running, namespace) = Held::start(config, before)?;
            let watch = Some(Watch::Command(running));
            return Ok(Self { namespace, watch, held: Some(held) });
        };
        let watch = config.quit.then(|| Watch::new(life, &namespace)).transpose()?;
        Ok(Self { namespace, watch, held: None })
    }
}

/// Starts the process that makes sockets inside.
fn go_inside(namespace: &Namespace, identity: Identity) -> Result<Inside, Error> {
    let differs = namespace.user().is_none() && identity != Identity::current();
    let confine = || sandbox::confine_inside(differs.then_some(identity)).map_err(io::Error::from);
    let started = Inside::start(|| namespace.enter(), confine);
    started.map_err(|e| match e {
        StartError::Enter(e) => pasta::Error::Enter(e).into(),
        StartError::Process(e) => pasta::Error::Inside(e).into(),
    })
}

/// Makes the interface, or takes over the one that is given, and configures what is to be
/// configured in the namespace.
fn set_up(inside: &mut Inside, config: &Pasta, given: Option<Given>) -> Result<Option<Tap>, Error> {
    let route = inside.get(Wanted::Route).map_err(|e| Error::Inside("open a netlink socket", e))?;
    let Some(asked) = &config.tap else {
        show(&interface::configure(route, None, None)?);
        return Ok(None);
    };
    let tap = if config.given {
        adopt(given)?
    } else {
        let tun = inside.get(Wanted::Tun).map_err(Error::NoTun)?;
        Tap::open(tun, &asked.name)?
    };
    // The namespace of a command goes with it.
    if config.target.runs() {
        tap.leave_to_namespace().map_err(|e| Error::System("leave the tap to its namespace", e))?;
    }
    // The kernel may have filled in a number.
    let made = config::Tap { name: tap.name().to_owned(), ..asked.clone() };
    show(&interface::configure(route, Some(&made), config.config_net.as_ref())?);
    Ok(Some(tap))
}

fn show(warnings: &[String]) {
    warnings.iter().for_each(|warning| warn!("{warning}"));
}
