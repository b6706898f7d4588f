//! An empty root.

use super::Error;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, pivot_root};

/// Where the empty root is mounted before it becomes the root. It only has to exist.
const PLACES: [&str; 3] = ["/tmp", "/run", "/dev"];

fn failed(step: &'static str) -> impl Fn(nix::Error) -> Error {
    move |e| Error::Mount { step, source: e.into() }
}

/// Replaces the root of this mount namespace by an empty, read-only file system; of this process
/// only, if it may be no other way.
pub(super) fn empty_root(chroot_fallback: bool) -> Result<(), Error> {
    // Nothing we mount or detach may reach the namespace that we come from, and nothing may be
    // bound into ours.
    let none = None::<&str>;
    let flags = MsFlags::MS_UNBINDABLE | MsFlags::MS_REC;
    mount(none, "/", none, flags, none).map_err(failed("remount / unbindable"))?;

    // Two inodes: the root itself and one to spare; the file system is read-only anyway.
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_RDONLY;
    let options = Some("nr_inodes=2,nr_blocks=1,mode=0555");
    let mount_at = |place: &&str| mount(none, *place, Some("tmpfs"), flags, options);
    let mut last = nix::Error::ENOENT;
    let place = PLACES.iter().find(|place| mount_at(place).map_err(|e| last = e).is_ok());
    let place = place.ok_or(last).map_err(failed("mount an empty file system"))?;
    chdir(*place).map_err(failed("enter the empty file system"))?;

    // pivot_root(2): with both names the same, the old root is stacked on the new one, and one
    // detach removes it with all that is mounted in it.
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(failed("detach the old root"))?,
        Err(_) if chroot_fallback => cover_root()?,
        Err(e) => return Err(failed("change the root")(e)),
    }
    chdir("/").map_err(failed("enter the new root"))
}

/// Moves the working directory's file system over the root, and makes it the root of this process.
/// The old root stays mounted below: what keeps us from it is that no descriptor leads there, and
/// that we have no capabilities and no system calls to climb out with.
fn cover_root() -> Result<(), Error> {
    let none = None::<&str>;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(failed("cover the root"))?;
    chroot(".").map_err(failed("change the root of the process"))
}
