//! What the options of `pesto` do to the tables of a daemon. Pure.

use super::options::Step;
use crate::config;
use crate::config::ports::{self, Context, Rules};
use crate::config::rules_wire::{About, SPLICE, Table};
use crate::flow::Protocol;
use std::fmt;
use std::ops::RangeInclusive;

/// Why the tables cannot be changed as asked. Each is one line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// The daemon has no such table.
    NoTable(String),
    /// What is to be deleted is not there.
    NoRule(Box<ports::Rule>),
    /// The daemon cannot bind to interfaces.
    NoInterfaces,
    /// The protocol is off, or the rules make no sense.
    Config(config::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(name) => write!(f, "No forwarding table {name}"),
            Self::NoRule(rule) => write!(f, "No such forwarding rule: {rule}"),
            Self::NoInterfaces => f.write_str("Interface names are not supported there"),
            Self::Config(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<ports::Error> for Error {
    fn from(error: ports::Error) -> Self {
        Self::Config(error.into())
    }
}

/// What a port option does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The first one for a table empties it, then they add.
    Replace,
    Add,
    Delete,
}

/// Does all `steps` in order; `ephemeral` are the ports that `all` leaves out.
///
/// # Errors
/// The first step that cannot be done. The tables are to be forgotten then.
pub(super) fn apply(
    tables: &mut [Table<About>],
    steps: &[Step],
    ephemeral: &RangeInclusive<u16>,
) -> Result<(), Error> {
    let mut mode = Mode::Replace;
    let mut replaced = Vec::new();
    for step in steps {
        match step {
            Step::Add => mode = Mode::Add,
            Step::Delete => mode = Mode::Delete,
            Step::Clear(name) => {
                let known = tables.iter_mut().find(|t| t.about.name.eq_ignore_ascii_case(name));
                known.ok_or_else(|| Error::NoTable(name.clone()))?.rules.clear();
            }
            Step::Ports { pif, protocol, spec } => {
                let known = tables.iter_mut().find(|table| table.pif == *pif);
                let table = known.ok_or_else(|| Error::NoTable(name_of(*pif).to_owned()))?;
                if mode == Mode::Replace && !replaced.contains(pif) {
                    table.rules.clear();
                    replaced.push(*pif);
                }
                let context = context(table, *protocol, spec, ephemeral)?;
                match mode {
                    Mode::Delete => delete(table, *protocol, spec, &context)?,
                    Mode::Replace | Mode::Add => add(table, *protocol, spec, &context)?,
                }
            }
        }
    }
    Ok(())
}

const fn name_of(pif: u8) -> &'static str {
    if pif == SPLICE { "SPLICE" } else { "HOST" }
}

/// What the daemon lets a table have.
fn context(
    table: &Table<About>,
    protocol: Protocol,
    spec: &str,
    ephemeral: &RangeInclusive<u16>,
) -> Result<Context, Error> {
    let caps = table.about.caps;
    let on = if protocol == Protocol::Udp { caps.udp } else { caps.tcp };
    if !on && spec != "none" {
        return Err(Error::Config(config::Error::ProtocolDisabled(protocol)));
    }
    Ok(Context {
        v4: caps.v4,
        v6: caps.v6,
        ephemeral: ephemeral.clone(),
        auto_allowed: caps.scan,
        listen_allowed: table.pif != SPLICE,
    })
}

fn add(
    table: &mut Table<About>,
    protocol: Protocol,
    spec: &str,
    context: &Context,
) -> Result<(), Error> {
    let mut rules = Rules::from(std::mem::take(&mut table.rules));
    rules.add(protocol, spec, context)?;
    table.rules = rules.into_vec();
    let bound = table.rules.iter().any(|rule| rule.ifname.is_some());
    if bound && !table.about.caps.ifname { Err(Error::NoInterfaces) } else { Ok(()) }
}

fn delete(
    table: &mut Table<About>,
    protocol: Protocol,
    spec: &str,
    context: &Context,
) -> Result<(), Error> {
    if spec == "none" {
        return Ok(());
    }
    for rule in ports::parse(protocol, spec, context)? {
        match table.rules.iter().position(|there| *there == rule) {
            Some(at) => drop(table.rules.remove(at)),
            None => return Err(Error::NoRule(Box::new(rule))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules_wire::{Caps, HOST};

    fn daemon(bits: u32) -> Vec<Table<About>> {
        let table = |pif, name: &str| {
            let about = About { name: name.to_owned(), caps: Caps::from_bits(bits) };
            Table { pif, about, rules: Vec::new() }
        };
        vec![table(HOST, "HOST"), table(SPLICE, "SPLICE")]
    }

    fn steps(line: &str) -> Vec<Step> {
        let args: Vec<_> = line.split_whitespace().chain(["sock"]).map(Into::into).collect();
        match super::super::options::parse("pesto", &args) {
            Ok(super::super::options::Request::Run(typed)) => typed.steps,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// The rules of both tables after lines, one after the other.
    fn after(bits: u32, lines: &[&str]) -> Result<Vec<String>, String> {
        let mut tables = daemon(bits);
        for line in lines {
            apply(&mut tables, &steps(line), &(32_768..=60_999)).map_err(|e| e.to_string())?;
        }
        Ok(tables.iter().flat_map(|t| &t.rules).map(ToString::to_string).collect())
    }

    #[track_caller]
    fn becomes(lines: &[&str], expected: &[&str]) {
        assert_eq!(after(63, lines).unwrap(), expected, "{lines:?}");
    }

    #[test]
    fn the_first_ports_for_a_table_replace_its_rules_and_others_join_them() {
        becomes(&["-t 22"], &["TCP [*]:22  =>  22"]);
        becomes(&["-t 22 -u 53", "-t 23"], &["TCP [*]:23  =>  23"]);
        becomes(&["-t 22", "-u 53 -t 23"], &["UDP [*]:53  =>  53", "TCP [*]:23  =>  23"]);
        becomes(&["-t 22 -T 80", "-T 81"], &["TCP [*]:22  =>  22", "TCP [*]%lo:81  =>  81"]);
        becomes(&["-t 22", "-t none"], &[]);
        becomes(&["-t 22", "-u none"], &[]);
    }

    #[test]
    fn add_keeps_what_is_there_and_delete_takes_exactly_what_it_names() {
        let both = ["TCP [*]:22  =>  22", "UDP [*]:53  =>  5353"];
        becomes(&["-t 22", "-A -u 53:5353"], &both);
        becomes(&["-t 22 -u 53:5353", "-D -t 22"], &both[1..]);
        becomes(&["-t 22 -u 53:5353", "-D -t 22 -A -t 22"], &["UDP [*]:53  =>  5353", both[0]]);
        becomes(&["-t 22", "-C HOST"], &[]);
        becomes(&["-t 22 -T 1", "-C splice"], &["TCP [*]:22  =>  22"]);
        becomes(&["-t 22", "-C HOST -A -t 23"], &["TCP [*]:23  =>  23"]);
        becomes(&["-t all -T auto", "-D -t all -T auto -t none"], &[]);
        becomes(&["-t 22", "-D -t none"], &["TCP [*]:22  =>  22"]);
    }

    #[test]
    fn podmans_lines_do_what_podman_means() {
        let one = ["TCP [0.0.0.0]:8080  =>  8080", "TCP [::]:8080  =>  8080"];
        becomes(&["--add -t 0.0.0.0/8080 -t [::]/8080"], &one);
        becomes(
            &[
                "--add -t 0.0.0.0/8080 -t [::]/8080",
                "--add -u [2001:db8::1]/1000-1002",
                "--delete -u [2001:db8::1]/1000-1002",
            ],
            &one,
        );
        becomes(
            &["--add -t 0.0.0.0/8080 -t [::]/8080", "--delete -t 0.0.0.0/8080 -t [::]/8080"],
            &[],
        );
    }

    #[test]
    fn what_is_not_there_or_there_already_is_an_error() {
        for (lines, message) in [
            (&["-D -t 22"][..], "No such forwarding rule: TCP [*]:22  =>  22"),
            (&["-t 22", "-D -t 22:23"], "No such forwarding rule: TCP [*]:22  =>  23"),
            (&["-t 22", "-D -u 22"], "No such forwarding rule: UDP [*]:22  =>  22"),
            (&["-t 22", "-D -t %lo/22"], "No such forwarding rule: TCP [*]%lo:22  =>  22"),
            (&["-t 22", "-A -t 22"], "Forwarding configuration conflict: "),
            (&["-t 22", "-A -t none"], "TCP ports: 'none' given after other port rules"),
            (&["-C BOGUS"], "No forwarding table BOGUS"),
            (&["-T 127.0.0.1/22"], "Invalid port specifier '127.0.0.1/22': listening address"),
            (&["-t 22-21"], "Invalid port specifier '22-21': bad port or range of ports"),
        ] {
            let error = after(63, lines).unwrap_err();
            assert!(error.starts_with(message), "{lines:?}: {error}");
        }
    }

    #[test]
    fn what_the_daemon_cannot_do_is_not_asked_of_it() {
        for (bits, line, message) in [
            (63 - 1, "-t 127.0.0.1/22", "IPv4 forward, but IPv4 not enabled"),
            (63 - 2, "-t ::1/22", "IPv6 forward, but IPv6 not enabled"),
            (63 - 4, "-t 22", "TCP port forwarding requested, but TCP is disabled"),
            (63 - 8, "-u 22", "UDP port forwarding requested, but UDP is disabled"),
            (63 - 16, "-t auto", "'auto' port forwarding is only allowed for pasta"),
            (63 - 32, "-t %lo/22", "Interface names are not supported there"),
        ] {
            assert_eq!(after(bits, &[line]), Err(message.to_owned()));
        }
        assert_eq!(after(63 - 2, &["-t 22"]).unwrap(), ["TCP [0.0.0.0]:22  =>  22"]);
        assert_eq!(after(0, &["-t none"]), Ok(Vec::new()));
        let mut passt = daemon(63);
        passt.truncate(1);
        let error = apply(&mut passt, &steps("-T 22"), &(1..=2)).unwrap_err();
        assert_eq!(error.to_string(), "No forwarding table SPLICE");
    }
}
