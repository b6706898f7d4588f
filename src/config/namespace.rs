//! `pasta`: a network namespace, what is made in it, and what passes between it and the host.

use super::facts::HostFacts;
use super::netplan::NetPlan;
use super::options::{InNamespace, Mode, Typed};
use super::ports::Rule;
use super::{Error, Machine, Network, Process, Socket};
use crate::flow::Protocol;
use crate::wire::MacAddr;
use std::ffi::OsString;
use std::path::PathBuf;

/// The interface in the namespace when the host has none to be named after.
const DEFAULT_TAP: &str = "tap0";

/// What options need that act inside of a namespace that exists.
const JOINED: &str = "--netns or a PID";

/// Packets that the interface keeps for us at most. The kernel drops what comes beyond them and
/// slows nobody down (its queue is never stopped), so there must be place for all that the
/// windows of many connections allow; it costs 8 bytes each until they are used.
pub const QUEUE_LENGTH: u16 = 8192;

/// Which namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// A new one, for this command and its arguments; never empty.
    Command(Vec<OsString>),
    /// A new one, for the user's shell.
    #[default]
    Shell,
    /// That of a process; positive.
    Pid(i32),
    /// That which a file stands for.
    Path(PathBuf),
    /// That of the interface of which this is a descriptor (`--fd`). We know nothing else of it,
    /// and have nothing to do in it.
    OfInterface(i32),
}

impl Target {
    /// Whether something runs in the namespace that is ours to wait for.
    pub const fn runs(&self) -> bool {
        matches!(self, Self::Command(_) | Self::Shell)
    }
}

/// The interface in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` is the kernel's choice.
    pub mac: Option<MacAddr>,
    /// Its MTU; `None` (`--mtu 0`) is the kernel's choice.
    pub mtu: Option<u16>,
}

/// `pasta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pasta {
    /// The process.
    pub process: Process,
    /// The namespace's network, seen from the tap.
    pub network: Network,
    /// Which namespace.
    pub target: Target,
    /// The user namespace to join, instead of a new one or the process's.
    pub userns: Option<PathBuf>,
    /// Whether the user namespace stays as it is: neither joined nor created.
    pub netns_only: bool,
    /// Whether the end of a namespace that was joined is ours.
    pub quit: bool,
    /// The interface inside; `None` is `--splice-only`.
    pub tap: Option<Tap>,
    /// Whether someone else has made the interface, and we get its descriptor (`--fd`): then its
    /// name is what it is.
    pub given: bool,
    /// What to configure inside; `None` leaves it to others, but for the loopback interface.
    pub config_net: Option<NetPlan>,
    /// Whether connections between loopback addresses are spliced.
    pub splice: bool,
    /// Whether connections to the host's loopback address go to the namespace's, rather than to
    /// its own address.
    pub lo_to_lo: bool,
    /// Ports inside that are forwarded to the host, on the loopback interface.
    pub inside: Vec<Rule>,
    /// The host's name inside, where a command runs.
    pub hostname: Option<String>,
}

impl Pasta {
    /// What `typed` means on this host, and what the user is to be warned of.
    pub(super) fn new(typed: &Typed, facts: &HostFacts) -> Result<(Self, Vec<String>), Error> {
        let asked = typed.namespace.as_deref().cloned().unwrap_or_default();
        exclusions(typed, &asked)?;
        let typed = &with_implications(typed, &asked);
        let (network, warnings) = Network::new(Mode::Pasta, typed, facts)?;
        let inside = super::forwards_inside(typed, &asked, facts)?;
        let tap = (!asked.splice_only).then(|| tap(&asked, &network));
        let plan = tap.as_ref().filter(|_| asked.config_net);
        let config_net = plan.map(|_| NetPlan::new(typed, &asked, facts, &network));
        let joined_alone = matches!(asked.target, Target::Path(_)) && asked.userns.is_none();
        let pasta = Self {
            process: Process::new(typed),
            network,
            userns: asked.userns,
            netns_only: asked.netns_only || joined_alone,
            quit: !asked.no_quit,
            tap,
            given: typed.fd.is_some(),
            config_net,
            splice: !asked.no_splice,
            lo_to_lo: asked.lo_to_lo || asked.splice_only,
            inside,
            hostname: typed.hostname.clone().filter(|_| asked.target.runs()),
            target: asked.target,
        };
        Ok((pasta, warnings))
    }

    /// The configuration in words, line by line.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(tap) = &self.tap {
            let known = (!self.given).then(|| format!("Namespace interface: {}", tap.name));
            lines.extend(known);
            lines.extend(self.network.summary());
        } else {
            lines.extend(self.network.forwards_summary());
        }
        if !self.inside.is_empty() {
            lines.push("Outbound forwarding rules (SPLICE):".to_owned());
            lines.extend(self.inside.iter().map(|rule| format!("    {rule}")));
        }
        lines
    }
}

/// The descriptor of the interface that is all we know of a namespace.
pub(super) fn interface_alone(typed: &Typed) -> Option<i32> {
    match typed.namespace.as_ref()?.target {
        Target::OfInterface(fd) => Some(fd),
        _ => None,
    }
}

impl Machine {
    /// Where there is an interface and nothing else that we know of ([`Target::OfInterface`]): a
    /// guest of which we see its frames, as those of virtual machines are.
    pub(super) fn behind_tap(
        fd: i32,
        typed: &Typed,
        facts: &HostFacts,
    ) -> Result<(Self, Vec<String>), Error> {
        let asked = typed.namespace.as_deref().cloned().unwrap_or_default();
        exclusions(typed, &asked)?;
        exclusions_outside(typed, &asked)?;
        let typed = &with_implications(typed, &asked);
        // Who listens inside is not to be seen: ports are those that are named, as for a machine.
        let (network, warnings) = Network::new(Mode::Passt, typed, facts)?;
        let (process, socket) = (Process::new(typed), Socket::Connected(fd));
        Ok((Self { process, network, socket, one_off: true }, warnings))
    }
}

/// Refuses options that make no sense together.
fn exclusions(typed: &Typed, asked: &InNamespace) -> Result<(), Error> {
    if asked.no_splice && asked.splice_only {
        return Err(Error::Exclusive("--no-splice", "--splice-only"));
    }
    if asked.no_splice && asked.lo_to_lo {
        return Err(Error::Exclusive("--no-splice", "--host-lo-to-ns-lo"));
    }
    if asked.no_copy_routes && !asked.config_net {
        return Err(Error::Needs("--no-copy-routes", "--config-net"));
    }
    if asked.no_copy_addrs && !asked.config_net {
        return Err(Error::Needs("--no-copy-addrs", "--config-net"));
    }
    if typed.fd.is_some() && asked.splice_only {
        return Err(Error::Exclusive("--fd", "--splice-only"));
    }
    if typed.fd.is_some() && asked.ifname.is_some() {
        return Err(Error::Exclusive("--fd", "--ns-ifname"));
    }
    let joined = matches!(asked.target, Target::Pid(_) | Target::Path(_));
    if asked.userns.is_some() && !joined {
        return Err(Error::Needs("--userns", JOINED));
    }
    Ok(())
}

/// Refuses what can be done only inside of a namespace, where there is but an interface.
fn exclusions_outside(typed: &Typed, asked: &InNamespace) -> Result<(), Error> {
    let forwards = |protocol| asked.ports.iter().any(|(p, spec)| *p == protocol && spec != "none");
    let auto = |spec: &str| spec.split(',').any(|part| part == "auto");
    let looks = |protocol| typed.ports.iter().any(|(p, spec)| *p == protocol && auto(spec));
    let inside = [
        ("--config-net", asked.config_net),
        ("--ns-mac-addr", asked.mac.is_some()),
        ("--host-lo-to-ns-lo", asked.lo_to_lo),
        ("--tcp-ns", forwards(Protocol::Tcp)),
        ("--udp-ns", forwards(Protocol::Udp)),
        ("--tcp-ports auto", looks(Protocol::Tcp)),
        ("--udp-ports auto", looks(Protocol::Udp)),
    ];
    let wanted = inside.into_iter().find(|(_, wanted)| *wanted);
    wanted.map_or(Ok(()), |(option, _)| Err(Error::Needs(option, JOINED)))
}

/// What was typed for a namespace, and what that implies.
pub(super) fn implied(typed: &Typed) -> Typed {
    with_implications(typed, &typed.namespace.as_deref().cloned().unwrap_or_default())
}

/// What was typed, and what that implies.
fn with_implications(typed: &Typed, asked: &InNamespace) -> Typed {
    let mut typed = typed.clone();
    typed.no_ra |= asked.config_net;
    if asked.splice_only {
        typed.no_icmp = true;
        (typed.no_dns, typed.no_search) = (true, true);
        typed.dns.clear();
        typed.search.clear();
    }
    typed.no_dhcp_dns = !asked.dhcp_dns;
    typed.no_dhcp_search = !asked.dhcp_search;
    typed
}

fn tap(asked: &InNamespace, network: &Network) -> Tap {
    let templates = [&network.templates.v4, &network.templates.v6];
    let template = templates.into_iter().flatten().next().map(|template| template.name.clone());
    let name = asked.ifname.clone().or(template).unwrap_or_else(|| DEFAULT_TAP.to_owned());
    Tap { name, mac: asked.mac, mtu: network.guest.mtu }
}

#[cfg(test)]
mod tests;
