//! What became of the rules: changes, and why there were none.

use crate::config::ports::Rule;
use crate::flow::{Protocol, Side};
use std::fmt;
use std::io;
use std::net::IpAddr;

/// What has changed when rules were replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sockets that were opened.
    pub opened: usize,
    /// Sockets that were closed, with the connections that nobody had accepted.
    pub closed: usize,
    /// Sockets that are as they were, with their queues; their rule may be another.
    pub kept: usize,
    /// What best-effort rules could not do: one line for each rule.
    pub warnings: Vec<String>,
}

/// Why the rules are as they were before.
#[derive(Debug)]
pub enum Failure {
    /// A port that must be listened on cannot be.
    Port(Refused),
    /// There are more ports than descriptors for listening sockets.
    TooMany {
        /// Sockets that the rules need.
        wanted: usize,
        /// Sockets that there may be.
        most: usize,
    },
}

/// A port that cannot be listened on.
#[derive(Debug)]
pub struct Refused {
    side: Side,
    listen: String,
    protocol: &'static str,
    port: u16,
    reason: io::Error,
}

impl Refused {
    pub(super) fn new(side: Side, rule: &Rule, port: u16, reason: io::Error) -> Self {
        let protocol = if rule.protocol == Protocol::Udp { "UDP" } else { "TCP" };
        Self { side, listen: describe(rule), protocol, port, reason }
    }

    /// One line for so many ports of a rule, of which this is the last.
    pub(super) fn summary(&self, ports: usize) -> String {
        match ports {
            1 => self.to_string(),
            n => format!("{n} ports are left out, the last one: {self}"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, listen, protocol, port, reason } = self;
        write!(f, "Listen failed for {side} {protocol} port {listen}/{port}: ")?;
        match reason.raw_os_error() {
            Some(number) => f.write_str(nix::errno::Errno::from_raw(number).desc()),
            None => reason.fmt(f),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(refused) => refused.fmt(f),
            Self::TooMany { wanted, most } => write!(
                f,
                "Forwarding these ports takes {wanted} sockets, and the limit of open files leaves \
                 {most}: raise it (ulimit -n) or forward fewer ports"
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// `ADDR%IFNAME` of a rule, as users write it.
fn describe(rule: &Rule) -> String {
    let address = match rule.listen {
        Some(IpAddr::V6(a)) => format!("[{a}]"),
        Some(a) => a.to_string(),
        None => "*".to_owned(),
    };
    match &rule.ifname {
        Some(name) => format!("{address}%{name}"),
        None => address,
    }
}
