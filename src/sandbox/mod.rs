//! Taking our privileges away, in stages that are types: each stage consumes the one before it, so
//! that their order is checked by the compiler.
//!
//! ```text
//! Started ──identify──> Identified ──jail──> Jailed ──lock──> Locked
//! ```
//!
//! | stage        | from here on                                   | done before, because it needs what is lost next |
//! |--------------|------------------------------------------------|--------------------------------------------------|
//! | [`Started`]  | only the capabilities that set-up may need     | –                                                |
//! | [`Identified`] | not root any more, no groups                 | log, PID file, unix sockets, capture, low ports  |
//! | [`Jailed`]   | no capabilities at all, empty root, own user, mount, IPC, UTS and (in background) PID namespace | every other file: resolv.conf, `/dev/null`, `/proc` |
//! | [`Locked`]   | not dumpable, no new privileges, system calls filtered | sockets of other families, threads       |
//!
//! The network namespace stays the host's: our sockets are its sockets. A feature that the
//! sandbox forbids does not exist; what each role may call stands in `table.rs`, with the
//! function that needs it.
//!
//! A namespace's worker goes from the first stage to the third at once ([`Started::jail_at`]):
//! it keeps `CAP_NET_BIND_SERVICE` over the namespace (and `CAP_KILL`, with a command), and so stays
//! in a user namespace that has a say there, instead of one of its own.
//!
//! All of it happens in the only thread of the process: user namespaces need that.

mod capabilities;
mod identity;
mod mounts;
mod seccomp;
mod table;

pub use identity::{Identity, RunAs, RunAsError};

use crate::sys::error_text;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// Why a step failed. Each variant names the step.
#[derive(Debug)]
pub enum Error {
    /// Reading or changing capabilities.
    Capabilities(String),
    /// Emptying the bounding set.
    BoundingSet(io::Error),
    /// Becoming another user.
    User {
        /// Whom we were to become.
        identity: Identity,
        /// What setgroups(2), setresgid(2) or setresuid(2) said.
        source: io::Error,
    },
    /// Keeping a capability when the user changes.
    KeepCapabilities(io::Error),
    /// Making a user namespace.
    UserNamespace(io::Error),
    /// Making the other namespaces.
    Namespaces(io::Error),
    /// Emptying the root.
    Mount {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Becoming undumpable.
    Dumpable(io::Error),
    /// Giving up new privileges.
    NoNewPrivileges(io::Error),
    /// Compiling or installing the filter of system calls.
    Filter(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities(e) => write!(f, "Couldn't drop capabilities: {e}"),
            Self::BoundingSet(e) => {
                write!(f, "Couldn't empty the bounding set: {}", error_text(e))
            }
            Self::User { identity: Identity { uid, gid }, source } => {
                write!(f, "Couldn't change to user {uid}, group {gid}: {}", error_text(source))
            }
            Self::KeepCapabilities(e) => {
                write!(f, "Couldn't keep the right to low ports: {}", error_text(e))
            }
            // Matched by others, word by word.
            Self::UserNamespace(e) => {
                write!(f, "Couldn't create user namespace: {}", error_text(e))
            }
            Self::Namespaces(e) => write!(f, "Couldn't create namespaces: {}", error_text(e)),
            Self::Mount { step, source } => write!(f, "Couldn't {step}: {}", error_text(source)),
            Self::Dumpable(e) => write!(f, "Couldn't become undumpable: {}", error_text(e)),
            Self::NoNewPrivileges(e) => {
                write!(f, "Couldn't give up new privileges: {}", error_text(e))
            }
            Self::Filter(e) => write!(f, "Couldn't filter system calls: {e}"),
        }
    }
}

impl From<Error> for io::Error {
    /// The number, for those who can pass on no more.
    fn from(error: Error) -> Self {
        let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<Self>());
        let number = source.and_then(Self::raw_os_error);
        number.map_or_else(|| Self::other(error.to_string()), Self::from_raw_os_error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Capabilities(_) | Self::Filter(_) => None,
            Self::User { source, .. } | Self::Mount { source, .. } => Some(source),
            Self::BoundingSet(e)
            | Self::KeepCapabilities(e)
            | Self::UserNamespace(e)
            | Self::Namespaces(e)
            | Self::Dumpable(e)
            | Self::NoNewPrivileges(e) => Some(e),
        }
    }
}

/// What to do where user namespaces are forbidden, as in many containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutUserNamespace {
    /// Refuse to start.
    #[default]
    Fail,
    /// Warn once, with what is missing, and go on with what is left: no capabilities, no new
    /// privileges, system calls filtered, and an empty root where we may make one all the same.
    GoOn,
}

/// How to jail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jail {
    /// Begin a PID namespace with the next child: for a daemon, which forks right after.
    pub pid_namespace: bool,
    /// What to do where user namespaces are forbidden.
    pub without_user_namespace: WithoutUserNamespace,
    /// Where pivot_root(2) fails, as it does when the root is an initramfs, make do with chroot(2).
    pub chroot_fallback: bool,
}

/// What the thread that is locked does afterwards; decides which system calls it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The only worker of `passt --vhost-user`: guest, sockets, and the control socket.
    VhostUser,
    /// The only worker of `passt` on a stream socket: guest and sockets.
    Stream,
    /// `pesto`, a client of the control socket.
    Client,
    /// The only worker of `pasta`: guest, and sockets on both sides.
    Namespace,
    /// As `Namespace`, and besides the end of a command, and signals to it.
    Command,
    /// The process that makes sockets inside a namespace.
    Inside,
}

/// Set-up has begun.
#[derive(Debug)]
#[must_use]
pub struct Started(());

/// We are who we run as.
#[derive(Debug)]
#[must_use]
pub struct Identified(());

/// Capabilities and files are gone.
#[derive(Debug)]
#[must_use]
pub struct Jailed(());

/// Nothing is left to lose.
#[derive(Debug)]
pub struct Locked {
    filtered: bool,
}

impl Started {
    /// Drops the capabilities that not even set-up needs. To be called first.
    pub fn begin() -> Result<Self, Error> {
        capabilities::keep(capabilities::FOR_A_MACHINE)?;
        Ok(Self(()))
    }

    /// As [`Started::begin`], for `pasta`. To be called when its namespaces are open and its
    /// command is made, which inherits what we have.
    pub fn begin_in_namespace() -> Result<Self, Error> {
        capabilities::keep(capabilities::FOR_A_NAMESPACE)?;
        Ok(Self(()))
    }

    /// Becomes `identity`, also where that changes nothing but supplementary groups.
    pub fn identify(self, identity: Identity) -> Result<Identified, Error> {
        identity.assume()?;
        Ok(Identified(()))
    }
}

impl Started {
    /// Does what [`Started::identify`] and [`Identified::jail`] do, for the worker of `pasta`,
    /// which keeps one capability: to listen on low ports; and where it has a command, which need
    /// not be the same user's, another: to signal it. They have to be over the namespace: ours, if
    /// we could set it up with our own rights, and else those that are had in `user`, a user
    /// namespace, where its owner has all of them.
    pub fn jail_at(
        self,
        user: Option<BorrowedFd<'_>>,
        identity: Identity,
        jail: &Jail,
        role: Role,
    ) -> Result<Jailed, Error> {
        if let Some(user) = user {
            let joined = setns(user, CloneFlags::CLONE_NEWUSER);
            joined.map_err(|e| Error::Namespaces(e.into()))?;
        }
        let mut flags = ISOLATED;
        if jail.pid_namespace {
            flags |= CloneFlags::CLONE_NEWPID;
        }
        unshare(flags).map_err(|e| Error::Namespaces(e.into()))?;
        mounts::empty_root(jail.chroot_fallback)?;
        umask(Mode::from_bits_truncate(0o077));
        if user.is_none() && identity != Identity::current() {
            // Whoever stops being root loses all capabilities otherwise.
            prctl::set_keepcaps(true).map_err(|e| Error::KeepCapabilities(e.into()))?;
            identity.assume()?;
            prctl::set_keepcaps(false).map_err(|e| Error::KeepCapabilities(e.into()))?;
        }
        capabilities::keep(match role {
            Role::Command => capabilities::LOW_PORTS_AND_COMMAND,
            _ => capabilities::LOW_PORTS,
        })?;
        Ok(Jailed(()))
    }
}

/// Becomes `identity` before anything else, as if that user had started us: for `--runas` of
/// `pasta`, whose command is that user's.
pub fn start_as(identity: Identity) -> Result<(), Error> {
    identity.assume()?;
    // The files in /proc of who has changed its user belong to root, also those that say which
    // users exist in the namespaces that we make.
    prctl::set_dumpable(true).map_err(|e| Error::Dumpable(e.into()))
}

/// Locks up the process that makes sockets inside a namespace, which has joined it with all
/// rights there: it keeps none of them, nor files, and becomes `identity` unless it had to join
/// the user namespace as who it was.
pub fn confine_inside(identity: Option<Identity>) -> Result<(), Error> {
    unshare(ISOLATED).map_err(|e| Error::Namespaces(e.into()))?;
    mounts::empty_root(false)?;
    identity.map_or(Ok(()), Identity::assume)?;
    capabilities::keep(&[])?;
    Jailed(()).lock(Role::Inside)?;
    Ok(())
}

/// The namespaces that everybody in the sandbox has of their own.
const ISOLATED: CloneFlags =
    CloneFlags::CLONE_NEWIPC.union(CloneFlags::CLONE_NEWNS).union(CloneFlags::CLONE_NEWUTS);

impl Identified {
    /// Leaves the host's files, processes and capabilities behind.
    pub fn jail(self, jail: &Jail) -> Result<Jailed, Error> {
        let refused = enter_user_namespace(jail.without_user_namespace)?;
        let mut flags = ISOLATED;
        if jail.pid_namespace {
            flags |= CloneFlags::CLONE_NEWPID;
        }
        let isolated = unshare(flags);
        match (isolated, refused) {
            (Ok(()), _) => mounts::empty_root(jail.chroot_fallback)?,
            // Without a user namespace only root may go on here.
            (Err(Errno::EPERM), Some(_)) => {}
            (Err(e), _) => return Err(Error::Namespaces(e.into())),
        }
        if let Some(e) = refused {
            log::warn!(
                "No user namespace ({}): {}",
                e.desc(),
                match isolated {
                    Ok(()) => "isolated by the other means",
                    Err(_) => {
                        "no empty root and no namespaces, only fewer rights and filtered system calls"
                    }
                }
            );
        }
        // What is still made, if anything, is nobody else's business.
        umask(Mode::from_bits_truncate(0o077));
        capabilities::drop_all(refused.is_none())?;
        Ok(Jailed(()))
    }
}

/// Makes a user namespace, in which we may do the rest; says why not when we go on without.
fn enter_user_namespace(otherwise: WithoutUserNamespace) -> Result<Option<Errno>, Error> {
    match (unshare(CloneFlags::CLONE_NEWUSER), otherwise) {
        (Ok(()), _) => Ok(None),
        (Err(e), WithoutUserNamespace::GoOn) => Ok(Some(e)),
        (Err(e), WithoutUserNamespace::Fail) => Err(Error::UserNamespace(e.into())),
    }
}

impl Jailed {
    /// The last lock, after the last fork: nobody may trace us or read our memory, no program can
    /// give us privileges, and system calls that `role` does not need kill the process.
    pub fn lock(self, role: Role) -> Result<Locked, Error> {
        prctl::set_dumpable(false).map_err(|e| Error::Dumpable(e.into()))?;
        prctl::set_no_new_privs().map_err(|e| Error::NoNewPrivileges(e.into()))?;
        let filtered = seccomp::install(role)?;
        Ok(Locked { filtered })
    }
}

/// The lock alone, for programs that begin with nothing to lose: no new privileges, and no system
/// calls that `role` does not need.
///
/// # Errors
/// The kernel refuses one of them.
pub fn lock_client(role: Role) -> Result<(), Error> {
    prctl::set_no_new_privs().map_err(|e| Error::NoNewPrivileges(e.into()))?;
    seccomp::install(role).map(drop)
}

impl Locked {
    /// Whether system calls are filtered: not on machines whose numbers we do not know.
    pub const fn is_filtered(&self) -> bool {
        self.filtered
    }
}
