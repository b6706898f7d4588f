//! When it is over: the command has ended, the namespace that we joined has gone, or the process
//! that makes our sockets there.
//!
//! One descriptor each in the epoll; nothing is asked for by a timer. The file of a namespace
//! vanishes when its directory says so (inotify); one below `/proc` when its process ends.

use super::Error;
use super::namespace::{Life, Namespace};
use super::running::Running;
use crate::sys::epoll::Epoll;
use crate::token::{Interest, Token};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The command has ended with this status.
    Command(u8),
    /// The namespace is not there any more.
    NamespaceGone,
    /// The process that makes our sockets there is not. Nobody can be served without, and an
    /// ordinary user has no way back to start another.
    InsideGone,
}

/// Something that ends.
#[derive(Debug)]
pub enum Watch {
    /// Our command.
    Command(Running),
    /// A process whose namespace we joined.
    Process(OwnedFd),
    /// A name, and the directory that says when it goes.
    Name(Inotify, OsString),
    /// Our channel to the process inside, for its end ([`crate::host::inside::Inside::fd`]).
    Inside(OwnedFd),
}

impl Watch {
    /// Watches what `namespace` ends with.
    ///
    /// # Errors
    /// The directory cannot be watched, or the namespace has gone already.
    pub fn new(life: Life, namespace: &Namespace) -> Result<Self, Error> {
        let path = match life {
            Life::Process(process) => return Ok(Self::Process(process)),
            Life::Name(path) => path,
        };
        let fail = |e: Errno| Error::Watch(e.into());
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(fail)?;
        let (directory, name) = place(&path);
        let events = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&directory, events).map_err(fail)?;
        if !namespace.is_at(&path) {
            return Err(Error::Vanished(path.display().to_string()));
        }
        Ok(Self::Name(inotify, name))
    }

    /// Has `epoll` tell by `token` when to look.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn register(&self, epoll: &Epoll, token: Token) -> io::Result<()> {
        // Of a channel only the end is told: what comes on it is for others.
        let readable = !matches!(self, Self::Inside(_));
        epoll.add(self.as_fd(), token, Interest { readable, ..Interest::default() })
    }

    /// Looks whether it is over.
    ///
    /// # Errors
    /// What can only be a mistake of ours.
    pub fn look(&self) -> io::Result<Option<End>> {
        match self {
            Self::Command(command) => Ok(command.status()?.map(End::Command)),
            Self::Process(_) => Ok(Some(End::NamespaceGone)),
            Self::Inside(_) => Ok(Some(End::InsideGone)),
            Self::Name(inotify, name) => loop {
                match inotify.read_events() {
                    Ok(events) if events.iter().any(|event| means_gone(event, name)) => {
                        return Ok(Some(End::NamespaceGone));
                    }
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
            },
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Command(command) => command.as_fd(),
            Self::Process(fd) | Self::Inside(fd) => fd.as_fd(),
            Self::Name(inotify, _) => inotify.as_fd(),
        }
    }
}

/// Whether `name` has gone, or the directory, which speaks without a name. More events than the
/// kernel keeps say nothing, and nobody can look for a name in a root that is empty: it takes
/// thousands of names that go while we are stopped, and may keep us for longer than is needed.
fn means_gone(event: &InotifyEvent, name: &OsString) -> bool {
    event.name.as_ref().is_none_or(|other| other == name)
        && !event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
}

/// The directory that `path` stands in, and its name there.
fn place(path: &Path) -> (PathBuf, OsString) {
    let directory = path.parent().map_or_else(|| "/".into(), Path::to_owned);
    (directory, path.file_name().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory with a file in it, and a watch on that name.
    fn watched() -> (PathBuf, PathBuf, Watch) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-watch-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).expect("is ours");
        let file = directory.join("name");
        fs::write(&file, "").expect("is ours");
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("is there");
        let (place, name) = place(&file);
        let events = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(&place, events).expect("is there");
        (directory, file, Watch::Name(inotify, name))
    }

    #[test]
    fn a_name_that_goes_is_seen_and_others_are_not() {
        let (directory, file, watch) = watched();
        assert_eq!(watch.look().expect("looks"), None);
        fs::write(directory.join("other"), "").expect("is ours");
        fs::remove_file(directory.join("other")).expect("is ours");
        assert_eq!(watch.look().expect("looks"), None);
        fs::remove_file(file).expect("is ours");
        assert_eq!(watch.look().expect("looks"), Some(End::NamespaceGone));
        fs::remove_dir(directory).expect("is ours");
    }

    #[test]
    fn a_name_that_leads_elsewhere_before_it_is_watched_has_gone() {
        let (directory, file, _) = watched();
        let path = Path::new("/proc/self/ns/net");
        let namespace = Namespace::at(path, None).expect("is one");
        let line = |path: &Path| {
            let new = Watch::new(Life::Name(path.to_owned()), &namespace);
            new.map(drop).expect_err("is no namespace").to_string()
        };
        assert_eq!(line(&file), format!("{} has gone meanwhile", file.display()));
        fs::remove_file(&file).expect("is ours");
        assert_eq!(line(&file), format!("{} has gone meanwhile", file.display()));
        fs::remove_dir(&directory).expect("is ours");
        assert!(line(&file).starts_with("Couldn't watch the namespace: No such file"));
    }

    #[test]
    fn the_end_of_the_directory_counts_as_gone_and_lost_events_do_not() {
        let (directory, file, watch) = watched();
        fs::rename(&file, directory.with_extension("elsewhere")).expect("is ours");
        fs::remove_file(directory.with_extension("elsewhere")).expect("is ours");
        fs::remove_dir(directory).expect("is ours");
        assert_eq!(watch.look().expect("looks"), Some(End::NamespaceGone));
        let event = |mask| InotifyEvent {
            wd: Inotify::init(InitFlags::empty())
                .and_then(|i| i.add_watch("/", AddWatchFlags::IN_DELETE_SELF))
                .expect("is there"),
            mask,
            cookie: 0,
            name: None,
        };
        assert!(means_gone(&event(AddWatchFlags::IN_IGNORED), &"name".into()));
        assert!(!means_gone(&event(AddWatchFlags::IN_Q_OVERFLOW), &"name".into()));
    }
}
