//! Port forwarding as typed: specifiers such as `192.0.2.1%eth0/2000-5000:80-3080,~3000` become
//! [`Rule`]s.
//!
//! Pure text to values: no sockets, no files. The range of ephemeral ports comes in as an argument
//! because the kernel may change it.
//!
//! ```text
//! SPEC    = "none" | [ LISTEN "/" ] CHUNK *( "," CHUNK )
//! LISTEN  = [ ADDR | "*" ] [ "%" IFNAME ]
//! ADDR    = IPv4 | IPv6 | "[" IPv4-or-IPv6 "]"
//! CHUNK   = "all" [ ":" ADDR ] | "auto" | "~" RANGE
//!         | RANGE [ ":" ( ADDR "/" RANGE | ADDR | RANGE ) ]
//! RANGE   = PORT [ "-" PORT ]
//! ```

mod check;

pub use check::check;

use crate::flow::Protocol;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The ephemeral ports to assume when the kernel does not tell (RFC 6335 6).
pub const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 49_152..=65_535;

/// Rules in one table at most: conflicts are looked for pairwise.
pub const MAX_RULES: usize = 4096;

/// Where ports of a namespace are listened on: out of it, only what is local is forwarded.
pub const LOOPBACK: &str = "lo";

/// Ports that are forwarded from one side to the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The address to listen on. `None` is any address of both families, on one dual-stack
    /// socket; with one family only, its wildcard stands here.
    pub listen: Option<IpAddr>,
    /// The interface to bind to (SO_BINDTODEVICE).
    pub ifname: Option<String>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First port to listen on; never 0.
    pub first: u16,
    /// Last port to listen on, not below `first`.
    pub last: u16,
    /// Where the guest's side of it is addressed; `None` is the guest's own address.
    pub target: Option<IpAddr>,
    /// The port that `first` becomes; the others follow in step, and none of them overflows.
    pub to: u16,
    /// Whether a port that cannot be bound only costs a warning.
    pub weak: bool,
    /// Whether ports are bound only while someone listens on the other side.
    pub auto: bool,
}

impl Rule {
    /// The port towards the guest for a listening port `port` of this rule.
    pub const fn target_port(&self, port: u16) -> u16 {
        self.to.saturating_add(port.saturating_sub(self.first))
    }

    /// Whether listening sockets of both may want the same packets, so that both need
    /// SO_REUSEPORT: the kernel then prefers the more specific one.
    pub fn competes_with(&self, other: &Self) -> bool {
        self.overlaps(other)
            && addresses_meet(self.listen, other.listen)
            && (self.ifname.is_none() || other.ifname.is_none() || self.ifname == other.ifname)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.first <= other.last && other.first <= self.last
    }

    fn same_place(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.listen == other.listen
            && self.ifname == other.ifname
    }

    /// What is left of the rule without the ports from `first` to `last`.
    fn without(self, first: u16, last: u16) -> impl Iterator<Item = Self> {
        let below = (self.first < first)
            .then(|| Self { last: self.last.min(first.saturating_sub(1)), ..self.clone() });
        let above = (self.last > last).then(|| {
            let start = self.first.max(last.saturating_add(1));
            Self { first: start, to: self.target_port(start), ..self }
        });
        below.into_iter().chain(above)
    }
}

fn addresses_meet(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}

/// One line of the summary: `TCP [*]%eth0:22  =>  2222  (best effort)`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.protocol))?;
        match self.listen {
            Some(addr) => write!(f, " [{addr}]")?,
            None => f.write_str(" [*]")?,
        }
        if let Some(ifname) = &self.ifname {
            write!(f, "%{ifname}")?;
        }
        write!(f, ":{}  =>  ", Ports(self.first, self.last))?;
        if let Some(target) = self.target {
            write!(f, "[{target}]:")?;
        }
        write!(f, "{}", Ports(self.to, self.target_port(self.last)))?;
        if self.weak {
            f.write_str("  (best effort)")?;
        }
        if self.auto {
            f.write_str("  (auto-scan)")?;
        }
        Ok(())
    }
}

struct Ports(u16, u16);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 { write!(f, "{}", self.0) } else { write!(f, "{}-{}", self.0, self.1) }
    }
}

const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Echo => "ICMP",
    }
}

/// What specifiers mean depends on this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// IPv4 is enabled.
    pub v4: bool,
    /// IPv6 is enabled.
    pub v6: bool,
    /// Ports that `all` leaves out: the kernel hands them to clients.
    pub ephemeral: RangeInclusive<u16>,
    /// Whether `auto` may be asked for (pasta).
    pub auto_allowed: bool,
    /// Whether a listening address may be given (towards the host; not out of a namespace).
    pub listen_allowed: bool,
}

/// Why a specifier is refused. The text is for the user and stands alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not follow the grammar.
    Invalid {
        /// The whole specifier.
        spec: String,
        /// What is wrong with it.
        reason: Reason,
    },
    /// A rule that no specifier makes.
    Rule(Box<Rule>, Reason),
    /// It wants what another rule has.
    Conflict(Box<(Rule, Rule)>),
    /// IPv4 is off.
    Ipv4Disabled,
    /// IPv6 is off.
    Ipv6Disabled,
    /// `auto` for a program that has no other side to look at.
    AutoNotAllowed,
    /// `none` after a rule of the same protocol.
    NoneAfterRules(Protocol),
    /// More than [`MAX_RULES`].
    TooManyRules,
}

/// What is wrong with a specifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The part before the slash.
    Listen,
    /// The name of an interface.
    Interface,
    /// A listening address where none may stand.
    ListenNotAllowed,
    /// Something between two commas.
    Chunk,
    /// A port or range of ports, from 1 to 65535.
    Range,
    /// What follows the colon.
    Target,
    /// Ranges of different size on both sides of the colon.
    Size,
    /// A target address for a listener of both families.
    DualStackTarget,
    /// A target of another family than the listener.
    TargetFamily,
    /// A target that nobody can have: unspecified, multicast.
    TargetAddress,
    /// Exclusions leave nothing.
    Empty,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { spec, reason } => {
                write!(f, "Invalid port specifier '{spec}': {reason}")
            }
            Self::Rule(rule, reason) => write!(f, "Invalid forwarding rule {rule}: {reason}"),
            Self::Conflict(rules) => {
                let (new, old) = rules.as_ref();
                write!(f, "Forwarding configuration conflict: {new} versus {old}")
            }
            Self::Ipv4Disabled => f.write_str("IPv4 forward, but IPv4 not enabled"),
            Self::Ipv6Disabled => f.write_str("IPv6 forward, but IPv6 not enabled"),
            Self::AutoNotAllowed => f.write_str("'auto' port forwarding is only allowed for pasta"),
            Self::NoneAfterRules(protocol) => {
                write!(f, "{} ports: 'none' given after other port rules", name(*protocol))
            }
            Self::TooManyRules => write!(f, "More than {MAX_RULES} port forwarding rules"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen => "bad listening address",
            Self::Interface => "bad interface name",
            Self::ListenNotAllowed => "listening address not allowed here",
            Self::Chunk => "expected ports, 'all', 'auto' or '~' and ports",
            Self::Range => "bad port or range of ports",
            Self::Target => "bad target address or ports",
            Self::Size => "ranges differ in size",
            Self::DualStackTarget => "target address needs a listening address of its family",
            Self::TargetFamily => "listening and target addresses of different families",
            Self::TargetAddress => "target address can't be unspecified or multicast",
            Self::Empty => "no ports left to forward",
        })
    }
}

/// The rules of one side, in the order in which they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// The rules.
    pub fn as_slice(&self) -> &[Rule] {
        &self.rules
    }

    /// The rules, given away.
    pub fn into_vec(self) -> Vec<Rule> {
        self.rules
    }

    /// Adds what `spec` asks for.
    ///
    /// # Errors
    /// The reason for which nothing was added.
    pub fn add(&mut self, protocol: Protocol, spec: &str, context: &Context) -> Result<(), Error> {
        if spec == "none" {
            if self.rules.iter().any(|r| r.protocol == protocol) {
                return Err(Error::NoneAfterRules(protocol));
            }
            return Ok(());
        }
        let mut all = self.rules.clone();
        for rule in parse(protocol, spec, context)? {
            insert(&mut all, rule)?;
        }
        self.rules = all;
        Ok(())
    }
}

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        Self { rules }
    }
}

/// Puts `rule` behind the others. Explicit ports take theirs away from `all` in the same place,
/// whichever comes first; anything else in the same place twice is a conflict.
fn insert(rules: &mut Vec<Rule>, rule: Rule) -> Result<(), Error> {
    let meets = |r: &Rule| r.same_place(&rule) && r.overlaps(&rule);
    if let Some(other) = rules.iter().find(|r| meets(r) && r.weak == rule.weak) {
        return Err(Error::Conflict(Box::new((rule, other.clone()))));
    }
    if rule.weak {
        let strong = rules.iter().filter(|r| !r.weak && r.same_place(&rule));
        let taken: Vec<_> = strong.map(|r| (r.first, r.last)).collect();
        let mut rest = vec![rule];
        for (first, last) in taken {
            rest = rest.into_iter().flat_map(|r| r.without(first, last)).collect();
        }
        rules.append(&mut rest);
    } else {
        let (first, last) = (rule.first, rule.last);
        let split = std::mem::take(rules).into_iter().flat_map(|r| {
            if r.weak && r.same_place(&rule) { r.without(first, last).collect() } else { vec![r] }
        });
        *rules = split.collect();
        rules.push(rule);
    }
    if rules.len() > MAX_RULES { Err(Error::TooManyRules) } else { Ok(()) }
}

/// What stands between two commas.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    All(Option<IpAddr>),
    Auto,
    Exclude(u16, u16),
    Ports { first: u16, last: u16, target: Option<IpAddr>, to: u16 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listen {
    addr: Option<IpAddr>,
    ifname: Option<String>,
}

/// A set of ports: one bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

impl PortSet {
    /// No ports.
    #[must_use]
    pub fn new() -> Self {
        Self(Box::new([0; 1024]))
    }

    /// Adds the ports from `first` to `last`.
    pub fn insert(&mut self, first: u16, last: u16) {
        for port in first..=last {
            if let Some(word) = self.0.get_mut(usize::from(port / 64)) {
                *word |= 1 << (port % 64);
            }
        }
    }

    /// Whether the port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.get(usize::from(port / 64)).is_some_and(|word| word >> (port % 64) & 1 == 1)
    }

    /// The runs of ports from `first` to `last` that are not in the set.
    fn gaps(&self, first: u16, last: u16) -> Vec<(u16, u16)> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for port in (first..=last).filter(|p| !self.contains(*p)) {
            match runs.last_mut() {
                Some(run) if run.1.checked_add(1) == Some(port) => run.1 = port,
                _ => runs.push((port, port)),
            }
        }
        runs
    }
}

/// The rules of one specifier other than `none`. They may still conflict with each other.
///
/// # Errors
/// What is wrong with it.
pub fn parse(protocol: Protocol, spec: &str, context: &Context) -> Result<Vec<Rule>, Error> {
    let invalid = |reason| Error::Invalid { spec: spec.to_owned(), reason };
    let (listen, chunks) = split(spec).map_err(invalid)?;
    if listen.is_some() && !context.listen_allowed {
        return Err(invalid(Reason::ListenNotAllowed));
    }
    let mut listen = listen.unwrap_or_default();
    if !context.listen_allowed {
        listen.ifname = Some(LOOPBACK.to_owned());
    }
    let addr = listening_address(listen.addr, context)?;

    let mut excluded = PortSet::new();
    let mut explicit = Vec::new();
    let mut all = None;
    let mut auto = false;
    for chunk in &chunks {
        match *chunk {
            Chunk::All(target) => all = Some(target),
            Chunk::Auto => auto = true,
            Chunk::Exclude(first, last) => excluded.insert(first, last),
            Chunk::Ports { first, last, target, to } => explicit.push((first, last, target, to)),
        }
    }
    if auto && !context.auto_allowed {
        return Err(Error::AutoNotAllowed);
    }
    if explicit.is_empty() {
        all = all.or(Some(None)); // exclusions or `auto` alone mean all others
    }

    let mut rules = Vec::new();
    let mut push = |gaps: Vec<(u16, u16)>, from: u16, target: Option<IpAddr>, to: u16, weak| {
        check_target(addr, target).map_err(invalid)?;
        rules.extend(gaps.into_iter().map(|(first, last)| Rule {
            listen: addr,
            ifname: listen.ifname.clone(),
            protocol,
            first,
            last,
            target,
            to: to.saturating_add(first.saturating_sub(from)),
            weak,
            auto,
        }));
        Ok(())
    };
    for (first, last, target, to) in explicit {
        push(excluded.gaps(first, last), first, target, to, false)?;
    }
    if let Some(target) = all {
        excluded.insert(*context.ephemeral.start(), *context.ephemeral.end());
        push(excluded.gaps(1, u16::MAX), 1, target, 1, true)?;
    }
    if rules.is_empty() { Err(invalid(Reason::Empty)) } else { Ok(rules) }
}

/// The address to bind: the wildcard of the only family when there is one, and nothing of a family
/// that is off.
fn listening_address(asked: Option<IpAddr>, context: &Context) -> Result<Option<IpAddr>, Error> {
    match asked {
        Some(IpAddr::V4(_)) if !context.v4 => Err(Error::Ipv4Disabled),
        Some(IpAddr::V6(_)) if !context.v6 => Err(Error::Ipv6Disabled),
        None if !context.v6 => Ok(Some(Ipv4Addr::UNSPECIFIED.into())),
        None if !context.v4 => Ok(Some(Ipv6Addr::UNSPECIFIED.into())),
        asked => Ok(asked),
    }
}

fn check_target(listen: Option<IpAddr>, target: Option<IpAddr>) -> Result<(), Reason> {
    let Some(target) = target else { return Ok(()) };
    let listen = listen.ok_or(Reason::DualStackTarget)?;
    if listen.is_ipv4() != target.is_ipv4() {
        return Err(Reason::TargetFamily);
    }
    if target.is_unspecified() || target.is_multicast() {
        return Err(Reason::TargetAddress);
    }
    Ok(())
}

/// Takes a specifier apart. The first slash ends a listening address, or else belongs to a target
/// (`22:192.0.2.5/23`): only one of both readings parses, except that what looks like an IPv6
/// address with a port in front is an address.
fn split(spec: &str) -> Result<(Option<Listen>, Vec<Chunk>), Reason> {
    let Some((before, after)) = spec.split_once('/') else {
        return Ok((None, parse_chunks(spec)?));
    };
    match parse_listen(before) {
        Ok(listen) => Ok((Some(listen), parse_chunks(after)?)),
        Err(reason) => Ok((None, parse_chunks(spec).map_err(|_| reason)?)),
    }
}

fn parse_listen(text: &str) -> Result<Listen, Reason> {
    let (addr, ifname) = match text.split_once('%') {
        Some((addr, ifname)) if is_interface_name(ifname) => (addr, Some(ifname.to_owned())),
        Some(_) => return Err(Reason::Interface),
        None => (text, None),
    };
    let addr = match addr {
        "" | "*" => None,
        addr => Some(parse_address(addr).ok_or(Reason::Listen)?),
    };
    Ok(Listen { addr, ifname })
}

/// Whether the kernel would take `name` for an interface (`dev_valid_name`).
pub fn is_interface_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace())
}

/// An address, perhaps in brackets. A v4-mapped one is IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
    inner.parse().ok().map(|addr: IpAddr| addr.to_canonical())
}

fn parse_chunks(text: &str) -> Result<Vec<Chunk>, Reason> {
    text.split(',').map(parse_chunk).collect()
}

fn parse_chunk(text: &str) -> Result<Chunk, Reason> {
    if let Some(range) = text.strip_prefix('~') {
        let (first, last) = parse_range(range)?;
        return Ok(Chunk::Exclude(first, last));
    }
    if text == "auto" {
        return Ok(Chunk::Auto);
    }
    let (ports, target) = match text.split_once(':') {
        Some((ports, target)) => (ports, Some(target)),
        None => (text, None),
    };
    if ports == "all" {
        let target = target.map(|t| parse_address(t).ok_or(Reason::Target)).transpose()?;
        return Ok(Chunk::All(target));
    }
    if !ports.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Reason::Chunk);
    }
    let (first, last) = parse_range(ports)?;
    let Some(target) = target else {
        return Ok(Chunk::Ports { first, last, target: None, to: first });
    };
    let (target, to) = parse_target(target)?;
    let (to, to_last) = to.unwrap_or((first, last));
    if last.checked_sub(first) != to_last.checked_sub(to) {
        return Err(Reason::Size);
    }
    Ok(Chunk::Ports { first, last, target, to })
}

type Target = (Option<IpAddr>, Option<(u16, u16)>);

/// What follows the colon: address and ports, an address, or ports.
fn parse_target(text: &str) -> Result<Target, Reason> {
    if let Some((addr, ports)) = text.rsplit_once('/') {
        let addr = parse_address(addr).ok_or(Reason::Target)?;
        return Ok((Some(addr), Some(parse_range(ports)?)));
    }
    match parse_address(text) {
        Some(addr) => Ok((Some(addr), None)),
        None => Ok((None, Some(parse_range(text)?))),
    }
}

fn parse_range(text: &str) -> Result<(u16, u16), Reason> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (parse_port(first)?, parse_port(last)?),
        None => {
            let port = parse_port(text)?;
            (port, port)
        }
    };
    if first > last { Err(Reason::Range) } else { Ok((first, last)) }
}

/// Decimal digits only: `parse` alone would take a sign.
fn parse_port(text: &str) -> Result<u16, Reason> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Reason::Range),
    }
}

/// The two numbers of `/proc/sys/net/ipv4/ip_local_port_range`.
pub fn parse_ephemeral(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => Some(first..=last),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
