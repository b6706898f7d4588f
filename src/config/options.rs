//! The command line as it was typed: one table of options for both programs, and [`Typed`].
//!
//! No I/O and no knowledge of the host: what the options mean there is the next step's subject
//! ([`crate::config::Config`]). Habits are those of `getopt_long`: long options may be abbreviated,
//! values glued, the last one of a kind wins, and the first word that is no option ends them.

mod table;
mod values;

use super::namespace::Target;
use crate::flow::Protocol;
use crate::wire::MacAddr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, ArgMatches, Command, ValueHint, value_parser};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use table::{Action, GROUPS, Opt, options};

/// The program that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// For virtual machines.
    Passt,
    /// For network namespaces.
    Pasta,
}

impl Program {
    /// The program's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passt => "passt",
            Self::Pasta => "pasta",
        }
    }
}

/// What the program is to be: this decides which options exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A virtual machine on a stream socket.
    Passt,
    /// A virtual machine on vhost-user.
    VhostUser,
    /// A network namespace.
    Pasta,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors (`--quiet`).
    Quiet,
    /// And what is of interest to the user.
    #[default]
    Info,
    /// And why things happen (`--debug`); to standard error and the file, never to the system's
    /// log.
    Debug,
    /// And single packets and events (`--trace`).
    Trace,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What was typed for one IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerFamily<A> {
    /// `--address`, with its prefix length if it carried one.
    pub address: Option<(A, Option<u8>)>,
    /// `--gateway`.
    pub gateway: Option<A>,
    /// `--outbound`.
    pub outbound: Option<A>,
    /// `--map-host-loopback`.
    pub map_host_loopback: Option<A>,
    /// `--map-guest-addr`.
    pub map_guest_addr: Option<A>,
    /// `--dns-forward`.
    pub dns_forward: Option<A>,
    /// `--dns-host`.
    pub dns_host: Option<A>,
}

impl<A> Default for PerFamily<A> {
    fn default() -> Self {
        Self {
            address: None,
            gateway: None,
            outbound: None,
            map_host_loopback: None,
            map_guest_addr: None,
            dns_forward: None,
            dns_host: None,
        }
    }
}

/// What was typed for a namespace: options of `pasta` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InNamespace {
    /// `--ns-ifname`.
    pub ifname: Option<String>,
    /// `--ns-mac-addr`.
    pub mac: Option<MacAddr>,
    /// `--userns`, unless `--netns-only` came later.
    pub userns: Option<PathBuf>,
    /// `--netns`, as a path.
    pub netns: Option<PathBuf>,
    /// `--netns-only`, unless `--userns` came later.
    pub netns_only: bool,
    /// `--no-netns-quit`.
    pub no_quit: bool,
    /// `--config-net`.
    pub config_net: bool,
    /// `--no-copy-routes`.
    pub no_copy_routes: bool,
    /// `--no-copy-addrs`.
    pub no_copy_addrs: bool,
    /// `--dhcp-dns`.
    pub dhcp_dns: bool,
    /// `--dhcp-search`.
    pub dhcp_search: bool,
    /// `--host-lo-to-ns-lo`.
    pub lo_to_lo: bool,
    /// `--no-splice`.
    pub no_splice: bool,
    /// `--splice-only`.
    pub splice_only: bool,
    /// `--tcp-ns` and `--udp-ns`, in order.
    pub ports: Vec<(Protocol, String)>,
    /// What the words behind the options, or `--netns`, ask for.
    pub target: Target,
}

/// The command line as it was typed. Each value is sound by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--fd`.
    pub fd: Option<i32>,
    /// `--one-off`.
    pub one_off: bool,
    /// `--foreground`.
    pub foreground: bool,
    /// The last of `--quiet`, `--debug` and `--trace`.
    pub verbosity: Verbosity,
    /// `--log-file`.
    pub log_file: Option<PathBuf>,
    /// `--log-size`, in bytes.
    pub log_size: Option<u64>,
    /// `--stats`, in seconds.
    pub stats: Option<u32>,
    /// `--pcap`.
    pub pcap: Option<PathBuf>,
    /// `--pid`.
    pub pid: Option<PathBuf>,
    /// `--conf-path`.
    pub conf_path: Option<PathBuf>,
    /// `--runas`, as it stands: names are not looked up here.
    pub runas: Option<String>,
    /// `--chroot-fallback`.
    pub chroot_fallback: bool,
    /// `--userns-fallback`.
    pub userns_fallback: bool,
    /// `--mtu`; 0 is a value.
    pub mtu: Option<u16>,
    /// `--mac-addr`.
    pub mac: Option<MacAddr>,
    /// `--interface`.
    pub interface: Option<String>,
    /// `--outbound-if4`.
    pub outbound_if4: Option<String>,
    /// `--outbound-if6`.
    pub outbound_if6: Option<String>,
    /// Options of IPv4.
    pub v4: PerFamily<Ipv4Addr>,
    /// Options of IPv6.
    pub v6: PerFamily<Ipv6Addr>,
    /// `--netmask`, as a prefix length.
    pub netmask: Option<u8>,
    /// The last of `--ipv4-only` and `--ipv6-only`.
    pub only: Option<Family>,
    /// `--dns`.
    pub dns: Vec<IpAddr>,
    /// `--dns none`, and no address after it.
    pub no_dns: bool,
    /// `--search`.
    pub search: Vec<String>,
    /// `--search none`, and no name after it.
    pub no_search: bool,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--fqdn`.
    pub fqdn: Option<String>,
    /// `--no-map-gw`.
    pub no_map_gw: bool,
    /// `--no-tcp`.
    pub no_tcp: bool,
    /// `--no-udp`.
    pub no_udp: bool,
    /// `--no-icmp`.
    pub no_icmp: bool,
    /// `--no-dhcp`.
    pub no_dhcp: bool,
    /// `--no-dhcpv6`.
    pub no_dhcpv6: bool,
    /// `--no-ndp`.
    pub no_ndp: bool,
    /// `--no-ra`.
    pub no_ra: bool,
    /// `--freebind`.
    pub freebind: bool,
    /// `--no-dhcp-dns`.
    pub no_dhcp_dns: bool,
    /// `--no-dhcp-search`.
    pub no_dhcp_search: bool,
    /// `--tcp-ports` and `--udp-ports`, in order.
    pub ports: Vec<(Protocol, String)>,
    /// What only `pasta` understands; `None` for the others.
    pub namespace: Option<Box<InNamespace>>,
    /// What to tell the user without stopping.
    pub warnings: Vec<String>,
}

impl Typed {
    /// What was typed for a namespace, to be added to.
    fn namespace(&mut self) -> &mut InNamespace {
        self.namespace.get_or_insert_default()
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Print this on standard output and end with status 0.
    Print(String),
    /// Run.
    Run(Mode, Box<Typed>),
}

/// Why the command line is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One line that stands alone.
    pub message: String,
    /// What to print behind it, for a line that names no known option.
    pub usage: Option<String>,
}

impl Error {
    fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), usage: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Reads a command line, `args` being what follows the name `argv0` of the program.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(program: Program, argv0: &str, args: &[OsString]) -> Result<Request, Error> {
    let error = match matches(program, args) {
        Ok(found) => return apply(program, &found),
        Err(error) => error,
    };
    // `--version` acts at once, as options are read in order: what stands behind it is not looked
    // at. Clap looks at the whole line first.
    for n in (0..args.len()).filter(|n| args.get(*n).is_some_and(|arg| may_print(arg))) {
        let Some(found) = args.get(..=n).and_then(|start| matches(program, start).ok()) else {
            continue;
        };
        if let Ok(Request::Print(text)) = apply(program, &found) {
            return Ok(Request::Print(text));
        }
    }
    Err(refusal(program, argv0, args, &error))
}

/// Whether `arg` may hold an option that prints something and ends.
fn may_print(arg: &OsStr) -> bool {
    let arg = arg.as_encoded_bytes();
    ["--v", "--h", "--p"].iter().any(|start| arg.starts_with(start.as_bytes()))
        || (arg.starts_with(b"-") && !arg.starts_with(b"--") && arg.contains(&b'h'))
}

const POSITIONAL: &str = "COMMAND";

fn matches(program: Program, args: &[OsString]) -> Result<ArgMatches, Box<clap::Error>> {
    command(program).no_binary_name(true).try_get_matches_from(args).map_err(Box::new)
}

/// The options of `program` for clap. Those of the other program are known as well, so that they
/// can be refused by name, but hidden.
pub fn command(program: Program) -> Command {
    Command::new(program.name())
        .override_usage(usage(program))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args(GROUPS.iter().flat_map(|(heading, group)| {
            group.iter().map(|option| argument(program, heading, option))
        }))
        .arg(
            clap::Arg::new(POSITIONAL)
                .num_args(0..)
                .trailing_var_arg(true)
                .value_parser(value_parser!(OsString))
                .hide(true),
        )
}

/// The options that the help text of `program` shows, for manual pages and completions.
pub fn documented(program: Program) -> Command {
    let all = command(program);
    let shown = all.get_arguments().filter(|arg| !arg.is_hide_set()).map(|arg| {
        match options().find(|option| arg.get_id() == option.long).map(|option| option.action) {
            Some(Action::Path(..)) => arg.clone().value_hint(ValueHint::FilePath),
            Some(Action::Text(..)) => arg.clone().value_hint(ValueHint::Other),
            _ => arg.clone(),
        }
    });
    let about = match program {
        Program::Passt => "the network of a virtual machine, without privileges",
        Program::Pasta => "the network of a namespace, without privileges",
    };
    Command::new(program.name())
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .override_usage(usage(program))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(shown.collect::<Vec<_>>())
}

const fn usage(program: Program) -> &'static str {
    match program {
        Program::Passt => "passt [OPTION]...",
        Program::Pasta => "pasta [OPTION]... [COMMAND] [ARGS]...\n       pasta [OPTION]... PID",
    }
}

fn argument(program: Program, heading: &'static str, option: &Opt) -> clap::Arg {
    let modes: &[Mode] = match program {
        Program::Passt => &[Mode::Passt, Mode::VhostUser],
        Program::Pasta => &[Mode::Pasta],
    };
    let mut arg = clap::Arg::new(option.long)
        .long(option.long)
        .visible_aliases(option.aliases)
        .help(option.help(program))
        .help_heading(heading)
        .hide(!modes.iter().any(|mode| option.documented_in(*mode)))
        .value_parser(value_parser!(OsString))
        .action(ArgAction::Append);
    if let Some(short) = option.short {
        arg = arg.short(short);
    }
    match option.value() {
        Some(name) => arg.value_name(name).num_args(1).allow_hyphen_values(true),
        // A value that nobody sees: clap then keeps the place of every occurrence.
        None => arg.num_args(0).default_missing_value(""),
    }
}

/// Options in the order in which they were typed.
fn in_order(found: &ArgMatches) -> Vec<(&'static Opt, &OsStr)> {
    let named = |name| options().find(|option| option.long == name);
    let typed = getopt_order(found, options().map(|option| option.long));
    typed.into_iter().filter_map(|(name, value)| Some((named(name)?, value))).collect()
}

/// The options of these names with their values, in the order in which they were typed.
pub fn getopt_order(
    found: &ArgMatches,
    names: impl Iterator<Item = &'static str>,
) -> Vec<(&'static str, &OsStr)> {
    let mut typed: Vec<_> = names
        .filter_map(|name| {
            let places = found.indices_of(name)?.zip(found.get_raw(name)?);
            Some(places.map(move |(place, value)| (place, name, value)))
        })
        .flatten()
        .collect();
    typed.sort_unstable_by_key(|(place, ..)| *place);
    typed.into_iter().map(|(_, name, value)| (name, value)).collect()
}

fn apply(program: Program, found: &ArgMatches) -> Result<Request, Error> {
    let mode = match program {
        _ if found.contains_id(table::VHOST_USER) => Mode::VhostUser,
        Program::Passt => Mode::Passt,
        Program::Pasta => Mode::Pasta,
    };
    let mut typed = Typed::default();
    for (option, value) in in_order(found) {
        let name = option.long;
        if !option.exists_in(mode) {
            let owner = option.owner();
            return Err(Error::plain(format!("--{name} is for {owner} mode only")));
        }
        let outcome = match option.action {
            Action::Flag(set) => {
                set(&mut typed);
                Ok(())
            }
            Action::Text(_, set) => match value.to_str() {
                Some(value) => set(&mut typed, value),
                None => Err(format!("Invalid --{name}: not UTF-8")),
            },
            Action::Path(_, set) => set(&mut typed, value.as_ref()),
            Action::Print(text) => return Ok(Request::Print(text(program))),
        };
        outcome.map_err(Error::plain)?;
    }
    let words: Vec<_> = found.get_raw(POSITIONAL).into_iter().flatten().collect();
    if mode == Mode::Pasta {
        let namespace = typed.namespace();
        let netns = namespace.netns.clone();
        let target = target(&words, netns.as_deref(), typed.fd);
        typed.namespace().target = target.map_err(Error::plain)?;
    } else if let Some(extra) = words.first() {
        let extra = extra.to_string_lossy();
        return Err(Error::plain(format!("Extra non-option argument: {extra}")));
    }
    Ok(Request::Run(mode, Box::new(typed)))
}

/// What the words behind `pasta`'s options mean: nothing but digits is the number of a process,
/// anything else a command, which gets an interface of its own: no one else's.
fn target(words: &[&OsStr], netns: Option<&Path>, fd: Option<i32>) -> Result<Target, String> {
    match (words, netns) {
        ([], None) => Ok(fd.map_or(Target::Shell, Target::OfInterface)),
        ([], Some(path)) => Ok(Target::Path(path.to_owned())),
        (_, Some(_)) => Err("Both --netns and PID or command given".to_owned()),
        ([word], None) if is_number(word) => {
            let pid = word.to_str().and_then(|word| word.parse().ok()).filter(|pid| *pid > 0);
            pid.map(Target::Pid).ok_or_else(|| format!("Invalid PID: {}", word.to_string_lossy()))
        }
        (_, None) if fd.is_some() => Err("Both --fd and command given".to_owned()),
        (words, None) => {
            Ok(Target::Command(words.iter().map(|word| OsString::from(*word)).collect()))
        }
    }
}

fn is_number(word: &OsStr) -> bool {
    let word = word.as_encoded_bytes();
    !word.is_empty() && word.iter().all(u8::is_ascii_digit)
}

fn refusal(program: Program, argv0: &str, args: &[OsString], error: &clap::Error) -> Error {
    let names = options().flat_map(|o| std::iter::once(&o.long).chain(o.aliases)).copied();
    Error { message: complaint(argv0, args, error, names), usage: Some(help(program)) }
}

/// What `getopt_long` would say about a program of these options: others look for these words.
pub fn complaint(
    argv0: &str,
    args: &[OsString],
    error: &clap::Error,
    names: impl Iterator<Item = &'static str>,
) -> String {
    let arg = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => arg.split(' ').next().unwrap_or(arg),
        _ => "",
    };
    let message = match error.kind() {
        ErrorKind::UnknownArgument => unknown(arg, &as_typed(arg, args), names),
        ErrorKind::TooManyValues => format!("option '{arg}' doesn't allow an argument"),
        _ => format!("option '{arg}' requires an argument"),
    };
    format!("{argv0}: {message}")
}

/// `arg` with the value behind `=` that it was typed with.
fn as_typed(arg: &str, args: &[OsString]) -> String {
    let is_it = |word: &Cow<'_, str>| {
        word.strip_prefix(arg).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    let word = args.iter().map(|word| word.to_string_lossy()).find(is_it);
    word.map_or_else(|| arg.to_owned(), Cow::into_owned)
}

fn unknown(arg: &str, typed: &str, names: impl Iterator<Item = &'static str>) -> String {
    let Some(start) = arg.strip_prefix("--") else {
        return format!("invalid option -- '{}'", arg.trim_start_matches('-'));
    };
    let candidates: Vec<_> =
        names.filter(|n| n.starts_with(start)).map(|n| format!("'--{n}'")).collect();
    if start.is_empty() || candidates.is_empty() {
        format!("unrecognized option '{typed}'")
    } else {
        format!("option '{typed}' is ambiguous; possibilities: {}", candidates.join(" "))
    }
}

fn help(program: Program) -> String {
    command(program).render_help().to_string()
}

/// The version, as others parse it: the name and the version on the first line, an empty last one.
fn version(program: Program) -> String {
    version_of(program.name())
}

/// As `version`, of any program.
pub fn version_of(name: &str) -> String {
    format!(
        "{name} {}\npasst-rs, a user-mode network stack for virtual machines and containers.\n\
         Licensed under the Apache License, Version 2.0, without warranties of any kind.\n\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The vhost-user back-end program conventions ask for this on standard output.
fn capabilities(_: Program) -> String {
    "{\n  \"type\": \"net\"\n}\n".to_owned()
}

#[cfg(test)]
mod tests;
