//! Why the program ends with status 1: each error is one line to the user.

use super::unix;
use crate::link::tap;
use crate::sandbox::{self, RunAsError};
use crate::sys::error_text;
use crate::{config, daemon};
use std::fmt;
use std::io;

/// Why the program ends with status 1.
#[derive(Debug)]
pub(super) enum Error {
    Config(config::Error),
    Log(crate::log::Error),
    Daemon(daemon::Error),
    Sandbox(sandbox::Error),
    RunAs(RunAsError),
    Unix(unix::Error),
    Netlink(io::Error),
    /// `--fd` names something else than we need: what it is.
    Given(i32, &'static str),
    /// There is no descriptor, though it takes one.
    NothingGiven,
    /// Something that works on every system we know of.
    System(&'static str, io::Error),
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
    /// Somebody has ended the process that makes our sockets in the namespace.
    InsideGone,
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
            Self::Given(number, what) => write!(f, "Invalid --fd: {number} is {what}"),
            Self::NothingGiven => f.write_str("No descriptor given with --fd"),
            Self::System(what, e) => write!(f, "Couldn't {what}: {}", error_text(e)),
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
            Self::InsideGone => f.write_str(
                "The process that makes our sockets in the namespace has ended, exiting",
            ),
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
