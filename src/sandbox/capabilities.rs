//! Capabilities over time: few at the start, none in the end.

use super::Error;
use crate::sys::process::empty_bounding_set;
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What setting up may need, if we were given it: binding low ports, switching the user,
/// namespaces and mounts where user namespaces are forbidden, and opening the starter's files.
pub(super) const FOR_A_MACHINE: &[Capability] = &[
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_DAC_OVERRIDE,
];

/// What setting up a namespace may need, as far as we were given it: besides, its interfaces
/// and its command.
pub(super) const FOR_A_NAMESPACE: &[Capability] = &[
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_KILL,
];

/// What serving a namespace needs: ports below 1024 appear there, or on the host, at any time.
pub(super) const LOW_PORTS: &[Capability] = &[Capability::CAP_NET_BIND_SERVICE];

/// What serving a command's needs besides: Ctrl-C ends the command, which may be root's while we
/// are nobody. Our filter knows no way to signal but a descriptor, and to get one but at start.
pub(super) const LOW_PORTS_AND_COMMAND: &[Capability] =
    &[Capability::CAP_NET_BIND_SERVICE, Capability::CAP_KILL];

fn failed(error: CapsError) -> Error {
    Error::Capabilities(error.to_string())
}

/// Whether we have `capability` now.
pub(super) fn has(capability: Capability) -> Result<bool, Error> {
    caps::has_cap(None, CapSet::Effective, capability).map_err(failed)
}

/// Gives up what is not `needed`.
pub(super) fn keep(needed: &[Capability]) -> Result<(), Error> {
    // While CAP_SETPCAP is there, if it ever was. Without it, no_new_privs makes the bounding set
    // meaningless in the end.
    if has(Capability::CAP_SETPCAP)? {
        empty_bounding_set().map_err(Error::BoundingSet)?;
    }
    clear_inherited()?;
    let held = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let kept: CapsHashSet = needed.iter().copied().filter(|c| held.contains(c)).collect();
    // The effective set must never leave the permitted one.
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)
}

/// Gives up everything. In a user namespace of our own we begin with all capabilities and a full
/// bounding set again; both go.
pub(super) fn drop_all(own_user_namespace: bool) -> Result<(), Error> {
    if own_user_namespace {
        empty_bounding_set().map_err(Error::BoundingSet)?;
    }
    clear_inherited()?;
    caps::clear(None, CapSet::Effective).map_err(failed)?;
    caps::clear(None, CapSet::Permitted).map_err(failed)
}

/// Leaves nothing for a program that we might start.
fn clear_inherited() -> Result<(), Error> {
    // Kernels before 4.3 have no ambient set to clear.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(failed)?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
