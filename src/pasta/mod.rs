//! A network namespace as the guest: which one, the command that runs in it, and its set-up.
//!
//! Knows namespaces, processes and netlink. The engine serves the namespace through a link and the
//! host's sockets as it serves any other guest, and knows nothing of this module.
//!
//! Who is where, for a command or a shell:
//!
//! ```text
//! pasta       host's network, set-up rights until the sandbox; the worker
//!  |- command process 1 of new user, network, mount, PID, IPC and UTS namespaces; held until all
//!  |          is ready, then what the user asked for, with no sandbox of ours
//!  '- inside  the same user and network namespace; makes sockets there (`host::inside`)
//! ```
//!
//! [`namespace`] finds or describes the namespaces, [`command`] is the process in new ones,
//! [`running`] what it is to us later, [`interface`] configures what is in them, and [`watch`] tells
//! when it is over.

pub mod command;
pub mod interface;
pub mod namespace;
pub mod running;
pub mod watch;

use crate::sys::error_text;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no namespace to serve. Each stands alone as a line to the user.
#[derive(Debug)]
pub enum Error {
    /// The command's namespaces could not be made.
    Create {
        /// Whether a user namespace was among them.
        user: bool,
        /// Whether our own user exists in the user namespace that we are in.
        known: bool,
        /// What clone(2) said.
        source: io::Error,
    },
    /// There is no such process.
    NoProcess(i32),
    /// The number is that of a thread.
    Thread(i32),
    /// A namespace could not be opened.
    Open {
        /// Whose or where.
        what: String,
        /// What open(2) said.
        source: io::Error,
    },
    /// A file is no namespace of the kind that was asked for.
    NotANamespace {
        /// `network` or `user`.
        kind: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The name or the process went away while we looked.
    Vanished(String),
    /// The namespaces cannot be entered.
    Enter(io::Error),
    /// There is no process that could enter them.
    Inside(io::Error),
    /// The command could not be prepared.
    Command(io::Error),
    /// The end of the namespace cannot be watched for.
    Watch(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { user, known, source } => {
                // The first half is matched by others, word by word.
                let kind = if *user { "user" } else { "network" };
                let reason = error_text(source);
                write!(f, "Couldn't create {kind} namespace: {reason}")?;
                // Who does not exist here may make none, whatever the system allows others.
                if *known { f.write_str(remedy(*user, source)) } else { Ok(()) }
            }
            Self::NoProcess(pid) => write!(f, "No process {pid}: give the PID of one that runs"),
            Self::Thread(pid) => write!(f, "{pid} is a thread: give the PID of its process"),
            Self::Open { what, source } => {
                write!(f, "Couldn't open {what}: {}", error_text(source))?;
                match source.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str("; only its owner may join it"),
                    _ => Ok(()),
                }
            }
            Self::NotANamespace { kind, path } => {
                write!(f, "{} is no {kind} namespace", path.display())
            }
            Self::Vanished(what) => write!(f, "{what} has gone meanwhile"),
            Self::Enter(e) => {
                write!(f, "Couldn't join the network namespace: {}", error_text(e))?;
                match e.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; who does not own it needs --userns with the user namespace that does",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Inside(e) => {
                write!(f, "Couldn't start the process inside the namespace: {}", error_text(e))
            }
            Self::Command(e) => write!(f, "Couldn't prepare the command: {}", error_text(e)),
            Self::Watch(e) => write!(f, "Couldn't watch the namespace: {}", error_text(e)),
        }
    }
}

impl std::error::Error for Error {}

/// What to do about a namespace that the kernel refuses.
fn remedy(user: bool, error: &io::Error) -> &'static str {
    match (error.raw_os_error(), user) {
        (Some(libc::EPERM), true) => {
            "; this system forbids them to ordinary users: see the sysctls user.max_user_namespaces, \
             kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
        }
        (Some(libc::EPERM), false) => "; only root may without a user namespace: omit --netns-only",
        (Some(libc::ENOSPC), _) => "; too many of them: raise the sysctls user.max_*_namespaces",
        (Some(libc::EUSERS), _) => "; too deeply nested",
        (Some(libc::EINVAL), _) => "; this kernel has none",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_cause_and_the_remedy_in_one_line() {
        let create = |user, code| {
            let source = io::Error::from_raw_os_error(code);
            Error::Create { user, known: true, source }.to_string()
        };
        let table = [
            (
                create(true, libc::EPERM),
                "Couldn't create user namespace: Operation not permitted",
                "sysctl",
            ),
            (create(false, libc::EPERM), "Couldn't create network namespace: ", "--netns-only"),
            (create(true, libc::ENOSPC), "Couldn't create user namespace: No space", "raise"),
        ];
        for (line, start, remedy) in table {
            assert!(line.starts_with(start) && line.contains(remedy), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let unknown = Error::Create { user: true, known: false, source }.to_string();
        assert_eq!(unknown, "Couldn't create user namespace: Operation not permitted");
    }
}
