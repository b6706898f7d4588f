//! The command, or the shell: process 1 of new namespaces, held until its network is ready.
//!
//! It is a fork of ours that waits on a channel, so that it ends when we end before it is
//! released, whatever the reason; there is nothing to be forgotten. What we were started with and
//! have changed for ourselves (the limit of open files, the signals that we block) is put back.

use super::Error;
use super::namespace::{Namespace, is_known_here, map_ids};
use super::running::Running;
use crate::config::{Pasta, Target};
use crate::sys::error_text;
use crate::sys::process::{self, Side};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, gethostname, sethostname};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;

/// The shell of a user who has none.
const DEFAULT_SHELL: &str = "/bin/sh";

/// Bytes of a host's name at most (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// What we are started with and change for ourselves before the command is made.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    open_files: Option<(u64, u64)>,
    /// The signals that are blocked.
    blocked: SigSet,
}

impl Inherited {
    /// To be taken before anything is changed.
    pub fn new() -> Self {
        Self {
            open_files: getrlimit(Resource::RLIMIT_NOFILE).ok(),
            // Asking cannot fail.
            blocked: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
        }
    }

    fn restore(self) {
        if let Some((soft, hard)) = self.open_files {
            // Lowering cannot fail, and raising was not done to the hard limit.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
        // We have blocked those that end us, and a program keeps what it is started with. It cannot
        // fail for a set that is valid.
        let _ = self.blocked.thread_set_mask();
    }
}

impl Default for Inherited {
    fn default() -> Self {
        Self::new()
    }
}

/// A command that waits to be released. Dropped before that, it is ended and waited for.
#[derive(Debug)]
pub struct Held {
    /// `None` once it is released.
    channel: Option<UnixStream>,
    process: OwnedFd,
    pid: Pid,
}

/// What the command needs to begin.
#[derive(Debug)]
struct Start {
    program: OsString,
    /// What the program is told as its own name.
    name: OsString,
    arguments: Vec<OsString>,
    hostname: Option<OsString>,
    inherited: Inherited,
}

impl Held {
    /// Makes the command's process in namespaces of its own, and has it prepare itself. Also
    /// returns what it is to us once it runs, and its namespaces.
    ///
    /// # Errors
    /// The namespaces are forbidden. No process is left then.
    pub fn start(
        config: &Pasta,
        inherited: Inherited,
    ) -> Result<(Self, Running, Namespace), Error> {
        let own_user = !config.netns_only;
        let start = Start::new(config, inherited);
        let (ours, theirs) = UnixStream::pair().map_err(Error::Command)?;
        let mut namespaces = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        if own_user {
            namespaces |= CloneFlags::CLONE_NEWUSER;
        }
        // A program with capabilities of its own (setcap(8), for low ports) cannot be dumped, nor can
        // its children, and files in /proc of such a process are root's: also those that say which
        // users it has, and which namespaces. The sandbox takes this back.
        set_dumpable(true).map_err(|e| Error::Command(e.into()))?;
        let made = process::fork_into(namespaces.bits());
        let made = made.map_err(|source| {
            let known = is_known_here().unwrap_or(true);
            Error::Create { user: own_user, known, source }
        })?;
        let (Side::Parent(pid), Some(process)) = made else {
            drop(ours);
            start.run(theirs)
        };
        drop(theirs);
        let watched = process.try_clone().map_err(Error::Command)?;
        let mut held = Self { channel: Some(ours), process, pid: Pid::from_raw(pid.cast_signed()) };
        let running = Running::new(held.pid.as_raw(), watched);
        if own_user && let Err(e) = map_ids(pid) {
            log::warn!("Couldn't map users into the namespace: {}", error_text(&e));
        }
        let namespace = Namespace::of_child(pid, own_user)?;
        // Its users are known: it may prepare.
        held.tell().map_err(Error::Command)?;
        Ok((held, running, namespace))
    }

    fn tell(&mut self) -> io::Result<()> {
        self.channel.as_mut().map_or(Ok(()), |channel| channel.write_all(&[0]))
    }

    /// Lets the command begin.
    pub fn release(mut self) {
        // Killed meanwhile, it does not listen; then its end is told in a moment.
        let _ = self.tell();
        self.channel = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.channel.is_some() {
            // It is our child, and nobody else waits for it.
            let _ = process::send_signal(self.process.as_fd(), libc::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

impl Start {
    fn new(config: &Pasta, inherited: Inherited) -> Self {
        let hostname = hostname(config.hostname.as_deref());
        let (program, name, arguments) = match &config.target {
            Target::Command(words) => {
                let program = words.first().cloned().unwrap_or_default();
                (program.clone(), program, words.get(1..).unwrap_or_default().to_vec())
            }
            _ => {
                let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
                let shell = shell.unwrap_or_else(|| DEFAULT_SHELL.into());
                // By this a shell knows that it is the first one.
                let mut name = OsString::from("-");
                name.push(&shell);
                (shell, name, Vec::new())
            }
        };
        Self { program, name, arguments, hostname, inherited }
    }

    /// The life of the new process until it is another program.
    fn run(self, mut channel: UnixStream) -> ! {
        // What we wait on ends with our parent. This is for what we do in between.
        let _ = set_pdeathsig(Signal::SIGKILL);
        wait(&mut channel);
        self.prepare();
        wait(&mut channel);
        let _ = set_pdeathsig(None);
        self.inherited.restore();
        let mut command = std::process::Command::new(&self.program);
        let error = command.arg0(&self.name).args(&self.arguments).exec();
        let program = self.program.to_string_lossy();
        log::error!("Failed to start command or shell: {program}: {}", error_text(&error));
        process::exit_now(1)
    }

    /// What can be had without a network. None of it is worth not to start.
    fn prepare(&self) {
        // Without a user namespace what we mount would appear outside as well.
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = mount(none, "/", none, private, none)
            .and_then(|()| mount(Some("proc"), "/proc", Some("proc"), flags, none));
        if let Err(e) = mounted {
            log::warn!("Couldn't mount /proc for the command: {}", e.desc());
        }
        // Whoever is user 0 here may ping without being asked for more.
        let ping = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
        if let Err(e) = ping {
            log::warn!("Couldn't allow the command to ping: {}", error_text(&e));
        }
        if let Some(name) = &self.hostname
            && let Err(e) = sethostname(name)
        {
            log::warn!("Couldn't set the command's host name: {}", e.desc());
        }
    }
}

/// The name that was asked for, or one that says where we are.
fn hostname(asked: Option<&str>) -> Option<OsString> {
    let name = match asked {
        Some(name) => name.into(),
        None => {
            let mut name = OsString::from("pasta-");
            name.push(gethostname().ok()?);
            name
        }
    };
    let bytes = name.as_bytes();
    Some(OsStr::from_bytes(bytes.get(..MAX_HOSTNAME).unwrap_or(bytes)).to_owned())
}

/// Waits for a word from our parent, and ends when there is none.
fn wait(channel: &mut UnixStream) {
    let word = channel.read_exact(&mut [0]);
    if word.is_err() {
        process::exit_now(1);
    }
}

/// Reads the status of the process that has ended, as a shell would say it; `None` when it has not.
///
/// # Errors
/// It is not our child.
pub fn status(process: &OwnedFd) -> io::Result<Option<u8>> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    let ended = match waitid(Id::PIDFd(process.as_fd()), flags)? {
        WaitStatus::Exited(_, status) => status,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => return Ok(None),
    };
    Ok(Some(u8::try_from(ended & 0xff).unwrap_or(u8::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_what_was_asked_for_or_tells_where_we_are() {
        assert_eq!(hostname(Some("box")), Some("box".into()));
        assert_eq!(hostname(Some(&"x".repeat(70))), Some("x".repeat(64).into()));
        let ours = hostname(None).expect("the host has a name");
        assert!(ours.to_string_lossy().starts_with("pasta-"), "{ours:?}");
        assert!(ours.len() <= 64);
    }
}
