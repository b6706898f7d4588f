//! The Unix socket that a virtual machine connects to.

use crate::daemon::Leftover;
use crate::sys::error_text;
use nix::errno::Errno;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// Sockets without a name of the user's choice: `/tmp/passt_N.socket`, N up to this.
const ANYWHERE: u32 = 99;

/// Why there is no socket.
#[derive(Debug)]
pub(super) enum Error {
    /// Someone serves there.
    InUse(PathBuf),
    /// Something else stands there.
    NoSocket(PathBuf),
    /// The system refuses.
    Bind(PathBuf, io::Error),
    /// All of the usual ones are taken.
    NoneFree,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path) => write!(f, "Socket path {} already in use", path.display()),
            Self::NoSocket(path) => {
                write!(f, "Socket path {} exists and is no socket", path.display())
            }
            Self::Bind(path, e) => {
                let reason = error_text(e);
                write!(f, "Couldn't bind UNIX domain socket to {}: {reason}", path.display())
            }
            Self::NoneFree => {
                write!(f, "None of /tmp/passt_1.socket to /tmp/passt_{ANYWHERE}.socket is free")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Where we listen. The socket is removed again unless start-up succeeds.
#[derive(Debug)]
pub(super) struct Bound {
    path: PathBuf,
    leftover: Leftover,
}

impl Bound {
    /// Listens on `path`. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// Whatever stands there is left alone.
    pub(super) fn at(path: &Path) -> Result<(Self, UnixListener), Error> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {
                clear(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(|e| Error::Bind(path.to_owned(), e))?;
        Ok((Self { path: path.to_owned(), leftover: Leftover::new(path) }, listener))
    }

    /// Listens on the first of the usual paths that can be had.
    ///
    /// # Errors
    /// None can be had: the reason, where it is another than that all are taken.
    pub(super) fn anywhere() -> Result<(Self, UnixListener), Error> {
        let mut why = None;
        for n in 1..=ANYWHERE {
            match Self::at(Path::new(&format!("/tmp/passt_{n}.socket"))) {
                Ok(bound) => return Ok(bound),
                // Taken by somebody, whoever may be told so.
                Err(Error::InUse(_) | Error::NoSocket(_)) => {}
                Err(error) => why = why.or(Some(error)),
            }
        }
        Err(why.unwrap_or(Error::NoneFree))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be removed when the start fails.
    pub(super) fn into_leftover(self) -> Leftover {
        self.leftover
    }
}

/// Removes a socket that nobody serves.
///
/// To connect to it would be noticed there: a program that serves one client only would take us
/// for it. A socket of the wrong type never gets through, and the kernel says whether the reason
/// is the type (someone is there) or that nobody is.
fn clear(path: &Path) -> Result<(), Error> {
    let bind_error = |e| Error::Bind(path.to_owned(), e);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(Error::NoSocket(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(bind_error(e)),
    }
    let probe = UnixDatagram::unbound().map_err(bind_error)?;
    match probe.connect(path).map_err(|e| e.raw_os_error().map(Errno::from_raw)) {
        Err(Some(Errno::ECONNREFUSED)) => fs::remove_file(path).map_err(bind_error),
        Err(Some(Errno::ENOENT)) => Ok(()),
        Err(Some(e @ (Errno::EACCES | Errno::EPERM))) => Err(bind_error(e.into())),
        _ => Err(Error::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("passt-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_live_socket_is_left_alone_and_not_even_connected_to() {
        let folder = Folder::new("live");
        let path = folder.0.join("socket");
        let (live, listener) = Bound::at(&path).unwrap();
        let error = Bound::at(&path).unwrap_err().to_string();
        assert_eq!(error, format!("Socket path {} already in use", path.display()));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        live.into_leftover().keep();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = Folder::new("stale");
        let path = folder.0.join("socket");
        let (stale, listener) = Bound::at(&path).unwrap();
        drop(listener);
        stale.into_leftover().keep();
        assert!(path.exists());
        let (_bound, _listener) = Bound::at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = Folder::new("file");
        let path = folder.0.join("socket");
        fs::write(&path, "precious").unwrap();
        let error = Bound::at(&path).unwrap_err().to_string();
        assert_eq!(error, format!("Socket path {} exists and is no socket", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_goes_when_start_up_fails_and_stays_when_it_succeeds() {
        let folder = Folder::new("drop");
        let path = folder.0.join("socket");
        let (failed, _listener) = Bound::at(&path).unwrap();
        assert_eq!(failed.path(), path);
        drop(failed);
        assert!(!path.exists());
        let (succeeded, _listener) = Bound::at(&path).unwrap();
        succeeded.into_leftover().keep();
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_cannot_be_is_refused_with_the_reason() {
        let error = Bound::at(Path::new("/nonexistent/socket")).unwrap_err().to_string();
        let reason = "Couldn't bind UNIX domain socket to /nonexistent/socket: No such file";
        assert!(error.starts_with(reason), "{error}");
    }
}
