//! `/etc/resolv.conf` while we run.
//!
//! From the sandbox no file can be opened, so what is read anew is the file that was there at start:
//! when it is written, which the kernel tells us, and when the network changes. A program that puts
//! another file in its stead (rename(2)) leaves us with the old one, and one that was not there at
//! start is not seen. We could keep the folder and open files in it, but then so could whoever
//! takes this process over.

use crate::config::resolv::Resolv;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// Bytes that are read at most.
const MAX_FILE: usize = 1 << 16;

/// Batches of events that are taken in one turn.
const BATCHES: usize = 16;

/// The file, and whether it is written.
#[derive(Debug)]
pub struct ResolvFile {
    file: File,
    /// `None` for who does not want to know, and where the kernel gives us no watch: users may have
    /// too many.
    writes: Option<Inotify>,
}

impl ResolvFile {
    /// The file that is at `path` now; `None` without one that can be read. With `heed` it is noticed
    /// when it is written. Who need not know is spared the end of an inotify instance, which takes
    /// the kernel some 20 ms: longer than everything else that many a command does.
    pub fn open(path: &Path, heed: bool) -> Option<Self> {
        let file = File::open(path).ok()?;
        let new = || Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let watched = |inotify: &Inotify| inotify.add_watch(path, AddWatchFlags::IN_MODIFY).is_ok();
        Some(Self { file, writes: heed.then(new).flatten().filter(watched) })
    }

    /// Becomes readable when the file is written.
    pub fn writes(&self) -> Option<BorrowedFd<'_>> {
        self.writes.as_ref().map(Inotify::as_fd)
    }

    /// Takes note of what has been written so far.
    pub(super) fn take_note(&self) {
        let Some(writes) = &self.writes else { return };
        // More than so much may come while we look: then we are woken again.
        for _ in 0..BATCHES {
            if writes.read_events().is_err() {
                break;
            }
        }
    }

    /// Reads it anew, if it still has a name.
    pub(super) fn read(&self) -> Option<Resolv> {
        if self.file.metadata().ok()?.nlink() == 0 {
            return None;
        }
        let mut bytes = vec![0; MAX_FILE];
        let n = self.file.read_at(&mut bytes, 0).ok()?;
        Some(Resolv::parse(&String::from_utf8_lossy(bytes.get(..n)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::{Seek as _, Write as _};
    use vmm_sys_util::tempdir::TempDir;

    fn is_told(file: &ResolvFile) -> bool {
        let mut fds = [PollFd::new(file.writes().expect("is watched"), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn it_is_read_anew_until_it_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("resolv.conf");
        assert!(ResolvFile::open(&path, true).is_none(), "it is not there yet");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert!(ResolvFile::open(&path, false).unwrap().writes().is_none());
        let file = ResolvFile::open(&path, true).unwrap();
        let servers = || file.read().map(|resolv| resolv.servers);
        assert_eq!(servers(), Some(vec!["192.0.2.1".parse().unwrap()]));
        assert!(!is_told(&file));
        let mut other = File::options().write(true).truncate(true).open(&path).unwrap();
        other.write_all(b"nameserver 192.0.2.2\n").unwrap();
        assert!(is_told(&file));
        file.take_note();
        assert!(!is_told(&file));
        assert_eq!(servers(), Some(vec!["192.0.2.2".parse().unwrap()]), "written in place");
        other.rewind().unwrap();
        let new = dir.as_path().join("new");
        std::fs::write(&new, "nameserver 192.0.2.3\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(servers(), None, "replaced");
    }
}
