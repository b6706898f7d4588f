//! Configuration: values only. What was typed ([`options::Typed`]) and what the host says
//! ([`facts::HostFacts`]) become a validated, immutable [`Config`].
//!
//! Knows no sockets, files or clocks. There is one variant per program and link, so that what only
//! one of them understands cannot be asked of another.

pub mod facts;
mod follow;
pub mod guest;
pub mod namespace;
pub mod netplan;
pub mod network;
pub mod options;
pub mod ports;
pub mod resolv;
pub mod rules_wire;
mod summary;
pub mod template;

use crate::flow::Protocol;
use facts::HostFacts;
use guest::{GuestView, Translation};
pub use namespace::{Pasta, Tap, Target};
pub use netplan::NetPlan;
use network::{Enabled, Templates};
use options::{Family, InNamespace, Mode, Typed, Verbosity};
use ports::Rule;
use std::fmt;
use std::path::PathBuf;

/// Bytes of the log file at most, unless `--log-size` says otherwise.
const DEFAULT_LOG_SIZE: u64 = 1 << 20;

/// The smallest MTU of IPv4 (RFC 791 3.2).
const MIN_MTU_V4: u16 = 68;

/// The smallest MTU of IPv6 (RFC 8200 5).
const MIN_MTU_V6: u16 = 1280;

/// What the process does for itself. Known before anything is asked of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Whether it stays in the foreground.
    pub foreground: bool,
    /// How much it logs.
    pub verbosity: Verbosity,
    /// How often it shows counters at most, in seconds.
    pub stats: Option<u32>,
    /// Where it logs to, instead of the system's log.
    pub log_file: Option<PathBuf>,
    /// Bytes of the log file at most.
    pub log_size: u64,
    /// Where its number is written.
    pub pid: Option<PathBuf>,
    /// Where clients find the control socket.
    pub conf_path: Option<PathBuf>,
    /// Whom it becomes, as typed.
    pub runas: Option<String>,
    /// Whether it may isolate itself by chroot(2), where pivot_root(2) fails.
    pub chroot_fallback: bool,
    /// Whether it may go on without a user namespace of its own, where none can be made.
    pub userns_fallback: bool,
}

impl Process {
    /// The part of what was typed that concerns the process. A command is waited for, and what is
    /// on the terminal is its own.
    pub fn new(typed: &Typed) -> Self {
        let runs = typed.namespace.as_ref().is_some_and(|asked| asked.target.runs());
        let verbosity = match typed.verbosity {
            Verbosity::Info if runs => Verbosity::Quiet,
            verbosity => verbosity,
        };
        Self {
            foreground: typed.foreground || runs,
            verbosity,
            stats: typed.stats,
            log_file: typed.log_file.clone(),
            log_size: typed.log_size.unwrap_or(DEFAULT_LOG_SIZE),
            pid: typed.pid.clone(),
            conf_path: typed.conf_path.clone(),
            runas: typed.runas.clone(),
            chroot_fallback: typed.chroot_fallback,
            userns_fallback: typed.userns_fallback,
        }
    }
}

/// What was typed, and what that implies of the guest's network: what [`Network::follow`] goes by.
pub fn implied(mode: Mode, typed: &Typed) -> Typed {
    match mode {
        Mode::Pasta => namespace::implied(typed),
        Mode::VhostUser | Mode::Passt => typed.clone(),
    }
}

/// Which protocols are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
    /// ICMP and ICMPv6 echo.
    pub icmp: bool,
}

/// An interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
}

/// The interfaces that traffic leaves by, where that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// `--outbound-if4`.
    pub v4: Option<Device>,
    /// `--outbound-if6`.
    pub v6: Option<Device>,
}

impl Devices {
    fn new(typed: &Typed, facts: &HostFacts) -> Result<Self, Error> {
        Ok(Self {
            v4: device(&typed.outbound_if4, facts)?,
            v6: device(&typed.outbound_if6, facts)?,
        })
    }
}

fn device(name: &Option<String>, facts: &HostFacts) -> Result<Option<Device>, Error> {
    let Some(name) = name else { return Ok(None) };
    match facts.interface(name) {
        Some(found) => Ok(Some(Device { name: name.clone(), index: found.index })),
        None => Err(Error::UnknownInterface(name.clone())),
    }
}

/// The guest's network, whatever its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What the guest sees.
    pub guest: GuestView,
    /// How addresses are translated.
    pub translation: Translation,
    /// Where it was taken from.
    pub templates: Templates,
    /// Which interfaces its traffic leaves by.
    pub devices: Devices,
    /// Whether ports of addresses that the host does not have may be listened on.
    pub freebind: bool,
    /// Which protocols are passed on.
    pub protocols: Protocols,
    /// Ports of the host that are forwarded to the guest.
    pub forwards: Vec<Rule>,
    /// Where frames are captured.
    pub pcap: Option<PathBuf>,
}

/// Where a virtual machine is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A Unix socket to listen on.
    Listen(PathBuf),
    /// The first free one of the usual ones.
    ListenAnywhere,
    /// A descriptor of ours that is connected already.
    Connected(i32),
}

/// `passt`, whatever the link: a guest of which we see nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The process.
    pub process: Process,
    /// The guest's network.
    pub network: Network,
    /// Where the virtual machine monitor is met.
    pub socket: Socket,
    /// Whether the end of the first client is ours.
    pub one_off: bool,
}

/// What the program does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// `passt`: frames on a stream socket.
    Stream(Box<Machine>),
    /// `passt --vhost-user`: rings in the guest's memory.
    VhostUser(Box<Machine>),
    /// `pasta`: a network namespace.
    Pasta(Box<Pasta>),
    /// `pasta --fd`: an interface in a namespace of which nothing else is known.
    Tap(Box<Machine>),
}

/// Why options make no sense together, or on this host. Each stands alone as a line to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// `--netmask`, and `--address` with a length.
    NetmaskTwice,
    /// `--interface`, or `--outbound-if4` or `-if6`, names none.
    UnknownInterface(String),
    /// `--ipv6-only` without IPv6.
    NoIpv6,
    /// A port option for a protocol that is off.
    ProtocolDisabled(Protocol),
    /// A port option that makes no sense.
    Ports(ports::Error),
    /// Two options that contradict each other.
    Exclusive(&'static str, &'static str),
    /// An option that means nothing without another one.
    Needs(&'static str, &'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NetmaskTwice => {
                f.write_str("Redundant netmask: given with --netmask and with --address")
            }
            Self::UnknownInterface(name) => {
                write!(f, "Invalid interface name {name}: no such interface")
            }
            Self::NoIpv6 => f.write_str("IPv6 not supported by this host's kernel"),
            Self::ProtocolDisabled(Protocol::Tcp) => {
                f.write_str("TCP port forwarding requested, but TCP is disabled")
            }
            Self::ProtocolDisabled(_) => {
                f.write_str("UDP port forwarding requested, but UDP is disabled")
            }
            Self::Ports(error) => error.fmt(f),
            Self::Exclusive(a, b) => write!(f, "Options {a} and {b} exclude each other"),
            Self::Needs(option, other) => write!(f, "Option {option} needs {other}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<ports::Error> for Error {
    fn from(error: ports::Error) -> Self {
        Self::Ports(error)
    }
}

impl Config {
    /// What `typed` means on this host, and what the user is to be warned of.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn new(mode: Mode, typed: &Typed, facts: &HostFacts) -> Result<(Self, Vec<String>), Error> {
        if typed.stats.is_some() && !Process::new(typed).foreground {
            return Err(Error::Needs("--stats", "--foreground"));
        }
        match mode {
            Mode::Pasta => {
                if let Some(fd) = namespace::interface_alone(typed) {
                    let (machine, warnings) = Machine::behind_tap(fd, typed, facts)?;
                    return Ok((Self::Tap(Box::new(machine)), warnings));
                }
                let (pasta, warnings) = Pasta::new(typed, facts)?;
                Ok((Self::Pasta(Box::new(pasta)), warnings))
            }
            Mode::VhostUser => {
                let (machine, warnings) = Machine::new(mode, typed, facts)?;
                Ok((Self::VhostUser(Box::new(machine)), warnings))
            }
            Mode::Passt => {
                let (machine, warnings) = Machine::new(mode, typed, facts)?;
                Ok((Self::Stream(Box::new(machine)), warnings))
            }
        }
    }
}

impl Machine {
    fn new(mode: Mode, typed: &Typed, facts: &HostFacts) -> Result<(Self, Vec<String>), Error> {
        let socket = match (typed.fd, &typed.socket) {
            (Some(_), Some(_)) => return Err(Error::Exclusive("--fd", "--socket")),
            (Some(fd), None) => Socket::Connected(fd),
            (None, Some(path)) => Socket::Listen(path.clone()),
            (None, None) => Socket::ListenAnywhere,
        };
        let (network, warnings) = Network::new(mode, typed, facts)?;
        let process = Process::new(typed);
        let one_off = typed.one_off || typed.fd.is_some();
        Ok((Self { process, network, socket, one_off }, warnings))
    }
}

impl Network {
    fn new(mode: Mode, typed: &Typed, facts: &HostFacts) -> Result<(Self, Vec<String>), Error> {
        if typed.netmask.is_some() && matches!(typed.v4.address, Some((_, Some(_)))) {
            return Err(Error::NetmaskTwice);
        }
        let enabled = enabled(typed, facts)?;
        let devices = Devices::new(typed, facts)?;
        let templates = templates(typed, facts, enabled, &devices)?;
        let (guest, translation) = network::plan(typed, facts, &templates, enabled);
        let forwards = forwards(mode, typed, facts, enabled)?;
        let network = Self {
            guest,
            translation,
            templates,
            devices,
            freebind: typed.freebind,
            protocols: Protocols { tcp: !typed.no_tcp, udp: !typed.no_udp, icmp: !typed.no_icmp },
            forwards,
            pcap: typed.pcap.clone(),
        };
        let warnings = network.warnings(typed);
        Ok((network, warnings))
    }

    /// The number of the interface that link-local IPv6 destinations are on; 0 for none.
    pub fn scope(&self) -> u32 {
        let outbound = self.devices.v6.as_ref().map(|device| device.index);
        let template = || self.templates.v6.as_ref().map(|template| template.interface);
        outbound.or_else(template).unwrap_or(0)
    }

    fn warnings(&self, typed: &Typed) -> Vec<String> {
        let mut warnings = typed.warnings.clone();
        let least = if self.guest.v6.is_some() { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if let Some(mtu) = self.guest.mtu.filter(|mtu| *mtu < least) {
            warnings.push(format!("MTU {mtu} is below the minimum of {least}"));
        }
        if let Some(name) = &typed.interface
            && self.templates == Templates::default()
        {
            warnings.push(format!("Interface {name} has no usable address: local mode"));
        }
        let devices = [
            ("IPv4", &self.devices.v4, self.guest.v4.is_some(), self.templates.v4.is_some()),
            ("IPv6", &self.devices.v6, self.guest.v6.is_some(), self.templates.v6.is_some()),
        ];
        for (family, device, enabled, found) in devices {
            let Some(device) = device.as_ref().filter(|_| enabled && !found) else { continue };
            if typed.interface.is_none() {
                let name = &device.name;
                warnings
                    .push(format!("Interface {name} has no usable {family} address: local mode"));
            }
        }
        let dns = &self.guest.dns;
        let none = dns.v4.is_empty() && dns.v6.is_empty();
        let forwarded = typed.v4.dns_forward.is_some() || typed.v6.dns_forward.is_some();
        if none && !typed.no_dns && (dns.advertise_servers || forwarded) {
            warnings.push("Couldn't get any nameserver address".to_owned());
        }
        warnings
    }
}

fn enabled(typed: &Typed, facts: &HostFacts) -> Result<Enabled, Error> {
    match typed.only {
        Some(Family::V6) if !facts.ipv6 => Err(Error::NoIpv6),
        Some(Family::V6) => Ok(Enabled { v4: false, v6: true }),
        Some(Family::V4) => Ok(Enabled { v4: true, v6: false }),
        None => Ok(Enabled { v4: true, v6: facts.ipv6 }),
    }
}

fn templates(
    typed: &Typed,
    facts: &HostFacts,
    enabled: Enabled,
    devices: &Devices,
) -> Result<Templates, Error> {
    let asked = device(&typed.interface, facts)?;
    let choose = |on: bool, family, outbound: &Option<Device>| {
        let wanted = asked.as_ref().or(outbound.as_ref()).map(|device| device.index);
        on.then(|| template::choose(facts, family, wanted)).flatten()
    };
    Ok(Templates {
        v4: choose(enabled.v4, Family::V4, &devices.v4),
        v6: choose(enabled.v6, Family::V6, &devices.v6),
    })
}

/// What is done with a port option for a protocol that was not given: `pasta` looks at the other
/// side for what is listened on, as far as that protocol is on.
const PASTA_DEFAULT: &str = "auto";

fn forwards(
    mode: Mode,
    typed: &Typed,
    facts: &HostFacts,
    enabled: Enabled,
) -> Result<Vec<Rule>, Error> {
    let context = ports::Context {
        v4: enabled.v4,
        v6: enabled.v6,
        ephemeral: facts.ephemeral.clone(),
        auto_allowed: mode == Mode::Pasta,
        listen_allowed: true,
    };
    rules(&typed.ports, typed, &context)
}

/// The rules for ports inside of a namespace.
fn forwards_inside(
    typed: &Typed,
    asked: &InNamespace,
    facts: &HostFacts,
) -> Result<Vec<Rule>, Error> {
    let enabled = enabled(typed, facts)?;
    let context = ports::Context {
        v4: enabled.v4,
        v6: enabled.v6,
        ephemeral: facts.ephemeral.clone(),
        auto_allowed: true,
        listen_allowed: false,
    };
    rules(&asked.ports, typed, &context)
}

fn rules(
    specs: &[(Protocol, String)],
    typed: &Typed,
    context: &ports::Context,
) -> Result<Vec<Rule>, Error> {
    let mut rules = ports::Rules::default();
    for (protocol, off) in [(Protocol::Tcp, typed.no_tcp), (Protocol::Udp, typed.no_udp)] {
        if context.auto_allowed && !off && specs.iter().all(|(other, _)| *other != protocol) {
            rules.add(protocol, PASTA_DEFAULT, context)?;
        }
        if off && specs.iter().any(|(other, spec)| *other == protocol && spec != "none") {
            return Err(Error::ProtocolDisabled(protocol));
        }
    }
    for (protocol, spec) in specs {
        rules.add(*protocol, spec, context)?;
    }
    Ok(rules.into_vec())
}

#[cfg(test)]
mod tests;
