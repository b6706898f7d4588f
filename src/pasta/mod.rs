//! A network namespace as the guest: which one, the command that runs in it, and its set-up.
//!
//! Knows namespaces, processes and netlink. The engine serves the namespace through a link and the
//! host's sockets as it serves any other guest, and knows nothing of this module.

pub mod interface;
